"""JSON files of a checkpoint: config.json, shard indexes, modules.json."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from converter.readers.regular_file import file_size, read_bytes
from converter.readers.sniff import refuse_stand_in
from converter.readers.source_error import SourceError
from mlxbert.errors import printable

MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> Any:
    """Parse a JSON file; SourceError when it is missing, not JSON, too large, or something else."""
    size = file_size(path)
    if size > MAX_JSON_BYTES:
        raise SourceError(f"{path}: {size} bytes is too large for a JSON file; fix: check what it is")
    data = read_bytes(path, 0, size)
    refuse_stand_in(path, data[:512])
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise SourceError(
            f"{path}: is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); "
            "fix: repair it or get it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: is not valid JSON; fix: repair it or get it again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file whose top level must be an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise SourceError(
            f"{path}: holds a JSON {type(value).__name__}, not an object; fix: repair it or get it again"
        )
    return value


def require_inside(path: Path, name: str) -> str:
    """A name that `path` (an index, modules.json) gives; SourceError if it leads out of the directory."""
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    if outside or not pure.parts:
        raise SourceError(
            f"{path}: names {printable(name)!r}, which points outside its directory; "
            "fix: do not trust this checkpoint, or repair the file to name files beside it"
        )
    return name
