"""A `TrainStep` as a configuration describes it.

What a training ends in: weights and held-out predictions, or an error that leaves what was saved.

`Member`: which of a run's models is trained.

Ctrl-C as a question that the training loop answers where nothing is half done.

`Trainer`: one model trained on one fold, from the first step to the weights that are kept.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import mlx.core as mx
import numpy as np

from heads.metrics import get_metric
from mlxbert.data.batching import Batch, TrainingBatches
from mlxbert.data.folds import Fold
from mlxbert.errors import Interrupted, MLXBertError
from mlxbert.training.callbacks import Callback, Callbacks, EvaluationEvent, StepEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import Examples, HeldOut, Predictions
from mlxbert.training.optimizer import (
    Arrays,
    GroupError,
    Rule,
    Schedule,
    default_learning_rate,
    evaluation_steps,
    parameter_rules,
    reinitialize_top,
)
from mlxbert.training.state import (
    STATE,
    Kept,
    Position,
    SaveError,
    StateError,
    damage_fix,
    delete_others,
    kept_file,
    read_arrays,
    restore_step,
    step_state,
    write_arrays,
)
from mlxbert.training.step import NonFiniteLossError, TrainStep
from mlxbert.with_head import BertWithHead


def training_rules(model: BertWithHead, config: TrainingConfig) -> tuple[dict[str, Rule], float]:
    """The rule of every parameter, and the peak rate.

    Raises:
        GroupError: the settings do not fit this model, or would freeze layers at random weights.
    """
    peak = default_learning_rate(model.core.config) if config.rate is None else config.rate
    rules = parameter_rules(
        model,
        rate=peak,
        head_rate=config.head_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        freeze_embeddings=config.freeze_embeddings,
        freeze_layers=config.freeze_layers,
    )
    layers = model.core.num_layers
    both = config.freeze_layers + config.reinitialize_layers - layers
    if config.freeze_layers and config.reinitialize_layers and both > 0:
        raise GroupError(
            f"freeze_layers={config.freeze_layers} and reinitialize_layers={config.reinitialize_layers} of {layers} "
            f"layers would freeze {both} at random weights; fix: {both} less of one of them"
        )
    return rules, peak


def new_step(model: BertWithHead, config: TrainingConfig, steps: int) -> tuple[TrainStep, float]:
    """The step that trains `model` in `steps` updates, and its peak rate.

    Raises:
        GroupError, StepError: the settings do not fit this model.
    """
    rules, peak = training_rules(model, config)
    warmup = round(config.warmup * steps)
    schedule = Schedule(steps, config.schedule, warmup, config.schedule_end, config.schedule_power)
    return TrainStep(model, rules, schedule, config.step_settings()), peak


class TrainingError(MLXBertError):
    """A training that cannot go on; what was saved stays."""


class TrainingInterrupted(TrainingError, Interrupted):  # noqa: N818 - an answer to Ctrl-C, not a fault
    """Ctrl-C: the state is saved, and the training can go on from there."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training ended in; the model has the weights that are kept, and its head is calibrated.

    Attributes:
        logits: (n, outputs) of the fold's held-out rows.
        predictions: of these, cross-fitted (`mlxbert.training.held_out`).
        metrics: of the predictions.
        step: whose weights they are; likewise `epoch`.
        note: why temperature and thresholds could not be learned; None: they were.
    """

    logits: np.ndarray
    predictions: Predictions
    metrics: dict[str, float]
    step: int
    epoch: float
    note: str | None


def named_rows(batch: Batch, names: Sequence[str] | None) -> str:
    """A batch's first ten rows by name, or number, and how many there are beyond these."""
    first = batch.rows[: min(batch.real, 10)].tolist()
    rows = ", ".join(str(row) if names is None else names[row] for row in first)
    return rows + (f", … ({batch.real} in all)" if batch.real > 10 else "")


@dataclass(frozen=True)
class Member:
    """One model of a run: the seed it begins with and the fold that it does not see."""

    seed: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """Of its files."""
        return f"seed{self.seed}-fold{self.fold}"

    def entropy(self) -> int:
        """What its random streams begin with: one number for each seed and fold."""
        return int(np.random.SeedSequence([self.seed, self.fold]).generate_state(1)[0])


class Interrupt:
    """Whether Ctrl-C was pressed; the second time it is an ordinary `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Inside, SIGINT sets the flag; outside the main thread it stays as it is, and the flag False.

    Where it is ignored, as a shell has it for what runs in the background of a script, it stays ignored.
    """
    interrupt = Interrupt()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupt
        return
    before: Any = signal.signal(signal.SIGINT, interrupt._handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


# A state is some four times the weights: written every few seconds it would cost more than the training.
_SAVE_SECONDS, _SAVE_SECONDS_AFTER_EVALUATION = 300.0, 60.0


class Trainer:
    """Trains `model` on `fold.train`, judges it on `fold.valid`, keeps what was best.

    Everything it depends on is saved, in `directory`, every few minutes; a trainer made with
    the same arguments goes on there and ends in the same bytes (CPU, same number of threads).

    Attributes:
        model: encoder, pooling and a head that is fitted to the fold's training targets.
        step: the training step, with weights and optimizer.
        position: where the training is.
    """

    def __init__(
        self,
        model: BertWithHead,
        examples: Examples,
        fold: Fold,
        config: TrainingConfig | None = None,
        *,
        task: str,
        metric: str | None = None,
        member: Member | None = None,
        directory: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
    ):
        """Take over `model`.

        Args:
            model: to train; `mx.random` must be seeded before it is made, if the run is to be repeated.
            examples: rows, of which the fold names some.
            fold: rows to learn from and rows to be judged on.
            config: None: the defaults.
            task: the competition type.
            metric: that is optimized; None: the config's, else the head's own.
            member: for names, logs and random streams.
            directory: where the state is saved, and taken from if there is one; None: nothing is saved.
            callbacks: told of steps and evaluations.

        Raises:
            MLXBertError: the settings do not fit this model, or the saved state is not one of this training.
        """
        self.model, self.examples, self.fold, self.task = model, examples, fold, task
        self.config = config or TrainingConfig()
        self.member = member or Member()
        self.directory = None if directory is None else Path(directory)
        self.metric = get_metric(metric or self.config.metric or model.head.default_metric)
        self.callbacks = Callbacks(callbacks)
        entropy = self.member.entropy()
        self.batches = TrainingBatches(examples.tokens, fold.train, batch_size=self.config.batch_size, seed=entropy)
        self.steps_per_epoch = -(-len(self.batches) // self.config.accumulation)
        self.steps = self.steps_per_epoch * self.config.epochs
        self._evaluate_after = evaluation_steps(self.steps_per_epoch, self.config.evaluations)
        self._targets = model.head.encode_targets(examples.targets)
        self._extra = examples.extra_inputs(model.head)
        self.held_out = HeldOut(
            model,
            examples,
            fold.valid,
            task=task,
            metric=self.metric.name,
            metrics=tuple(dict.fromkeys((self.metric.name, *model.head.metrics))),
            calibrated=self.config.calibrate,
            batch_size=self.config.evaluation_batch_size,
            lengths=self.batches.lengths,
            extra=self._extra,
        )
        reinitialize_top(model, self.config.reinitialize_layers, entropy)
        self.step, self._peak = new_step(model, self.config, self.steps)
        self.position = Position()
        self._kept: Arrays = {}
        self._began = time.monotonic()
        if self.directory is not None:
            self._restore(self.directory)

    def fit(self) -> Outcome:
        """Train to the end, or on from where the state was saved.

        Raises:
            TrainingInterrupted: Ctrl-C; the state is saved.
            TrainingError: a loss that is not finite, by member, epoch, step and rows; or logits of held-out rows.
            WriteError: the disk is full.
        """
        member = self.member
        self.callbacks.on_member_start(member.name, member.seed, member.fold, self.steps, self.step.step)
        saved = self._clock = time.monotonic()
        with interruptible() as interrupt:
            while not self._over():
                evaluated = self._train_batch()
                due = self.config.save_every and self.position.batches_done % self.config.save_every == 0
                waited = time.monotonic() - saved
                late = waited > (_SAVE_SECONDS_AFTER_EVALUATION if evaluated else _SAVE_SECONDS)
                if due or late or interrupt:
                    self.save()
                    saved = time.monotonic()
                if interrupt:  # after the last batch too: whoever asked does not want the next model to begin
                    raise TrainingInterrupted(f"{member.name}: interrupted at step {self.step.step} of {self.steps}")
        return self._finish()

    def save(self) -> None:
        """Write the state to `directory`, whole or not at all; without one do nothing."""
        if self.directory is None:
            return
        kept = self.position.kept
        if kept is not None and not (file := kept_file(self.directory, kept.step)).is_file():
            write_arrays(file, self._kept)
        about = {"member": self.member.name, **self.position.to_dict(), "seconds": self.seconds}
        write_arrays(self.directory / STATE, step_state(self.step), about)
        delete_others(self.directory, kept.step if kept else None)

    @property
    def seconds(self) -> float:
        """That this model has taken: of earlier sittings up to their last saved state, and of this one."""
        return self.position.seconds + time.monotonic() - self._began

    def show_kept(self) -> Kept | None:
        """Put the weights that are kept so far into the model, in evaluation mode; None where there are none yet."""
        kept = self.position.kept
        if kept is not None:
            self.step.show(self._kept)
            self.model.eval()
        return kept

    def evaluate(self) -> EvaluationEvent:
        """Judge the current weights (their moving average, where one is kept) on the held-out rows."""
        self.step.show(self.step.average or None)
        logits = self.held_out.logits()
        loss, metrics = self.held_out.loss(logits), self.held_out.scores(self.held_out.predictions(logits))
        self.step.show()
        member, top = self.member, self.position.top
        value = metrics[self.metric.name]
        better = self.position.kept is None or self.metric.is_better(value, math.nan if top is None else top)
        return EvaluationEvent(
            member.name, member.seed, member.fold, self._epoch(), self.step.step, loss, metrics, better
        )

    def _train_batch(self) -> bool:
        """One batch; after the last of a step, the update; whether the held-out rows were judged."""
        at = self.position
        batch = self.batches.batch(at.epoch, at.batch)
        where = f"{self.member.name}, epoch {at.epoch + 1}, batch {at.batch + 1}"
        extra = {name: array[mx.array(batch.rows)] for name, array in self._extra.items()}
        try:
            self.step.accumulate({**batch.inputs(), **extra}, self._targets[batch.rows], batch.weights)
            at.batch += 1
            at.batches_done += 1
            if at.batch % self.config.accumulation and at.batch < len(self.batches):
                return False
            report = self.step.update()
        except NonFiniteLossError as error:
            raise TrainingError(f"{where}: {error}; rows {named_rows(batch, self.examples.names)}") from error
        done = -(-at.batch // self.config.accumulation)  # steps of this epoch
        if at.batch == len(self.batches):
            at.epoch, at.batch = at.epoch + 1, 0
        member, rate = self.member, self._peak * report.factor
        self.callbacks.on_step(
            StepEvent(
                *(member.name, member.seed, member.fold, self._epoch(), report.step, self.steps),
                *(report.loss, rate, report.norm, self._throughput(report.rows), report.skipped),
            )
        )
        if done not in self._evaluate_after:
            return False
        self._keep(self.evaluate())
        return True

    def _keep(self, event: EvaluationEvent) -> None:
        """Take note of an evaluation; write the weights down if they are the best, or the ones that are kept."""
        at = self.position
        at.stale = 0 if event.best else at.stale + 1
        if event.best:
            value = event.metrics[self.metric.name]
            at.top = None if math.isnan(value) else value
        if event.best or self.config.keep == "last":
            weights = self.step.average or self.step.weights
            # + 0: arrays of its own, because an update may take over the weights' memory.
            self._kept = {name: array + 0 for name, array in weights.items()}
            mx.eval(self._kept)
            at.kept = Kept(event.step, event.epoch)
        at.stopped = self.config.patience is not None and at.stale >= self.config.patience
        self.callbacks.on_evaluation(event)

    def _over(self) -> bool:
        return self.position.stopped or self.position.epoch >= self.config.epochs

    def _finish(self) -> Outcome:
        kept = self.show_kept()
        assert kept is not None, "the last step of an epoch is always evaluated"
        logits = self.held_out.logits()
        if not np.isfinite(logits).all():
            raise TrainingError(
                f"{self.member.name}: the logits after step {kept.step} are not finite; fix: a lower rate"
            )
        predictions = self.held_out.predictions(logits)
        metrics = self.held_out.scores(predictions)
        note = self.held_out.calibrate(logits)
        return Outcome(logits, predictions, metrics, kept.step, kept.epoch, note)

    def _restore(self, directory: Path) -> None:
        state = directory / STATE
        if os.path.lexists(state):
            arrays, about = read_arrays(state)
            if about.pop("member", None) != self.member.name:
                raise TrainingError(f"{state} is not of {self.member.name}; fix: resume the run that it is of")
            self.position = Position.from_dict(about, state, batches=len(self.batches))
            try:
                restore_step(self.step, arrays)
            except StateError as error:
                raise SaveError(f"{state}: {error}") from error
        kept = self.position.kept
        if kept is not None:
            file = kept_file(directory, kept.step)
            self._kept = read_arrays(file)[0]
            weights = {name: (array.shape, array.dtype) for name, array in self.step.weights.items()}
            if {name: (array.shape, array.dtype) for name, array in self._kept.items()} != weights:
                raise SaveError(f"{file}: its weights are not those of this model; {damage_fix(file)}")
        # What was kept after this state, and before a kill, is made again.
        delete_others(directory, kept.step if kept else None)

    def _epoch(self) -> float:
        return self.position.epoch + self.position.batch / len(self.batches)

    def _throughput(self, rows: int) -> float:
        """Rows a second since the last step."""
        now, before = time.monotonic(), self._clock
        self._clock = now
        return rows / max(now - before, 1e-9)
