"""manifest.json: the SHA-256 and size of every file of a converted directory, and how they are checked.

``{"format": "mlxbert-manifest", "version": 1, "files": {"config.json": {"size": …, "sha256": "…"}, …}}``.
It does not list itself. It also is the mark of a directory that this converter wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from mlxbert.files.output_file import FileRecord

NAME = "manifest.json"
FORMAT = "mlxbert-manifest"
VERSION = 1


def manifest_bytes(files: Mapping[str, FileRecord]) -> bytes:
    """The manifest of `files` (relative POSIX name -> record), sorted by name."""
    listed = {name: {"size": files[name].size, "sha256": files[name].sha256} for name in sorted(files)}
    return (json.dumps({"format": FORMAT, "version": VERSION, "files": listed}, indent=2) + "\n").encode()


def read_manifest(directory: Path) -> dict[str, FileRecord] | None:
    """The files that `directory`'s manifest lists; None when it has none of ours (absent, or another's format)."""
    try:
        parsed = json.loads((directory / NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
        return None
    try:
        return {
            str(name): FileRecord(int(entry["size"]), str(entry["sha256"])) for name, entry in parsed["files"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):  # the last: a size of Infinity
        return None


def is_complete(directory: Path) -> bool:
    """Is this a converted directory with every listed file there at its size? (Hashes are not computed.)"""
    files = read_manifest(directory)
    if files is None or "config.json" not in files:
        return False
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == record.size
        for name, record in files.items()
    )


def manifest_problems(directory: Path) -> list[str]:
    """Compare every file with the manifest, hashes included: one line for each difference, none when all is well."""
    files = read_manifest(directory)
    if files is None:
        return [f"{NAME}: absent or not written by mlxbert"]
    problems = []
    for name, record in files.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != record.size:
            problems.append(f"{name}: {path.stat().st_size} bytes, the manifest says {record.size}")
        elif not is_file_of(path, record):
            problems.append(f"{name}: SHA-256 differs from the manifest's")
    return problems + [f"{name}: not in the manifest" for name in unlisted(directory, files)]


def is_file_of(path: Path, record: FileRecord) -> bool:
    """Whether the file has the size and the SHA-256 of the record."""
    if not path.is_file() or path.stat().st_size != record.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def unlisted(directory: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Names under `directory` (files, links, empty directories) that are not in `files`, the manifest aside."""
    return sorted(
        name
        for path in directory.rglob("*")
        if (name := path.relative_to(directory).as_posix()) not in files
        and name != NAME
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    )
