"""Time series: predict the next values from a text, the recent history and the calendar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.arrays import Float
from heads.base import Objective, linear
from heads.checks import check_count
from heads.errors import HeadError
from heads.forward_chaining import as_times, check_forward
from heads.head_registry import register_head
from heads.labels import as_array, listed
from heads.regression import RegressionHead, TargetScaler

BASELINES = ("last", "seasonal", "none")


@register_head("time_series", competition_types="time_series")
class TimeSeriesRegressionHead(RegressionHead):
    """The next `horizon` values for each row; all steps and the history share one scale.

    The network learns the difference from a naive forecast (`baseline`), so that a series may grow beyond the values
    of the training fold. `inputs` returns histories and dates as the tensors that `__call__` takes beside the text's
    features.

    Forward chaining only: `fit_targets` stores the time when its last target was known, and `calibrate` and `evaluate`
    refuse rows that are forecast before it (`heads.forward_chaining` has the rule, and makes the folds).
    """

    default_metric = "rmse"
    metrics = ("rmse", "mae", "smape")
    fitted = ("scaler", "noise", "mc_noise", "fitted_until")
    extra_inputs = ("history", "calendar")

    def __init__(
        self,
        hidden_size: int,
        *,
        horizon: int = 1,
        window: int = 0,
        period: int | None = None,
        baseline: str | None = None,
        calendar: Sequence[str] = (),
        history_size: int = 32,
        objective: Objective = "mse",
        scaling: str = "standard",
        log_targets: bool = False,
        delta: float | None = None,
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head; `hidden_size` (of the text's features), `dropout` and `dropout_samples` as for `Head`.

        Args:
            horizon: steps ahead.
            window: values of history; 0: only text (and calendar).
            period: steps of a season; the trend and the season of the history (STL) are then features, too.
            baseline: the naive forecast: the "last" value, the value a season ago ("seasonal"), or "none"; None:
                "seasonal" with a period, "last" with a window, else "none".
            calendar: cycles of the forecast's date that become features: "day", "week", "month", "year".
            history_size: width of the layer for the history.
            objective: as for `RegressionHead`; likewise `scaling`, `log_targets`, `delta`.
        """
        check_count(window, f"{self.title}: window", 0)
        super().__init__(
            hidden_size,
            num_targets=horizon,
            objective=objective,
            scaling=scaling,
            log_targets=log_targets,
            delta=delta,
            dropout=dropout,
            dropout_samples=dropout_samples,
        )
        if period is not None:
            check_period(window, period, self.title)
        if baseline is None:
            baseline = "seasonal" if period else "last" if window else "none"
        needed = {"last": window, "seasonal": period, "none": True}
        if baseline not in BASELINES or not needed[baseline]:
            raise HeadError(
                f"{self.title}: baseline={baseline!r} with window={window}, period={period}; "
                "fix: 'last' needs a window, 'seasonal' a period, 'none' nothing"
            )
        self.calendar = check_cycles(calendar, self.title)
        check_count(history_size, f"{self.title}: history_size")
        self.horizon, self.window, self.period, self.baseline = horizon, window, period, baseline
        self.history_size = history_size
        if window:
            self.history_layer = nn.Linear(self._history_columns, history_size)
        inputs = hidden_size + (history_size if window else 0) + 2 * len(self.calendar)
        self.output = linear(inputs, self.num_outputs)
        self.fitted_until: str | float | None = None

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, *, known_at: Any = None, **arguments: Any) -> Self:
        """Return a head for the training fold's targets (N, horizon); `known_at` as for `fit_targets`."""
        shape = np.shape(targets)
        arguments.setdefault("horizon", shape[1] if len(shape) == 2 else 1)
        head = cls(hidden_size, **arguments)
        head.fit_targets(targets, known_at=known_at)
        return head

    def fit_targets(self, targets: Any, *, known_at: Any = None) -> None:
        """Fit the target scaler on the training fold; `known_at` (N,): when each row's whole target is known.

        Raises:
            HeadError: `known_at` is missing; without it a fold that looks ahead cannot be recognized.
        """
        columns = self._columns(targets)
        if known_at is None:
            raise HeadError(f"{self.title}: forward chaining only; fix: fit_targets(targets, known_at=times)")
        times = as_times(known_at, "known_at")
        if len(times) != len(columns):
            raise HeadError(f"{self.title}: {len(columns)} rows of targets, {len(times)} times in known_at")
        self.scaler = TargetScaler.fit(columns, kind=self.scaling, log=self.log_targets, shared=True, what=self.title)
        self.fitted_until = str(times.max()) if times.dtype.kind == "M" else float(times.max())

    def inputs(self, *, history: Any = None, made_at: Any = None) -> dict[str, mx.array]:
        """Return the keyword inputs of `__call__` for rows with these histories and dates.

        Args:
            history: (N, window) in the user's units, oldest first; it ends when the forecast is made.
            made_at: (N,) dates of the forecasts, for calendar features.

        Raises:
            HeadError: an input is missing or has another shape, or the scaler is not fitted.
        """
        inputs: dict[str, mx.array] = {}
        if self.window:
            values = None if history is None else as_array(history, np.float64, f"{self.title}: history")
            if values is None or values.ndim != 2 or values.shape[1] != self.window:
                shape = None if values is None else values.shape
                raise HeadError(f"{self.title}: history has shape {shape}; expected (N, {self.window})")
            scaled = self._fitted_scaler().transform(values, self.title)
            columns = [scaled]
            if self.period:
                columns += decompose(scaled, self.period, self.title)[:2]  # the remainder is what is left
            inputs["history"] = mx.array(np.concatenate(columns, axis=1).astype(np.float32))
        elif history is not None:
            raise HeadError(
                f"{self.title}: made with window=0, so it reads no history; fix: window={np.shape(history)[-1]}"
            )
        if self.calendar:
            if made_at is None:
                raise HeadError(f"{self.title}: calendar={self.calendar} needs made_at=dates")
            inputs["calendar"] = mx.array(calendar_features(made_at, self.calendar, self.title).astype(np.float32))
        return inputs

    def __call__(
        self, features: mx.array, history: mx.array | None = None, calendar: mx.array | None = None
    ) -> mx.array:
        """Return float32 logits (B, horizon), for "gaussian" twice as many, of text features (B, D) and `inputs`."""
        parts = [features]
        naive = mx.zeros((len(features), self.horizon))
        if self.window:
            past = self._given("history", history, len(features), self._history_columns)
            last = past[:, self.window - 1 : self.window]  # (B, 1)
            naive = self._naive(past, last)
            # Levels relative to the last value; the seasonal part has no level.
            levels = past[:, : 2 * self.window] - last if self.period else past - last
            relative = mx.concatenate([levels, past[:, 2 * self.window :]], axis=1) if self.period else levels
            parts.append(nn.gelu(self.history_layer(relative.astype(features.dtype))))
        if self.calendar:
            cycles = self._given("calendar", calendar, len(features), 2 * len(self.calendar))
            parts.append(cycles.astype(features.dtype))
        logits = self.project(mx.concatenate(parts, axis=1))
        if self.objective == "gaussian":  # the variances have no baseline
            naive = mx.concatenate([naive, mx.zeros_like(naive)], axis=1)
        return logits + naive

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None, made_at: Any = None) -> None:
        """Fit the noise as `RegressionHead.calibrate` does; `made_at` (N,): when each held-out forecast is made.

        Raises:
            HeadError: `made_at` is missing, or a forecast is made before the training targets were known.
        """
        self.check_forward(made_at, "calibrate(logits, targets, made_at=times)")
        super().calibrate(logits, targets, metric=metric)

    def calibrate_mc(self, sampled: Any, targets: Any, *, made_at: Any = None) -> None:
        """Fit the noise as `RegressionHead.calibrate_mc` does; `made_at` as for `calibrate`."""
        self.check_forward(made_at, "calibrate_mc(sampled, targets, made_at=times)")
        super().calibrate_mc(sampled, targets)

    def evaluate(
        self, logits: Any, targets: Any, metrics: Iterable[str] | None = None, *, made_at: Any = None, **options: Any
    ) -> dict[str, float]:
        """Evaluate as `Head.evaluate` does; with `made_at`, refuse rows that are forecast before training ends."""
        if made_at is not None:
            self.check_forward(made_at)
        return super().evaluate(logits, targets, metrics, **options)

    def check_forward(self, made_at: Any, call: str = "give made_at=times") -> None:
        """Refuse forecasts made before the targets that the head was fitted on were known.

        Raises:
            HeadError: names the first such row; or nothing is fitted yet, or `made_at` is missing in `call`.
        """
        if made_at is None:
            raise HeadError(f"{self.title}: forward chaining only; fix: {call}")
        if self.fitted_until is None:
            raise HeadError(f"{self.title}: not fitted yet; fix: fit_targets(targets, known_at=times)")
        check_forward([self.fitted_until], made_at, self.title)

    @property
    def _history_columns(self) -> int:
        return self.window * (3 if self.period else 1)

    def _naive(self, past: mx.array, last: mx.array) -> mx.array:
        """Return the naive forecast (B, horizon), scaled."""
        if self.baseline == "none":
            return mx.zeros((len(past), self.horizon))
        if self.baseline == "last" or not self.period:
            return mx.broadcast_to(last, (len(past), self.horizon)).astype(mx.float32)
        # The forecast of step h is the value one period before it; steps beyond one period repeat the last season.
        steps = self.window - self.period + np.arange(self.horizon) % self.period
        return past[:, mx.array(steps)].astype(mx.float32)

    def _given(self, name: str, value: mx.array | None, rows: int, columns: int) -> mx.array:
        if value is None or tuple(value.shape) != (rows, columns):
            shape = None if value is None else tuple(value.shape)
            raise HeadError(
                f"{self.title}: {name} has shape {shape}; expected ({rows}, {columns}); fix: head.inputs(…) makes it"
            )
        return value


Days = np.ndarray[Any, Any]


def decompose(history: Float, period: int, what: str) -> tuple[Float, Float, Float]:
    """Return trend, seasonal part and remainder of every history (N, W), each (N, W); their sum is the history.

    STL (Cleveland et al. 1990) by statsmodels. Every row is decomposed alone, so that no later value influences it.

    Raises:
        HeadError: a history shorter than two periods.
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
    """Refuse a period below 2, or one that is longer than half of the history's `window` values.

    Raises:
        HeadError: names both.
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


def _fraction(times: Days, unit: str) -> Float:
    start = times.astype(f"datetime64[{unit}]")
    length = (start + 1).astype("datetime64[s]") - start.astype("datetime64[s]")
    return (times - start.astype("datetime64[s]")) / length


CALENDAR: dict[str, Callable[[Days], Float]] = {
    "day": _of_day,
    "week": _of_week,
    "month": lambda times: _fraction(times, "M"),
    "year": lambda times: _fraction(times, "Y"),
}
"""Cycle -> the share of the cycle that has passed at a time, from 0 to below 1."""


def check_cycles(cycles: Any, what: str) -> tuple[str, ...]:
    """Return `cycles` as a tuple; refuse one that is not in `CALENDAR`."""
    for cycle in listed(cycles, f"{what}: calendar"):
        if cycle not in CALENDAR:
            raise HeadError(f"{what}: calendar cycle {cycle!r} is unknown; known: {', '.join(CALENDAR)}")
    return tuple(cycles)


def calendar_features(times: Any, cycles: Sequence[str], what: str) -> Float:
    """Return sine and cosine of each date's place in each cycle: (N, 2 · cycles), float64.

    Raises:
        HeadError: an unknown cycle, or times that are not dates.
    """
    check_cycles(cycles, what)
    stamps = as_times(times, "made_at")
    if stamps.dtype.kind != "M":
        raise HeadError(f"{what}: calendar features need dates, not {stamps.dtype}; fix: give dates, or calendar=()")
    seconds = stamps.astype("datetime64[s]")
    angles = [2 * np.pi * CALENDAR[cycle](seconds) for cycle in cycles]
    columns = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(stamps), 0))
