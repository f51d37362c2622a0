"""The events of a training, and `Callback`, the base class of the objects that receive them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happens to one model of a run.

    Attributes:
        member: name of the model in training, such as "seed0-fold2".
        seed: of the model.
        fold: number of the held-out fold, from 0.
        epoch: finished passes over the training rows.
        step: finished steps.
    """

    member: str
    seed: int
    fold: int
    epoch: float
    step: int


@dataclass(frozen=True)
class StepEvent(Event):
    """One optimizer step.

    Attributes:
        steps: of the whole training.
        loss: mean over the step's real rows.
        rate: learning rate of the top layer.
        norm: of the gradient before clipping.
        rows_per_second: since the last event.
        skipped: whether loss or gradient were not finite and the weights stayed.
        padding: share of padding among the tokens of the step; None: a log of an earlier version.
    """

    steps: int
    loss: float
    rate: float
    norm: float
    rows_per_second: float
    skipped: bool = False
    padding: float | None = None


@dataclass(frozen=True)
class EvaluationEvent(Event):
    """An evaluation on the held-out rows.

    Attributes:
        loss: mean over the held-out rows.
        metrics: by name; the predictions are cross-fitted (`mlxbert.training.held_out`).
        best: whether no earlier evaluation of this model was better.
    """

    loss: float
    metrics: dict[str, float]
    best: bool


@dataclass(frozen=True)
class MemberEvent(Event):
    """The end of a model's training; `epoch` and `step` are those of the kept weights.

    Attributes:
        metrics: of the held-out rows, by name.
        seconds: of the training.
        note: why temperature and thresholds could not be learned; None: they were.
    """

    metrics: dict[str, float]
    seconds: float
    note: str | None = None


KINDS: dict[type[Event], str] = {StepEvent: "step", EvaluationEvent: "evaluation", MemberEvent: "member"}


def event_record(event: Event) -> dict[str, Any]:
    """Return an event as a flat record for logs: {"event": "step", …}, JSON-able except for nan."""
    return {"event": KINDS[type(event)], **asdict(event)}


class Callback:
    """Base class with methods that do nothing; override some, and pass `mlxbert.train(…, callbacks=[MyCallback()])`.

    All methods run between two steps, and so cost time. A callback that raises stops the training; the last saved
    state stays.
    """

    def on_run_start(self, info: dict[str, Any]) -> None:
        """Run once, at the start; `info` is the content of run.json."""

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        """Run before a model's first step, or before it goes on after `done` of its `steps`."""

    def on_step(self, event: StepEvent) -> None:
        """Run after each optimizer step."""

    def on_evaluation(self, event: EvaluationEvent) -> None:
        """Run after each evaluation."""

    def on_member_end(self, event: MemberEvent) -> None:
        """Run when a model is finished and saved; a second time if the process was killed just then and goes on."""

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        """Run once, at any end; `scores` is the content of scores.json, None if the run did not get so far."""


class Callbacks(Callback):
    """Several callbacks as one, called in order."""

    def __init__(self, several: Sequence[Callback]):
        self.several = tuple(several)

    def on_run_start(self, info: dict[str, Any]) -> None:
        for callback in self.several:
            callback.on_run_start(info)

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        for callback in self.several:
            callback.on_member_start(member, seed, fold, steps, done)

    def on_step(self, event: StepEvent) -> None:
        for callback in self.several:
            callback.on_step(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        for callback in self.several:
            callback.on_evaluation(event)

    def on_member_end(self, event: MemberEvent) -> None:
        for callback in self.several:
            callback.on_member_end(event)

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        for callback in self.several:
            callback.on_run_end(scores)
