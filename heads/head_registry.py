"""Which heads there are: the files of this package, and what other packages add.

A head in this package is a file with `@register_head(…)` in it, and nothing else; files are imported at the first
look-up. Another package's heads come through the entry-point group `mlxbert.heads`::

    [project.entry-points."mlxbert.heads"]
    my_head = "my_package.my_head"          # a module that registers, or module:Class
"""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from heads.base import Head
from heads.errors import HeadError, MLXBertWarning, unknown_name

COMPETITION_TYPES = ("binary", "multiclass", "multilabel", "regression", "ordinal", "time_series")
ENTRY_POINT_GROUP = "mlxbert.heads"

H = TypeVar("H", bound=type[Head])


class UnknownHeadError(HeadError):
    """No head has this name, or serves this competition type."""


class DuplicateHeadError(HeadError):
    """Two heads want one name."""


class HeadDiscoveryWarning(MLXBertWarning):
    """An installed package announces a head that cannot be used."""


@dataclass(frozen=True)
class Registration:
    """A registered head.

    Attributes:
        name: what it is looked up by, and what a checkpoint says.
        head: the class.
        competition_types: what it serves, of `COMPETITION_TYPES`.
        priority: of several heads for one competition type, the highest is chosen.
        provider: the distribution it came from; None for this package's own and those a script registers.
    """

    name: str
    head: type[Head]
    competition_types: tuple[str, ...]
    priority: int
    provider: str | None = None


_REGISTRATIONS: dict[str, Registration] = {}
_BROKEN: dict[str, str] = {}
"""Entry point name -> why it could not be loaded."""
_DISCOVERED: list[str] = []
_PROVIDER: list[str] = []
"""The distribution whose entry point is being loaded, if one is."""


def register_head(name: str, *, competition_types: str | Sequence[str], priority: int = 0) -> Callable[[H], H]:
    """Class decorator: make a `Head` known under `name`.

    Args:
        name: unique; a checkpoint names its head by it.
        competition_types: one or several of `COMPETITION_TYPES`.
        priority: of several heads for one competition type, the one with the highest is `best_head`; of equals,
            this package's own, then the one registered first.

    Raises:
        DuplicateHeadError: another class has this name.
        HeadError: an unknown competition type, not a `Head`, or one without metrics or methods.
    """
    types = (competition_types,) if isinstance(competition_types, str) else tuple(competition_types)

    def decorate(head: H) -> H:
        _check(name, head, types, priority)
        if name in _REGISTRATIONS:
            old = _REGISTRATIONS[name]
            raise DuplicateHeadError(
                f"head {name!r} is registered twice, by {_place(old.head, old.provider)} and by "
                f"{_place(head, _provider())}; fix: give one another name, or unregister_head({name!r}) first"
            )
        head.head_name = name
        head.competition_types = types
        _REGISTRATIONS[name] = Registration(name, head, types, priority, _provider())
        return head

    return decorate


def unregister_head(name: str) -> None:
    """Forget a head, so that its name is free; for notebooks, where a cell that registers one is run again.

    Raises:
        UnknownHeadError: there is none of this name.
    """
    _lookup(name)
    del _REGISTRATIONS[name]


def get_head(name: str) -> type[Head]:
    """The head class of this name.

    Raises:
        UnknownHeadError: there is none; the nearest names are given.
    """
    return _lookup(name).head


def registered_heads() -> Mapping[str, Registration]:
    """Every registered head by name, in the order of registration; a copy."""
    discover_heads()
    return dict(_REGISTRATIONS)


def heads_for(competition_type: str) -> tuple[Registration, ...]:
    """The heads that serve a competition type, highest priority first.

    Raises:
        UnknownHeadError: an unknown competition type (with the nearest ones), or nothing serves it.
    """
    discover_heads()
    if competition_type not in COMPETITION_TYPES:
        raise UnknownHeadError(str(unknown_name("competition type", competition_type, COMPETITION_TYPES)))
    found = [one for one in _REGISTRATIONS.values() if competition_type in one.competition_types]
    if not found:
        raise UnknownHeadError(f"no head is registered for competition type {competition_type!r}")
    # Of equals, this package's own, then the first registered (the sort is stable).
    return tuple(sorted(found, key=lambda one: (-one.priority, not one.head.__module__.startswith("heads."))))


def best_head(competition_type: str) -> type[Head]:
    """The head of highest priority for a competition type; raises as `heads_for` does."""
    return heads_for(competition_type)[0].head


def head_from_settings(settings: Mapping[str, Any]) -> Head:
    """The head that a checkpoint's settings describe (`Head.settings`), its weights still to be loaded.

    Raises:
        HeadError: the head is unknown, or the settings are not its own.
    """
    name = settings.get("name") if isinstance(settings, Mapping) else None
    if not isinstance(name, str):
        raise HeadError(f"the settings of a head have no name: {settings!r}; fix: save the model again")
    return get_head(name).from_settings(settings)


def discover_heads() -> None:
    """Import this package's heads and those that other packages announce; the first call does, later ones return.

    Warns:
        HeadDiscoveryWarning: a package's entry point cannot be loaded or registers nothing; the others still are.
    """
    if _DISCOVERED:
        return
    _DISCOVERED.append("started")  # first: a head's module may itself look another head up
    try:
        import heads

        for module in pkgutil.iter_modules(heads.__path__):
            if not module.ispkg:
                importlib.import_module(f"heads.{module.name}")
    except BaseException:
        _DISCOVERED.clear()
        raise
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (_distribution(point), point.name)):
        _load(point)


def _load(point: EntryPoint) -> None:
    """Load one entry point; what it had registered before it failed is forgotten."""
    before, package = dict(_REGISTRATIONS), _distribution(point)
    _PROVIDER.append(package)
    try:
        point.load()
        if _REGISTRATIONS.keys() == before.keys() and not any(
            one.head.__module__ == point.module for one in before.values()
        ):
            raise HeadError(f"{point.value} was imported and registered no head")
    except Exception as error:  # whatever a stranger's module does at import: told, by name, below
        _REGISTRATIONS.clear()
        _REGISTRATIONS.update(before)
        message = (
            f"package {package}: its head {point.name!r} ({point.value}) cannot be used: "
            f"{type(error).__name__}: {error}; fix: update or uninstall {package}"
        )
        _BROKEN[point.name] = message
        warnings.warn(message, HeadDiscoveryWarning, stacklevel=2)
    finally:
        _PROVIDER.pop()


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _provider() -> str | None:
    return _PROVIDER[-1] if _PROVIDER else None


def _lookup(name: str) -> Registration:
    discover_heads()
    if name in _REGISTRATIONS:
        return _REGISTRATIONS[name]
    if name in _BROKEN:
        raise UnknownHeadError(f"head {name!r}: {_BROKEN[name]}")
    raise UnknownHeadError(str(unknown_name("head", name, _REGISTRATIONS)))


def _place(head: type[Head], provider: str | None) -> str:
    return f"{head.__module__}.{head.__qualname__}" + (f" of package {provider}" if provider else "")


def _check(name: str, head: Any, types: tuple[str, ...], priority: int) -> None:
    if not isinstance(name, str) or not name.isidentifier():
        raise HeadError(f"head name {name!r}: give letters, digits and underscores, such as 'my_head'")
    if not (isinstance(head, type) and issubclass(head, Head)):
        raise HeadError(f"head {name!r}: {head!r} is not a subclass of heads.base.Head")
    if not types:
        raise HeadError(f"head {name!r} serves no competition type; give some of {', '.join(COMPETITION_TYPES)}")
    for one in types:
        if one not in COMPETITION_TYPES:
            raise HeadError(f"head {name!r}: {unknown_name('competition type', one, COMPETITION_TYPES)}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise HeadError(f"head {name!r}: priority must be a whole number, not {priority!r}")
    missing = [method for method in _REQUIRED if getattr(head, method, None) is getattr(Head, method, None)]
    if missing:
        raise HeadError(f"head {name!r}: {head.__qualname__} lacks {', '.join(missing)}")
    if head.default_metric not in head.metrics:
        raise HeadError(f"head {name!r}: default_metric {head.default_metric!r} is not among its metrics")


_REQUIRED = ("loss", "predict", "encode_targets", "default_metric", "metrics")
