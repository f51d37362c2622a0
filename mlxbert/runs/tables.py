"""The CSV files of a run: the same bytes for the same numbers, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlxbert.files.output_file import replace_file


def write_csv(file: Path, frame: Any, *, follow_links: bool = False) -> None:
    """Write a pandas frame as CSV: floats with all their digits, lines ended by a newline alone.

    `follow_links` is for an output that the user named, as in `mlxbert.files.output_file.replacing`.

    Raises:
        WriteError: the disk is full, or cannot be written; what was there is still there.
    """
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogatepass")
    replace_file(file, data, follow_links=follow_links)


def read_csv(file: Path, text: Iterable[str] = ()) -> Any:
    """What `write_csv` wrote, as a pandas frame: `text` columns as they are written, others as pandas reads them."""
    import pandas

    return pandas.read_csv(file, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
