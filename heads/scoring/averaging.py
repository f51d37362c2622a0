"""The mean over columns, of which some may have no value."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from heads.scoring.definition import notice
from heads.scoring.inputs import Undefined

Column = tuple[np.ndarray, np.ndarray]


def column_values(columns: Iterable[Column], score: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """The score of each column (L,), nan where it is undefined; one notice names those columns."""
    values, reasons = _each(columns, score)
    if reasons:
        notice(f"undefined in {_listed(reasons, len(values))}")
    return values


def column_mean(
    columns: Iterable[Column], score: Callable[[np.ndarray, np.ndarray], float], skip_undefined: bool = True
) -> float:
    """The mean of the scores of those columns that have one; a notice names the others.

    A fold with two positives of a rare label cannot have one in every part, and a mean that is then nan could choose
    no checkpoint. With `skip_undefined=False` it is nan all the same; when no column has a value it is nan always.
    """
    values, reasons = _each(columns, score)
    if len(reasons) == len(values) or (reasons and not skip_undefined):
        raise Undefined(f"as it is in {_listed(reasons, len(values))}")
    if reasons:
        notice(f"the mean leaves out {_listed(reasons, len(values))}")
    return float(np.nanmean(values))


def _each(
    columns: Iterable[Column], score: Callable[[np.ndarray, np.ndarray], float]
) -> tuple[np.ndarray, dict[int, str]]:
    values, reasons = [], {}
    for number, (y_true, y_pred) in enumerate(columns):
        try:
            if not y_true.size:
                raise Undefined("there are no rows")
            values.append(score(y_true, y_pred))
        except Undefined as undefined:
            values.append(np.nan)
            reasons[number] = str(undefined)
    return np.array(values), reasons


def _listed(reasons: dict[int, str], total: int) -> str:
    parts = [f"column {number} ({reason})" for number, reason in list(reasons.items())[:10]]
    more = f" … and {len(reasons) - 10} more" if len(reasons) > 10 else ""
    return f"{len(reasons)} of {total} columns: {', '.join(parts)}{more}"
