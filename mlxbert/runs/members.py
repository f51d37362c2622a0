"""The models of a run, trained one after the other, each finished and on disk before the next begins.

What the models of a run say of the rows that they did not see: oof.csv, worst_rows.csv, and the scores.
"""

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
from heads.head_registry import head_from_settings
from heads.labels import decode_labels
from mlxbert.checkpoint import load_core, read_config
from mlxbert.data.infer_task import InferredTask
from mlxbert.files.output_file import replacing
from mlxbert.files.safetensors import read_array_file
from mlxbert.quantization import refuse_training
from mlxbert.runs.files import GO_ON, RunError, RunFiles, id_name, write_csv
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import Predictions, average, concatenate, row_losses, scores
from mlxbert.training.optimizer import reinitialize_top
from mlxbert.training.trainer import Member, Outcome, Trainer, TrainingInterrupted, training_rules
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
        core.set_dropout(config.dropout)
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


_WORST = 100


def write_out_of_fold(
    files: RunFiles, prepared: Prepared, config: TrainingConfig, *, escape_formulas: bool = False
) -> dict[str, Any]:
    """Write oof.csv and worst_rows.csv; returns the scores: of each model, their spread, and of all rows."""
    head = fitted_head(files, members_of(config, 1)[0].name)
    names = tuple(dict.fromkeys((prepared.metric.name, *head.metrics)))
    members: list[dict[str, Any]] = []
    rows, folds, parts = [], [], []
    for number, fold in enumerate(prepared.folds):
        truth = head.metric_targets(prepared.examples.targets[fold.valid])
        classes = (len(prepared.problem.task.classes or ()),) if prepared.task in ("multiclass", "ordinal") else None
        shape = truth.shape if classes is None else truth.shape + classes
        of_seeds = []
        for member in members_of(config, len(prepared.folds)):
            if member.fold == number:
                held = held_out(files, member, prepared.task, fold.valid, shape)
                of_seeds.append(held.predictions)
                members.append(
                    {
                        "member": member.name,
                        "seed": member.seed,
                        "fold": number,
                        "rows": len(fold.valid),
                        "step": held.step,
                        "epoch": held.epoch,
                        "metrics": scores(truth, held.predictions, names),
                    }
                )
        parts.append(average(of_seeds))
        rows.append(fold.valid)
        folds.append(np.full(len(fold.valid), number))
    order = np.argsort(np.concatenate(rows), kind="stable")
    numbers, fold_of = np.concatenate(rows)[order], np.concatenate(folds)[order]
    predictions = concatenate(parts)[order]
    truth = head.metric_targets(prepared.examples.targets[numbers])
    table = _frame(prepared, numbers, fold_of)
    for name, column in prediction_columns(prepared.problem.task, truth, predictions).items():
        table[name] = column
    write_csv(files.oof, table, escape_formulas=escape_formulas)
    write_csv(files.worst, _worst(prepared, numbers, truth, predictions), escape_formulas=escape_formulas)
    members.sort(key=lambda one: (config.seeds.index(one["seed"]), one["fold"]))
    return {
        "metric": prepared.metric.name,
        "greater_is_better": prepared.metric.greater_is_better,
        "members": members,
        "spread": {name: _spread([one["metrics"][name] for one in members]) for name in names},
        "pooled": scores(truth, predictions, names),
    }


def fitted_head(files: RunFiles, member: str) -> Head:
    """A member's head without its weights: classes, scaler, thresholds."""
    return head_from_settings(read_config(files.member(member))["mlxbert"]["head"])


def prediction_columns(task: InferredTask, truth: np.ndarray, predictions: Predictions) -> dict[str, np.ndarray]:
    """Truths, probabilities or numbers, and decided labels, by the column names of oof.csv.

    One target makes the columns "target", and "prediction" or "probability" and "label"; several labels, targets or
    steps ahead make one of each a name: "target:toxic", "probability:toxic". `truth_columns` finds them.
    """
    values, classes = predictions.values, task.classes or ()
    made: dict[str, np.ndarray] = {}
    if task.task == "time_series":
        steps = truth.reshape(len(truth), -1)
        made |= {f"target:+{i + 1}": steps[:, i] for i in range(steps.shape[1])}
        numbers = values.reshape(len(values), -1)
        return made | {f"prediction:+{i + 1}": numbers[:, i] for i in range(numbers.shape[1])}
    if task.task == "regression" and len(task.target) == 1:
        return {"target": truth.reshape(-1), "prediction": values.reshape(-1)}
    if task.task == "regression":
        for what, table in (("target", truth), ("prediction", values)):
            columns = table.reshape(len(table), -1).T
            made |= {f"{what}:{name}": column for name, column in zip(task.target, columns, strict=True)}
        return made
    labels = predictions.labels()
    if task.task == "multilabel":
        for what, table in (("target", truth), ("probability", values), ("label", labels)):
            made |= {f"{what}:{name}": table[:, i] for i, name in enumerate(classes)}
        return made
    made["target"] = decode_labels(truth, classes)
    if task.task == "binary":
        made["probability"] = values
    else:
        made |= {f"probability:{name}": values[:, i] for i, name in enumerate(classes)}
    made["label"] = decode_labels(labels, classes)
    return made


def _frame(prepared: Prepared, numbers: np.ndarray, folds: np.ndarray) -> Any:
    import pandas

    table = pandas.DataFrame({"row": prepared.rows[numbers]})
    if prepared.ids is not None and prepared.id_column is not None:
        table[id_name(prepared.id_column)] = [prepared.ids[number] for number in numbers]
    table["fold"] = folds
    if prepared.examples.windows is not None:
        table["made_at"] = [str(time) for time in prepared.examples.windows.made_at[numbers]]
    return table


def _worst(prepared: Prepared, numbers: np.ndarray, truth: np.ndarray, predictions: Predictions) -> Any:
    """The rows with the largest losses, with their texts."""
    losses = row_losses(truth, predictions)
    order = np.argsort(-losses, kind="stable")[:_WORST]
    chosen = numbers[order]
    table = _frame(prepared, chosen, np.zeros(len(chosen), int)).drop(columns="fold")
    table.insert(0, "rank", np.arange(1, len(chosen) + 1))
    table["loss"] = losses[order]
    task = prepared.problem.task
    table["truth"] = [_told(task, truth[i]) for i in order]
    table["prediction"] = [_told(task, _decided(predictions, i)) for i in order]
    table["text"] = [prepared.texts[number] for number in chosen]
    if prepared.pairs is not None:
        table["second"] = [prepared.pairs[number] for number in chosen]
    return table


def _decided(predictions: Predictions, row: int) -> Any:
    one = predictions[row : row + 1]
    return one.values[0] if predictions.task in ("regression", "time_series") else one.labels()[0]


def _told(task: InferredTask, value: Any) -> str:
    if task.task == "multilabel":
        names = [str(name) for name, one in zip(task.classes or (), value, strict=True) if one == 1]
        return ", ".join(names) or "none"
    if task.task in ("regression", "time_series"):
        return ", ".join(f"{one:.6g}" for one in np.atleast_1d(value))
    return str((task.classes or ())[int(value)])


def _spread(values: list[float]) -> dict[str, float]:
    known = [value for value in values if value == value]
    if not known:
        return dict.fromkeys(("mean", "std", "low", "high"), float("nan"))
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": deviation, "low": min(known), "high": max(known)}
