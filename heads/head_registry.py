"""The registry of task heads: those of this package, and those of other packages.

A head of this package is a file with `@register_head(…)` in it, and nothing else; the first look-up imports all files.
The heads of another package come through the entry-point group `mlxbert.heads`::

    [project.entry-points."mlxbert.heads"]
    my_head = "my_package.my_head"          # a module that registers, or module:Class
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from heads.base import Head
from heads.entry_points import HeadDiscoveryWarning as HeadDiscoveryWarning
from heads.entry_points import load_entry_points, provider
from heads.errors import HeadError, unknown_name

COMPETITION_TYPES = ("binary", "multiclass", "multilabel", "regression", "ordinal", "time_series")
ENTRY_POINT_GROUP = "mlxbert.heads"

H = TypeVar("H", bound=type[Head])


@dataclass(frozen=True)
class Registration:
    """A registered head.

    Attributes:
        name: the name for look-ups, which a checkpoint stores.
        head: the class.
        competition_types: those that it is for, of `COMPETITION_TYPES`.
        priority: of several heads for one competition type, the one with the highest priority is chosen.
        provider: the distribution that it came from; None for a head of this package or of a script.
    """

    name: str
    head: type[Head]
    competition_types: tuple[str, ...]
    priority: int
    provider: str | None = None


_REGISTRATIONS: dict[str, Registration] = {}
_BROKEN: dict[str, str] = {}
"""Entry point name -> the message why it could not be loaded."""
_DISCOVERED: list[str] = []


def register_head(name: str, *, competition_types: str | Sequence[str], priority: int = 0) -> Callable[[H], H]:
    """Class decorator: make a `Head` known under `name`.

    Args:
        name: unique; a checkpoint stores it.
        competition_types: one or several of `COMPETITION_TYPES`.
        priority: `best_head` is the head with the highest priority for a competition type; of equal ones this
            package's own, then the one registered first.

    Raises:
        HeadError: another class has this name, an unknown competition type, or a class that is not a `Head` or lacks
            metrics or methods.
    """
    types = (competition_types,) if isinstance(competition_types, str) else tuple(competition_types)

    def decorate(head: H) -> H:
        _check(name, head, types, priority)
        if name in _REGISTRATIONS:
            old = _REGISTRATIONS[name]
            raise HeadError(
                f"head {name!r} is registered twice, by {_place(old.head, old.provider)} and by "
                f"{_place(head, provider())}; fix: give one another name, or unregister_head({name!r}) first"
            )
        head.head_name = name
        head.competition_types = types
        _REGISTRATIONS[name] = Registration(name, head, types, priority, provider())
        return head

    return decorate


def unregister_head(name: str) -> None:
    """Remove a head, so that its name is free; for notebooks, where a cell that registers a head runs again.

    Raises:
        HeadError: no head has this name.
    """
    _lookup(name)
    del _REGISTRATIONS[name]


def get_head(name: str) -> type[Head]:
    """Return the head class of this name.

    Raises:
        HeadError: there is none; the nearest names are given.
    """
    return _lookup(name).head


def registered_heads() -> Mapping[str, Registration]:
    """Return every registered head by name, in the order of registration; a copy."""
    discover_heads()
    return dict(_REGISTRATIONS)


def heads_for(competition_type: str) -> tuple[Registration, ...]:
    """Return the heads for a competition type, highest priority first.

    Raises:
        HeadError: an unknown competition type (with the nearest ones), or no head is for it.
    """
    discover_heads()
    if competition_type not in COMPETITION_TYPES:
        raise unknown_name("competition type", competition_type, COMPETITION_TYPES)
    fitting = [entry for entry in _REGISTRATIONS.values() if competition_type in entry.competition_types]
    if not fitting:
        raise HeadError(f"no head is registered for competition type {competition_type!r}")
    # Of equal priority: this package's own, then the first registered (the sort is stable).
    return tuple(sorted(fitting, key=lambda entry: (-entry.priority, not entry.head.__module__.startswith("heads."))))


def best_head(competition_type: str) -> type[Head]:
    """Return the head of highest priority for a competition type; raise as `heads_for` does."""
    return heads_for(competition_type)[0].head


def head_from_settings(settings: Mapping[str, Any]) -> Head:
    """Return the head that a checkpoint's settings describe (`Head.settings`), without its weights.

    Raises:
        HeadError: the head is unknown, or the settings are of another head.
    """
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(name, str):
        raise HeadError(f"the settings of a head have no name: {settings!r}; fix: save the model again")
    return get_head(name).from_settings(settings)


def discover_heads() -> None:
    """Import this package's heads and those that other packages announce, at the first call only.

    Warns:
        HeadDiscoveryWarning: a package's entry point cannot be loaded or registers nothing; the others are loaded.
    """
    if _DISCOVERED:
        return
    _DISCOVERED.append("started")  # first: a head's module may look up another head
    try:
        import heads

        for module in pkgutil.iter_modules(heads.__path__):
            if not module.ispkg:
                importlib.import_module(f"heads.{module.name}")
    except BaseException:
        _DISCOVERED.clear()
        raise
    _BROKEN.update(load_entry_points(ENTRY_POINT_GROUP, "head", _REGISTRATIONS, lambda entry: entry.head.__module__))


def _lookup(name: str) -> Registration:
    discover_heads()
    if name in _REGISTRATIONS:
        return _REGISTRATIONS[name]
    if name in _BROKEN:
        raise HeadError(f"head {name!r}: {_BROKEN[name]}")
    raise unknown_name("head", name, _REGISTRATIONS)


def _place(head: type[Head], package: str | None) -> str:
    return f"{head.__module__}.{head.__qualname__}" + (f" of package {package}" if package else "")


def _check(name: str, head: Any, types: tuple[str, ...], priority: int) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise HeadError(f"head name {name!r}: give letters, digits and underscores, such as 'my_head'")
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise HeadError(f"head {name!r}: {head!r} is not a subclass of heads.base.Head")
    if not types:
        raise HeadError(f"head {name!r} serves no competition type; give some of {', '.join(COMPETITION_TYPES)}")
    for kind in types:
        if kind not in COMPETITION_TYPES:
            raise HeadError(f"head {name!r}: {unknown_name('competition type', kind, COMPETITION_TYPES)}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise HeadError(f"head {name!r}: priority must be a whole number, not {priority!r}")
    missing = [method for method in _REQUIRED if getattr(head, method, None) is getattr(Head, method, None)]
    if missing:
        raise HeadError(f"head {name!r}: {head.__qualname__} lacks {', '.join(missing)}")
    if head.default_metric not in head.metrics:
        raise HeadError(f"head {name!r}: default_metric {head.default_metric!r} is not among its metrics")


_REQUIRED = ("loss", "predict", "encode_targets", "default_metric", "metrics")
