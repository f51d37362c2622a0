"""Reading the small text files of a checkpoint, with an error that says what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxbert.errors import MLXBertError

# The largest published vocabularies are below 40 MB; anything near this is something else.
_MAX_BYTES = 256 * 2**20


def read_text(path: Path, error: type[MLXBertError]) -> str | None:
    """The text of a file, UTF-8 with or without a byte-order mark; None when there is no such file.

    Raises:
        error: too large, a Git-LFS pointer, or not UTF-8.
    """
    if not path.is_file():
        return None
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise error(f"{path}: {size / 2**20:.0f} MB is too large for this file; fix: check what was put there")
    data = path.read_bytes()
    if data.startswith(b"version https://git-lfs.github.com"):
        raise error(f"{path}: a Git-LFS pointer, not the file itself; fix: git lfs pull")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = data[: cause.start].count(b"\n") + 1
        raise error(f"{path}: not UTF-8 at line {line}; fix: save it as UTF-8") from None


def parse_json(path: Path, error: type[MLXBertError]) -> Any:
    """The JSON value in a file; None when there is no such file.

    Raises:
        error: as `read_text`, or not valid JSON.
    """
    text = read_text(path, error)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: not valid JSON ({cause}); fix: fetch the file again") from None


def read_json(path: Path, error: type[MLXBertError]) -> dict[str, Any] | None:
    """The JSON object in a file; None when there is no such file.

    Raises:
        error: as `parse_json`, or not an object.
    """
    value = parse_json(path, error)
    if value is not None and not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
