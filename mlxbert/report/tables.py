"""The page's tables. The numbers of a column have the same number of decimals, so that their digits line up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from heads.metrics import ece
from mlxbert.report.figures import arrow
from mlxbert.report.reported_run import (
    BINS,
    ClassPredictions,
    LabelPredictions,
    NumberPredictions,
    OofPredictions,
    ReportedRun,
    reliability,
)

ABSENT = "–"


@dataclass(frozen=True)
class PageTable:
    """A table of text cells.

    Attributes:
        header: the name of each column.
        rows: the cells.
        summary: from this row on, rows sum up those above; None: none does.
        strong: the rows to read first.
    """

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    summary: int | None = None
    strong: frozenset[int] = frozenset()


def digits_of(values: Sequence[float | None]) -> int:
    """Return the decimals of a column of these numbers: the largest has at least four significant digits."""
    finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest = max(finite, default=0.0)
    return 4 if largest < 10 else 3 if largest < 100 else 2 if largest < 1000 else 1 if largest < 10000 else 0


def column(values: Sequence[float | None]) -> list[str]:
    """Return numbers as cells; "–" for a missing one, "nan" and "inf" as they are."""
    digits = digits_of(values)
    # Four decimals would show these numbers as 0.0000.
    small = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    if digits == 4 and small and max(small) < 1e-3:
        return [ABSENT if value is None else f"{value:.2e}" for value in values]
    return [ABSENT if value is None else f"{value:,.{digits}f}" for value in values]


def metric_header(metric: str) -> str:
    """Return a metric's name with an arrow in the direction of the better scores."""
    return f"{metric} {arrow(metric)}".strip()


def _table(first: str, names: Sequence[str], columns: dict[str, Sequence[float | None] | list[str]]) -> PageTable:
    """Return a table: `names` under the header `first`, then the columns; numbers are formatted, texts stay."""
    cells = [
        list(values) if values and isinstance(values[0], str) else column(values)  # type: ignore[arg-type]
        for values in columns.values()
    ]
    return PageTable((first, *columns), list(zip(names, *cells, strict=True)))


def score_table(run: ReportedRun) -> PageTable | None:
    """Return a row for each finished member, then their spread, the pooled rows and the hold-out; None without any."""
    members = run.finished
    if not members:
        return None
    names = [member.member for member in members]
    rows = [member.metrics for member in members]
    counts: list[int | None] = [member.rows for member in members]
    strong: list[int] = []
    for name, values, count in _summaries(run):
        if name in ("pooled", "hold-out"):
            strong.append(len(names))
        names.append(name)
        rows.append(values)
        counts.append(count)
    blank = [ABSENT] * (len(rows) - len(members))
    columns: dict[str, Any] = {
        "rows": [ABSENT if count is None else f"{count:,}" for count in counts],
        "best epoch": [f"{member.epoch:.2f}" for member in members] + blank,
        **{metric_header(metric): [row.get(metric) for row in rows] for metric in run.metrics},
    }
    return replace(_table("member", names, columns), summary=len(members), strong=frozenset(strong))


def _summaries(run: ReportedRun) -> Iterator[tuple[str, Mapping[str, float], int | None]]:
    """Yield (name, metrics, rows) of all members together, from scores.json."""
    scores = run.scores
    if scores is None:
        return
    spread_of = scores.spread if len(scores.members) > 1 else {}  # one member has no spread
    for name, key in (("mean", "mean"), ("standard deviation", "std"), ("lowest", "low"), ("highest", "high")):
        values = {metric: getattr(spread, key) for metric, spread in spread_of.items()}
        if values:
            yield name, values, None
    yield "pooled", scores.pooled, None if run.oof is None else len(run.oof.lines)
    if scores.hold_out is not None:
        yield "hold-out", scores.hold_out.metrics, scores.hold_out.rows


def prediction_table(predictions: OofPredictions, task: str) -> tuple[str, PageTable]:
    """Return (title, table) with a row for each class, label, target, or step ahead."""
    if isinstance(predictions, NumberPredictions):
        return ("Per step ahead" if task == "time_series" else "Per target"), _number_table(predictions)
    if isinstance(predictions, LabelPredictions):
        return "Per label", _label_table(predictions)
    return ("Per rating" if task == "ordinal" else "Per class"), _class_table(predictions)


Scores = dict[str, float | None]
"""The counts (int) and scores (float) of one row of a table; None if a score is undefined."""


def _class_table(predictions: ClassPredictions) -> PageTable:
    rows = [
        _decision_scores(predictions.truth == i, predictions.label == i)
        | _ranking_scores(predictions.truth == i, predictions.probability[:, i])
        for i in range(len(predictions.names))
    ]
    return _table("class", predictions.names, _counted(rows))


def _label_table(predictions: LabelPredictions) -> PageTable:
    rows = []
    for i in range(len(predictions.names)):
        known = predictions.truth[:, i] >= 0
        truth, probability = predictions.truth[known, i] == 1, predictions.probability[known, i]
        row: Scores = {"known": int(known.sum())}
        row |= _decision_scores(truth, predictions.label[known, i] == 1) | _ranking_scores(truth, probability)
        row["ECE"] = ece(truth.astype(np.int64), probability, n_bins=BINS) if len(truth) else None
        rows.append(row)
    return _table("label", predictions.names, _counted(rows))


def _number_table(predictions: NumberPredictions) -> PageTable:
    rows = []
    for i in range(len(predictions.names)):
        known = np.isfinite(predictions.truth[:, i])
        truth, prediction = predictions.truth[known, i], predictions.prediction[known, i]
        error = prediction - truth
        variation = float(((truth - truth.mean()) ** 2).sum()) if len(truth) else 0.0
        row: Scores = {
            "rows": int(known.sum()),
            "MAE": float(np.abs(error).mean()) if len(error) else None,
            "median |error|": float(np.median(np.abs(error))) if len(error) else None,
            "RMSE": float(np.sqrt((error**2).mean())) if len(error) else None,
            "mean error": float(error.mean()) if len(error) else None,
            "R²": 1 - float((error**2).sum()) / variation if variation > 0 else None,
        }
        rows.append(row)
    return _table("step" if predictions.origins is not None else "target", predictions.names, _counted(rows))


def _decision_scores(truth: np.ndarray, label: np.ndarray) -> Scores:
    """Return counts and scores of one column of truths and decisions, 0 or 1."""
    hit, alarm, miss = (int(np.sum(part)) for part in (truth & label, ~truth & label, truth & ~label))
    return {
        "true": hit + miss,
        "predicted": hit + alarm,
        "right": hit,
        "precision": hit / (hit + alarm) if hit + alarm else None,
        "recall": hit / (hit + miss) if hit + miss else None,
        "F1": 2 * hit / (2 * hit + alarm + miss) if hit + alarm + miss else None,
    }


def _ranking_scores(truth: np.ndarray, probability: np.ndarray) -> Scores:
    if not truth.any() or truth.all():
        return {"ROC AUC": None, "average precision": None}
    from sklearn import metrics

    return {
        "ROC AUC": float(metrics.roc_auc_score(truth, probability)),
        "average precision": float(metrics.average_precision_score(truth, probability)),
    }


def _counted(rows: list[Scores]) -> dict[str, Any]:
    """Return rows as columns, their counts as text."""
    return {name: [f"{row[name]:,}" if isinstance(row[name], int) else row[name] for row in rows] for name in rows[0]}


def evaluation_table(run: ReportedRun) -> PageTable | None:
    """Return the evaluations of the members that were evaluated once, a point each in a plot; None without any."""
    events = [next(iter(history.evaluations.values())) for history in run.histories if len(history.evaluations) == 1]
    if not events:
        return None
    columns: dict[str, Any] = {
        "epoch": [f"{event.epoch:.2f}" for event in events],
        "held-out loss": [event.loss for event in events],
        **{metric_header(name): [event.metrics.get(name) for event in events] for name in run.metrics},
    }
    return _table("member", [event.member for event in events], columns)


def point_tables(predictions: OofPredictions) -> list[tuple[str, PageTable]]:
    """Return (title, table) instead of a plot with one point: of one bin of probabilities, or one row."""
    if not isinstance(predictions, NumberPredictions):
        diagram = reliability(predictions)
        filled = diagram.rows > 0
        if filled.sum() > 1:
            return []
        columns: dict[str, Any] = {
            "probability": diagram.probability[filled].tolist(),
            "how often it is so": diagram.happened[filled].tolist(),
        }
        rows = [f"{count:,} {diagram.unit}" for count in diagram.rows[filled]]
        return [(f"Calibration: ECE {diagram.ece:.4f}. {diagram.what}", _table("", rows, columns))]
    if len(predictions.truth) > 1:
        return []
    columns = {
        "truth": predictions.truth[0].tolist(),
        "prediction": predictions.prediction[0].tolist(),
        "true − predicted": (predictions.truth[0] - predictions.prediction[0]).tolist(),
    }
    first = "step" if predictions.origins is not None else "target"
    return [("The only row", _table(first, predictions.names, columns))]


def origin_table(predictions: NumberPredictions) -> PageTable | None:
    """Return the errors of the last 24 forecasts of a series; None for other numbers and one-step forecasts."""
    if predictions.origins is None or predictions.truth.shape[1] == 1:
        return None
    errors = np.ma.masked_invalid(predictions.prediction[-24:] - predictions.truth[-24:])  # (origins, H)
    columns: dict[str, Any] = {
        "fold": [str(fold) for fold in predictions.fold[-24:]],
        "MAE": np.abs(errors).mean(axis=1).tolist(),
        "mean error": errors.mean(axis=1).tolist(),
        "largest |error|": np.abs(errors).max(axis=1).tolist(),
    }
    return _table("made at", predictions.origins[-24:], columns)


TEXTS = ("text", "second")
NEEDED = ("rank", "loss", "truth", "prediction", "text")
MOST_CHARACTERS = 1200  # of a text: the page shows its beginning


@dataclass(frozen=True)
class WorstRows:
    """The worst out-of-fold rows, worst first: text cells, and the columns of long texts."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: frozenset[int]


def worst_rows(run: ReportedRun) -> WorstRows | None:
    """Return worst_rows.csv for the page; None if there is no such file, or no row in it.

    Raises:
        ReportError: a column is missing, or a loss is not a number (the message names its line).
    """
    table = run.worst
    if table is None or not table.lines:
        return None
    for name in NEEDED:
        table.cells(name)
    columns = {
        name: list(map(_beginning if name in TEXTS else _short_number, cells)) for name, cells in table.columns.items()
    }
    columns["loss"] = column(table.numbers("loss").tolist())
    texts = frozenset(place for place, name in enumerate(columns) if name in TEXTS)
    return WorstRows(tuple(columns), list(zip(*columns.values(), strict=True)), texts)


def _beginning(text: str) -> str:
    rest = len(text) - MOST_CHARACTERS
    return text if rest <= 0 else f"{text[:MOST_CHARACTERS]} … ({rest:,} more characters)"


def _short_number(cell: str) -> str:
    """Return 0.8213 for 0.82129347324; ids, labels and whole numbers stay as they are."""
    try:
        return f"{float(cell):.4f}" if "." in cell and len(cell) > 7 else cell
    except ValueError:
        return cell
