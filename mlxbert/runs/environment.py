"""What a run's bits depend on beside its data and settings: versions, device, BLAS, threads."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from mlxbert.environment import blas_name, blas_threads, device_name, package_versions
from mlxbert.runs.files import RunError

_PACKAGES = ("mlx", "numpy", "pandas", "scikit-learn", "scipy", "tokenizers", "scipy-openblas32")
# A change of these may change sums, texts, folds, thresholds or digits: the rest is for the record.
_BINDING = ("mlxbert", "device", "blas", "threads", "machine", *(f"packages.{name}" for name in _PACKAGES))


def environment() -> dict[str, Any]:
    """For run.json; no host, user or path in it."""
    return {
        "mlxbert": package_versions(["mlxbert"])["mlxbert"],
        "python": platform.python_version(),
        "platform": platform.system(),
        "machine": platform.machine(),
        "device": device_name(),
        "blas": blas_name(),
        "threads": blas_threads(),
        "packages": package_versions(_PACKAGES),
    }


def check_environment(then: Mapping[str, Any]) -> None:
    """Refuse to go on where the bits would come out otherwise.

    Raises:
        RunError: names what has changed, from what to what, and how to go on all the same.
    """
    now = environment()
    both = {name: (_get(then, name), _get(now, name)) for name in _BINDING}
    changed = [f"{name} was {was}, is {found}" for name, (was, found) in both.items() if was != found]
    if changed:
        threads = f"OPENBLAS_NUM_THREADS={then.get('threads')}, or " if _get(then, "threads") != now["threads"] else ""
        raise RunError(
            f"the run was begun elsewhere ({'; '.join(changed)}), and would not end in the same bytes; "
            f"fix: {threads}--allow-changes to go on all the same"
        )


def _get(facts: Any, name: str) -> Any:
    for part in name.split("."):
        facts = facts.get(part) if isinstance(facts, Mapping) else None
    return facts
