"""The models of a run: trained one after the other, and each is on disk before the next begins."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from mlxbert.checkpoint import load_core
from mlxbert.files.output_file import replacing
from mlxbert.quantization import refuse_training
from mlxbert.runs.files import GO_ON, RunFiles
from mlxbert.runs.intervals import calibrate_intervals
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.optimizer import reinitialize_top
from mlxbert.training.trainer import Member, Outcome, Trainer, TrainingInterrupted, training_rules
from mlxbert.with_head import BertWithHead


def members_of(config: TrainingConfig, folds: int) -> tuple[Member, ...]:
    """Return a model for every seed and fold, in the order of training."""
    return tuple(Member(seed, fold) for seed in config.seeds for fold in range(folds))


def train_members(
    files: RunFiles,
    prepared: Prepared,
    settings: RunSettings,
    config: TrainingConfig,
    callbacks: Sequence[Callback],
) -> float:
    """Train what is not finished yet; return the seconds that earlier sittings spent on these models.

    Raises:
        TrainingInterrupted: Ctrl-C; what is trained so far is in `files.best_so_far`.
        MLXBertError: as `Trainer` raises.
    """
    before = 0.0
    for member in members_of(config, len(prepared.folds)):
        state = files.resume / member.name
        if not files.is_done(member.name):
            before += _train(files, member, state, prepared, settings, config, callbacks)
            # A trainer and its compiled step refer to each other: free them before the next model is loaded.
            gc.collect()
        shutil.rmtree(state, ignore_errors=True)
    return before


def check_models(prepared: Prepared, settings: RunSettings, config: TrainingConfig) -> None:
    """Refuse a quantized encoder, and settings that do not fit it or a fold's targets, before anything is written.

    Raises:
        MLXBertError, HeadError: says which.
    """
    first, *others = members_of(config, len(prepared.folds))
    model = new_model(prepared, settings, config, first)
    refuse_training(model)
    reinitialize_top(model, config.reinitialize_layers, first.entropy())
    training_rules(model, config)
    for member in others:
        if member.seed == first.seed:
            new_head(model.core.config.hidden_size, prepared, settings, config, member)


def new_model(prepared: Prepared, settings: RunSettings, config: TrainingConfig, member: Member) -> BertWithHead:
    """Return a model before its first step: the encoder, and a head fitted to the training targets of the fold."""
    mx.random.seed(member.entropy())
    core = load_core(prepared.directory, dtype=mx.float32)
    if config.dropout is not None:
        core.set_dropout(config.dropout)
    head = new_head(core.config.hidden_size, prepared, settings, config, member)
    return BertWithHead(core, head, config.pooling, source=prepared.directory)


def new_head(
    hidden_size: int, prepared: Prepared, settings: RunSettings, config: TrainingConfig, member: Member
) -> Head:
    """Return a head fitted to the training targets of the member's fold, and to no other row."""
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


def _train(
    files: RunFiles,
    member: Member,
    state: Path,
    prepared: Prepared,
    settings: RunSettings,
    config: TrainingConfig,
    callbacks: Sequence[Callback],
) -> float:
    """Train one model; return the seconds that earlier sittings spent on it."""
    model = new_model(prepared, settings, config, member)
    trainer = Trainer(
        model,
        prepared.examples,
        prepared.folds[member.fold],
        config,
        task=prepared.task,
        metric=prepared.metric.name,
        member=member,
        directory=state,
        callbacks=callbacks,
    )
    before = trainer.position.seconds
    try:
        outcome = trainer.fit()
    except TrainingInterrupted:
        if trainer.show_kept():
            model.save(files.best_so_far, overwrite=True)
        raise
    coverage = {}
    if config.calibrate:
        coverage = calibrate_intervals(model, trainer.held_out, outcome.logits, member.entropy())
    model.save(files.member(member.name), overwrite=True)
    Callbacks(callbacks).on_member_end(
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
