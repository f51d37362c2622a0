"""JSON files of a checkpoint: config.json, shard indexes, modules.json."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from converter.readers.regular_file import file_size, read_bytes
from converter.readers.sniff import refuse_stand_in
from converter.readers.source_error import SourceError
from mlxbert.errors import printable
from mlxbert.files.reading import parse_json, require_inside

MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> Any:
    """The JSON value in a file; SourceError when it is missing, not JSON, too large, or something else."""
    refuse_stand_in(path, read_bytes(path, 0, min(file_size(path), 512)))
    return parse_json(path, SourceError, limit=MAX_JSON_BYTES)


def check_file(path: Path, root: Path) -> None:
    """Check a source's file before it is read or copied.

    Raises:
        SourceError: a link that leads out of `root`, a pipe, socket or device, a directory, a Git-LFS pointer or a web
            page.
    """
    size = file_size(path)
    require_inside(path, root, SourceError)
    refuse_stand_in(path, read_bytes(path, 0, min(size, 512)))


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; SourceError as `read_json`, or when it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        found = "null" if value is None else type(value).__name__
        raise SourceError(f"{path}: expected a JSON object, found {found}; fix: get the file again")
    return value


def own_name(path: Path, name: str) -> str:
    """A name that `path` (an index, modules.json) gives; SourceError if it leads out of the directory."""
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    if outside or not pure.parts:
        raise SourceError(
            f"{path}: names {printable(name)!r}, which points outside its directory; "
            "fix: do not trust this checkpoint, or repair the file to name files beside it"
        )
    return name
