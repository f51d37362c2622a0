"""What is checked of data and checkpoint before anything is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxbert.factory.frames import Table
from mlxbert.files.manifest import is_file_of, read_manifest
from mlxbert.runs.files import RunError
from mlxbert.runs.settings import RunSettings


def check_weights(directory: Path) -> None:
    """Compare the weights with the manifest: a flipped bit is not to be found out after days of training, or never.

    Raises:
        RunError: they are others.
    """
    for name, record in (read_manifest(directory) or {}).items():
        if name.endswith(".safetensors") and not is_file_of(directory / name, record):
            raise RunError(
                f"{directory}: {name} is not the file that manifest.json lists; fix: convert or download it again"
            )


def check_columns(frame: Any, settings: RunSettings, what: str) -> None:
    """Refuse a frame without the columns that are named.

    Raises:
        FrameError: says of `what`, and gives the nearest names.
    """
    table = Table(frame, what)
    roles = {
        "target column": settings.target,
        "text column": () if settings.text is None else settings.text.columns,
        "id column": _one(settings.id),
        "group column": _one(settings.group),
        "time column": _one(settings.time),
        "ignored column": settings.ignore,
    }
    for role, names in roles.items():
        for name in names:
            table.find(name, role)


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)
