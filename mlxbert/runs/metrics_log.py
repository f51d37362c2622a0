"""metrics.jsonl: every event of a run, a JSON object a line; its writer, and its only reader."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbert.files.output_file import replace_file, write_errors
from mlxbert.files.reading import read_text
from mlxbert.files.typed_json import from_json
from mlxbert.runs.files import GO_ON, RunError, without_nan
from mlxbert.training.callbacks import KINDS, Callback, EvaluationEvent, Event, MemberEvent, StepEvent, event_record

_CLASSES = {name: kind for kind, name in KINDS.items()}
_FIX = "fix: restore the file, or remove the line"


@dataclass(frozen=True)
class LoggedEvent:
    """A line of the log: the JSON object, and the event that it describes; None for a kind of a later version."""

    values: dict[str, Any]
    event: Event | None


@dataclass(frozen=True)
class EventLog:
    """What a log holds; `cut_off`: its last line was cut in two, as a kill leaves it, and is left out."""

    lines: tuple[LoggedEvent, ...]
    cut_off: bool


def read_log(file: Path) -> EventLog | None:
    """Return the events in a metrics.jsonl; None when there is no such file.

    Raises:
        RunError: not a regular file, too large, or a line that is no event; its number is named.
    """
    text = read_text(file, RunError)
    if text is None:
        return None
    *lines, last = text.split("\n")
    read = [_event(line, f"{file}: line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    cut_off = bool(last.strip())
    if cut_off:
        # A JSON object that is cut anywhere does not parse: one that parses is whole, and lacks its newline alone.
        try:
            read.append(_event(last, f"{file}: line {len(lines) + 1}"))
            cut_off = False
        except _NotJSONError:
            pass
    return EventLog(tuple(read), cut_off)


class _NotJSONError(RunError):
    """A line that does not parse."""


def _event(line: str, place: str) -> LoggedEvent:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise _NotJSONError(f"{place} is not JSON ({reason}); {_FIX}") from None
    if not isinstance(values, dict):
        raise RunError(f"{place} is a {type(values).__name__}, not an object; {_FIX}")
    name = values.get("event")
    kind = _CLASSES.get(name) if isinstance(name, str) else None
    if kind is None:
        return LoggedEvent(values, None)
    return LoggedEvent(values, from_json(kind, values, place=place, fix=_FIX, error=RunError, null_is_nan=True))


class MetricsLog(Callback):
    """Writes the log; where a model starts again, what it had logged beyond that point is taken out first."""

    def __init__(self, file: Path):
        self.file = file

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        log = read_log(self.file)
        if log is None:
            return

        def stays(event: Event | None) -> bool:
            if event is None or event.member != member:
                return True
            return not isinstance(event, MemberEvent) and event.step <= done

        data = "".join(_line(line.values) for line in log.lines if stays(line.event)).encode("utf-8")
        replace_file(self.file, data, fix=GO_ON, follow_links=False)

    def on_step(self, event: StepEvent) -> None:
        self._append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self._append(event)

    def on_member_end(self, event: MemberEvent) -> None:
        self._append(event)

    def _append(self, event: Event) -> None:
        line = _line(event_record(event))
        with write_errors(self.file, len(line), fix=GO_ON), self.file.open("a", encoding="utf-8") as log:
            log.write(line)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(without_nan(record), ensure_ascii=False) + "\n"
