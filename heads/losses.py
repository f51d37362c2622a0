"""`Loss`, the base class of a loss of your own; and every built-in loss as a function (`heads.loss_functions`).

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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

import mlx.core as mx

from heads import loss_functions
from heads.entry_points import load_entry_points
from heads.errors import HeadError, unknown_name
from heads.loss_functions import *  # noqa: F403

__all__ = ["Loss", "register_loss"]
__all__ += loss_functions.__all__

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
