"""The models of a run, trained one after the other, each finished and on disk before the next begins."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from mlxbert.checkpoint import load_core
from mlxbert.dropout_mode import set_dropout
from mlxbert.files.array_file import read_array_file
from mlxbert.files.output_file import replacing
from mlxbert.quantization.packed import refuse_training
from mlxbert.runs.files import GO_ON, RunError, RunFiles
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.groups import reinitialize_top
from mlxbert.training.member import Member
from mlxbert.training.new_step import training_rules
from mlxbert.training.outcome import Outcome, TrainingInterrupted
from mlxbert.training.predictions import Predictions
from mlxbert.training.trainer import Trainer
from mlxbert.with_head import BertWithHead


def members_of(config: TrainingConfig, folds: int) -> tuple[Member, ...]:
    """Every seed and fold, in the order of training."""
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
            # A trainer and its compiled step refer to each other: without this its weights wait for the next one's.
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
    """The model of a member before its first step: the encoder, and a head fitted to the fold's training targets."""
    mx.random.seed(member.entropy())
    core = load_core(prepared.directory, dtype=mx.float32)
    if config.dropout is not None:
        set_dropout(core, config.dropout)
    head = new_head(core.config.hidden_size, prepared, settings, config, member)
    return BertWithHead(core, head, config.pooling, source=prepared.directory)


def new_head(
    hidden_size: int, prepared: Prepared, settings: RunSettings, config: TrainingConfig, member: Member
) -> Head:
    """A head fitted to the training targets of the member's fold, and to no other row."""
    train = prepared.folds[member.fold].train
    options: dict[str, Any] = dict(settings.head)
    if prepared.problem.task.classes is not None:
        options["classes"] = prepared.problem.task.classes
    if config.dropout is not None:
        options.setdefault("dropout", config.dropout)
    targets, more = prepared.examples.targets[train], prepared.examples.fitting(train)
    head: Head = prepared.problem.head_class.from_targets(hidden_size, targets, **options, **more)
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
    model.save(files.member(member.name), overwrite=True)
    Callbacks(callbacks).on_member_end(
        MemberEvent(
            *(member.name, member.seed, member.fold, outcome.epoch, outcome.step),
            *(outcome.metrics, trainer.seconds, outcome.note),
        )
    )
    # Last of all: with these the model is finished (`RunFiles.is_done`), and whoever was to be told has been told.
    _save_logits(files.logits(member.name), prepared.folds[member.fold].valid, outcome)
    return before


def _save_logits(file: Path, rows: np.ndarray, outcome: Outcome) -> None:
    arrays = {"rows": rows, "logits": outcome.logits, "values": outcome.predictions.values}
    arrays |= {"step": np.array(outcome.step), "epoch": np.array(outcome.epoch)}
    if outcome.predictions.thresholds is not None:
        arrays["thresholds"] = outcome.predictions.thresholds
    needed = sum(array.nbytes for array in arrays.values())
    with replacing(file, needed=needed, fix=GO_ON, follow_links=False) as out:
        np.savez(out, **arrays)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """What a finished model says of the rows that it did not see.

    Attributes:
        rows: (n,) their numbers among the examples.
        predictions: cross-fitted.
        step: whose weights the model kept; likewise `epoch`.
    """

    rows: np.ndarray
    predictions: Predictions
    step: int
    epoch: float


def held_out(files: RunFiles, member: Member, task: str, rows: np.ndarray, shape: tuple[int, ...]) -> HeldOutRows:
    """Read what `train_members` left of a model.

    Args:
        files: of the run.
        member: which model.
        task: the competition type.
        rows: (n,) that its fold held out.
        shape: of its predictions for them: (n,), (n, classes) or (n, targets).

    Raises:
        RunError: the file is damaged, or of other rows.
    """
    file = files.logits(member.name)
    fix = f"fix: delete {files.member(member.name)} and resume the run"
    arrays = read_array_file(file, RunError, fix=fix)
    if arrays is None:
        raise RunError(f"{file} is not there; {fix}")
    expected = {"rows": rows.shape, "values": shape, "step": (), "epoch": ()}
    if "thresholds" in arrays:
        expected["thresholds"] = shape
    found = {name: arrays[name].shape if name in arrays else None for name in expected}
    if found != expected:
        raise RunError(f"{file} is damaged (its arrays have the shapes {found}, expected {expected}); {fix}")
    if not np.array_equal(arrays["rows"], rows) or not np.isfinite(arrays["values"]).all():
        raise RunError(f"{file} is damaged (it is of other rows, or not finite); {fix}")
    predictions = Predictions(task, arrays["values"], arrays.get("thresholds"))
    return HeldOutRows(rows, predictions, int(arrays["step"]), float(arrays["epoch"]))
