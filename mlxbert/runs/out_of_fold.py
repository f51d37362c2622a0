"""What the models of a run say of the rows that they did not see: oof.csv, worst_rows.csv, and the scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from heads.base import Head
from heads.head_registry import head_from_settings
from heads.labels import decode_labels
from mlxbert.checkpoint import read_config
from mlxbert.factory.infer_task import InferredTask
from mlxbert.runs.files import RunFiles
from mlxbert.runs.members import held_out, members_of
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.tables import id_name, write_csv
from mlxbert.training.config import TrainingConfig
from mlxbert.training.judging import row_losses, scores
from mlxbert.training.predictions import Predictions, average, concatenate

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
