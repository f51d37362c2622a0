"""manifest.json: the SHA-256 and size of every file of a converted directory, and how they are checked.

``{"format": "mlxbert-manifest", "version": 1, "files": {"config.json": {"size": …, "sha256": "…"}, …}}``.
It does not list itself. It also is the mark of a directory that this converter wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import FileRecord
from mlxbert.files.reading import read_bytes, sha256_hex

NAME = "manifest.json"
# A manifest of 100,000 files is 15 MB.
MAX_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
FORMAT = "mlxbert-manifest"
VERSION = 1


class ManifestError(MLXBertError):
    """A manifest, or a file that it lists, that cannot be read: no regular file, too large, or not allowed."""


def manifest_bytes(files: Mapping[str, FileRecord]) -> bytes:
    """The manifest of `files` (relative POSIX name -> record), sorted by name."""
    listed = {name: {"size": files[name].size, "sha256": files[name].sha256} for name in sorted(files)}
    return (json.dumps({"format": FORMAT, "version": VERSION, "files": listed}, indent=2) + "\n").encode()


def read_manifest(directory: Path) -> dict[str, FileRecord] | None:
    """Return the files that `directory`'s manifest lists; None when it has none of ours (absent, another's, damaged).

    Raises:
        ManifestError: what lies there is no regular file, too large, or cannot be read.
    """
    data = read_bytes(directory / NAME, ManifestError, limit=MAX_BYTES)
    if data is None:
        return None
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT or not isinstance(parsed.get("files"), dict):
        return None
    records = {name: _record(entry) for name, entry in parsed["files"].items()}
    return {name: record for name, record in records.items() if record is not None} if all(records.values()) else None


def _record(entry: Any) -> FileRecord | None:
    """What a manifest says of one file; None for anything else."""
    if not isinstance(entry, dict):
        return None
    size, sha256 = entry.get("size"), entry.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        return None
    return FileRecord(size, sha256)


def is_complete(directory: Path) -> bool:
    """Is this a converted directory with every listed file there at its size? (Hashes are not computed.)"""
    try:
        files = read_manifest(directory)
    except ManifestError:
        return False
    if files is None or "config.json" not in files:
        return False
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == record.size
        for name, record in files.items()
    )


def manifest_problems(directory: Path) -> list[str]:
    """Compare every file with the manifest, hashes included: one line for each difference, none when all is well.

    Raises:
        ManifestError: the manifest or a file cannot be read.
    """
    files = read_manifest(directory)
    if files is None:
        return [f"{NAME}: absent or not written by mlxbert"]
    problems = []
    for name, record in files.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name}: not a regular file" if path.exists() else f"{name}: missing")
        elif path.stat().st_size != record.size:
            problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {record.size}")
        elif not is_file_of(path, record):
            problems.append(f"{name}: SHA-256 differs from the manifest's")
    return problems + [f"{name}: not in the manifest" for name in unlisted(directory, files)]


def is_file_of(path: Path, record: FileRecord) -> bool:
    """Whether the file has the size and the SHA-256 of the record.

    Raises:
        ManifestError: it cannot be read.
    """
    if not path.is_file() or path.stat().st_size != record.size:
        return False
    return sha256_hex(path, ManifestError) == record.sha256


def unlisted(directory: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Names under `directory` (files, links, empty directories) that are not in `files`, the manifest aside."""
    return sorted(
        name
        for path in directory.rglob("*")
        if (name := path.relative_to(directory).as_posix()) not in files
        and name != NAME
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    )
