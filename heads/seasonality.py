"""What a history and a date tell beside their text: trend, season, calendar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heads.errors import HeadError
from heads.forward_chaining import as_times
from heads.host import Float

Days = np.ndarray[Any, Any]


def decompose(history: Float, period: int, what: str) -> tuple[Float, Float, Float]:
    """Trend, seasonal and remainder of every history (N, W), which they add up to; each (N, W).

    STL (Cleveland et al. 1990) by statsmodels. Every row is decomposed by itself, so no later value has a say.

    Raises:
        HeadError: a history shorter than two periods, or one that is not finite.
    """
    from statsmodels.tsa.seasonal import STL

    check_period(history.shape[1], period, what)
    parts = [STL(row, period=period).fit() for row in history]
    trend, seasonal, remainder = (
        np.array([getattr(part, name) for part in parts], np.float64).reshape(history.shape)
        for name in ("trend", "seasonal", "resid")
    )
    return trend, seasonal, remainder


def check_period(window: int, period: int, what: str) -> None:
    """Refuse a period that a history of `window` values cannot show twice.

    Raises:
        HeadError: it cannot, or is below 2.
    """
    if isinstance(period, bool) or not isinstance(period, int) or period < 2 or window < 2 * period:
        raise HeadError(
            f"{what}: a season of period={period!r} needs a history of two periods, and window is {window}; "
            f"fix: a longer window, or period=None"
        )


def _of_day(times: Days) -> Float:
    return (times - times.astype("datetime64[D]")) / np.timedelta64(1, "D")


def _of_week(times: Days) -> Float:
    days = times.astype("datetime64[D]").astype(np.int64) + 3  # 1970-01-01 was a Thursday; Monday is 0
    return (days % 7 + _of_day(times)) / 7


def _of_month(times: Days) -> Float:
    return _fraction(times, "M")


def _of_year(times: Days) -> Float:
    return _fraction(times, "Y")


def _fraction(times: Days, unit: str) -> Float:
    start = times.astype(f"datetime64[{unit}]")
    length = (start + 1).astype("datetime64[s]") - start.astype("datetime64[s]")
    return (times - start.astype("datetime64[s]")) / length


CALENDAR: dict[str, Callable[[Days], Float]] = {
    "day": _of_day,
    "week": _of_week,
    "month": _of_month,
    "year": _of_year,
}
"""Cycle -> how far into it a time is, from 0 to below 1."""


def calendar_features(times: Any, cycles: Sequence[str], what: str) -> Float:
    """Sine and cosine of how far each date is into each cycle: (N, 2 · cycles), float64.

    Raises:
        HeadError: an unknown cycle, or times that are not dates.
    """
    for cycle in cycles:
        if cycle not in CALENDAR:
            raise HeadError(f"{what}: calendar cycle {cycle!r} is unknown; known: {', '.join(CALENDAR)}")
    stamps = as_times(times, "made_at")
    if stamps.dtype.kind != "M":
        raise HeadError(f"{what}: calendar features need dates, not {stamps.dtype}; fix: give dates, or calendar=()")
    seconds = stamps.astype("datetime64[s]")
    angles = [2 * np.pi * CALENDAR[cycle](seconds) for cycle in cycles]
    columns = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(stamps), 0))
