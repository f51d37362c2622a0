"""Numbers: one logit a target, or a mean and a variance each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.base import Head, masked_mean, row_weights
from heads.checks import as_array, check_numbers, check_options
from heads.errors import HeadError
from heads.head_registry import register_head
from heads.host import Float, softplus
from heads.intervals import Interval, normal_quantile
from heads.loss_functions import gaussian_nll, huber, mae, mse
from heads.scaling import KINDS, TargetScaler

OBJECTIVES: dict[str, tuple[str, ...]] = {"mse": (), "mae": (), "huber": ("delta",), "gaussian": ()}
# Added to the predicted variance, which is on the scaled targets' scale: deviations below 0.1 % are not believed.
_LEAST_VARIANCE = 1e-6


@register_head("regression", competition_types="regression")
class RegressionHead(Head):
    """One or several numbers for each row, learned on scaled targets and given in the user's own units.

    `fit_targets` fits the scaler, on the training fold. `calibrate` fits, on held-out rows, the noise that `interval`
    needs: for "gaussian" a factor on the predicted deviation, else one deviation a target; `calibrate_mc` likewise for
    `mc_interval`.
    """

    default_metric = "rmse"
    metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae", "r2", "pearson", "spearman")
    fitted: ClassVar[tuple[str, ...]] = ("scaler", "noise", "mc_noise")

    def __init__(
        self,
        hidden_size: int,
        *,
        num_targets: int = 1,
        objective: str = "mse",
        scaling: str = "standard",
        log_targets: bool = False,
        delta: float | None = None,
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head.

        Args:
            hidden_size: width of the features.
            num_targets: target columns.
            objective: "mse", "mae", "huber", or "gaussian": a mean and a variance for every row
                (Nix and Weigend 1994), trained by its negative log-likelihood.
            scaling: "standard", "robust", "minmax" or "none".
            log_targets: learn log(1 + y).
            delta: for "huber", in units of the scaled target; 1 by default.
            dropout: on the features.
            dropout_samples: dropout masks whose logits are averaged in training.
        """
        if isinstance(num_targets, bool) or not isinstance(num_targets, int) or num_targets < 1:
            raise HeadError(f"{self.title}: num_targets must be a positive whole number, not {num_targets!r}")
        check_options(self.title, objective, OBJECTIVES, {"delta": delta})
        if scaling not in KINDS:
            raise HeadError(f"{self.title}: scaling {scaling!r} is unknown; known: {', '.join(KINDS)}")
        outputs = num_targets * (2 if objective == "gaussian" else 1)
        super().__init__(hidden_size, outputs, dropout=dropout, dropout_samples=dropout_samples)
        self.num_targets, self.objective, self.delta = num_targets, objective, delta
        self.scaling, self.log_targets = scaling, log_targets
        self.scaler: TargetScaler | None = None
        self.noise: tuple[float, ...] | None = None
        self.mc_noise: tuple[float, ...] | None = None

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """A head for targets (N,) or (N, T), its scaler fitted on them: give those of the training fold alone."""
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
        """The user's values as float32 on the scaled scale: (N,) for one target, else (N, T)."""
        scaled = self._fitted_scaler().transform(self._columns(targets), self.title).astype(np.float32)
        return scaled[:, 0] if self.num_targets == 1 else scaled

    def metric_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """The user's own values, float64."""
        columns = self._columns(targets)
        return columns[:, 0] if self.num_targets == 1 else columns

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """See `Head.loss`; targets (B,), or (B, T) of several, on the scaled scale."""
        truth = mx.array(targets)
        means = logits[:, 0] if self.num_targets == 1 else logits[:, : self.num_targets]
        if self.objective == "gaussian":
            raw = logits[:, 1] if self.num_targets == 1 else logits[:, self.num_targets :]
            variance = nn.softplus(raw) + _LEAST_VARIANCE
            values = gaussian_nll(means, variance, truth, reduction="none")
        elif self.objective == "huber":
            values = huber(means, truth, delta=1.0 if self.delta is None else self.delta, reduction="none")
        else:
            values = (mse if self.objective == "mse" else mae)(means, truth, reduction="none")
        return masked_mean(values, row_weights(rows, len(logits), self.title))

    def predict(self, logits: Any) -> Float:
        """Values in the user's units, (N,) or (N, T); with `log_targets` the median of the predicted distribution."""
        return self._to_user(self._means(logits))

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Fit the noise on held-out rows: the deviation of (y − prediction), in units of the predicted deviation."""
        errors = self._errors(self._means(logits), targets) / self._predicted_deviation(logits)
        self.noise = tuple(map(float, np.sqrt((errors**2).mean(axis=0))))

    def calibrate_mc(self, sampled: Any, targets: Any) -> None:
        """Fit the noise for `mc_interval` on held-out rows: of the squared error, what the passes do not explain.

        Args:
            sampled: logits (S, N, outputs) of S passes with dropout on.
            targets: in the user's units.
        """
        means, variance, predicted = self._passes(sampled)
        unexplained = (self._errors(means, targets) ** 2 - variance) / predicted**2
        self.mc_noise = tuple(map(float, np.sqrt(np.maximum(unexplained.mean(axis=0), 0.0))))

    def interval(self, logits: Any, level: float = 0.9) -> Interval:
        """Central prediction intervals from the predicted (or, by `calibrate`, the held-out) deviation.

        Raises:
            HeadError: not "gaussian" and not calibrated: then there is no deviation.
        """
        if self.objective != "gaussian" and self.noise is None:
            raise HeadError(
                f"{self.title}: objective={self.objective!r} predicts no deviation; fix: calibrate on held-out rows, "
                "or objective='gaussian'"
            )
        deviation = self._predicted_deviation(logits) * (1.0 if self.noise is None else np.asarray(self.noise))
        return self._interval(self._means(logits), deviation, level)

    def mc_interval(self, sampled: Any, level: float = 0.9) -> Interval:
        """Prediction intervals from logits (S, N, outputs) of S passes with dropout on: Monte-Carlo dropout.

        Variances add up: that of the passes' means (what the model does not know), and the noise; Kendall and Gal
        2017, https://arxiv.org/abs/1703.04977. Before `calibrate_mc` only "gaussian" knows any noise, and the others'
        intervals are too narrow by it: look at the `coverage`.

        Raises:
            HeadError: fewer than two passes, or another shape.
        """
        means, variance, predicted = self._passes(sampled)
        unfitted = 1.0 if self.objective == "gaussian" else 0.0
        noise = predicted * (unfitted if self.mc_noise is None else np.asarray(self.mc_noise))
        return self._interval(means, np.sqrt(variance + noise**2), level)

    # (N, T), on the scaled scale.

    def _means(self, logits: Any) -> Float:
        return self.host(logits)[:, : self.num_targets]

    def _predicted_deviation(self, logits: Any) -> Float:
        """Of "gaussian" its own; of the others 1, so that the calibrated noise is the deviation itself."""
        values = self.host(logits)
        if self.objective != "gaussian":
            return np.ones((len(values), self.num_targets))
        return np.asarray(np.sqrt(softplus(values[:, self.num_targets :]) + _LEAST_VARIANCE))

    def _passes(self, sampled: Any) -> tuple[Float, Float, Float]:
        """Of S passes (S, N, outputs): their mean, its variance over them, the root of the mean predicted variance."""
        array = mx.array(sampled)
        if array.ndim != 3 or len(array) < 2:
            raise HeadError(
                f"{self.title}: passes with dropout have shape {tuple(array.shape)}; "
                f"expected (S, N, {self.num_outputs}) with S of at least 2, better 30"
            )
        means = np.stack([self._means(one) for one in array])
        predicted = np.mean([self._predicted_deviation(one) ** 2 for one in array], axis=0)
        return means.mean(axis=0), means.var(axis=0, ddof=1), np.sqrt(predicted)

    def _errors(self, means: Float, targets: Any) -> Float:
        truth = self._fitted_scaler().transform(self._columns(targets), self.title)
        if len(means) != len(truth) or not len(truth):
            raise HeadError(f"{self.title}: {len(means)} rows of logits, {len(truth)} of targets to calibrate on")
        return truth - means

    def _interval(self, means: Float, deviation: Float, level: float) -> Interval:
        margin = normal_quantile(level, self.title) * deviation
        # Scaling and log are increasing: the ends of an interval stay its ends.
        value, lower, upper = (self._to_user(values) for values in (means, means - margin, means + margin))
        return Interval(value, lower, upper, level)

    def _to_user(self, scaled: Float) -> Float:
        values = self._fitted_scaler().inverse(scaled)
        return values[:, 0] if self.num_targets == 1 else values

    def _columns(self, targets: Any) -> Float:
        """The user's targets as float64 (N, T)."""
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
            return TargetScaler((0.0,), (1.0,))  # one for all columns
        raise HeadError(
            f"{self.title}: the target scaler is not fitted; fix: fit_targets(targets of the training fold)"
        )
