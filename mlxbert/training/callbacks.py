"""What a training tells while it runs, and whom: a callback is any object with some of these methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StepEvent:
    """One optimizer step.

    Attributes:
        member: name of the model in training, such as "seed0-fold2".
        seed: of the model.
        fold: number of the fold that is held out, from 0.
        epoch: passes over the training rows done.
        step: steps done.
        steps: of the whole training.
        loss: mean over the step's real rows.
        rate: the learning rate of the top layer.
        norm: of the gradient before clipping.
        rows_per_second: since the last event.
        skipped: the loss or gradient was not finite, and the weights stayed.
    """

    member: str
    seed: int
    fold: int
    epoch: float
    step: int
    steps: int
    loss: float
    rate: float
    norm: float
    rows_per_second: float
    skipped: bool = False


@dataclass(frozen=True)
class EvaluationEvent:
    """The held-out rows judged.

    Attributes:
        loss: mean over the held-out rows.
        metrics: by name; predictions are cross-fitted (`mlxbert.training.held_out`).
        best: no evaluation of this model was better.
    """

    member: str
    seed: int
    fold: int
    epoch: float
    step: int
    loss: float
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True)
class MemberEvent:
    """A model is done; `epoch` and `step` are those of the weights that it keeps."""

    member: str
    seed: int
    fold: int
    epoch: float
    step: int
    metrics: dict[str, float]
    seconds: float
    note: str | None = None


Event = StepEvent | EvaluationEvent | MemberEvent
KINDS: dict[type, str] = {StepEvent: "step", EvaluationEvent: "evaluation", MemberEvent: "member"}


def event_record(event: Event) -> dict[str, Any]:
    """A flat record of an event for logs: {"event": "step", …}, JSON-able but for nan."""
    return {"event": KINDS[type(event)], **asdict(event)}


class Callback:
    """Subclass it and override what you want to know; all of it runs between two steps, and so costs time.

    `mlxbert.train(…, callbacks=[Mine()])`. A callback that raises stops the training; the last saved state stays.
    """

    def on_run_start(self, info: dict[str, Any]) -> None:
        """Once; `info` is the content of run.json."""

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        """Before a model's first step, or before it goes on with `done` of its `steps` done."""

    def on_step(self, event: StepEvent) -> None:
        """After each optimizer step."""

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """After each evaluation."""

    def on_member_end(self, event: MemberEvent) -> None:
        """When a model is finished and saved; again, where the process was killed just then and goes on."""

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        """Once, whatever the end was; `scores` is the content of scores.json, None where it did not get so far."""


class Callbacks(Callback):
    """Several, in order."""

    def __init__(self, several: Sequence[Callback]):
        self.several = tuple(several)

    def on_run_start(self, info: dict[str, Any]) -> None:
        for one in self.several:
            one.on_run_start(info)

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        for one in self.several:
            one.on_member_start(member, seed, fold, steps, done)

    def on_step(self, event: StepEvent) -> None:
        for one in self.several:
            one.on_step(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        for one in self.several:
            one.on_evaluation(event)

    def on_member_end(self, event: MemberEvent) -> None:
        for one in self.several:
            one.on_member_end(event)

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        for one in self.several:
            one.on_run_end(scores)
