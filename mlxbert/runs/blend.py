"""How much each of several predictions counts in their mean: ensemble selection on out-of-fold rows.

Caruana et al. 2004, "Ensemble selection from libraries of models": begin with nothing, and again and again add the
one, already chosen or not, that improves the mean most. It works for any metric, never weighs below 0, and leaves out
what does not help.

`Blend`: several runs as one, weighted by their out-of-fold predictions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from heads.calibration import best_threshold, threshold_metric
from heads.labels import encode_labels
from heads.metrics import Metric, metric_of
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.submission import Submission, SubmissionRules
from mlxbert.files.reading import expand_home, from_json, read_json
from mlxbert.runs.files import RunError, id_name, numbers, truth_columns, without_nan, write_csv, write_json
from mlxbert.runs.members import prediction_columns
from mlxbert.runs.record import BLEND
from mlxbert.runs.rows import TableFormat
from mlxbert.runs.run import Run
from mlxbert.training.held_out import NUMBERS, Predictions, average, ranks, scores
from mlxbert.training.held_out import average as weighted_mean

_ROUNDS = 60
# What the rows of one fold are dealt into, so that none has a say in its own weights and threshold.
_PARTS = 5


def selected_weights(
    truth: np.ndarray, parts: Sequence[Predictions], metric: Metric, rounds: int = _ROUNDS
) -> np.ndarray:
    """Weights (parts,) that sum to 1, each a multiple of 1 / (number of additions); equal where no score is defined.

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        metric: to optimize; of labels of two classes, at the threshold that is best for each candidate, and so for
            each of many labels.
        rounds: additions; the best mean on the way is taken.
    """
    score = _scorer(truth, metric)
    counts = np.zeros(len(parts))
    total: np.ndarray | None = None
    best_counts, best = np.ones(len(parts)), -np.inf
    for done in range(rounds):
        candidates = []
        for part in parts:
            values = part.values if total is None else (total * done + part.values) / (done + 1)
            candidates.append((score(Predictions(part.task, values)), values))
        chosen = int(np.argmax([value for value, _ in candidates]))
        value, total = candidates[chosen]
        counts = counts + np.eye(len(parts))[chosen]
        if value > best + 1e-12:
            best_counts, best = counts, value
        elif done - best_counts.sum() > 2 * len(parts) + 10:
            break
    return np.asarray(best_counts / best_counts.sum())


def cross_fitted_blend(
    truth: np.ndarray,
    parts: Sequence[Predictions],
    folds: np.ndarray,
    metric: Metric,
    deciding: Metric | None = None,
) -> Predictions:
    """The blend of each fold's rows with weights, and thresholds, that the other folds' rows have chosen.

    The rows of one fold alone are dealt into five parts in place of folds.

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        folds: (N,) their fold.
        metric: that the weights optimize.
        deciding: that the threshold of two classes is learned for (`decision_thresholds`); None: `metric`.
    """
    if len(np.unique(folds)) == 1:
        folds = np.random.default_rng(len(truth)).permutation(len(truth)) % _PARTS
    values = np.empty_like(parts[0].values)
    thresholds = np.full(values.shape, 0.5)
    for number in np.unique(folds):
        mine, others = folds == number, folds != number
        if not others.any():
            return average(parts)
        weights = selected_weights(truth[others], [part[others] for part in parts], metric)
        values[mine] = average([part[mine] for part in parts], weights).values
        learned = average([part[others] for part in parts], weights)
        found = decision_thresholds(truth[others], learned, deciding or metric)
        if found is not None:
            thresholds[mine] = found
    labelled = parts[0].task in ("binary", "multilabel")
    return Predictions(parts[0].task, values, thresholds if labelled else None)


def decision_thresholds(truth: np.ndarray, predictions: Predictions, metric: Metric) -> np.ndarray | None:
    """The probability from which on a row counts as positive: () of "binary", (L,) of "multilabel"; else None.

    For "binary" it is fitted for `metric`, or for F1 if that reads no labels (`heads.calibration.threshold_metric`);
    one label of many is judged by F1, whatever the metric over all of them (`MultilabelClassificationHead`). Rows of
    one class teach nothing: one half.
    """
    values = predictions.values
    if predictions.task == "binary":
        return np.array(_best(values, truth, threshold_metric(metric.name)))
    if predictions.task == "multilabel":
        return np.array([_best(*pair, "f1") for pair in zip(values.T, truth.T, strict=True)])
    return None


def decided(predictions: Predictions, thresholds: np.ndarray | None) -> Predictions:
    """The same values, labelled at these thresholds of `decision_thresholds`; None: at one half."""
    shape = predictions.values.shape
    own = None if thresholds is None else np.broadcast_to(thresholds, shape)
    return Predictions(predictions.task, predictions.values, own)


def _best(values: np.ndarray, truth: np.ndarray, metric: str) -> float:
    known = truth >= 0  # −1 is an unknown label
    if len(np.unique(truth[known])) < 2:
        return 0.5
    return best_threshold(values[known], truth[known], metric, "blend")


def _scorer(truth: np.ndarray, metric: Metric) -> Callable[[Predictions], float]:
    """Higher is better; undefined is the worst."""
    sign = 1.0 if metric.greater_is_better else -1.0

    def score(predictions: Predictions) -> float:
        thresholds = decision_thresholds(truth, predictions, metric) if metric.needs == "labels" else None
        outputs = decided(predictions, thresholds).outputs(metric.needs)
        value = sign * float(metric.function(truth, outputs))
        return value if value == value else -np.inf

    return score


FORMAT, VERSION = "mlxbert-blend", 2


@dataclass(frozen=True)
class BlendRecord:
    """The content of blend.json.

    Attributes:
        runs: their directories, relative to the blend's.
        weights: one a run; they sum to 1.
        metric: that is optimized.
        average: what is averaged.
        thresholds: from which probability on a label is given: of "binary" one, of "multilabel" one a label; None:
            one half, or no labels.
        alone: the scores of each run alone; `pooled`: those of the blend.
    """

    runs: tuple[str, ...]
    weights: tuple[float, ...]
    metric: str
    greater_is_better: bool
    average: Literal["probabilities", "ranks"]
    thresholds: float | tuple[float, ...] | None
    alone: tuple[Mapping[str, float], ...]
    pooled: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuse weights that do not weigh the runs."""
        if not self.runs or not len(self.runs) == len(self.weights) == len(self.alone):
            counts = f"{len(self.runs)} runs, {len(self.weights)} weights, {len(self.alone)} rows of scores"
            raise RunError(f"the counts differ: {counts}")
        if not all(0 <= weight <= 1.001 for weight in self.weights) or not 0.999 <= sum(self.weights) <= 1.001:
            raise RunError("weights must be from 0 to 1, and sum to 1")


@dataclass(frozen=True)
class Blend:
    """Several finished runs and their weights.

    Attributes:
        path: its directory: blend.json, and oof.csv of the blend; the current one where nothing was written.
        runs: that are blended.
        record: the content of blend.json, checked.
        info: the JSON object in blend.json, as it is.
    """

    path: Path
    runs: tuple[Run, ...]
    record: BlendRecord
    info: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A blend on disk; its runs lie where they lay, seen from it.

        Raises:
            RunError: it is none, damaged, or one of its runs is gone.
        """
        root = expand_home(path)
        info = read_json(root / BLEND, RunError)
        if info is None or info.get("format") != FORMAT or info.get("version") != VERSION:
            raise RunError(f"{root} is not a blend; fix: give what `mlxbert blend -o` made")
        record = _record(info, root / BLEND)
        return cls(root, tuple(Run.open(root / one) for one in record.runs), record, info)

    @property
    def weights(self) -> list[float]:
        """One a run; they sum to 1."""
        return list(self.record.weights)

    @property
    def task(self) -> InferredTask:
        """What the target is."""
        return self.runs[0].task

    @property
    def table_format(self) -> TableFormat:
        """How it reads a table: what the texts of all runs are made of, and the ids of the first run that has them."""
        formats = [run.table_format for run in self.runs]
        named = next((one for one in formats if one.id is not None), formats[0])
        return replace(
            named,
            kinds={name: kind for one in reversed(formats) for name, kind in one.kinds.items()},
            columns=tuple(dict.fromkeys(name for one in formats for name in one.columns)),
            like=next((one.like for one in formats if one.like is not None), None),
        )

    @property
    def rules(self) -> SubmissionRules:
        """What the format of its submissions follows from: the first run's."""
        return self.runs[0].rules

    def submission(self, values: str | None = None) -> Submission:
        """The format of its submissions: the first run's."""
        return self.rules.form(values)

    def predict(
        self,
        data: Any,
        *,
        values: str | None = None,
        average: str = "probabilities",
        sample_submission: Any = None,
        id: str | None = None,
    ) -> Any:
        """Predictions for the rows of a frame or file: see `Run.predict`."""
        from mlxbert.runs.predict import predict_table

        made, _ = predict_table(
            self, data, sample_submission=sample_submission, values=values, id=id, how=average, strict=False
        )
        return made

    def combine(self, parts: Sequence[Predictions]) -> Predictions:
        """The weighted mean of the runs' predictions for the same rows, decided at the blend's own thresholds."""
        if self.record.average == "ranks":
            parts = [ranks(part) for part in parts]
        mean = weighted_mean(parts, self.weights)
        if self.record.thresholds is None:
            return decided(mean, None)
        thresholds = np.array(self.record.thresholds)
        if thresholds.shape != mean.values.shape[1:]:
            raise RunError(
                f"{self.path / BLEND}: thresholds of the shape {thresholds.shape} do not fit predictions of "
                f"{mean.values.shape[1:]}; fix: blend again"
            )
        return decided(mean, thresholds)


def blend(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    metric: str | None = None,
    average: str = "probabilities",
    overwrite: bool = False,
) -> Blend:
    """Weigh finished runs by their out-of-fold predictions; `out`, where it is given, gets blend.json and oof.csv.

    Args:
        runs: two or more directories of runs with the same rows and target.
        out: the blend's directory, which `mlxbert predict` takes; None: nothing is written.
        metric: to optimize; None: the first run's.
        average: "probabilities" (numbers), or "ranks" (for metrics of order such as auc; no labels then).
        overwrite: replace a blend that is there already.

    Raises:
        RunError: fewer than two runs, or runs of other rows, targets or tasks; ranks for a metric of more than order.
    """
    opened = [Run.open(one) for one in runs]
    if len(opened) < 2:
        raise RunError("a blend needs two runs or more; fix: name another one")
    root = Path() if out is None else expand_home(out)
    if out is not None and root.exists() and not (overwrite and (root / BLEND).is_file()):
        raise RunError(f"{root} is there already; fix: --overwrite (a blend alone is replaced), or another -o")
    tables = [run.oof() for run in opened]
    _check_same_rows(opened, tables)
    task, first = opened[0].task, tables[0]
    folds = numbers(first, "fold", opened[0].files.oof).astype(np.int64)
    chosen = metric_of(metric or opened[0].record.metric, task.task)
    if average == "ranks" and chosen.needs != "scores":
        raise RunError(f"ranks are averaged for metrics of order, and {chosen.name} reads {chosen.needs}; fix: auc")
    # Labels are handed in for the metric that the runs were trained for, whatever the weights optimize.
    deciding = chosen if chosen.needs == "labels" else metric_of(opened[0].record.metric, task.task)
    truth = _truth(task, first, opened[0].files.oof)
    parts = [_predictions(task, table, run.files.oof) for run, table in zip(opened, tables, strict=True)]
    if len({part.values.shape for part in parts}) > 1:
        raise RunError("the runs predict different numbers of classes; fix: blend runs of one target")
    if average == "ranks":
        parts = [ranks(part) for part in parts]
    weights = selected_weights(truth, parts, chosen)
    thresholds = decision_thresholds(truth, weighted_mean(parts, weights), deciding)

    def cross_fitted(several: Sequence[Predictions]) -> Predictions:
        return cross_fitted_blend(truth, several, folds, chosen, deciding)

    honest = cross_fitted(parts)
    names = [chosen.name] if average == "ranks" else list(opened[0].record.metrics)
    names = list(dict.fromkeys([chosen.name, *names]))
    info = {
        "format": FORMAT,
        "version": VERSION,
        "runs": [os.path.relpath(run.path.resolve(), root.resolve()) for run in opened],
        "weights": [float(one) for one in weights],
        "metric": chosen.name,
        "greater_is_better": chosen.greater_is_better,
        "average": average,
        "thresholds": None if thresholds is None or average == "ranks" else thresholds.tolist(),
        "alone": [
            _alone(run, truth, cross_fitted([part]), names, average == "ranks")
            for run, part in zip(opened, parts, strict=True)
        ],
        "pooled": scores(truth, honest, names),
    }
    if out is None:
        return Blend(root, tuple(opened), _record(without_nan(info), root / BLEND), info)
    write_json(root / BLEND, info, fix="free some space and blend again")
    key = opened[0].id and id_name(opened[0].id)
    table = first[[name for name in ("row", key, "fold", "made_at") if name in first.columns]].copy()
    columns = {"rank": honest.values} if average == "ranks" else prediction_columns(task, truth, honest)
    for name, column in columns.items():
        if column.ndim == 1:
            table[name] = column
    write_csv(root / "oof.csv", table, escape_formulas=opened[0].settings.escape_formulas)
    return Blend.open(root)


def _record(info: Mapping[str, Any], file: Path) -> BlendRecord:
    return from_json(BlendRecord, info, place=str(file), fix="fix: blend again", error=RunError, null_is_nan=True)


def _alone(run: Run, truth: np.ndarray, part: Predictions, names: Sequence[str], ranked: bool) -> dict[str, float]:
    """A run's scores: as it has them, with its own thresholds; the rest, and those of ranks, from its predictions."""
    own = {} if ranked else (run.scores or {}).get("pooled", {})
    return {name: own[name] if name in own else scores(truth, part, [name])[name] for name in names}


def _check_same_rows(runs: Sequence[Run], tables: Sequence[Any]) -> None:
    leader, first = runs[0], tables[0]
    targets = truth_columns(first.columns)
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if run.task.task != leader.task.task or run.task.classes != leader.task.classes:
            raise RunError(f"{run.path} is {run.task}, {leader.path} {leader.task}; fix: blend runs of one target")
        same = all(
            name in table.columns and name in first.columns and table[name].equals(first[name])
            for name in ("row", *targets)
        )
        if not same:
            raise RunError(
                f"{run.path} has other out-of-fold rows or targets than {leader.path}; fix: blend runs of one file"
            )


def _truth(task: InferredTask, table: Any, file: Path) -> np.ndarray:
    names = truth_columns(table.columns)
    if not names:
        raise RunError(f"{file} has no column of the target; fix: train again")
    if task.task in NUMBERS:
        columns = [numbers(table, name, file, missing=True) for name in names]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
    if task.task == "multilabel":
        return np.stack([numbers(table, name, file) for name in names], axis=1).astype(np.int32)
    classes = task.classes or ()
    truth = table[names[0]].to_numpy()
    if any(isinstance(one, str) for one in classes):  # and so `Run.oof` reads them
        return encode_labels(truth.astype(str), [str(one) for one in classes], str(file))
    return encode_labels(truth, classes, str(file))


def _predictions(task: InferredTask, table: Any, file: Path) -> Predictions:
    what = "prediction" if task.task in NUMBERS else "probability"
    columns = [numbers(table, name, file) for name in truth_columns(table.columns, what)]
    if not columns:
        raise RunError(f"{file} has no column of predictions; fix: train again")
    values = columns[0] if len(columns) == 1 and task.task in ("binary", *NUMBERS) else np.stack(columns, axis=1)
    width = len(task.classes or ()) if task.task in ("multiclass", "ordinal", "multilabel") else None
    if width is not None and values.shape[1:] != (width,):
        raise RunError(f"{file} has {len(columns)} columns of predictions for {width} classes; fix: train again")
    return Predictions(task.task, values)
