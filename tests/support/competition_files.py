"""Where the real files of the ready configurations lie, in the folder that MLXBERT_DATA names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mlxbert.data.competitions import Competition

FOLDERS = {"alexa-stars": "alexa-reviews"}  # the others lie under their own names
LIBRARIES = ("pandas", "polars", "dict")


def real_file(competition: Competition, name: str) -> Path:
    """A file of a competition; the test is skipped without it."""
    root = os.environ.get("MLXBERT_DATA")
    if not root:
        pytest.skip("MLXBERT_DATA is not set")
    file = Path(root) / FOLDERS.get(competition.name, competition.name) / name
    if not file.is_file():
        pytest.skip(f"the data of {competition.name} are not there")
    return file


def read(file: Path, library: str) -> Any:
    """A frame of a CSV or TSV file as the library makes it, padding and all."""
    separator = "\t" if file.suffix == ".tsv" else ","
    if library == "polars":
        polars = pytest.importorskip("polars")
        return polars.read_csv(file, separator=separator, infer_schema_length=None, null_values=["NA"])
    # One review is the word None, which pandas would take for a missing value.
    frame = pytest.importorskip("pandas").read_csv(file, sep=separator, keep_default_na=False, na_values=["", "NA"])
    return {name: frame[name].to_numpy() for name in frame.columns} if library == "dict" else frame
