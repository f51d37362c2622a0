"""`Blend`: several runs as one, weighted by ensemble selection on their out-of-fold rows.

Caruana et al. 2004, "Ensemble selection from libraries of models": begin with nothing, and repeatedly add the run
(also one that was added before) that improves the mean most. It works for any metric, gives no negative weight, and
leaves out runs that do not help.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from mlxbert.runs.finish import prediction_columns
from mlxbert.runs.inputs import TableFormat
from mlxbert.runs.predict import Parts, Predictor
from mlxbert.runs.record import BLEND, INFO, is_run
from mlxbert.runs.run import Run
from mlxbert.training.held_out import NUMBERS, Predictions, ranks, scores
from mlxbert.training.held_out import average as weighted_mean

_ROUNDS = 60
# Parts of the rows of a single fold, so that no row influences its own weights and threshold.
_PARTS = 5


def selected_weights(
    truth: np.ndarray, parts: Sequence[Predictions], metric: Metric, rounds: int = _ROUNDS
) -> np.ndarray:
    """Return weights (parts,) that sum to 1; all equal if no score is defined.

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        metric: to optimize; labels are decided at the best threshold of each candidate.
        rounds: number of additions; the best mean on the way is taken.
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
    """Return the blend of each fold's rows, with weights and thresholds chosen on the rows of the other folds.

    If there is only one fold, its rows are dealt into five parts instead.

    Args:
        truth: (N, …) as `Head.metric_targets` gives it.
        parts: predictions for these N rows.
        folds: (N,) the fold of each row.
        metric: the weights optimize it.
        deciding: metric that the threshold of two classes is chosen for (`decision_thresholds`); None: `metric`.
    """
    if len(np.unique(folds)) == 1:
        folds = np.random.default_rng(len(truth)).permutation(len(truth)) % _PARTS
    values = np.empty_like(parts[0].values)
    thresholds = np.full(values.shape, 0.5)
    for number in np.unique(folds):
        rows, others = folds == number, folds != number
        if not others.any():
            return weighted_mean(parts)
        weights = selected_weights(truth[others], [part[others] for part in parts], metric)
        values[rows] = weighted_mean([part[rows] for part in parts], weights).values
        learned = weighted_mean([part[others] for part in parts], weights)
        chosen = decision_thresholds(truth[others], learned, deciding or metric)
        if chosen is not None:
            thresholds[rows] = chosen
    labelled = parts[0].task in ("binary", "multilabel")
    return Predictions(parts[0].task, values, thresholds if labelled else None)


def decision_thresholds(truth: np.ndarray, predictions: Predictions, metric: Metric) -> np.ndarray | None:
    """Return the smallest probability that counts as positive: () of "binary", (L,) of "multilabel"; else None.

    For "binary" it is the best for `metric`, or for F1 if `metric` reads no labels (`heads.calibration`). Each of
    several labels is scored by F1, for every metric over all of them (`MultilabelClassificationHead`). If all rows
    are of one class, it is one half.
    """
    values = predictions.values
    if predictions.task == "binary":
        return np.array(_best(values, truth, threshold_metric(metric.name)))
    if predictions.task == "multilabel":
        return np.array([_best(*pair, "f1") for pair in zip(values.T, truth.T, strict=True)])
    return None


def decided(predictions: Predictions, thresholds: np.ndarray | None) -> Predictions:
    """Return the predictions with the thresholds of `decision_thresholds`; None: one half."""
    if thresholds is not None:
        thresholds = np.broadcast_to(thresholds, predictions.values.shape)
    return Predictions(predictions.task, predictions.values, thresholds)


def _best(values: np.ndarray, truth: np.ndarray, metric: str) -> float:
    known = truth >= 0  # −1 is an unknown label
    if len(np.unique(truth[known])) < 2:
        return 0.5
    return best_threshold(values[known], truth[known], metric, "blend")


def _scorer(truth: np.ndarray, metric: Metric) -> Callable[[Predictions], float]:
    """Return a function that scores predictions: higher is better, and −inf means undefined."""
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
        runs: directories of the runs, relative to that of the blend.
        weights: one per run; they sum to 1.
        metric: the metric to optimize.
        average: what is averaged.
        thresholds: smallest probability that counts as positive: one of "binary", one per label of "multilabel";
            None: one half, or no labels.
        alone: scores of each run alone; `pooled`: those of the blend.
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
        """Refuse weights that do not fit the runs."""
        if not self.runs or not len(self.runs) == len(self.weights) == len(self.alone):
            counts = f"{len(self.runs)} runs, {len(self.weights)} weights, {len(self.alone)} rows of scores"
            raise RunError(f"the counts differ: {counts}")
        if not all(0 <= weight <= 1.001 for weight in self.weights) or not 0.999 <= sum(self.weights) <= 1.001:
            raise RunError("weights must be from 0 to 1, and sum to 1")


@dataclass(frozen=True)
class Blend(Predictor):
    """Several finished runs and their weights.

    Attributes:
        path: its directory, with blend.json and oof.csv; the current one if nothing was written.
        runs: the blended runs.
        record: the content of blend.json, checked.
        info: the JSON object in blend.json.
    """

    path: Path
    runs: tuple[Run, ...]
    record: BlendRecord
    info: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a blend on disk; its runs must be where they were, relative to it.

        Raises:
            RunError: there is no blend, it is damaged, or one of its runs is gone.
        """
        root = expand_home(path)
        info = read_json(root / BLEND, RunError)
        if info is None or info.get("format") != FORMAT or info.get("version") != VERSION:
            raise RunError(f"{root} is not a blend; fix: give a directory that `mlxbert blend -o` wrote")
        record = _record(info, root / BLEND)
        return cls(root, tuple(Run.open(root / path) for path in record.runs), record, info)

    @property
    def weights(self) -> list[float]:
        """The weight of each run; they sum to 1."""
        return list(self.record.weights)

    @property
    def task(self) -> InferredTask:
        """The inferred task."""
        return self.runs[0].task

    @property
    def table_format(self) -> TableFormat:
        """The format of a table to predict: text columns of all runs, and ids of the first run that has ids."""
        formats = [run.table_format for run in self.runs]
        named = next((table for table in formats if table.id is not None), formats[0])
        return replace(
            named,
            kinds={name: kind for table in reversed(formats) for name, kind in table.kinds.items()},
            columns=tuple(dict.fromkeys(name for table in formats for name in table.columns)),
            like=next((table.like for table in formats if table.like is not None), None),
        )

    @property
    def rules(self) -> SubmissionRules:
        """The rules that give the format of the submissions: those of the first run."""
        return self.runs[0].rules

    def check_average(self, average: str, form: Submission) -> None:
        """Refuse ranks of models or runs if labels or numbers are wanted; see `Predictor`."""
        super().check_average(average, form)
        super().check_average(self.record.average, form)

    @property
    def averages_ranks(self) -> bool:
        """Whether the blend weighs ranks among all rows."""
        return self.record.average == "ranks"

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files and models that the predictions depend on; see `Predictor`."""
        return (self.path / BLEND, *(path for run in self.runs for path in run.sources))

    def predict_pieces(self, frames: Callable[[], Iterator[Any]], **options: Any) -> Parts:
        """Predict with each run in turn, and combine; see `Predictor`."""
        runs = [run.predict_pieces(frames, **options) for run in self.runs]
        return tuple(self.combine(parts) for parts in zip(*runs, strict=True))

    def forecast(self, history: Any, intervals: float | None = None) -> Parts:
        """Forecast with each run in turn, and combine; see `Predictor`."""
        runs = [run.forecast(history, intervals) for run in self.runs]
        return tuple(self.combine(parts) for parts in zip(*runs, strict=True))

    def combine(self, parts: Sequence[Predictions]) -> Predictions:
        """Return the weighted mean of the runs' predictions for the same rows, with the thresholds of the blend."""
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
    """Weigh finished runs by their out-of-fold predictions; write blend.json and oof.csv if `out` is given.

    Args:
        runs: two or more directories of runs with the same rows and target.
        out: directory of the blend, for `mlxbert predict`; None: nothing is written.
        metric: to optimize; None: that of the first run.
        average: "probabilities" (or numbers), or "ranks" (for metrics of order such as auc; without labels).
        overwrite: replace a blend that is there already.

    Raises:
        RunError: fewer than two runs; runs of different rows, targets or tasks; ranks for a metric that reads more.
    """
    opened = [Run.open(run) for run in runs]
    if len(opened) < 2:
        raise RunError("a blend needs two runs or more; fix: name another one")
    root = Path() if out is None else expand_home(out)
    if out is not None and root.exists() and not (overwrite and (root / BLEND).is_file()):
        raise RunError(f"{root} is there already; fix: --overwrite (a blend alone is replaced), or another -o")
    tables = [run.oof() for run in opened]
    _check_same_rows(opened, tables)
    leader, task, table = opened[0], opened[0].task, tables[0]
    chosen = metric_of(metric or leader.record.metric, task.task)
    if average == "ranks" and chosen.needs != "scores":
        raise RunError(f"ranks are averaged for metrics of order, and {chosen.name} reads {chosen.needs}; fix: auc")
    truth = _truth(task, table, leader.files.oof)
    parts = [_predictions(task, table, run.files.oof) for run, table in zip(opened, tables, strict=True)]
    if len({part.values.shape for part in parts}) > 1:
        raise RunError("the runs predict different numbers of classes; fix: blend runs of one target")
    if average == "ranks":
        parts = [ranks(part) for part in parts]
    info, blended = _weighed(opened, truth, parts, numbers(table, "fold", leader.files.oof), chosen, average)
    info["runs"] = [os.path.relpath(run.path.resolve(), root.resolve()) for run in opened]
    if out is None:
        return Blend(root, tuple(opened), _record(without_nan(info), root / BLEND), info)
    write_json(root / BLEND, info, fix="free some space and blend again")
    key = leader.id and id_name(leader.id)
    rows = table[[name for name in ("row", key, "fold", "made_at") if name in table.columns]].copy()
    columns = {"rank": blended.values} if average == "ranks" else prediction_columns(task, truth, blended)
    for name, column in columns.items():
        if column.ndim == 1:
            rows[name] = column
    write_csv(root / "oof.csv", rows, escape_formulas=leader.settings.escape_formulas)
    return Blend.open(root)


def _weighed(
    runs: Sequence[Run],
    truth: np.ndarray,
    parts: Sequence[Predictions],
    folds: np.ndarray,
    metric: Metric,
    average: str,
) -> tuple[dict[str, Any], Predictions]:
    """Return the content of blend.json without its runs, and the cross-fitted predictions of the blend."""
    # Labels are decided for the metric of the runs' training, even if the weights optimize another one.
    leader, ranked = runs[0].record, average == "ranks"
    deciding = metric if metric.needs == "labels" else metric_of(leader.metric, leader.task.task)
    weights = selected_weights(truth, parts, metric)
    thresholds = decision_thresholds(truth, weighted_mean(parts, weights), deciding)
    names = list(dict.fromkeys([metric.name, *([] if ranked else leader.metrics)]))

    def cross_fitted(several: Sequence[Predictions]) -> Predictions:
        return cross_fitted_blend(truth, several, folds.astype(np.int64), metric, deciding)

    blended = cross_fitted(parts)
    alone = [_alone(run, truth, cross_fitted([part]), names, ranked) for run, part in zip(runs, parts, strict=True)]
    info = {
        "format": FORMAT,
        "version": VERSION,
        "runs": [],
        "weights": [float(weight) for weight in weights],
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "average": average,
        "thresholds": None if thresholds is None or ranked else thresholds.tolist(),
        "alone": alone,
        "pooled": scores(truth, blended, names),
    }
    return info, blended


def _record(info: Mapping[str, Any], file: Path) -> BlendRecord:
    return from_json(BlendRecord, info, place=str(file), fix="fix: blend again", error=RunError, null_is_nan=True)


def _alone(run: Run, truth: np.ndarray, part: Predictions, names: Sequence[str], ranked: bool) -> dict[str, float]:
    """Return the scores of one run: its recorded ones; others, and those of ranks, from its predictions."""
    known = {} if ranked else (run.scores or {}).get("pooled", {})
    return {name: known[name] if name in known else scores(truth, part, [name])[name] for name in names}


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
    if any(isinstance(label, str) for label in classes):  # `Run.oof` reads them so, too
        return encode_labels(truth.astype(str), [str(label) for label in classes], str(file))
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


def open_predictor(path: str | Path) -> Run | Blend:
    """Open the run or the blend in a directory.

    Raises:
        RunError: the directory has neither.
    """
    root = expand_home(path)
    if (root / BLEND).exists():
        return Blend.open(root)
    if root.is_dir() and not is_run(root):
        run = root.resolve().parent.parent
        if root.resolve().parent.name == "members" and is_run(run):
            raise RunError(f"{root} is one model of a run; fix: mlxbert predict {shlex.quote(str(run))}")
        if (root / "config.json").is_file():
            raise RunError(f"{root} is a checkpoint, not a run; fix: fine-tune it first: mlxbert train --model {root}")
    if root.is_file() and root.name in (INFO, BLEND):
        raise RunError(f"{root} is a file of a run or blend; fix: give its directory, {root.parent}")
    return Run.open(root)
