"""`Head`, the base class of all task heads.

A head knows neither text nor encoder: it takes one vector a row, and returns logits, a loss, and predictions in the
user's own units. `settings()` holds what it learns beside its weights: classes, scaler, temperature, thresholds.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.arrays import Float, as_int32, to_host
from heads.checks import check_count, check_options
from heads.dropout import Dropout
from heads.errors import HeadError
from heads.labels import as_array
from heads.loss_functions import reduce
from heads.losses import IMPORT_FIX, Loss, SavedLoss, registered_losses

Objective = str | Mapping[str, Any] | Loss
"""A built-in objective, or a registered loss: its name, a mapping with its name and settings, or the object."""


Objectives = Mapping[str, tuple[str, ...]]
"""Built-in objective -> the options of the head that it takes."""


class Head(nn.Module):
    """A task head; subclass it, and register it with `heads.head_registry.register_head`.

    A subclass defines `loss` (and `loss_weight`, where its mean is not over rows), `predict`, `encode_targets`,
    `metrics` and `default_metric`, and `from_targets` where its arguments depend on the targets. Every constructor
    argument is an attribute of the same name (scikit-learn's convention), so that `settings` finds it. `fitted` names
    the attributes that are learned from data; they are saved with the arguments.

    A head whose `objective` may be a registered loss lists its built-in objectives in `objectives`, and calls
    `choose_objective` in its constructor and `mean_registered_loss` in `loss`.

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
    objectives: ClassVar[Objectives] = {}
    registered_loss_options: ClassVar[tuple[str, ...]] = ()
    """The options of the head that a registered loss takes."""
    registered_loss: Loss | None = None

    def __init__(self, hidden_size: int, num_outputs: int, *, dropout: float = 0.1, dropout_samples: int = 1):
        """Make the head.

        Args:
            hidden_size: width of the features.
            num_outputs: logits a row.
            dropout: on all features.
            dropout_samples: number of dropout masks whose logits are averaged in training.
        """
        super().__init__()
        check_count(hidden_size, f"{self.title}: hidden_size")
        check_count(dropout_samples, f"{self.title}: dropout_samples")
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise HeadError(f"{self.title}: dropout must be at least 0 and below 1, not {dropout!r}")
        self.hidden_size = hidden_size
        self.num_outputs = num_outputs
        self.dropout = dropout
        self.dropout_samples = dropout_samples
        self.drop = Dropout(dropout)
        self.output = linear(hidden_size, num_outputs)

    def __call__(self, features: mx.array) -> mx.array:
        """Return logits (B, num_outputs) of features (B, D), in float32 whatever the parameters' dtype."""
        return self.project(features)

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """Return the mean loss over the real rows, a float32 scalar.

        Args:
            logits: (B, num_outputs), as `__call__` returns them.
            targets: the user's targets as `encode_targets` returns them.
            rows: (B,), 1 for real rows and 0 for rows that only fill up a batch; None: all are real.
        """
        raise NotImplementedError

    def loss_weight(self, targets: Any, *, rows: Any = None) -> mx.array:
        """Return the divisor of the mean in `loss`, a float32 scalar; it weights the parts of a large batch.

        Here it is the number of real rows; `targets` and `rows` as in `loss`.
        """
        return row_weights(rows, len(targets), self.title).sum()

    def predict(self, logits: Any) -> np.ndarray[Any, Any]:
        """Return probabilities, or values in the user's own units, for logits (N, num_outputs)."""
        raise NotImplementedError

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's targets as `loss` takes them: indices, 0 and 1, or scaled values."""
        raise NotImplementedError

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """Return a head that fits the training fold's targets: number of outputs, classes, scaler, weights."""
        head = cls(hidden_size, **arguments)
        head.fit_targets(targets)
        return head

    def outputs(self, logits: Any, needs: str) -> np.ndarray[Any, Any]:
        """Return the predictions that a metric compares: `needs` is one of `heads.metrics.Needs`."""
        return self.predict(logits)

    def fit_targets(self, targets: Any) -> None:
        """Learn scaler and balanced weights from the training fold's targets; here it does nothing."""

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Learn temperature and thresholds from held-out logits and targets; here it does nothing."""

    def evaluate(
        self, logits: Any, targets: Any, metrics: Iterable[str] | None = None, **options: Any
    ) -> dict[str, float]:
        """Return metric name -> value over held-out rows; with `metrics` None all of the head's own metrics.

        Raises:
            HeadError: a metric that is not in `heads.metrics.METRICS`.
        """
        from heads.metrics import get_metric

        compared = [get_metric(name) for name in (self.metrics if metrics is None else metrics)]
        truth = self.metric_targets(targets)
        return {
            metric.name: float(metric.function(truth, self.outputs(logits, metric.needs), **options))
            for metric in compared
        }

    def metric_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's targets as metrics compare them with `outputs`."""
        return self.encode_targets(targets)

    # For subclasses.

    def weights_of(self, option: str) -> Any:
        """Return the value of an option; for "balanced" the weights that `fit_targets` learned.

        Raises:
            HeadError: they are not learned yet.
        """
        value = getattr(self, option)
        if value != "balanced":
            return value
        if (learned := getattr(self, f"fitted_{option}")) is None:
            raise HeadError(f"{self.title}: {option}='balanced' is unknown yet; fix: fit_targets(training labels)")
        return learned

    def loss_options(self) -> dict[str, Any]:
        """Return the options of the objective that have a value."""
        values = {option: self.weights_of(option) for option in self.objectives[self.objective]}
        return {option: value for option, value in values.items() if value is not None}

    def check_rows(self, logits: Float, targets: np.ndarray[Any, Any]) -> None:
        """Refuse held-out logits and targets of different lengths."""
        if len(logits) != len(targets):
            raise HeadError(f"{self.title}: {len(logits)} rows of logits, {len(targets)} of targets")

    def choose_objective(self, objective: Any, options: Mapping[str, Any]) -> tuple[str, Loss | None]:
        """Return the name of the objective, and its loss if it is a registered one; check the options that it takes.

        Args:
            objective: a key of `objectives`, or a registered loss: its name, a mapping with its name and settings, or
                the object.
            options: the head's options for its objectives; None for an option that is not given.

        Raises:
            HeadError: an unknown objective, or options that it ignores.
        """
        loss: Loss | None = None
        if isinstance(objective, Loss):
            loss = objective
        elif isinstance(objective, Mapping):
            loss = Loss.from_dict(objective)
        elif not isinstance(objective, str) or objective not in self.objectives:
            known = registered_losses()
            if not isinstance(objective, str) or objective not in known:
                names = ", ".join((*self.objectives, *known))
                raise HeadError(
                    f"{self.title}: objective {objective!r} is unknown; known: {names}; "
                    f"fix: one of these; for a loss of your own, {IMPORT_FIX}"
                )
            loss = Loss.from_dict({"name": objective})
        if loss is None:
            check_options(self.title, objective, self.objectives, options)
            return objective, None
        name = loss.to_dict()["name"]
        check_options(self.title, name, {**self.objectives, name: self.registered_loss_options}, options)
        return name, loss

    def mean_registered_loss(
        self,
        logits: mx.array,
        targets: mx.array,
        keep: mx.array,
        *,
        weights: mx.array | None = None,
        total: mx.array | None = None,
    ) -> mx.array:
        """Return the mean of the registered loss over the targets to keep, a float32 scalar.

        Args:
            logits: (B,), (B, C) or (B, L).
            targets: (B,) or (B, L).
            keep: the shape of `targets`; False: the loss sees zeros there, and its value does not count.
            weights: factors in the shape of `targets`; None: 1.
            total: the divisor of the mean; None: the number of targets to keep.

        Raises:
            HeadError: the loss does not return one value for each target.
        """
        loss = self.registered_loss
        assert loss is not None
        keep_logits = keep.reshape(*keep.shape, *[1] * (logits.ndim - keep.ndim))
        values = loss(mx.where(keep_logits, logits, 0), mx.where(keep, targets, 0))
        if not isinstance(values, mx.array) or values.shape != targets.shape:
            shape = values.shape if isinstance(values, mx.array) else type(values).__name__
            raise HeadError(
                f"{self.title}: loss {self.objective!r} returns {shape} for targets of shape {targets.shape}; "
                "fix: return the loss of each target; the head takes the mean"
            )
        values = values.astype(mx.float32)
        if weights is not None:
            values = values * weights
        return reduce(self.objective, mx.where(keep, values, 0), "mean", keep.sum() if total is None else total)

    def project(self, features: mx.array) -> mx.array:
        """Return float32 logits of features (B, inputs of the output layer), through dropout and that layer."""
        self.check_features(features)
        if not self.training or self.dropout == 0:
            return self.output(features).astype(mx.float32)
        samples = [self.output(self.drop(features)).astype(mx.float32) for _ in range(self.dropout_samples)]
        return sum(samples[1:], samples[0]) / len(samples)

    def check_features(self, features: mx.array) -> None:
        """Refuse features whose width the output layer does not take."""
        width = self.output.weight.shape[1]
        if features.ndim != 2 or features.shape[1] != width:
            raise HeadError(f"{self.title}: features have shape {tuple(features.shape)}; expected (batch, {width})")

    def host(self, logits: Any) -> Float:
        """Return logits as float64 (N, num_outputs) after a check of their shape."""
        return to_host(logits, columns=self.num_outputs, what=self.title)

    @property
    def title(self) -> str:
        """Return the head's name for messages."""
        return type(self).__dict__.get("head_name", type(self).__name__)

    # Saving.

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, JSON-able."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        values = {name: getattr(self, name) for name in names}
        if self.registered_loss is not None:
            values["objective"] = self.registered_loss
        return {name: _jsonable(value, f"{self.title}: {name}") for name, value in values.items()}

    def settings(self) -> dict[str, Any]:
        """Return everything that is not a tensor: name, constructor arguments, fitted values; JSON-able."""
        fitted = {name: _jsonable(getattr(self, name), f"{self.title}: {name}") for name in self.fitted}
        if "head_name" not in type(self).__dict__:  # an inherited name would load as the parent
            raise HeadError(f"{type(self).__qualname__} is not registered; fix: @register_head(…) above the class")
        return {"name": self.head_name, "arguments": self.arguments(), "fitted": fitted}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the head that `settings` describes, without its weights.

        A registered loss is looked up only when the loss is computed: a model predicts without it.

        Raises:
            HeadError: the settings are another head's, or have arguments or fitted values that this head does not know
                or cannot have.
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
            if cls.objectives and isinstance(arguments.get("objective"), dict):
                arguments = {**arguments, "objective": SavedLoss(arguments["objective"])}
            head = cls(**arguments)
            head.restore({key: _frozen(value) for key, value in fitted.items()})
        except HeadError:
            raise
        except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            # The settings come from a file: an argument is missing, or its type or size is wrong.
            reason = str(error).split("\n", 1)[0]
            raise HeadError(f"{name}: the settings cannot be used ({reason}); fix: save the model again") from error
        return head

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """Set the values that `settings` has under "fitted", with tuples in place of lists.

        Subclasses also check the values, because they come from a file.

        Raises:
            HeadError: a value that `fitted` cannot have.
        """
        for key, value in fitted.items():
            setattr(self, key, value)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer initialized like BERT's own heads: normal with deviation 0.02, bias 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight = mx.random.normal(layer.weight.shape, scale=0.02)
    if bias:
        layer.bias = mx.zeros((outputs,))
    return layer


def row_weights(rows: Any, count: int, what: str) -> mx.array:
    """Return `rows` as float32 (count,); ones for None."""
    if rows is None:
        return mx.ones((count,))
    weights = mx.array(rows).astype(mx.float32)
    if weights.shape != (count,):
        raise HeadError(f"{what}: rows has shape {tuple(weights.shape)}; expected ({count},), one a row")
    return weights


def row_targets(
    targets: Any, rows: Any, logits: Any, ignored: int, what: str, *, classes: int | None = None
) -> mx.array:
    """Return `targets` (B, …) with `ignored` in the rows of weight 0.

    Args:
        targets: as the head's `encode_targets` returns them.
        rows: (B,), 1 for real rows; None: all are real.
        logits: (B, …), for the number of rows.
        ignored: the label that is left out.
        what: the head, for messages.
        classes: the number of classes, where targets are class indices.

    Raises:
        HeadError: the numbers of rows differ (a single target would be broadcast to all rows), or a list or a NumPy
            array has a label that is no class. (An `mx.array` may have no values yet: there the loss becomes NaN.)
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
        encoded = as_int32(encoded)  # uint8 and bool cannot hold the ignored label
    keep = row_weights(rows, len(logits), what) > 0
    return mx.where(keep.reshape(-1, *[1] * (encoded.ndim - 1)), encoded, ignored)


def masked_mean(values: mx.array, weights: mx.array) -> mx.array:
    """Return the mean of `values` (B,) or (B, C) over the rows of weight 1; 0 if there is none."""
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
