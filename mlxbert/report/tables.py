"""The page's tables: numbers as text, a column with as many digits everywhere, so that they stand below each other.

The worst out-of-fold rows, to be read by a person.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxbert.report.curves import arrow
from mlxbert.report.predictions import (
    BINS,
    FIX,
    ClassPredictions,
    LabelPredictions,
    NumberPredictions,
    Predictions,
    ReportedRun,
    ReportError,
    reliability,
)

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """A table of text cells; from row `summary` on, rows sum up those above; rows in `strong` are the ones to read."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    summary: int | None = None
    strong: frozenset[int] = frozenset()


def digits_of(values: Sequence[float | None]) -> int:
    """How many decimals a column of these numbers is written with: four significant digits of the largest."""
    finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
    largest = max(finite, default=0.0)
    return 4 if largest < 10 else 3 if largest < 100 else 2 if largest < 1000 else 1 if largest < 10000 else 0


def column(values: Sequence[float | None]) -> list[str]:
    """Numbers as a column of a table; "–" for a missing one, "nan" and "inf" as they are."""
    digits = digits_of(values)
    # What would be written as 0.0000 and is not: as many digits as the smallest needs.
    small = [abs(value) for value in values if value is not None and math.isfinite(value) and value != 0]
    if digits == 4 and small and max(small) < 1e-3:
        return [ABSENT if value is None else f"{value:.2e}" for value in values]
    return [ABSENT if value is None else f"{value:,.{digits}f}" for value in values]


def _table(names: Sequence[str], columns: dict[str, Sequence[float | None] | list[str]], first: str) -> Table:
    """Columns of numbers are formatted, columns of text stay as they are."""
    made = [
        list(values) if values and isinstance(values[0], str) else column(values)  # type: ignore[arg-type]
        for values in columns.values()
    ]
    return Table((first, *columns), [tuple(row) for row in zip(names, *made, strict=True)])


def score_table(run: ReportedRun) -> Table | None:
    """A row for each finished member, then their spread, all rows pooled, and the hold-out; None without any."""
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
    table = _table(
        names,
        {
            "rows": [ABSENT if count is None else f"{count:,}" for count in counts],
            "best epoch": [f"{member.epoch:.2f}" for member in members] + blank,
            **{f"{metric} {arrow(metric)}".strip(): [row.get(metric) for row in rows] for metric in run.metrics},
        },
        "member",
    )
    return Table(table.header, table.rows, len(members), frozenset(strong))


def _summaries(run: ReportedRun) -> Iterator[tuple[str, Mapping[str, float], int | None]]:
    """(name, metrics, rows) of what scores.json says of all members together."""
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


def prediction_table(made: Predictions, task: str) -> tuple[str, Table]:
    """(title, table) of each class, label, target, or step ahead."""
    if isinstance(made, LabelPredictions):
        return "Per label", _label_table(made)
    if isinstance(made, ClassPredictions):
        return ("Per rating" if task == "ordinal" else "Per class"), _class_table(made)
    return ("Per step ahead" if task == "time_series" else "Per target"), _number_table(made)


def _found(truth: np.ndarray, label: np.ndarray) -> dict[str, float | None]:
    """Counts and scores of one column of truths and decisions, 0 or 1; None where undefined."""
    hit, alarm, miss = (int(np.sum(part)) for part in (truth & label, ~truth & label, truth & ~label))
    return {
        "true": hit + miss,
        "predicted": hit + alarm,
        "right": hit,
        "precision": hit / (hit + alarm) if hit + alarm else None,
        "recall": hit / (hit + miss) if hit + miss else None,
        "F1": 2 * hit / (2 * hit + alarm + miss) if hit + alarm + miss else None,
    }


def _ranking(truth: np.ndarray, probability: np.ndarray) -> dict[str, float | None]:
    if not truth.any() or truth.all():
        return {"ROC AUC": None, "average precision": None}
    from sklearn import metrics

    return {
        "ROC AUC": float(metrics.roc_auc_score(truth, probability)),
        "average precision": float(metrics.average_precision_score(truth, probability)),
    }


def _class_table(made: ClassPredictions) -> Table:
    rows = [
        _found(made.truth == i, made.label == i) | _ranking(made.truth == i, made.probability[:, i])
        for i in range(len(made.names))
    ]
    return _table(made.names, _counted(rows), "class")


def _label_table(made: LabelPredictions) -> Table:
    from heads.metrics import ece

    rows: list[dict[str, float | None]] = []
    for i in range(len(made.names)):
        known = made.truth[:, i] >= 0
        truth, probability = made.truth[known, i] == 1, made.probability[known, i]
        row: dict[str, float | None] = {"known": int(known.sum())}
        row |= _found(truth, made.label[known, i] == 1) | _ranking(truth, probability)
        row["ECE"] = ece(truth.astype(np.int64), probability, n_bins=BINS) if len(truth) else None
        rows.append(row)
    return _table(made.names, _counted(rows), "label")


def _counted(rows: list[dict[str, float | None]]) -> dict[str, Any]:
    """Rows as columns; counts are whole numbers."""
    return {name: [f"{row[name]:,}" if isinstance(row[name], int) else row[name] for row in rows] for name in rows[0]}


def _number_table(made: NumberPredictions) -> Table:
    rows: list[dict[str, float | None]] = []
    for i in range(len(made.names)):
        known = np.isfinite(made.truth[:, i])
        truth, prediction = made.truth[known, i], made.prediction[known, i]
        error = prediction - truth
        variation = float(((truth - truth.mean()) ** 2).sum()) if len(truth) else 0.0
        rows.append(
            {
                "rows": int(known.sum()),
                "MAE": float(np.abs(error).mean()) if len(error) else None,
                "median |error|": float(np.median(np.abs(error))) if len(error) else None,
                "RMSE": float(np.sqrt((error**2).mean())) if len(error) else None,
                "mean error": float(error.mean()) if len(error) else None,
                "R²": 1 - float((error**2).sum()) / variation if variation > 0 else None,
            }
        )
    return _table(made.names, _counted(rows), "step" if made.origins is not None else "target")


def evaluation_table(run: ReportedRun) -> Table | None:
    """The one evaluation of each member that was judged once, which would be a point in a plot; None without any."""
    judged = [one for one in run.histories if len(one.evaluations) == 1]
    if not judged:
        return None
    events = [event for history in judged for event in history.evaluations.values()]
    return _table(
        [event.member for event in events],
        {
            "epoch": [f"{event.epoch:.2f}" for event in events],
            "held-out loss": [event.loss for event in events],
            **{f"{name} {arrow(name)}".strip(): [event.metrics.get(name) for event in events] for name in run.metrics},
        },
        "member",
    )


def point_tables(made: Predictions) -> list[tuple[str, Table]]:
    """(title, table) of what would be a plot with one point: one bin of probabilities, or one row of numbers."""
    if not isinstance(made, NumberPredictions):
        found = reliability(made)
        filled = found.rows > 0
        if filled.sum() > 1:
            return []
        columns: dict[str, Any] = {
            "probability": found.probability[filled].tolist(),
            "how often it is so": found.happened[filled].tolist(),
        }
        rows = [f"{count:,} {found.unit}" for count in found.rows[filled]]
        return [(f"Calibration: ECE {found.ece:.4f}. {found.what}", _table(rows, columns, ""))]
    if len(made.truth) > 1:
        return []
    columns = {
        "truth": made.truth[0].tolist(),
        "prediction": made.prediction[0].tolist(),
        "true − predicted": (made.truth[0] - made.prediction[0]).tolist(),
    }
    return [("The only row", _table(made.names, columns, "step" if made.origins is not None else "target"))]


def origin_table(made: NumberPredictions) -> Table | None:
    """The error of each forecast of a time series, the last 24; None for other numbers and one-step forecasts."""
    if made.origins is None or made.truth.shape[1] == 1:
        return None
    errors = made.prediction[-24:] - made.truth[-24:]  # (origins, H)
    some = np.isfinite(errors).any(axis=1)
    columns: dict[str, Any] = {
        "fold": [str(fold) for fold in made.fold[-24:]],
        "MAE": [float(np.nanmean(np.abs(row))) if any_ else None for row, any_ in zip(errors, some, strict=True)],
        "mean error": [float(np.nanmean(row)) if any_ else None for row, any_ in zip(errors, some, strict=True)],
        "largest |error|": [
            float(np.nanmax(np.abs(row))) if any_ else None for row, any_ in zip(errors, some, strict=True)
        ],
    }
    return _table(made.origins[-24:], columns, "made at")


TEXTS = ("text", "second")
NEEDED = ("rank", "loss", "truth", "prediction", "text")
MOST_CHARACTERS = 1200  # of a text: the page shows its beginning


@dataclass(frozen=True)
class WorstRows:
    """Worst first: `header` and `rows` of text cells; `texts` are the places of those that are long."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: frozenset[int]


def worst_rows(run: ReportedRun) -> WorstRows | None:
    """worst_rows.csv for the page; None when there is none, or no row in it.

    Raises:
        ReportError: a column is missing, or a loss that is no number (its line is named).
    """
    table = run.worst
    if table is None or not table.lines:
        return None
    for name in NEEDED:
        if name not in table.columns:
            raise ReportError(f"{table.path}: no column {name!r}; {FIX}")
    columns = {
        name: list(map(_beginning, cells)) if name in TEXTS else list(map(_short_number, cells))
        for name, cells in table.columns.items()
    }
    columns["loss"] = column(table.numbers("loss").tolist())
    header = tuple(columns)
    texts = frozenset(i for i, name in enumerate(header) if name in TEXTS)
    return WorstRows(header, list(zip(*columns.values(), strict=True)), texts)


def _beginning(text: str) -> str:
    left = len(text) - MOST_CHARACTERS
    return text if left <= 0 else f"{text[:MOST_CHARACTERS]} … ({left:,} more characters)"


def _short_number(cell: str) -> str:
    """0.8213 for 0.82129347324; ids, labels and whole numbers stay as they are."""
    try:
        return f"{float(cell):.4f}" if "." in cell and len(cell) > 7 else cell
    except ValueError:
        return cell
