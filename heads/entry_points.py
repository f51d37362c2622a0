"""Load the heads and losses that installed packages announce as entry points."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from heads.errors import HeadError, MLXBertWarning


class HeadDiscoveryWarning(MLXBertWarning):
    """An installed package announces a head or a loss that cannot be used."""


_PROVIDERS: list[str] = []
"""The distributions whose entry points are being loaded, the current one last."""


def provider() -> str | None:
    """Return the distribution whose entry point is being loaded; None: no entry point is."""
    return _PROVIDERS[-1] if _PROVIDERS else None


def load_entry_points(
    group: str, kind: str, registry: dict[str, Any], module_of: Callable[[Any], str]
) -> dict[str, str]:
    """Load every entry point of a group; a broken one is reported and stops no other.

    Args:
        group: the entry-point group.
        kind: "head" or "loss", for messages.
        registry: name -> registered object; the loaded modules fill it. A broken entry point leaves it unchanged.
        module_of: returns the module that an object of the registry was defined in.

    Returns:
        The message for each broken entry point, by its name.

    Warns:
        HeadDiscoveryWarning: an entry point cannot be loaded or registers nothing.
    """
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (_distribution(point), point.name)):
        before, package = dict(registry), _distribution(point)
        _PROVIDERS.append(package)
        try:
            point.load()
            known_before = any(module_of(entry) == point.module for entry in before.values())
            if registry.keys() == before.keys() and not known_before:
                raise HeadError(f"{point.value} was imported and registered no {kind}")
        except Exception as error:  # the import runs a stranger's module, which may raise anything
            registry.clear()
            registry.update(before)
            broken[point.name] = (
                f"package {package}: its {kind} {point.name!r} ({point.value}) cannot be used: "
                f"{type(error).__name__}: {error}; fix: update or uninstall {package}"
            )
            warnings.warn(broken[point.name], HeadDiscoveryWarning, stacklevel=2)
        finally:
            _PROVIDERS.pop()
    return broken


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"
