"""Losses with their settings, so that a checkpoint can say which one trained it: `Loss.from_dict(loss.to_dict())`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.errors import HeadError, unknown_name
from heads.losses import binary, multiclass, ordinal, regression

PerLabel = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Loss(ABC):
    """A loss and its settings: called with logits and targets, gives the mean as a float32 scalar.

    A subclass is a frozen dataclass whose fields are JSON-able, and names itself: `class Mine(Loss, name="mine")`.
    Arrays and lists given for a field become tuples of floats. Two losses with the same settings are equal.
    """

    name: ClassVar[str]
    registry: ClassVar[dict[str, type[Loss]]] = {}

    def __init_subclass__(cls, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        taken = Loss.registry.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise HeadError(f"loss {name!r} is {taken.__module__}.{taken.__qualname__} already; fix: another name")
        cls.name = name
        Loss.registry[name] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "tolist"):
                value = value.tolist()
            if isinstance(value, list | tuple):
                value = tuple(float(number) for number in value)
            object.__setattr__(self, field.name, value)

    @abstractmethod
    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        """The mean loss, a float32 scalar."""

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, JSON-able."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"name": self.name, **settings}

    @staticmethod
    def from_dict(settings: dict[str, Any]) -> Loss:
        """The loss that `to_dict` described. Raises `HeadError` for an unknown name or setting."""
        settings = dict(settings)
        name = settings.pop("name", None)
        if name not in Loss.registry:
            raise unknown_name("loss", name, Loss.registry)
        cls = Loss.registry[name]
        for key in settings:
            if key not in (known := [field.name for field in fields(cls)]):
                raise unknown_name(f"setting of loss {name!r}", key, known)
        return cls(**settings)


@dataclass(frozen=True)
class BCEWithLogits(Loss, name="bce_with_logits"):
    """`bce_with_logits`."""

    pos_weight: PerLabel = None
    weight: PerLabel = None
    label_smoothing: float = 0.0
    ignore_index: float | None = None

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return binary.bce_with_logits(logits, targets, **_settings(self))


@dataclass(frozen=True)
class SigmoidFocal(Loss, name="sigmoid_focal"):
    """`sigmoid_focal`."""

    alpha: float | None = 0.25
    gamma: float = 2.0
    ignore_index: float | None = None

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return binary.sigmoid_focal(logits, targets, **_settings(self))


@dataclass(frozen=True)
class Asymmetric(Loss, name="asymmetric"):
    """`asymmetric`."""

    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    clip: float = 0.05
    ignore_index: float | None = None

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return binary.asymmetric(logits, targets, **_settings(self))


@dataclass(frozen=True)
class CrossEntropy(Loss, name="cross_entropy"):
    """`cross_entropy`."""

    weight: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    ignore_index: int = -100

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return multiclass.cross_entropy(logits, targets, **_settings(self))


@dataclass(frozen=True)
class SoftmaxFocal(Loss, name="softmax_focal"):
    """`softmax_focal`."""

    gamma: float = 2.0
    weight: tuple[float, ...] | None = None
    ignore_index: int = -100

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return multiclass.softmax_focal(logits, targets, **_settings(self))


@dataclass(frozen=True)
class MSE(Loss, name="mse"):
    """`mse`; the logits are the predictions."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return regression.mse(logits, targets)


@dataclass(frozen=True)
class MAE(Loss, name="mae"):
    """`mae`; the logits are the predictions."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return regression.mae(logits, targets)


@dataclass(frozen=True)
class Huber(Loss, name="huber"):
    """`huber`; the logits are the predictions."""

    delta: float = 1.0

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return regression.huber(logits, targets, **_settings(self))


@dataclass(frozen=True)
class GaussianNLL(Loss, name="gaussian_nll"):
    """`gaussian_nll` of logits (…, 2): the mean, and a number whose softplus is the variance."""

    full: bool = False
    eps: float = 1e-6

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        mean, variance = self.split(logits)
        return regression.gaussian_nll(mean, variance, targets, **_settings(self))

    @staticmethod
    def split(logits: mx.array) -> tuple[mx.array, mx.array]:
        """Mean and variance (…), float32, of logits (…, 2). A softplus, as an exponential overflows at 89."""
        if logits.ndim < 2 or logits.shape[-1] != 2:
            raise HeadError(f"gaussian_nll: logits have shape {logits.shape}; fix: (N, 2), mean and raw variance")
        logits = logits.astype(mx.float32)
        return logits[..., 0], nn.softplus(logits[..., 1])


@dataclass(frozen=True)
class Pinball(Loss, name="pinball"):
    """`pinball`; the logits are the predicted quantile."""

    quantile: float = 0.5

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return regression.pinball(logits, targets, **_settings(self))


@dataclass(frozen=True)
class Coral(Loss, name="coral"):
    """`coral`."""

    importance: tuple[float, ...] | None = None
    ignore_index: int = -100

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return ordinal.coral(logits, targets, **_settings(self))


@dataclass(frozen=True)
class Corn(Loss, name="corn"):
    """`corn`."""

    ignore_index: int = -100

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return ordinal.corn(logits, targets, **_settings(self))


@dataclass(frozen=True)
class CumulativeLink(Loss, name="cumulative_link"):
    """`cumulative_logits`: the logits (N, K−1) are score − θ_k."""

    ignore_index: int = -100

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return ordinal.cumulative_logits(logits, targets, **_settings(self))


def _settings(loss: Loss) -> dict[str, Any]:
    return {field.name: getattr(loss, field.name) for field in fields(loss)}
