"""Import mlxbert's own `heads` and `converter` even where the user's folder has a module of that name.

The two are top-level packages with common names: a `heads.py` beside a notebook comes before them on `sys.path`.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path


def use_own_package(name: str) -> None:
    """Import the package `name` that is installed beside mlxbert; warn if another module has that name.

    Raises:
        ImportError: another module of that name is already imported.
    """
    source = Path(__file__).parent.parent / name / "__init__.py"
    imported = sys.modules.get(name)
    other = getattr(imported, "__file__", None) if imported is not None else _first_on_path(name)
    if not source.is_file() or (other is not None and source.samefile(other)):
        return
    if imported is not None:
        raise ImportError(
            f"{other or name} was imported as {name!r}, which is also the name of a package of mlxbert; "
            "fix: rename yours"
        )
    spec = importlib.util.spec_from_file_location(name, source, submodule_search_locations=[str(source.parent)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{source}: cannot be imported; fix: install mlxbert again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if other is not None:
        warnings.warn(
            f"{other} has the name of mlxbert's package {name!r}: `import {name}` gives mlxbert's now; "
            "fix: rename yours if you need it here",
            stacklevel=3,
        )


def _first_on_path(name: str) -> str | None:
    """Return the file that `import name` would run, or the folder of a namespace package."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)
