"""metrics.jsonl: what each member of a run logged while it trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mlxbert.files.reading import read_text
from mlxbert.report.json_values import JsonValues
from mlxbert.report.report_error import ReportError

FIX = "fix: restore the file, or remove the line"


@dataclass(frozen=True)
class Step:
    """One update of the weights: how much of the data was seen, the batch's loss, the base learning rate."""

    epoch: float
    loss: float
    rate: float


@dataclass(frozen=True)
class Evaluation:
    """The held-out rows' loss and metrics at one time; `best`: better than every one before."""

    epoch: float
    loss: float
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True)
class MemberScores:
    """A finished member: where its best weights are from, and how they score on its held-out rows."""

    member: str
    rows: int | None
    step: int | None
    epoch: float
    metrics: dict[str, float]


@dataclass
class History:
    """What one member logged, by step: a resumed run may log a step again, and the last word counts."""

    member: str
    seed: int
    fold: int
    steps: dict[int, Step] = field(default_factory=dict)
    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    finished: MemberScores | None = None

    def kept_step(self, keep: str) -> int | None:
        """The step whose weights are kept ("best" or "last"): so far, where the member is unfinished."""
        if self.finished is not None and self.finished.step in self.evaluations:
            return self.finished.step
        return max((step for step, one in self.evaluations.items() if one.best or keep == "last"), default=None)

    @property
    def label(self) -> str:
        """For a legend."""
        return f"seed {self.seed}, fold {self.fold}"


def read_events(path: Path, *, unfinished: bool) -> tuple[list[History], list[str]]:
    """The members' histories, by seed and fold, and what the reader should know of the file.

    The last line of an `unfinished` run may be cut off, as a kill leaves it: it is left out, which a note says.

    Raises:
        ReportError: a line is not a JSON object, or an event without its fields; the line is named.
    """
    text = read_text(path, ReportError)
    if text is None:
        return [], [f"{path.name} is not there: no curves."]
    histories: dict[str, History] = {}
    notes: list[str] = []
    for event in _events(path, text, notes if unfinished else None):
        kind = event.values.get("event")
        if kind not in ("step", "evaluation", "member"):
            continue  # of a later version
        name = event.text("member")
        history = histories.setdefault(name, History(name, event.whole("seed"), event.whole("fold")))
        step = event.whole("step")
        if kind == "step":
            history.steps[step] = Step(event.number("epoch"), event.number("loss"), event.number("rate"))
        elif kind == "evaluation":
            best = event.values.get("best") is True
            history.evaluations[step] = Evaluation(
                event.number("epoch"), event.number("loss"), event.metrics("metrics"), best
            )
        else:
            history.finished = MemberScores(name, None, step, event.number("epoch"), event.metrics("metrics"))
    return sorted(histories.values(), key=lambda one: (one.seed, one.fold, one.member)), notes


def _events(path: Path, text: str, cut_off: list[str] | None) -> Iterator[JsonValues]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError) as error:
            if cut_off is not None and number == len(lines):  # without its newline
                cut_off.append(f"The last line of {path.name} is cut off, and left out.")
                return
            reason = getattr(error, "msg", "nested too deeply")
            raise ReportError(f"{path}: line {number} is not JSON ({reason}); {FIX}") from None
        if not isinstance(event, dict):
            raise ReportError(f"{path}: line {number} is a {type(event).__name__}, not an object; {FIX}")
        yield JsonValues(event, f"{path}: line {number}", FIX)
