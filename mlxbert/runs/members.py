"""The models of a run: which ones there are, and how they are trained, each under its own lock."""

from __future__ import annotations

import gc
import shlex
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from heads.base import Head
from mlxbert.adapters import AdapterError, AdapterWarning, add_adapters, merge_adapters, notes_on
from mlxbert.adapters.files import unmerged
from mlxbert.adapters.linear import refuse_packed
from mlxbert.checkpoint import load_core, read_config
from mlxbert.files.output_file import replacing
from mlxbert.quantization import refuse_training
from mlxbert.runs.files import GO_ON, MemberBusyError, RunError, RunFiles, member_lock
from mlxbert.runs.predict import calibrate_intervals
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.record import read_record
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.optimizer import reinitialize_top
from mlxbert.training.parallel import World
from mlxbert.training.trainer import Member, Outcome, Trainer, TrainingInterrupted, peak_rates, training_rules
from mlxbert.with_head import BertWithHead

# Seconds to wait for a model that another process has: one that is stopping saves its state before it ends.
_STOPPING = 60.0


def members_of(config: TrainingConfig, folds: int) -> tuple[Member, ...]:
    """Return a model for every seed and fold, in the order of training."""
    return tuple(Member(seed, fold) for seed in config.seeds for fold in range(folds))


@dataclass(frozen=True, eq=False)
class MemberTraining:
    """What the training of a run's models needs.

    Attributes:
        files: of the run.
        prepared: the data.
        settings: of the run; `config`: of the training.
        callbacks: for steps and evaluations.
        keeps_best: after Ctrl-C, save the best weights so far as a model; only where one process trains the run.
        world: the processes that train each model together; only rank 0 writes.
        created: when the run began; None: it does not say.
    """

    files: RunFiles
    prepared: Prepared
    settings: RunSettings
    config: TrainingConfig
    callbacks: Sequence[Callback] = ()
    keeps_best: bool = True
    world: World = field(default_factory=World)
    created: str | None = None

    def check_run(self) -> None:
        """Refuse to go on if another process has overwritten the run since this one read it.

        Raises:
            RunError: it has.
        """
        if read_record(self.files.root).created != self.created:
            raise RunError(f"{self.files.root}: another process has begun another run there; fix: -o DIRECTORY")


Busy = Literal["wait", "refuse", "pass"]


def train_members(training: MemberTraining, members: Sequence[Member], busy: Busy) -> float:
    """Train the unfinished ones of these models; return the seconds that earlier sittings spent on them.

    Args:
        training: what all of them need.
        members: in the order of training.
        busy: what to do with a model that another process trains now: refuse it; pass it by; or train the others, and
            then wait some seconds, in which a process that is stopping ends.

    Raises:
        MemberBusyError: another process trains one of them.
        TrainingInterrupted: Ctrl-C; the best weights so far are in `files.best_so_far`.
        MLXBertError: as `Trainer` raises.
    """
    before, passed = 0.0, []
    for member in members:
        try:
            before += _train_unfinished(training, member)
        except MemberBusyError:
            if busy == "refuse":
                raise
            passed.append(member)
    began = time.monotonic()
    while passed and busy == "wait":
        try:
            before += _train_unfinished(training, passed[0])
            del passed[0]
        except MemberBusyError as error:
            if time.monotonic() - began > _STOPPING:
                root = training.files.root
                names = ", ".join(member.name for member in passed)
                raise MemberBusyError(
                    f"{root}: the other models are finished, and other processes train {names}; fix: when they have "
                    f"ended, mlxbert train --resume {shlex.quote(str(root))}"
                ) from error
            time.sleep(0.2)
    return before


def _train_unfinished(training: MemberTraining, member: Member) -> float:
    """Train a model under its lock, if it is not finished; return the seconds that earlier sittings spent on it."""
    files, world, before = training.files, training.world, 0.0

    def is_done() -> bool:
        return bool(world.first(f"whether {member.name} is finished", world.writes and files.is_done(member.name)))

    if not is_done():
        with member_lock(files, member.name) if world.writes else nullcontext():
            if world.writes:
                training.check_run()
            if not is_done():  # another process may have finished it since
                before = _train(training, member)
                # A trainer and its compiled step refer to each other: free them before the next model is loaded.
                gc.collect()
    if world.writes:
        shutil.rmtree(files.resume / member.name, ignore_errors=True)
    return before


def check_models(prepared: Prepared, settings: RunSettings, config: TrainingConfig) -> tuple[float, float]:
    """Refuse settings that do not fit the encoder or a fold's targets, and a quantized encoder without adapters.

    Nothing is written yet.

    Return the peak learning rates of encoder and head: the config's, or the defaults for the encoder.

    Raises:
        MLXBertError, HeadError: names it.
    """
    first, *others = members_of(config, len(prepared.folds))
    model = new_model(prepared, settings, config, first)
    if config.lora is None:
        refuse_training(model)
    elif config.lora.merge:
        refuse_packed(model.core)
    for note in notes_on(model.core):
        warnings.warn(note, AdapterWarning, stacklevel=2)
    reinitialize_top(model, config.reinitialize_layers, first.entropy())
    training_rules(model, config)
    for member in others:
        if member.seed == first.seed:
            new_head(model.core.config.hidden_size, prepared, settings, config, member)
    return peak_rates(model.core.config, config)


def new_model(prepared: Prepared, settings: RunSettings, config: TrainingConfig, member: Member) -> BertWithHead:
    """Return a model before its first step: the encoder, and a head fitted to the training targets of the fold."""
    mx.random.seed(member.entropy())
    # Below adapters, a quantized encoder stays packed.
    packed = None if config.lora is None else False
    core = load_core(prepared.directory, dtype=mx.float32, dequantize=packed)
    if core.lora is not None:  # the encoder below is frozen, and new adapters would have another base
        raise AdapterError(unmerged(prepared.directory, read_config(prepared.directory)))
    if config.dropout is not None:
        core.set_dropout(config.dropout)
    head = new_head(core.config.hidden_size, prepared, settings, config, member)
    if config.lora is not None:
        add_adapters(core, config.lora)
    return BertWithHead(core, head, config.pooling, source=prepared.directory)


def new_head(
    hidden_size: int, prepared: Prepared, settings: RunSettings, config: TrainingConfig, member: Member
) -> Head:
    """Return a head fitted only to the training targets of the member's fold."""
    train = prepared.folds[member.fold].train
    options: dict[str, Any] = dict(settings.head)
    if prepared.problem.task.classes is not None:
        options["classes"] = prepared.problem.task.classes
    if config.dropout is not None:
        options.setdefault("dropout", config.dropout)
    examples = prepared.examples
    head: Head = prepared.problem.head_class.from_targets(
        hidden_size, examples.targets[train], **options, **examples.fitting(train)
    )
    return head


def _train(training: MemberTraining, member: Member) -> float:
    """Train one model; return the seconds that earlier sittings spent on it."""
    files, prepared, config = training.files, training.prepared, training.config
    model = new_model(prepared, training.settings, config, member)
    trainer = Trainer(
        model,
        prepared.examples,
        prepared.folds[member.fold],
        config,
        task=prepared.task,
        metric=prepared.metric.name,
        member=member,
        directory=files.resume / member.name,
        callbacks=training.callbacks,
        world=training.world,
    )
    before = trainer.position.seconds
    try:
        outcome = trainer.fit()
    except TrainingInterrupted:
        if training.keeps_best and trainer.show_kept():
            model.save(files.best_so_far, overwrite=True)
        raise
    if not training.world.writes:
        return before
    training.world.at("saving")
    if model.merges:
        merge_adapters(model.core)  # intervals are calibrated on the model as it will predict
    coverage = {}
    if config.calibrate:
        coverage = calibrate_intervals(model, trainer.held_out, outcome.logits, member.entropy())
    model.save(files.member(member.name), overwrite=True)
    Callbacks(training.callbacks).on_member_end(
        MemberEvent(
            member=member.name,
            seed=member.seed,
            fold=member.fold,
            epoch=outcome.epoch,
            step=outcome.step,
            metrics=outcome.metrics,
            seconds=trainer.seconds,
            note=outcome.note,
        )
    )
    # The last file: with it the model is finished (`RunFiles.is_done`), and all callbacks have been called.
    _save_logits(files.logits(member.name), prepared.folds[member.fold].valid, outcome, coverage)
    return before


def _save_logits(file: Path, rows: np.ndarray, outcome: Outcome, coverage: Mapping[str, np.ndarray]) -> None:
    arrays = {"rows": rows, "logits": outcome.logits, "values": outcome.predictions.values}
    arrays |= {"step": np.array(outcome.step), "epoch": np.array(outcome.epoch), **coverage}
    if outcome.predictions.thresholds is not None:
        arrays["thresholds"] = outcome.predictions.thresholds
    needed = sum(array.nbytes for array in arrays.values())
    with replacing(file, needed=needed, fix=GO_ON, follow_links=False) as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]
