"""Regression: one logit a target, or a mean and a variance each; and the scale that targets are learned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.arrays import Float
from heads.base import Head, Objective, Objectives, masked_mean, row_weights
from heads.calibration import Interval, normal_quantile
from heads.checks import check_count, check_numbers
from heads.errors import HeadError
from heads.head_registry import register_head
from heads.labels import as_array
from heads.loss_functions import check_same_shape, gaussian_nll, huber, mae, mse

KINDS = ("standard", "robust", "minmax", "none")


@dataclass(frozen=True)
class TargetScaler:
    """z = (f(y) − center) / scale, column by column; f is log(1 + y) with `log`, else y.

    Attributes:
        center: one number a target column (one for all with `shared`).
        scale: one number likewise, above 0.
        log: whether log(1 + y) is scaled, for right-skewed targets above −1: prices, counts.
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    log: bool = False

    @classmethod
    def fit(
        cls, targets: Float, *, kind: str = "standard", log: bool = False, shared: bool = False, what: str
    ) -> Self:
        """Return a scaler that is fitted on the targets (N, T) of the training fold.

        Args:
            kind: "standard" (mean, deviation), "robust" (median, interquartile range), "minmax" or "none".
            log: take log(1 + y) first.
            shared: use one center and scale for all columns: they are steps of one series.

        Raises:
            HeadError: an unknown kind, targets that are not finite, or with `log` a target of −1 or less.
        """
        values = _function(np.asarray(targets, np.float64), log, what)
        columns = values.reshape(-1, 1) if shared else values
        if not len(columns):
            raise HeadError(f"{what}: no rows to fit the target scaler on")
        if kind == "standard":
            center, scale = columns.mean(axis=0), columns.std(axis=0)
        elif kind == "robust":
            low, center, high = np.percentile(columns, [25, 50, 75], axis=0)
            scale = high - low
        elif kind == "minmax":
            center, scale = columns.min(axis=0), np.ptp(columns, axis=0)
        elif kind == "none":
            center, scale = np.zeros(columns.shape[1]), np.ones(columns.shape[1])
        else:
            raise HeadError(f"{what}: scaling {kind!r} is unknown; known: {', '.join(KINDS)}")
        # The scale of constant targets is 0: 1 avoids the division by 0 and gives the same targets back.
        scale = np.where(scale > 0, scale, 1.0)
        return cls(tuple(map(float, center)), tuple(map(float, scale)), log)

    def transform(self, targets: Float, what: str) -> Float:
        """Return targets (N, T) in the user's units on the network's scale."""
        return (_function(np.asarray(targets, np.float64), self.log, what) - self.center) / self.scale

    def inverse(self, scaled: Float) -> Float:
        """Return values (…, T) of the network in the user's units; with `log` the median if `scaled` is a mean."""
        values = scaled * self.scale + self.center
        return np.expm1(values) if self.log else values

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], what: str) -> Self:
        """Return the scaler that `to_dict` described.

        Raises:
            HeadError: the fields are not those of a scaler.
        """
        try:
            center, scale = (tuple(float(number) for number in fields[name]) for name in ("center", "scale"))
            log = fields["log"]
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(f"{what}: the saved target scaler cannot be read ({error!r}); fix: save again") from None
        if (
            len(center) != len(scale)
            or not np.isfinite(center).all()
            or not all(0 < s < np.inf for s in scale)
            or not isinstance(log, bool)
        ):
            raise HeadError(f"{what}: the saved target scaler is not one: {dict(fields)!r}; fix: save again")
        return cls(center, scale, log)


def _function(values: Float, log: bool, what: str) -> Float:
    if not np.isfinite(values).all():
        row, column = map(int, np.argwhere(~np.isfinite(values))[0])
        raise HeadError(
            f"{what}: row {row} has no finite value ({values[row, column]}); fix: drop it, or fill the value in"
        )
    if not log:
        return values
    if (values <= -1).any():
        row, column = map(int, np.argwhere(values <= -1)[0])
        raise HeadError(
            f"{what}: log_targets needs values above −1, row {row} has {values[row, column]}; fix: log_targets=False"
        )
    return np.log1p(values)


# Added to the predicted variance on the scale of the scaled targets: the least deviation is 0.1 % of that scale.
_LEAST_VARIANCE = 1e-6


@register_head("regression", competition_types="regression")
class RegressionHead(Head):
    """One or several numbers for each row, learned on scaled targets and returned in the user's own units.

    `fit_targets` fits the scaler on the training fold. `calibrate` fits the noise that `interval` needs on held-out
    rows: for "gaussian" a factor of the predicted deviation, else one deviation a target. `calibrate_mc` does the same
    for `mc_interval`.
    """

    default_metric = "rmse"
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "r2", "pearson", "spearman")
    fitted: ClassVar[tuple[str, ...]] = ("scaler", "noise", "mc_noise")
    objectives: ClassVar[Objectives] = {"mse": (), "mae": (), "huber": ("delta",), "gaussian": ()}

    def __init__(
        self,
        hidden_size: int,
        *,
        num_targets: int = 1,
        objective: Objective = "mse",
        scaling: str = "standard",
        log_targets: bool = False,
        delta: float | None = None,
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head; `hidden_size`, `dropout` and `dropout_samples` as for `Head`.

        Args:
            num_targets: target columns.
            objective: "mse", "mae", "huber", a registered loss, or "gaussian": a mean and a variance for every row
                (Nix and Weigend 1994), trained with the negative log-likelihood.
            scaling: "standard", "robust", "minmax" or "none".
            log_targets: learn log(1 + y).
            delta: for "huber", in units of the scaled target; 1 by default.
        """
        check_count(num_targets, f"{self.title}: num_targets")
        name, registered_loss = self.choose_objective(objective, {"delta": delta})
        if scaling not in KINDS:
            raise HeadError(f"{self.title}: scaling {scaling!r} is unknown; known: {', '.join(KINDS)}")
        outputs = num_targets * (2 if name == "gaussian" else 1)
        super().__init__(hidden_size, outputs, dropout=dropout, dropout_samples=dropout_samples)
        self.num_targets, self.objective, self.registered_loss, self.delta = num_targets, name, registered_loss, delta
        self.scaling, self.log_targets = scaling, log_targets
        self.scaler: TargetScaler | None = None
        self.noise: tuple[float, ...] | None = None
        self.mc_noise: tuple[float, ...] | None = None

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """Return a head for the training fold's targets (N,) or (N, T); its scaler is fitted on them."""
        shape = np.shape(targets)
        arguments.setdefault("num_targets", shape[1] if len(shape) == 2 else 1)
        return super().from_targets(hidden_size, targets, **arguments)

    def fit_targets(self, targets: Any) -> None:
        """Fit the target scaler on the training fold, in the user's units."""
        columns = self._columns(targets)
        self.scaler = TargetScaler.fit(columns, kind=self.scaling, log=self.log_targets, what=self.title)

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """See `Head.restore`; the scaler becomes a `TargetScaler`."""
        scaler = fitted.get("scaler")
        super().restore({**fitted, "scaler": None if scaler is None else TargetScaler.from_dict(scaler, self.title)})
        if self.scaler is not None and len(self.scaler.center) not in (1, self.num_targets):
            raise HeadError(
                f"{self.title}: the saved target scaler is for {len(self.scaler.center)} targets, "
                f"not {self.num_targets}; fix: save again"
            )
        for name in ("noise", "mc_noise"):
            if (noise := getattr(self, name)) is not None:
                check_numbers(noise, self.num_targets, f"{self.title}: {name}", 0)

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's values as float32 on the scaled scale: (N,) for one target, else (N, T)."""
        scaled = self._fitted_scaler().transform(self._columns(targets), self.title).astype(np.float32)
        return scaled[:, 0] if self.num_targets == 1 else scaled

    def metric_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's own values, float64."""
        columns = self._columns(targets)
        return columns[:, 0] if self.num_targets == 1 else columns

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """See `Head.loss`; targets (B,), or (B, T) of several, on the scaled scale."""
        truth = mx.array(targets)
        means = logits[:, 0] if self.num_targets == 1 else logits[:, : self.num_targets]
        if self.registered_loss is not None:
            check_same_shape(self.objective, predictions=means, targets=truth)
            keep = row_weights(rows, len(logits), self.title) > 0
            keep = mx.broadcast_to(keep.reshape(-1, *[1] * (truth.ndim - 1)), truth.shape)
            return self.mean_registered_loss(means, truth.astype(mx.float32), keep)
        if self.objective == "gaussian":
            raw = logits[:, 1] if self.num_targets == 1 else logits[:, self.num_targets :]
            variance = nn.softplus(raw) + _LEAST_VARIANCE
            values = gaussian_nll(means, variance, truth, reduction="none")
        elif self.objective == "huber":
            values = huber(means, truth, reduction="none", **self.loss_options())
        else:
            values = (mse if self.objective == "mse" else mae)(means, truth, reduction="none")
        return masked_mean(values, row_weights(rows, len(logits), self.title))

    def predict(self, logits: Any) -> Float:
        """Return values in the user's units, (N,) or (N, T); with `log_targets` the median of the distribution."""
        return self._to_user(self._means(logits))

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Fit the noise on held-out rows: the deviation of y − prediction, divided by the predicted deviation."""
        errors = self._errors(self._means(logits), targets) / self._predicted_deviation(logits)
        self.noise = tuple(map(float, np.sqrt((errors**2).mean(axis=0))))

    def calibrate_mc(self, sampled: Any, targets: Any) -> None:
        """Fit the noise for `mc_interval` on held-out rows: the squared error minus the variance of the passes.

        Args:
            sampled: logits (S, N, outputs) of S passes with dropout on.
            targets: in the user's units.
        """
        means, variance, predicted = self._passes(sampled)
        unexplained = (self._errors(means, targets) ** 2 - variance) / predicted**2
        self.mc_noise = tuple(map(float, np.sqrt(np.maximum(unexplained.mean(axis=0), 0.0))))

    def interval(self, logits: Any, level: float = 0.9) -> Interval:
        """Return central prediction intervals from the predicted deviation, or from the one that `calibrate` fitted.

        Raises:
            HeadError: the objective is not "gaussian" and nothing is calibrated, so that there is no deviation.
        """
        if self.objective != "gaussian" and self.noise is None:
            raise HeadError(
                f"{self.title}: objective={self.objective!r} predicts no deviation; fix: calibrate on held-out rows, "
                "or objective='gaussian'"
            )
        deviation = self._predicted_deviation(logits) * (1.0 if self.noise is None else np.asarray(self.noise))
        return self._interval(self._means(logits), deviation, level)

    def mc_interval(self, sampled: Any, level: float = 0.9) -> Interval:
        """Return prediction intervals from logits (S, N, outputs) of S passes with dropout on: Monte-Carlo dropout.

        The variance is the sum of the variance of the passes' means (the uncertainty of the model) and the noise;
        Kendall and Gal 2017, https://arxiv.org/abs/1703.04977. Before `calibrate_mc` only "gaussian" has noise, so
        that the intervals of other objectives are too narrow: look at the `coverage`.

        Raises:
            HeadError: fewer than two passes, or another shape.
        """
        means, variance, predicted = self._passes(sampled)
        unfitted = 1.0 if self.objective == "gaussian" else 0.0
        noise = predicted * (unfitted if self.mc_noise is None else np.asarray(self.mc_noise))
        return self._interval(means, np.sqrt(variance + noise**2), level)

    # The methods below return (N, T) on the scaled scale.

    def _means(self, logits: Any) -> Float:
        return self.host(logits)[:, : self.num_targets]

    def _predicted_deviation(self, logits: Any) -> Float:
        """Return the deviation (N, T) that "gaussian" predicts; else 1, so that the noise is the deviation."""
        values = self.host(logits)
        if self.objective != "gaussian":
            return np.ones((len(values), self.num_targets))
        return np.asarray(np.sqrt(np.logaddexp(0.0, values[:, self.num_targets :]) + _LEAST_VARIANCE))

    def _passes(self, sampled: Any) -> tuple[Float, Float, Float]:
        """Return mean and variance of S passes (S, N, outputs), and the root of their mean predicted variance."""
        array = mx.array(sampled)
        if array.ndim != 3 or len(array) < 2:
            raise HeadError(
                f"{self.title}: passes with dropout have shape {tuple(array.shape)}; "
                f"expected (S, N, {self.num_outputs}) with S of at least 2, better 30"
            )
        means = np.stack([self._means(logits) for logits in array])
        predicted = np.mean([self._predicted_deviation(logits) ** 2 for logits in array], axis=0)
        return means.mean(axis=0), means.var(axis=0, ddof=1), np.sqrt(predicted)

    def _errors(self, means: Float, targets: Any) -> Float:
        truth = self._fitted_scaler().transform(self._columns(targets), self.title)
        if len(means) != len(truth) or not len(truth):
            raise HeadError(f"{self.title}: {len(means)} rows of logits, {len(truth)} of targets to calibrate on")
        return truth - means

    def _interval(self, means: Float, deviation: Float, level: float) -> Interval:
        margin = normal_quantile(level, self.title) * deviation
        # Scaling and log increase, so that the ends of the scaled interval are the ends in the user's units.
        value, lower, upper = (self._to_user(values) for values in (means, means - margin, means + margin))
        return Interval(value, lower, upper, level)

    def _to_user(self, scaled: Float) -> Float:
        values = self._fitted_scaler().inverse(scaled)
        return values[:, 0] if self.num_targets == 1 else values

    def _columns(self, targets: Any) -> Float:
        """Return the user's targets as float64 (N, T)."""
        array = as_array(targets, np.float64, self.title)
        expected = "(N,)" if self.num_targets == 1 else f"(N, {self.num_targets})"
        if array.ndim != (1 if self.num_targets == 1 else 2) or (
            array.ndim == 2 and array.shape[1] != self.num_targets
        ):
            raise HeadError(f"{self.title}: targets have shape {array.shape}; expected {expected}, never broadcast")
        return array[:, None] if array.ndim == 1 else array

    def _fitted_scaler(self) -> TargetScaler:
        if self.scaler is not None:
            return self.scaler
        if self.scaling == "none" and not self.log_targets:
            return TargetScaler((0.0,), (1.0,))  # the same for all columns
        raise HeadError(
            f"{self.title}: the target scaler is not fitted; fix: fit_targets(targets of the training fold)"
        )
