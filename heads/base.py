"""`Head`: what every task head is and can do.

A head knows neither text nor encoder: it takes one vector a row, and gives logits, a loss, and predictions in the
user's own units. What it learns beside its weights (classes, scaler, temperature, thresholds) is `settings()`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.checks import as_array
from heads.errors import HeadError, unknown_name
from heads.host import Float, as_int32, to_host


class Head(nn.Module):
    """A task head; subclass it, and register it with `heads.head_registry.register_head`.

    A subclass defines `loss` (and `loss_weight`, where its mean is not over rows), `predict`, `encode_targets`,
    `metrics` and `default_metric`, and `from_targets` where its arguments depend on the targets. Every constructor
    argument is kept as an attribute of the same name (scikit-learn's convention): that is how `settings` finds it.
    Attributes that `fitted` names are learned from data, and are saved with the arguments.

    Multi-sample dropout (Inoue 2019, https://arxiv.org/abs/1905.09788): in training, the logits are the mean over
    `dropout_samples` dropout masks on the same features, which costs a linear layer each, not an encoder.
    """

    head_name: ClassVar[str]
    competition_types: ClassVar[tuple[str, ...]]
    default_metric: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    fitted: ClassVar[tuple[str, ...]] = ()
    extra_inputs: ClassVar[tuple[str, ...]] = ()
    """Keyword inputs of `__call__` beside the features."""

    def __init__(self, hidden_size: int, num_outputs: int, *, dropout: float = 0.1, dropout_samples: int = 1):
        super().__init__()
        for name, value in (("hidden_size", hidden_size), ("dropout_samples", dropout_samples)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise HeadError(f"{self.title}: {name} must be a positive whole number, not {value!r}")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise HeadError(f"{self.title}: dropout must be at least 0 and below 1, not {dropout!r}")
        self.hidden_size = hidden_size
        self.num_outputs = num_outputs
        self.dropout = dropout
        self.dropout_samples = dropout_samples
        self.drop = nn.Dropout(dropout)
        self.output = linear(hidden_size, num_outputs)

    def __call__(self, features: mx.array) -> mx.array:
        """(B, D) features to (B, num_outputs) logits in float32, whatever the parameters' dtype."""
        return self.project(features)

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """The mean loss over the real rows, a float32 scalar.

        Args:
            logits: (B, num_outputs), as `__call__` returns them.
            targets: what `encode_targets` makes of the user's targets.
            rows: (B,), 1 for real rows and 0 for rows that only fill a batch up; None: all are real.
        """
        raise NotImplementedError

    def loss_weight(self, targets: Any, *, rows: Any = None) -> mx.array:
        """What the mean of `loss` divides by, a float32 scalar: batches weighted so are together one batch.

        The number of real rows, here; `targets` and `rows` as in `loss`.
        """
        return row_weights(rows, len(targets), self.title).sum()

    def predict(self, logits: Any) -> np.ndarray[Any, Any]:
        """Logits (N, num_outputs) to probabilities, or values in the user's own units."""
        raise NotImplementedError

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """The user's targets as `loss` takes them: indices, 0 and 1, or scaled values."""
        raise NotImplementedError

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """A head that fits the training fold's targets: number of outputs, classes, scaler, weights."""
        head = cls(hidden_size, **arguments)
        head.fit_targets(targets)
        return head

    def outputs(self, logits: Any, needs: str) -> np.ndarray[Any, Any]:
        """What a metric is given: `needs` is "labels", "scores", "probabilities" or "values" (`heads.metrics`)."""
        return self.predict(logits)

    def fit_targets(self, targets: Any) -> None:
        """Learn what the training fold's targets tell: scaler, balanced weights. Nothing, here."""

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Learn what only held-out logits and targets can tell: temperature, thresholds. Nothing, here."""

    def evaluate(
        self, logits: Any, targets: Any, metrics: Iterable[str] | None = None, **options: Any
    ) -> dict[str, float]:
        """Metric name -> value over held-out rows; None: all of the head's own.

        Raises:
            HeadError: a metric that is not in `heads.metrics.METRICS`.
        """
        from heads.metrics import METRICS

        names = self.metrics if metrics is None else tuple(metrics)
        for name in names:
            if name not in METRICS:
                raise unknown_name("metric", name, METRICS)
        truth = self.metric_targets(targets)
        return {
            name: float(METRICS[name].function(truth, self.outputs(logits, METRICS[name].needs), **options))
            for name in names
        }

    def metric_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """The user's targets as metrics compare them with `outputs`."""
        return self.encode_targets(targets)

    # What subclasses use.

    def project(self, features: mx.array) -> mx.array:
        """(B, inputs of the output layer) to float32 (B, its outputs), through dropout and that layer."""
        self.check_features(features)
        if not self.training or self.dropout == 0:
            return self.output(features).astype(mx.float32)
        samples = [self.output(self.drop(features)).astype(mx.float32) for _ in range(self.dropout_samples)]
        return sum(samples[1:], samples[0]) / len(samples)

    def check_features(self, features: mx.array) -> None:
        """Refuse features of another width than the output layer takes."""
        width = self.output.weight.shape[1]
        if features.ndim != 2 or features.shape[1] != width:
            raise HeadError(f"{self.title}: features have shape {tuple(features.shape)}; expected (batch, {width})")

    def host(self, logits: Any) -> Float:
        """Logits as float64 (N, num_outputs), shape checked."""
        return to_host(logits, columns=self.num_outputs, what=self.title)

    @property
    def title(self) -> str:
        """The head's name for messages."""
        return type(self).__dict__.get("head_name", type(self).__name__)

    # Saving.

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        return {name: _jsonable(getattr(self, name), f"{self.title}: {name}") for name in names}

    def settings(self) -> dict[str, Any]:
        """Everything that is not a tensor: name, constructor arguments, what was fitted; JSON-able."""
        fitted = {name: _jsonable(getattr(self, name), f"{self.title}: {name}") for name in self.fitted}
        if "head_name" not in type(self).__dict__:  # an inherited name would load as the parent
            raise HeadError(f"{type(self).__qualname__} is not registered; fix: @register_head(…) above the class")
        return {"name": self.head_name, "arguments": self.arguments(), "fitted": fitted}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """A head as `settings` describes it, its weights still to be loaded.

        Raises:
            HeadError: the settings are another head's, or have arguments or fitted values that this one does not know
                or cannot be.
        """
        name, arguments, fitted = settings.get("name"), settings.get("arguments"), settings.get("fitted")
        if name != cls.head_name:
            raise HeadError(f"{cls.head_name}: the settings are those of head {name!r}")
        if not isinstance(arguments, dict) or not isinstance(fitted, dict):
            raise HeadError(f"{name}: the settings have no arguments or no fitted values; fix: save the model again")
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        unknown = sorted({*arguments} - known) + sorted({*fitted} - set(cls.fitted))
        if unknown:
            raise HeadError(
                f"{name}: the settings have {unknown[0]!r}, which this version does not know; fix: update mlxbert"
            )
        try:
            head = cls(**arguments)
            head.restore({key: _frozen(value) for key, value in fitted.items()})
        except HeadError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            # A file that somebody else wrote: an argument is missing, or of a type or size that makes nothing.
            reason = str(error).split("\n", 1)[0]
            raise HeadError(f"{name}: the settings cannot be used ({reason}); fix: save the model again") from error
        return head

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """Take over what `settings` has under "fitted", lists made tuples.

        Subclasses check it too: it comes from a file.

        Raises:
            HeadError: a value that `fitted` cannot have.
        """
        for key, value in fitted.items():
            setattr(self, key, value)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer initialized as BERT's own heads are: normal with deviation 0.02, bias 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight = mx.random.normal(layer.weight.shape, scale=0.02)
    if bias:
        layer.bias = mx.zeros((outputs,))
    return layer


def row_weights(rows: Any, count: int, what: str) -> mx.array:
    """`rows` as float32 (count,); None: all ones."""
    if rows is None:
        return mx.ones((count,))
    weights = mx.array(rows).astype(mx.float32)
    if weights.shape != (count,):
        raise HeadError(f"{what}: rows has shape {tuple(weights.shape)}; expected ({count},), one a row")
    return weights


def row_targets(
    targets: Any, rows: Any, logits: Any, ignored: int, what: str, *, classes: int | None = None
) -> mx.array:
    """`targets` (B, …) with `ignored` in the rows of weight 0.

    Args:
        targets: what the head's `encode_targets` gives.
        rows: (B,), 1 for real rows; None: all are real.
        logits: (B, …): their number is that of the rows.
        ignored: the label that is left out.
        what: the head, for messages.
        classes: how many classes there are, where targets are their indices.

    Raises:
        HeadError: not one row of targets for each of logits: a single one would be broadcast to all; a list or a NumPy
            array with a label that is no class. (An `mx.array` may have no values yet: there the loss becomes NaN.)
    """
    if not isinstance(targets, mx.array):
        values = as_array(targets, None, what)
        if values.dtype == object or values.dtype.kind not in "biuf":
            raise HeadError(f"{what}: targets are {values.dtype}, no numbers; fix: head.encode_targets(targets)")
        if classes is not None:
            wrong = values[((values < 0) | (values >= classes)) & (values != ignored)]
            if len(wrong):
                raise HeadError(
                    f"{what}: label {wrong[0]} is none of the {classes} classes, 0 to {classes - 1}; "
                    f"fix: head.encode_targets(targets), or {ignored} for a row to leave out"
                )
        targets = mx.array(values)
    encoded = targets
    if encoded.ndim == 0 or len(encoded) != len(logits):
        raise HeadError(
            f"{what}: {len(logits)} rows of logits, and targets have shape {tuple(encoded.shape)}; "
            "fix: one row of targets for each, nothing is broadcast"
        )
    if not mx.issubdtype(encoded.dtype, mx.floating):
        encoded = as_int32(encoded)  # uint8 and bool cannot hold what is ignored
    keep = row_weights(rows, len(logits), what) > 0
    return mx.where(keep.reshape(-1, *[1] * (encoded.ndim - 1)), encoded, ignored)


def masked_mean(values: mx.array, weights: mx.array) -> mx.array:
    """Mean of `values` (B,) or (B, C) over the rows of weight 1; 0 where there is none, and garbage rows stay out."""
    weights = weights.reshape(-1, *[1] * (values.ndim - 1))
    total = mx.where(weights > 0, values * weights, 0).sum()
    return total / mx.maximum((weights * mx.ones_like(values)).sum(), 1)


def _jsonable(value: Any, what: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise HeadError(f"{what} is {value}, which cannot be saved")
        return value
    if isinstance(value, tuple | list):
        return [_jsonable(item, what) for item in value]
    if hasattr(value, "to_dict"):
        return _jsonable(value.to_dict(), what)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item, what) for key, item in value.items()}
    raise HeadError(f"{what} is a {type(value).__name__}, which cannot be saved")


def _frozen(value: Any) -> Any:
    # Tuples, never lists: a list of an nn.Module counts as parameters.
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
