"""`Trainer`: trains one model on one fold, from the first step to the weights that are kept."""

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
from mlxbert.checkpoint import base_of
from mlxbert.data.folds import Fold
from mlxbert.data.tokens import Batch, TrainingBatches
from mlxbert.errors import Interrupted, shown
from mlxbert.models.config_fields import EncoderConfig
from mlxbert.training.callbacks import Callback, Callbacks, EvaluationEvent, StepEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import Examples, HeldOut, Predictions
from mlxbert.training.optimizer import (
    Arrays,
    ConfigurationError,
    Rule,
    Schedule,
    default_rates,
    evaluation_steps,
    parameter_rules,
    reinitialize_top,
)
from mlxbert.training.parallel import World
from mlxbert.training.state import (
    STATE,
    Kept,
    Position,
    SaveError,
    damage_fix,
    delete_other_kept,
    kept_file,
    read_arrays,
    restore_step,
    step_state,
    write_arrays,
)
from mlxbert.training.step import NonFiniteLossError, TrainingError, TrainStep
from mlxbert.with_head import BertWithHead

# A state has some four times the size of the weights: saving every few seconds would take longer than the training.
_SAVE_SECONDS, _SAVE_SECONDS_AFTER_EVALUATION = 300.0, 60.0


# Hu et al. 2021 (tables 9 to 11) train RoBERTa base with 4e-4 to 5e-4 and large with 2e-4 to 4e-4, some ten times what
# whole encoders of these sizes get. docs/scale.md has what was measured here.
ADAPTER_RATES = 10


class TrainingInterrupted(TrainingError, Interrupted):  # noqa: N818 - an answer to Ctrl-C, not a fault
    """Ctrl-C: the state is saved, and the training can go on from there."""


@dataclass(frozen=True)
class Member:
    """One model of a run: the seed of its random numbers, and the fold that it does not see."""

    seed: int = 0
    fold: int = 0

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"seed{self.seed}-fold{self.fold}"

    def entropy(self) -> int:
        """Return the start of its random streams: one number for each seed and fold."""
        return int(np.random.SeedSequence([self.seed, self.fold]).generate_state(1)[0])


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a training; the model has the kept weights, and its head is calibrated.

    Attributes:
        logits: (n, outputs) of the fold's held-out rows.
        predictions: of these rows, cross-fitted (`mlxbert.training.held_out`).
        metrics: of the predictions.
        step: of the kept weights; likewise `epoch`.
        note: why temperature and thresholds could not be learned; None: they were.
    """

    logits: np.ndarray
    predictions: Predictions
    metrics: dict[str, float]
    step: int
    epoch: float
    note: str | None


class Trainer:
    """Trains `model` on `fold.train`, evaluates it on `fold.valid`, and keeps the best weights.

    Every few minutes it saves everything that it depends on in `directory`. A trainer with the same arguments goes on
    from there and ends with the same bytes (on a CPU, with the same number of threads).

    Attributes:
        model: encoder, pooling and a head that is fitted to the fold's training targets.
        step: the training step, with weights and optimizer.
        position: the progress of the loop.
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
        world: World | None = None,
    ):
        """Take over `model`.

        Args:
            model: to train; seed `mx.random` before you make it, if the run is to be repeatable.
            examples: all rows; the fold selects some.
            fold: rows to learn from and held-out rows.
            config: None: the defaults.
            task: the competition type.
            metric: to optimize; None: the config's, else the head's default.
            member: for names, logs and random streams.
            directory: for the saved state, which is restored if there is one; None: nothing is saved.
            callbacks: for steps and evaluations.
            world: the processes that train this model together; `directory` and `callbacks` are rank 0's alone.

        Raises:
            MLXBertError: the settings do not fit this model, the saved state is of another training, or the ranks
                begin with different weights.
        """
        self.model, self.examples, self.fold, self.task = model, examples, fold, task
        self.config = config or TrainingConfig()
        self.member = member or Member()
        self.world = world or World()
        self.directory = None if directory is None or not self.world.writes else Path(directory)
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
            world=self.world,
        )
        reinitialize_top(model, self.config.reinitialize_layers, entropy)
        rules, self._peak = training_rules(model, self.config)
        schedule = Schedule(
            self.steps,
            kind=self.config.schedule,
            warmup_steps=round(self.config.warmup * self.steps),
            end=self.config.schedule_end,
            power=self.config.schedule_power,
        )
        self.step = TrainStep(model, rules, schedule, self.config.step_settings(), self.world)
        self.position = Position()
        # The saved state has no weights below adapters, so it names them.
        below = None if model.core.lora is None or model.source is None else base_of(model.source)
        self._base = None if below is None else below.sha256
        self._kept: Arrays = {}
        self._began = time.monotonic()
        with self.world.files_of_first(self.directory) as saved_files:
            if saved_files is not None:
                self._restore(saved_files)
        self.world.same_arrays(f"the weights of {self.member.name}", {**self.step.weights, **self.step.frozen})

    def fit(self) -> Outcome:
        """Train to the end, from the saved state if there is one.

        Raises:
            TrainingInterrupted: Ctrl-C; the state is saved.
            TrainingError: a loss is not finite (the message has member, epoch, step and rows), or held-out logits are
                not.
            WriteError: the disk is full.
        """
        member = self.member
        self.callbacks.on_member_start(member.name, member.seed, member.fold, self.steps, self.step.step)
        saved, due = time.monotonic(), False
        self._clock = saved
        with _interruptible() as interrupts:
            while not self._over():
                evaluated = self._train_batch()
                due |= bool(self.config.save_every) and self.position.batches_done % (self.config.save_every or 1) == 0
                if self.world.size > 1 and self.step.batches:
                    continue  # each rank has its own sums, and rank 0 saves only what all have together
                stop = self.world.any("interrupted", bool(interrupts))
                waited = time.monotonic() - saved
                late = waited > (_SAVE_SECONDS_AFTER_EVALUATION if evaluated else _SAVE_SECONDS)
                if due or late or stop:
                    self.save()
                    saved, due = time.monotonic(), False
                if stop:  # also after the last batch: the next model must not begin
                    raise TrainingInterrupted(f"{member.name}: interrupted at step {self.step.step} of {self.steps}")
        return self._finish()

    def save(self) -> None:
        """Write the state to `directory`, whole or not at all; without a directory do nothing."""
        if self.directory is None:
            return
        self.world.at("saving")
        kept = self.position.kept
        if kept is not None and not (file := kept_file(self.directory, kept.step)).is_file():
            write_arrays(file, self._kept)
        about = {"member": self.member.name, **self.position.to_dict(), "seconds": self.seconds}
        about |= {} if self._base is None else {"base": self._base}
        write_arrays(self.directory / STATE, step_state(self.step), about)
        delete_other_kept(self.directory, kept.step if kept else None)

    @property
    def seconds(self) -> float:
        """The seconds of this model: of earlier sessions until their last saved state, and of this one."""
        return self.position.seconds + time.monotonic() - self._began

    def show_kept(self) -> Kept | None:
        """Put the kept weights into the model, in evaluation mode; return None if there are none yet."""
        kept = self.position.kept
        if kept is not None:
            self.step.show(self._kept)
            self.model.eval()
        return kept

    def evaluate(self) -> EvaluationEvent:
        """Evaluate the current weights (their moving average, if there is one) on the held-out rows."""
        self.step.show(self.step.average or None)
        logits = self.held_out.logits()
        self.world.at("scores")
        loss, metrics = self.held_out.loss(logits), self.held_out.scores(self.held_out.predictions(logits))
        loss, metrics = self.world.first("scores", [loss, metrics])
        self.world.same_arrays(f"the weights after step {self.step.step}", self.step.weights)
        self.step.show()
        top = self.position.top
        is_better = self.metric.is_better(metrics[self.metric.name], math.nan if top is None else top)
        return EvaluationEvent(
            **self._member_and_epoch(),
            step=self.step.step,
            loss=loss,
            metrics=metrics,
            best=self.position.kept is None or is_better,
        )

    def _train_batch(self) -> bool:
        """Train on one batch, update after the last one of a step; return whether the model was evaluated."""
        position = self.position
        self.world.at("step", self.step.step + 1)
        batch = self.batches.batch(position.epoch, position.batch)
        where = f"{self.member.name}, epoch {position.epoch + 1}, batch {position.batch + 1}"
        extra = {name: array[mx.array(batch.rows)] for name, array in self._extra.items()}
        try:
            self.step.accumulate({**batch.inputs(), **extra}, self._targets[batch.rows], batch.weights)
            position.batch += 1
            position.batches_done += 1
            if position.batch % self.config.accumulation and position.batch < len(self.batches):
                return False
            report = self.step.update()
        except NonFiniteLossError as error:
            raise TrainingError(f"{where}: {error}; rows {_named_rows(batch, self.examples.names)}") from error
        steps_of_epoch = -(-position.batch // self.config.accumulation)
        batches = range((steps_of_epoch - 1) * self.config.accumulation, position.batch)
        padding = self.batches.padding(position.epoch, batches)
        if position.batch == len(self.batches):
            position.epoch, position.batch = position.epoch + 1, 0
        event = StepEvent(
            **self._member_and_epoch(),
            step=report.step,
            steps=self.steps,
            loss=report.loss,
            rate=self._peak * report.factor,
            norm=report.norm,
            rows_per_second=self._throughput(report.rows),
            skipped=report.skipped,
            padding=padding,
        )
        self.world.at("callbacks")
        self.callbacks.on_step(event)
        if steps_of_epoch not in self._evaluate_after:
            return False
        self._keep(self.evaluate())
        return True

    def _keep(self, event: EvaluationEvent) -> None:
        """Note an evaluation; keep the weights if they are the best, or if the last ones are to be kept."""
        position = self.position
        position.stale = 0 if event.best else position.stale + 1
        if event.best:
            value = event.metrics[self.metric.name]
            position.top = None if math.isnan(value) else value
        if event.best or self.config.keep == "last":
            weights = self.step.average or self.step.weights
            # + 0 makes new arrays, because an update may reuse the weights' memory.
            self._kept = {name: array + 0 for name, array in weights.items()}
            mx.eval(self._kept)
            position.kept = Kept(event.step, event.epoch)
        position.stopped = self.config.patience is not None and position.stale >= self.config.patience
        self.callbacks.on_evaluation(event)

    def _member_and_epoch(self) -> dict[str, Any]:
        """Return the fields that all events have."""
        position, member = self.position, self.member
        epoch = position.epoch + position.batch / len(self.batches)
        return {"member": member.name, "seed": member.seed, "fold": member.fold, "epoch": epoch}

    def _over(self) -> bool:
        return self.position.stopped or self.position.epoch >= self.config.epochs

    def _finish(self) -> Outcome:
        kept = self.show_kept()
        assert kept is not None, "the last step of an epoch is always evaluated"
        logits = self.held_out.logits()
        self.world.at("scores")  # thresholds of many rows may take long: the watchdog must not count their time
        if not np.isfinite(logits).all():
            raise TrainingError(
                f"{self.member.name}: the logits after step {kept.step} are not finite; fix: a lower rate"
            )
        predictions = self.held_out.predictions(logits)
        metrics = self.held_out.scores(predictions)
        note = self.held_out.calibrate(logits)
        return Outcome(
            logits=logits, predictions=predictions, metrics=metrics, step=kept.step, epoch=kept.epoch, note=note
        )

    def _restore(self, directory: Path) -> None:
        state = directory / STATE
        if os.path.lexists(state):
            arrays, about = read_arrays(state)
            if about.pop("member", None) != self.member.name:
                raise TrainingError(f"{state} is not of {self.member.name}; fix: resume the run that it is of")
            base = about.pop("base", None)
            if base != self._base:
                raise SaveError(
                    f"{state}: its adapters belong to a base with the sha256 {shown(base)}, and this one has "
                    f"{self._base}; fix: put back the checkpoint that the run began with, or train anew"
                )
            self.position = Position.from_dict(about, state, batches=len(self.batches))
            try:
                restore_step(self.step, arrays)
            except SaveError as error:
                raise SaveError(f"{state}: {error}") from error
        kept = self.position.kept
        if kept is not None:
            file = kept_file(directory, kept.step)
            self._kept = read_arrays(file)[0]
            weights = {name: (array.shape, array.dtype) for name, array in self.step.weights.items()}
            if {name: (array.shape, array.dtype) for name, array in self._kept.items()} != weights:
                raise SaveError(f"{file}: its weights are not those of this model; {damage_fix(file)}")
        # Weights that were kept after this state, before the process died, are made again.
        delete_other_kept(directory, kept.step if kept else None)

    def _throughput(self, rows: int) -> float:
        """Return the rows a second since the last step."""
        now, before = time.monotonic(), self._clock
        self._clock = now
        return rows / max(now - before, 1e-9)


def peak_rates(encoder: EncoderConfig, config: TrainingConfig) -> tuple[float, float]:
    """Return the peak rates of encoder and head: the config's, else the defaults for the encoder's size.

    If only the encoder's rate is given, the head has the same. Adapters have by default `ADAPTER_RATES` times the rate
    of the whole encoder, and the head at least as much.
    """
    rate, head_rate = default_rates(encoder) if config.rate is None else (config.rate, config.rate)
    if config.lora is not None and config.rate is None:
        rate = float(f"{rate * ADAPTER_RATES:.3g}")
        head_rate = max(head_rate, rate)
    return rate, head_rate if config.head_rate is None else config.head_rate


def training_rules(model: BertWithHead, config: TrainingConfig) -> tuple[dict[str, Rule], float]:
    """Return the rule of every parameter, and the peak rate.

    Raises:
        ConfigurationError: the settings do not fit this model, or would freeze layers at random weights.
    """
    peak, head_peak = peak_rates(model.core.config, config)
    rules = parameter_rules(
        model,
        rate=peak,
        head_rate=head_peak,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        freeze_embeddings=config.freeze_embeddings,
        freeze_layers=config.freeze_layers,
    )
    layers = model.core.num_layers
    both = config.freeze_layers + config.reinitialize_layers - layers
    if config.freeze_layers and config.reinitialize_layers and both > 0:
        raise ConfigurationError(
            f"freeze_layers={config.freeze_layers} and reinitialize_layers={config.reinitialize_layers} of {layers} "
            f"layers would freeze {both} at random weights; fix: {both} less of one of them"
        )
    return rules, peak


@contextmanager
def _interruptible() -> Iterator[Sequence[int]]:
    """Yield a list to which Ctrl-C (SIGINT) adds; the training loop looks at it where nothing is half done.

    The second Ctrl-C raises `KeyboardInterrupt`. Outside the main thread, or where SIGINT is ignored (a shell does so
    for background jobs of a script), the list stays empty.
    """
    interrupts: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupts
        return
    before: Any = signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _named_rows(batch: Batch, names: Sequence[str] | None) -> str:
    """Return the names, or numbers, of a batch's first ten rows, and the number of all."""
    first = batch.rows[: min(batch.real, 10)].tolist()
    rows = ", ".join(str(row) if names is None else names[row] for row in first)
    return rows + (f", … ({batch.real} in all)" if batch.real > 10 else "")
