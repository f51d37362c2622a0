"""What each member of a run logged while it trained, in the order of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mlxbert.runs.metrics_log import read_log
from mlxbert.training.callbacks import EvaluationEvent, MemberEvent, StepEvent


@dataclass
class History:
    """What one member logged, by step: a resumed run may log a step again, and the last word counts."""

    member: str
    seed: int
    fold: int
    steps: dict[int, StepEvent] = field(default_factory=dict)
    evaluations: dict[int, EvaluationEvent] = field(default_factory=dict)
    finished: MemberEvent | None = None

    def kept_step(self, keep: str) -> int | None:
        """The step whose weights are kept ("best" or "last"): so far, where the member is unfinished."""
        if self.finished is not None and self.finished.step in self.evaluations:
            return self.finished.step
        return max((step for step, one in self.evaluations.items() if one.best or keep == "last"), default=None)

    @property
    def label(self) -> str:
        """For a legend."""
        return f"seed {self.seed}, fold {self.fold}"


def read_histories(path: Path) -> tuple[list[History], list[str]]:
    """Return the members' histories, by seed and fold, and what the reader of a report should know of the file.

    Raises:
        RunError: a line is not an event; it is named.
    """
    log = read_log(path)
    if log is None:
        return [], [f"{path.name} is not there: no curves."]
    histories: dict[str, History] = {}
    for event in (line.event for line in log.lines):
        if event is None:  # of a later version
            continue
        history = histories.setdefault(event.member, History(event.member, event.seed, event.fold))
        if isinstance(event, StepEvent):
            history.steps[event.step] = event
        elif isinstance(event, EvaluationEvent):
            history.evaluations[event.step] = event
        else:
            history.finished = event
    notes = [f"The last line of {path.name} is cut off, and left out."] if log.cut_off else []
    return sorted(histories.values(), key=lambda one: (one.seed, one.fold, one.member)), notes
