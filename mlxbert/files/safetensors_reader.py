"""Reads safetensors files as MLX arrays, lazily, the same way wherever the project loads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import open_regular

Metadata = dict[str, str]


def read_safetensors(
    file: Path, error: type[MLXBertError], *, fix: str = "fix: convert or download again"
) -> tuple[dict[str, mx.array], Metadata] | None:
    """Return a file's tensors, not read yet, in the order of their bytes, and its metadata; None without such a file.

    Args:
        file: a safetensors file, whatever its name ends in.
        error: the class of what is raised.
        fix: what the message on a damaged file ends in.

    Raises:
        error: not a regular file, unreadable, or damaged.
    """
    stream = open_regular(file, error)
    if stream is None:
        return None
    stream.close()
    try:
        # MLX does not open a path that is no text (a folder's name in another encoding); an open file it reads.
        is_text = not any("\ud800" <= character <= "\udfff" for character in str(file))
        target = str(file) if is_text else file.open("rb")
        loaded, metadata = _pair(mx.load(target, format="safetensors", return_metadata=True))
        return {name: loaded[name] for name in _file_order(file)}, metadata
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as cause:
        raise error(f"{file} is damaged ({cause}); {fix}") from cause


def _pair(loaded: Any) -> tuple[dict[str, mx.array], Metadata]:
    tensors, metadata = loaded
    return tensors, metadata


def _file_order(file: Path) -> list[str]:
    """The names in a file that MLX has read, in the order of their bytes: MLX's dictionary has no order."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"])
