"""`Blend`: several runs as one, weighted by their out-of-fold predictions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from heads.labels import encode_labels
from heads.metrics import metric_of
from mlxbert.data.cells import Kind
from mlxbert.data.data_file import Quoting
from mlxbert.factory.competition import Submission
from mlxbert.factory.infer_task import InferredTask
from mlxbert.files.reading import read_json
from mlxbert.home import expand_home
from mlxbert.runs.blend_weights import cross_fitted_blend, decided, decision_thresholds, selected_weights
from mlxbert.runs.files import RunError, write_json
from mlxbert.runs.out_of_fold import prediction_columns
from mlxbert.runs.run import Run
from mlxbert.runs.tables import write_csv
from mlxbert.training.judging import scores
from mlxbert.training.predictions import NUMBERS, Predictions, ranks
from mlxbert.training.predictions import average as weighted_mean

FORMAT, VERSION, NAME = "mlxbert-blend", 2, "blend.json"


@dataclass(frozen=True)
class Blend:
    """Several finished runs and their weights.

    Attributes:
        path: its directory: blend.json, and oof.csv of the blend; the current one where nothing was written.
        runs: that are blended.
        info: the content of blend.json.
    """

    path: Path
    runs: tuple[Run, ...]
    info: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A blend on disk; its runs lie where they lay, seen from it.

        Raises:
            RunError: it is none, or one of its runs is gone.
        """
        root = expand_home(path)
        info = read_json(root / NAME, RunError)
        if info is None or info.get("format") != FORMAT or info.get("version") != VERSION:
            raise RunError(f"{root} is not a blend; fix: give what `mlxbert blend -o` made")
        return cls(root, tuple(Run.open(root / one) for one in info["runs"]), info)

    @property
    def weights(self) -> list[float]:
        """One a run; they sum to 1."""
        return [float(one) for one in self.info["weights"]]

    @property
    def task(self) -> InferredTask:
        """What the target is."""
        return self.runs[0].task

    @property
    def id(self) -> str | None:
        """The column that names a row."""
        return self.runs[0].id

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the columns hold."""
        return {name: kind for run in reversed(self.runs) for name, kind in run.kinds.items()}

    @property
    def quoting(self) -> Quoting | None:
        """Of the first training file that has one."""
        return next((run.quoting for run in self.runs if run.quoting is not None), None)

    @property
    def columns(self) -> list[str]:
        """Those that the runs' texts are made of."""
        return list(dict.fromkeys(name for run in self.runs for name in run.columns))

    def submission(self, values: str | None = None) -> Submission:
        """The format of its submissions: the first run's."""
        return self.runs[0].submission(values)

    def combine(self, parts: Sequence[Predictions]) -> Predictions:
        """The weighted mean of the runs' predictions for the same rows, decided at the blend's own thresholds."""
        if self.info["average"] == "ranks":
            parts = [ranks(part) for part in parts]
        thresholds = self.info["thresholds"]
        return decided(weighted_mean(parts, self.weights), None if thresholds is None else np.array(thresholds))


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
    if out is not None and root.exists() and not (overwrite and (root / NAME).is_file()):
        raise RunError(f"{root} is there already; fix: --overwrite (a blend alone is replaced), or another -o")
    tables = [run.oof() for run in opened]
    _check_same_rows(opened, tables)
    task, first = opened[0].task, tables[0]
    chosen = metric_of(metric or opened[0].info["metric"], task.task)
    if average == "ranks" and chosen.needs != "scores":
        raise RunError(f"ranks are averaged for metrics of order, and {chosen.name} reads {chosen.needs}; fix: auc")
    # Labels are handed in for the metric that the runs were trained for, whatever the weights optimize.
    deciding = chosen if chosen.needs == "labels" else metric_of(opened[0].info["metric"], task.task)
    truth = _truth(task, first)
    parts = [_predictions(task, table) for table in tables]
    if average == "ranks":
        parts = [ranks(part) for part in parts]
    weights = selected_weights(truth, parts, chosen)
    thresholds = decision_thresholds(truth, weighted_mean(parts, weights), deciding)

    def cross_fitted(several: Sequence[Predictions]) -> Predictions:
        return cross_fitted_blend(truth, several, first["fold"].to_numpy(), chosen, deciding)

    honest = cross_fitted(parts)
    names = [chosen.name] if average == "ranks" else list(opened[0].info["metrics"])
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
        return Blend(root, tuple(opened), info)
    write_json(root / NAME, info)
    table = first[[name for name in ("row", opened[0].id, "fold", "made_at") if name in first.columns]].copy()
    columns = {"rank": honest.values} if average == "ranks" else prediction_columns(task, truth, honest)
    for name, column in columns.items():
        if column.ndim == 1:
            table[name] = column
    write_csv(root / "oof.csv", table)
    return Blend.open(root)


def _alone(run: Run, truth: np.ndarray, part: Predictions, names: Sequence[str], ranked: bool) -> dict[str, float]:
    """A run's scores: as it has them, with its own thresholds; the rest, and those of ranks, from its predictions."""
    own = {} if ranked else (run.scores or {}).get("pooled", {})
    return {name: own[name] if name in own else scores(truth, part, [name])[name] for name in names}


def _check_same_rows(runs: Sequence[Run], tables: Sequence[Any]) -> None:
    leader, first = runs[0], tables[0]
    targets = [name for name in first.columns if name.startswith("target:")]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        if run.task.task != leader.task.task or run.task.classes != leader.task.classes:
            raise RunError(f"{run.path} is {run.task}, {leader.path} {leader.task}; fix: blend runs of one target")
        same = list(table["row"]) == list(first["row"]) and all(
            name in table.columns and list(table[name]) == list(first[name]) for name in targets
        )
        if not same:
            raise RunError(
                f"{run.path} has other out-of-fold rows or targets than {leader.path}; fix: blend runs of one file"
            )


def _truth(task: InferredTask, table: Any) -> np.ndarray:
    columns = [table[name].to_numpy() for name in table.columns if name.startswith("target:")]
    if task.task in NUMBERS:
        return np.asarray(columns[0] if len(columns) == 1 else np.stack(columns, axis=1), np.float64)
    if task.task == "multilabel":
        return np.stack(columns, axis=1).astype(np.int32)
    classes = task.classes or ()
    if any(isinstance(one, str) for one in classes):  # and so `Run.oof` reads them
        return encode_labels(columns[0].astype(str), [str(one) for one in classes], "oof.csv")
    return encode_labels(columns[0], classes, "oof.csv")


def _predictions(task: InferredTask, table: Any) -> Predictions:
    prefix = "prediction:" if task.task in NUMBERS else "probability"
    columns = [table[name].to_numpy(np.float64) for name in table.columns if name.startswith(prefix)]
    values = columns[0] if len(columns) == 1 and task.task in ("binary", *NUMBERS) else np.stack(columns, axis=1)
    return Predictions(task.task, values)
