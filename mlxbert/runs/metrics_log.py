"""metrics.jsonl: every event of a run, a JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxbert.files.output_file import replace_file, write_errors
from mlxbert.runs.files import without_nan
from mlxbert.training.callbacks import Callback, EvaluationEvent, Event, MemberEvent, StepEvent, event_record

_FIX = "free some space and resume the run"


class MetricsLog(Callback):
    """Writes the log; where a model starts again, what it had logged beyond that point is taken out first."""

    def __init__(self, file: Path):
        self.file = file

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        if not self.file.is_file():
            return
        kept = [
            record
            for record in read_log(self.file)
            if record.get("member") != member or (record["event"] != "member" and record.get("step", 0) <= done)
        ]
        data = "".join(_line(record) for record in kept).encode()
        replace_file(self.file, data, fix=_FIX, follow_links=False)

    def on_step(self, event: StepEvent) -> None:
        self._append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self._append(event)

    def on_member_end(self, event: MemberEvent) -> None:
        self._append(event)

    def _append(self, event: Event) -> None:
        line = _line(event_record(event))
        with write_errors(self.file, len(line), fix=_FIX), self.file.open("a", encoding="utf-8") as log:
            log.write(line)


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """The events of a log; a last line that a kill has cut in two is left out."""
    with file.open(encoding="utf-8", errors="replace") as log:
        for line in log:
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("event"), str):
                yield record


def _line(record: dict[str, Any]) -> str:
    return json.dumps(without_nan(record), ensure_ascii=False) + "\n"
