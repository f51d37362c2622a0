"""The CSV files of a run: the same bytes for the same numbers, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxbert.files.output_file import replace_file, write_errors


def write_csv(file: Path, frame: Any) -> None:
    """Write a pandas frame as CSV: floats with all their digits, lines ended by a newline alone.

    Raises:
        WriteError: the disk is full, or cannot be written; what was there is still there.
    """
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogatepass")
    with write_errors(file, len(data)):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, data)


def read_csv(file: Path, text: Iterable[str] = ()) -> Any:
    """What `write_csv` wrote, as a pandas frame: `text` columns as they are written, others as pandas reads them."""
    import pandas

    return pandas.read_csv(file, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
