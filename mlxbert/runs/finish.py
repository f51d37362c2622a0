"""The end of a run: its log, out-of-fold rows, predictions for a test file or held-out rows, scores."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Head
from heads.head_registry import head_from_settings
from heads.labels import decode_labels
from mlxbert.checkpoint import read_config
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.submission import SubmissionWarning
from mlxbert.files.output_file import json_text, replace_listed_files
from mlxbert.files.safetensors import read_array_file
from mlxbert.runs.files import GO_ON, RunError, RunFiles, id_name, without_nan, write_csv, write_json
from mlxbert.runs.inputs import Inputs, columns_of
from mlxbert.runs.log import merge_logs
from mlxbert.runs.members import members_of
from mlxbert.runs.predict import write_submission
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import NUMBERS, Predictions, average, concatenate, row_losses
from mlxbert.training.held_out import scores as score
from mlxbert.training.trainer import Member

# Rows of worst_rows.csv.
_WORST = 100


def finish(
    files: RunFiles,
    prepared: Prepared,
    settings: RunSettings,
    config: TrainingConfig,
    inputs: Inputs,
    seconds: float,
) -> dict[str, Any]:
    """Write the tables and scores of a run; scores.json is the last file. Return its content."""
    escape_formulas = settings.escape_formulas
    merge_logs(files, [member.name for member in members_of(config, len(prepared.folds))])
    scores = write_out_of_fold(files, prepared, config, escape_formulas=escape_formulas)
    run = Run.open(files.root)
    scores["hold_out"] = None
    if prepared.held_out is not None:
        scores["hold_out"] = _hold_out(run, prepared, list(scores["pooled"]), escape_formulas)
    elif inputs.test is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SubmissionWarning)  # the same warning appeared before the training
            write_submission(
                run,
                inputs.test,
                out=files.submission,
                sample_submission=inputs.sample_submission,
                values=settings.values,
                encoding=settings.encoding,
                quoting=settings.quoting,
                escape_formulas=escape_formulas,
            )
    _record_scores(files, prepared, scores)
    scores["seconds"] = seconds
    shutil.rmtree(files.resume, ignore_errors=True)
    write_json(files.scores, scores)
    return scores


def _record_scores(files: RunFiles, prepared: Prepared, scores: Mapping[str, Any]) -> None:
    """Put the scores of the run into the config.json of each model, for the card of a published one.

    They include no times, so that a resumed run ends in the same bytes.
    """
    members = scores["members"]
    of_one_seed = [member for member in members if member["seed"] == members[0]["seed"]]
    for member in members:
        directory = files.member(member["member"])
        config = read_config(directory)
        block = {
            "task": prepared.problem.task.task,
            "metric": scores["metric"],
            "pooled": scores["pooled"],
            "folds": len(prepared.folds),
            "data_rows": sum(each["rows"] for each in of_one_seed),
            "models": len(members),
            "own": member["metrics"],
            "own_rows": member["rows"],
        }
        config["mlxbert"]["trained"] = without_nan(block)
        replace_listed_files(directory, {"config.json": json_text(config).encode()}, fix=GO_ON)


def _hold_out(run: Run, prepared: Prepared, metrics: list[str], escape_formulas: bool) -> dict[str, Any]:
    """Predict the rows held out of everything; write a submission, and a table with the truth. Return their scores."""
    import pandas

    frame, form = prepared.held_out, run.submission()
    task = prepared.problem.task
    # A row of a series is named by its time.
    key = run.id or (run.record.data.time if task.task == "time_series" else None)
    ids = list(range(len(frame))) if key is None else list(frame[key])
    if task.task == "time_series":
        (steps,) = run.forecast(prepared.history)
        values = steps.values[0][: len(frame)]
        truth = prepared.problem.targets(frame)
        columns = {form.columns[0]: values}
        compared = {"target": truth, "prediction": values}
        metric_values = score(np.asarray(truth, np.float64), Predictions("time_series", values), metrics)
    else:
        predictions = run.predict_frame(frame)
        truth = fitted_head(run.files, run.record.members[0]).metric_targets(prepared.problem.targets(frame))
        columns = columns_of(form, task, predictions)
        compared = prediction_columns(task, truth, predictions)
        metric_values = score(truth, predictions, metrics)
    submission = pandas.DataFrame({form.id_column: ids, **columns})
    table = pandas.DataFrame({id_name(form.id_column): ids, **compared})
    write_csv(run.files.submission, submission, escape_formulas=escape_formulas)
    write_csv(run.files.hold_out, table, escape_formulas=escape_formulas)
    return {"rows": len(frame), "metrics": metric_values}


@dataclass(frozen=True, eq=False)
class HeldOutRows:
    """The predictions of a finished model for the rows that its fold held out.

    Attributes:
        rows: (n,) their numbers among the examples.
        predictions: cross-fitted.
        step: step of the weights that the model keeps; likewise `epoch`.
    """

    rows: np.ndarray
    predictions: Predictions
    step: int
    epoch: float


def held_out(files: RunFiles, member: Member, task: str, rows: np.ndarray, shape: tuple[int, ...]) -> HeldOutRows:
    """Read the predictions of a model for its held-out rows, which `train_members` saved.

    Args:
        files: of the run.
        member: the model.
        task: the competition type.
        rows: (n,) the rows that its fold held out.
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
    shapes = {name: arrays[name].shape if name in arrays else None for name in expected}
    if shapes != expected:
        raise RunError(f"{file} is damaged (its arrays have the shapes {shapes}, expected {expected}); {fix}")
    if not np.array_equal(arrays["rows"], rows) or not np.isfinite(arrays["values"]).all():
        raise RunError(f"{file} is damaged (it is of other rows, or not finite); {fix}")
    predictions = Predictions(task, arrays["values"], arrays.get("thresholds"))
    return HeldOutRows(rows, predictions, int(arrays["step"]), float(arrays["epoch"]))


def write_out_of_fold(
    files: RunFiles, prepared: Prepared, config: TrainingConfig, *, escape_formulas: bool = False
) -> dict[str, Any]:
    """Write oof.csv and worst_rows.csv; return the scores of each model, their spread, and those of all rows."""
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
                        "metrics": score(truth, held.predictions, names),
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
    members.sort(key=lambda member: (config.seeds.index(member["seed"]), member["fold"]))
    return {
        "metric": prepared.metric.name,
        "greater_is_better": prepared.metric.greater_is_better,
        "members": members,
        "spread": {name: _spread([member["metrics"][name] for member in members]) for name in names},
        "pooled": score(truth, predictions, names),
    }


def fitted_head(files: RunFiles, member: str) -> Head:
    """Return the head of a model without its weights: classes, scaler, thresholds."""
    return head_from_settings(read_config(files.member(member))["mlxbert"]["head"])


def prediction_columns(task: InferredTask, truth: np.ndarray, predictions: Predictions) -> dict[str, np.ndarray]:
    """Return the columns of oof.csv by name: truths, probabilities or numbers, and labels.

    One target has the columns "target", and "prediction" or "probability" and "label". Several labels, targets or
    steps ahead have one of each per name: "target:toxic", "probability:toxic". `truth_columns` finds them.
    """
    values, classes = predictions.values, task.classes or ()

    def several(what: str, table: np.ndarray, names: Sequence[Any]) -> dict[str, np.ndarray]:
        columns = table.reshape(len(table), -1).T
        return {f"{what}:{name}": column for name, column in zip(names, columns, strict=True)}

    if task.task == "regression" and len(task.target) == 1:
        return {"target": truth.reshape(-1), "prediction": values.reshape(-1)}
    if task.task in NUMBERS:
        steps = [f"+{step + 1}" for step in range(values.size // len(values))]
        names = task.target if task.task == "regression" else steps
        return several("target", truth, names) | several("prediction", values, names)
    labels = predictions.labels()
    if task.task == "multilabel":
        columns = several("target", truth, classes) | several("probability", values, classes)
        return columns | several("label", labels, classes)
    probabilities = {"probability": values} if task.task == "binary" else several("probability", values, classes)
    return {"target": decode_labels(truth, classes), **probabilities, "label": decode_labels(labels, classes)}


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
    """Return the rows with the largest losses, with their texts."""
    losses = row_losses(truth, predictions)
    order = np.argsort(-losses, kind="stable")[:_WORST]
    chosen = numbers[order]
    table = _frame(prepared, chosen, np.zeros(len(chosen), int)).drop(columns="fold")
    table.insert(0, "rank", np.arange(1, len(chosen) + 1))
    table["loss"] = losses[order]
    task = prepared.problem.task
    table["truth"] = [_words(task, truth[i]) for i in order]
    table["prediction"] = [_words(task, _decided(predictions, i)) for i in order]
    table["text"] = [prepared.texts[number] for number in chosen]
    if prepared.pairs is not None:
        table["second"] = [prepared.pairs[number] for number in chosen]
    return table


def _decided(predictions: Predictions, row: int) -> Any:
    part = predictions[row : row + 1]
    return part.values[0] if predictions.task in NUMBERS else part.labels()[0]


def _words(task: InferredTask, value: Any) -> str:
    if task.task == "multilabel":
        names = [str(name) for name, label in zip(task.classes or (), value, strict=True) if label == 1]
        return ", ".join(names) or "none"
    if task.task in NUMBERS:
        return ", ".join(f"{number:.6g}" for number in np.atleast_1d(value))
    return str((task.classes or ())[int(value)])


def _spread(values: list[float]) -> dict[str, float]:
    known = [value for value in values if value == value]
    if not known:
        return dict.fromkeys(("mean", "std", "low", "high"), float("nan"))
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    return {"mean": float(np.mean(known)), "std": deviation, "low": min(known), "high": max(known)}
