"""What is checked of data and checkpoint before anything is made of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mlxbert.data.reading import DataWarning
from mlxbert.factory.frames import Table
from mlxbert.factory.infer_task import InferredTask
from mlxbert.factory.text_columns import RowText
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


# Probabilities of all rows and classes, in float32: 4 GB. A confusion matrix has the square of the classes.
_MOST_PROBABILITIES, _MOST_CLASSES = 1 << 30, 1 << 14


def check_size(task: InferredTask, rows: int) -> None:
    """Refuse so many classes that their predictions fit in no memory.

    Raises:
        RunError: says how much they would take.
    """
    count = len(task.classes or ())
    if count * rows > _MOST_PROBABILITIES or count > _MOST_CLASSES:
        raise RunError(
            f"target {', '.join(task.target)!r} has {count} classes in {rows} rows: their probabilities alone take "
            f"{count * rows * 4 / 1e9:.1f} GB; fix: merge or drop rare classes (is it free text, or an id?)"
        )


def warn_of_numbers(frame: Any, text: RowText) -> None:
    """Warn of a text that is a column of numbers alone."""
    for part in (text.first, text.second):
        if not isinstance(part, str) or "{" in part:
            continue
        values = Table(frame).column(part, "text column").present
        if values and all(_is_number(value) for value in values):
            warnings.warn(
                f"the text is column {part!r}, which holds numbers alone, such as {values[0]}: a language model reads "
                "their digits; fix: --text with the column of the text, or several columns",
                DataWarning,
                stacklevel=3,
            )


def _is_number(value: Any) -> bool:
    if not isinstance(value, str):
        return isinstance(value, int | float)
    try:
        float(value)
    except ValueError:
        return False
    return True


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
