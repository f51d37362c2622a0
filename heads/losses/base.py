"""Shape checks and the reduction of every loss, and `Loss`, the base class of a loss of your own.

Write a loss in a file of your own, register it, and train with it by its name::

    @register_loss("soft_f1")
    @dataclass(frozen=True)
    class SoftF1(Loss):
        beta: float = 1.0

        def __call__(self, logits, targets): ...

A head takes it as `objective`: the name, the name with settings, or the object. The file has to be imported before the
training starts. A package's losses come through the entry-point group `mlxbert.losses`, so that the command line finds
them, too::

    [project.entry-points."mlxbert.losses"]
    soft_f1 = "my_package.my_losses"          # a module that registers, or module:Class
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

import mlx.core as mx

from heads.arrays import as_int32
from heads.entry_points import load_entry_points
from heads.errors import HeadError, unknown_name

ENTRY_POINT_GROUP = "mlxbert.losses"
BUILT_IN = (
    *("bce", "focal", "asymmetric", "cross_entropy", "coral", "corn", "cumulative_link"),
    *("mse", "mae", "huber", "gaussian"),
)
"""The objectives of the task heads: no registered loss takes one of these names."""

IMPORT_FIX = "import the file that registers it, or install its package"

L = TypeVar("L", bound="type[Loss]")
_REGISTERED: dict[str, type[Loss]] = {}
_DISCOVERED: list[str] = []


@dataclass(frozen=True)
class Loss(ABC):
    """Base class of a registered loss: its fields are its settings.

    A subclass is a frozen dataclass whose fields are JSON-able. Arrays and lists given for a field become tuples.
    Two losses with the same settings are equal.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if hasattr(value, "tolist"):
                value = value.tolist()
            object.__setattr__(self, field.name, tuple(value) if isinstance(value, list) else value)

    @abstractmethod
    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        """Return the loss of each target, in the shape of `targets`; the head takes the mean.

        Rows that only fill up a batch and unknown labels are 0 in both arrays, and their values do not count. It is
        called in a compiled training step: use `mlx.core` only, and no `if` on the values of an array.

        Args:
            logits: the head's outputs, float32: (B,) of a binary head, (B, C) of a multiclass head, (B, L) of a
                multilabel head, (B, K − 1) logits of P(y > k) of an ordinal head. Of a regression or a time series
                the predictions (B,) or (B, T), on the scaled scale.
            targets: (B,) or (B, L) of 0 and 1, (B,) class indices or ranks, or scaled values like the predictions.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return name and settings, JSON-able; `from_dict` reads them."""
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"name": _name_of(self), **settings}

    def option(self) -> str | dict[str, Any]:
        """Return the loss as `--head objective=…` and run.json hold it: its name, or with settings `to_dict()`."""
        return self.to_dict() if fields(self) else _name_of(self)

    @staticmethod
    def from_dict(settings: Mapping[str, Any]) -> Loss:
        """Return the loss that `to_dict` described.

        Raises:
            HeadError: an unknown name or setting, or settings that the loss refuses.
        """
        values = dict(settings)
        name = values.pop("name", None)
        known = registered_losses()
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise HeadError(f"no loss is registered as {name!r}; registered: {names}; fix: {IMPORT_FIX}")
        loss = known[name]
        known_settings = [field.name for field in fields(loss)]
        for key in values:
            if key not in known_settings:
                raise unknown_name(f"setting of loss {name!r}", key, known_settings)
        try:
            return loss(**values)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise HeadError(
                f"loss {name!r} cannot be made ({error}); fix: give its settings beside its name, "
                f'objective={{"name": "{name}", …}}'
            ) from error


@dataclass(frozen=True)
class SavedLoss(Loss):
    """The loss of a saved head: it is looked up at the first call, so that a model predicts without its file."""

    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse settings without a name."""
        name = self.settings.get("name")
        if not isinstance(name, str) or not name.isidentifier() or name in BUILT_IN:
            raise HeadError(f"the settings of the loss have no valid name ({name!r}); fix: save the model again")

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        """See `Loss.__call__`.

        Raises:
            HeadError: the loss is not registered.
        """
        return Loss.from_dict(self.settings)(logits, targets)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as they were read."""
        return dict(self.settings)


def register_loss(name: str) -> Callable[[L], L]:
    """Class decorator: make a `Loss` known under `name`.

    A class of the same module and name replaces the older one, so that a notebook's cell can run again.

    Raises:
        HeadError: the name is taken, or the class is not a `Loss` that can be saved.
    """

    def decorate(loss: L) -> L:
        if not isinstance(name, str) or not name.isidentifier():
            raise HeadError(f"loss name {name!r}: give letters, digits and underscores, such as 'my_loss'")
        if name in BUILT_IN:
            raise HeadError(f"loss {name!r}: the built-in objective has this name; fix: another name")
        if not (isinstance(loss, type) and issubclass(loss, Loss)):
            raise HeadError(f"loss {name!r}: {loss!r} is not a subclass of heads.losses.Loss")
        if vars(loss).get("__annotations__") and "__dataclass_params__" not in vars(loss):
            raise HeadError(f"loss {name!r}: its settings are no fields; fix: @dataclass(frozen=True) above the class")
        if "name" in (field.name for field in fields(loss)):
            raise HeadError(f"loss {name!r} has a setting called 'name'; fix: another name for the setting")
        taken = _REGISTERED.get(name)
        if taken is not None and _place(taken) != _place(loss):
            raise HeadError(f"loss {name!r} is {_place(taken)} already; fix: another name")
        loss.name = name
        _REGISTERED[name] = loss
        return loss

    return decorate


def registered_losses() -> dict[str, type[Loss]]:
    """Return every registered loss by name, those of installed packages included; a copy.

    Warns:
        HeadDiscoveryWarning: a package's entry point cannot be loaded or registers nothing.
    """
    if not _DISCOVERED:
        _DISCOVERED.append("started")
        load_entry_points(ENTRY_POINT_GROUP, "loss", _REGISTERED, lambda loss: loss.__module__)
    return dict(_REGISTERED)


def _name_of(loss: Loss) -> str:
    if "name" not in vars(type(loss)):
        raise HeadError(f'{type(loss).__qualname__} is not registered; fix: @register_loss("NAME") above the class')
    return loss.name


def _place(loss: type[Loss]) -> str:
    return f"{loss.__module__}.{loss.__qualname__}"


Reduction = Literal["mean", "sum", "none"]
Weights = float | Sequence[float] | mx.array


def check_same_shape(where: str, **arrays: mx.array) -> None:
    """Refuse arrays of different shapes: (N, 1) against (N,) would become (N, N) and train on nonsense."""
    (first, leader), *others = arrays.items()
    for name, array in others:
        if array.shape != leader.shape:
            raise HeadError(
                f"{where}: {first} {leader.shape} and {name} {array.shape} must have one shape, nothing is broadcast; "
                f"fix: {_shape_fix(first, leader, name, array)}"
            )


def _shape_fix(first: str, leader: mx.array, name: str, array: mx.array) -> str:
    if leader.ndim == array.ndim + 1 and leader.shape[-1] == 1:
        return f"{first}.squeeze(-1)"
    if array.ndim == leader.ndim + 1 and array.shape[-1] == 1:
        return f"{name}.squeeze(-1)"
    return f"give {name} the shape of {first}"


def class_targets(where: str, logits: mx.array, targets: mx.array) -> mx.array:
    """Return class indices (…) as int32 after a check against logits (…, C).

    Raises:
        HeadError: other shapes, or targets that are not integers.
    """
    if logits.ndim < 2 or logits.shape[:-1] != targets.shape:
        raise HeadError(
            f"{where}: logits {logits.shape} need targets of shape {logits.shape[:-1] or '(N,)'}, not "
            f"{targets.shape}; fix: logits are (N, C) and targets are class indices (N,)"
        )
    if not mx.issubdtype(targets.dtype, mx.integer):
        raise HeadError(
            f"{where}: targets are {targets.dtype}, class indices are integers; fix: targets.astype(mx.int32)"
        )
    return as_int32(targets)


def poison(logits: mx.array, invalid: mx.array) -> mx.array:
    """Return logits with NaN in the rows of an impossible label, so that their loss and gradient are NaN, too.

    torch raises there; under `mx.compile` values cannot be looked at, and MLX's own gather reads past the row.
    """
    return mx.where(invalid[..., None], mx.nan, logits)


def as_weights(where: str, name: str, value: Weights, shapes: Sequence[tuple[int, ...]]) -> mx.array:
    """Return weights as float32.

    Raises:
        HeadError: their shape is none of `shapes`.
    """
    if isinstance(value, Sequence):
        value = mx.array(list(value), dtype=mx.float32)
    weights = value.astype(mx.float32) if isinstance(value, mx.array) else mx.array(value, dtype=mx.float32)
    if weights.shape not in shapes:
        allowed = " or ".join(dict.fromkeys("a number" if shape == () else str(shape) for shape in shapes))
        raise HeadError(f"{where}: {name} has shape {weights.shape}; fix: give {allowed}")
    return weights


def check_range(where: str, name: str, value: float, low: float, high: float, *, open_ends: bool = False) -> None:
    """Refuse a setting outside [low, high], or outside (low, high) with `open_ends`; NaN is outside both."""
    inside = low < value < high if open_ends else low <= value <= high
    if not inside:
        left, right = ("(", ")") if open_ends else ("[", "]")
        raise HeadError(f"{where}: {name}={value}; fix: a number in {left}{low:g}, {high:g}{right}")


def reduce(where: str, values: mx.array, reduction: Reduction, total: mx.array | None = None) -> mx.array:
    """Return the values, their sum, or their sum divided by `total` (None: their number).

    A mean over nothing (total 0: every label ignored, or no rows) is 0 with a zero gradient, where torch gives NaN:
    a micro-batch without labels then moves no parameter instead of destroying all of them.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if reduction == "mean":
        total = mx.array(values.size) if total is None else total
        total = total.astype(mx.float32)
        return mx.where(total > 0, values.sum() / mx.where(total > 0, total, 1), 0)
    raise HeadError(f"{where}: unknown reduction {reduction!r}; fix: 'mean', 'sum' or 'none'")
