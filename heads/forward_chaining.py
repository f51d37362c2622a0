"""Forward chaining: all training targets are known before the first held-out forecast is made.

Every row has two times: `made_at`, when its forecast is made (the last value of its history), and `known_at`, when
its whole target is known (the last step of the horizon). In a valid fold the last `known_at` of the training rows is
not after the first `made_at` of the held-out rows. With only one of these times, horizons would overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from heads.errors import HeadError

if TYPE_CHECKING:
    from heads.arrays import Float

Times = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Windows:
    """Rows cut from one series.

    Attributes:
        history: (N, window) values up to and including `made_at`.
        targets: (N, horizon) values that follow; (N,) for a horizon of one step.
        made_at: (N,) times.
        known_at: (N,) times.
    """

    history: Float
    targets: Float
    made_at: Times
    known_at: Times


def windows(values: Any, *, window: int, horizon: int, times: Any = None) -> Windows:
    """Return every sequence of `window` values and the `horizon` values after it, oldest first.

    Args:
        values: (T,) of one series, oldest first.
        window: values of history a row.
        horizon: values to forecast a row.
        times: (T,) dates or numbers, increasing; None: 0 … T − 1.

    Raises:
        HeadError: times that do not increase, or a series shorter than one row.
    """
    series = np.asarray(values, np.float64)
    stamps = as_times(np.arange(len(series)) if times is None else times, "times")
    if series.ndim != 1 or len(series) != len(stamps):
        raise HeadError(f"windows: values have shape {series.shape}, times {stamps.shape}; expected one time a value")
    if (stamps[1:] <= stamps[:-1]).any():
        row = int(np.flatnonzero(stamps[1:] <= stamps[:-1])[0]) + 1
        raise HeadError(f"windows: time {stamps[row]} at row {row} is not after {stamps[row - 1]}; fix: sort by time")
    rows = len(series) - window - horizon + 1
    if window < 1 or horizon < 1 or rows < 1:
        raise HeadError(f"windows: {len(series)} values have no row of window={window} and horizon={horizon}")
    both = np.lib.stride_tricks.sliding_window_view(series, window + horizon)
    ahead = both[:, window:]
    return Windows(
        history=both[:, :window].copy(),
        targets=(ahead[:, 0] if horizon == 1 else ahead).copy(),
        made_at=stamps[window - 1 : window - 1 + rows],
        known_at=stamps[window + horizon - 1 :],
    )


def forward_folds(made_at: Any, known_at: Any, folds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield row numbers (training, held out) of `folds` folds, each held-out block later than the previous one.

    The forecast times are cut into folds + 1 blocks; the first is never held out. The training rows of a fold are the
    rows whose targets are known at its first forecast; rows whose horizon reaches into the block are left out.

    Raises:
        HeadError: too few distinct times, or a fold without training rows.
    """
    made, known = as_times(made_at, "made_at"), as_times(known_at, "known_at")
    if made.shape != known.shape:
        raise HeadError(f"forward_folds: made_at has shape {made.shape}, known_at {known.shape}")
    distinct = np.unique(made)
    if folds < 1 or len(distinct) < folds + 1:
        raise HeadError(
            f"forward_folds: {folds} folds need more than {folds} forecast times, not {len(distinct)}; "
            "fix: fewer folds, or another column of times"
        )
    for block in np.array_split(distinct, folds + 1)[1:]:
        train = np.flatnonzero(known <= block[0])
        if not len(train):
            raise HeadError(
                f"forward_folds: nothing is known yet at {block[0]}; fix: fewer folds, or a shorter horizon"
            )
        yield train, np.flatnonzero((made >= block[0]) & (made <= block[-1]))


def times_ahead(times: Any, steps: int) -> Times:
    """Return the next `steps` times, with the distance of the last two, or on the same day of the next months.

    Raises:
        HeadError: fewer than two times, or times that do not increase.
    """
    stamps = as_times(times, "times")
    gaps = np.diff(stamps)
    if not len(gaps) or (gaps <= np.zeros_like(gaps)).any():
        raise HeadError("times: the next ones follow from two or more that increase; fix: a longer series, sorted")
    ahead = np.arange(1, steps + 1)
    if stamps.dtype.kind == "M" and (gaps != gaps[0]).any():  # months are of unequal length
        months = stamps.astype("datetime64[M]")
        days, between = stamps - months, np.diff(months)
        if (between == between[0]).all() and (days == days[0]).all():
            return np.asarray(months[-1] + between[0] * ahead + days[0])
    return np.asarray(stamps[-1] + gaps[-1] * ahead)


def check_forward(known_at: Any, made_at: Any, what: str) -> None:
    """Refuse held-out forecasts (`made_at`) that are made before all training targets are known (`known_at`).

    Raises:
        HeadError: names the first such row and both times.
    """
    known, made = as_times(known_at, "known_at"), as_times(made_at, "made_at")
    if known.dtype.kind != made.dtype.kind:
        raise HeadError(
            f"{what}: known_at are {known.dtype}, made_at {made.dtype}; fix: give both as dates, or numbers"
        )
    end = known.max()
    early = np.flatnonzero(made < end)
    if len(early):
        row = int(early[0])
        raise HeadError(
            f"{what}: forward chaining only: held-out row {row} is forecast at {made[row]}, before the training "
            f"targets are known ({end}); fix: train on rows known by then (heads.forward_chaining.forward_folds)"
        )


def as_times(times: Any, what: str) -> Times:
    """Return dates, ISO strings or numbers as (N,) datetime64, int64 or float64.

    Raises:
        HeadError: another shape, no times, a missing time, or a value that is no time.
    """
    array = np.asarray(times)
    if array.dtype.kind in "OUS":
        try:
            array = array.astype("datetime64")
        except (TypeError, ValueError) as error:
            raise HeadError(f"{what}: not dates ({error}); fix: give ISO dates, datetimes or numbers") from None
    if array.ndim != 1 or not len(array):
        raise HeadError(f"{what} has shape {array.shape}; expected one time a row, (N,)")
    if array.dtype.kind not in "Miuf":
        raise HeadError(f"{what}: {array.dtype} is no time; fix: give dates or numbers")
    missing = np.isnat(array) if array.dtype.kind == "M" else ~np.isfinite(array)
    if missing.any():
        raise HeadError(f"{what}: row {int(missing.argmax())} has no time; fix: drop it")
    # int64 for all integers: the differences of unsigned times would wrap.
    return array.astype(np.int64) if array.dtype.kind in "iu" else array
