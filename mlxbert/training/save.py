"""The state of a training on disk: one file that is there whole or not at all, and the best weights beside it.

    state.safetensors        a `TrainStep`'s state, and where the loop is, as JSON in the file's metadata
    kept-<step>.safetensors  the weights that are kept so far; the state says which file is valid

The kept weights are written before the state that names them, and older ones go after it: whenever the process dies,
the state that is there names a file that is there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import replacing
from mlxbert.files.safetensors_reader import read_safetensors
from mlxbert.files.safetensors_writer import PlannedTensor, write_safetensors
from mlxbert.training.optim import Arrays

STATE = "state.safetensors"
_CODES = {mx.float32: "F32", mx.int32: "I32", mx.uint32: "U32", mx.float16: "F16", mx.bfloat16: "BF16"}
_FIX = "free some space and resume the run"


class SaveError(MLXBertError):
    """A saved state that cannot be read."""


def write_arrays(file: Path, arrays: Arrays, about: Mapping[str, Any] | None = None) -> None:
    """Write `arrays` (float32, int32, uint32) and a JSON-able `about` to `file`, whole or not at all.

    Raises:
        WriteError: the disk is full, or cannot be written; what was there is still there.
    """
    planned = [
        PlannedTensor(name, tuple(array.shape), _CODES[array.dtype], partial(np.array, array))
        for name, array in arrays.items()
    ]
    metadata = {"format": "mlx", "mlxbert": json.dumps(about or {})}
    needed = sum(tensor.nbytes for tensor in planned)
    with replacing(file, needed=needed, fix=_FIX, follow_links=False) as out:
        write_safetensors(out, planned, metadata=metadata, fix=_FIX)


def read_arrays(file: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return what `write_arrays` wrote, in memory.

    Raises:
        SaveError: the file is gone, no regular file, or damaged.
    """
    found = read_safetensors(file, SaveError, fix=damage_fix(file))
    if found is None:
        raise SaveError(f"{file} is not there; {damage_fix(file)}")
    arrays, metadata = found
    try:
        about = json.loads(metadata["mlxbert"])
        mx.eval(arrays)
    except (RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SaveError(f"{file} is damaged ({error}); {damage_fix(file)}") from error
    if not isinstance(about, dict):
        raise SaveError(f"{file} is damaged (no position in it); {damage_fix(file)}")
    return arrays, about


def damage_fix(file: Path) -> str:
    """Return what to do about a damaged file of a saved state."""
    return f"fix: delete {file.parent}, and this model starts anew"


def kept_file(directory: Path, step: int) -> Path:
    """Where the weights of `step`, if they are kept, lie."""
    return directory / f"kept-{step}.safetensors"


def delete_others(directory: Path, kept: int | None) -> None:
    """Delete kept weights that no state names any more."""
    for file in directory.glob("kept-*.safetensors"):
        if kept is None or file != kept_file(directory, kept):
            file.unlink(missing_ok=True)
