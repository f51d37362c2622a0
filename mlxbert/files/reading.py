"""Read the files of a checkpoint or a run: regular files only, of a bounded size, with errors that name the fix.

A FIFO, a socket or a device would block the reader or never end, so each file is opened without blocking and looked at
before its first byte is read. Everything in this project that reads a small file of its own calls this module.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from mlxbert.errors import MLXBertError, printable

# The largest published vocabularies are below 40 MB; anything near this is something else.
MAX_TEXT_BYTES = 256 << 20

_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def open_regular(path: Path, error: type[MLXBertError]) -> io.FileIO | None:
    """Open a regular file (or the one that a link leads to) for unbuffered reading; None when there is no such file.

    Raises:
        error: a directory, pipe, socket or device, or the system refuses.
    """
    try:
        # Before the open: opening some devices already has an effect, and a socket cannot be opened at all.
        _require_regular(path, path.stat().st_mode, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as cause:
        raise error(reading_failed(path, cause)) from cause
    try:
        # Again: the name may lead to something else by now.
        _require_regular(path, os.fstat(descriptor).st_mode, error)
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> bytes | None:
    """Return the content of a regular file; None when there is no such file.

    Raises:
        error: not a regular file, unreadable, or larger than `limit` bytes.
    """
    file = open_regular(path, error)
    if file is None:
        return None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(
                f"{path}: {size / 2**20:.0f} MB is too large for this file (limit {limit / 2**20:.0f} MB); "
                "fix: check what was put there"
            )
        pieces, held = [], 0
        try:
            # Not one byte beyond the limit, even if the file grows or reports a size of 0 (as those in /proc do).
            while held <= limit and (piece := file.read(min(1 << 20, limit + 1 - held))):
                pieces.append(piece)
                held += len(piece)
        except OSError as cause:
            raise error(reading_failed(path, cause)) from cause
    if held > limit:
        raise error(f"{path}: more than {limit / 2**20:.0f} MB; fix: check what was put there")
    return b"".join(pieces)


def read_text(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> str | None:
    """Return the text of a file in UTF-8, with or without a byte-order mark; None when there is no such file.

    Raises:
        error: as `read_bytes`, a Git-LFS pointer, or not UTF-8.
    """
    data = read_bytes(path, error, limit=limit)
    if data is None:
        return None
    if data.startswith(b"version https://git-lfs.github.com"):
        raise error(f"{path}: a Git-LFS pointer, not the file itself; fix: git lfs pull")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        line = data[: cause.start].count(b"\n") + 1
        raise error(f"{path}: not UTF-8 at line {line}; fix: save it as UTF-8") from None


def parse_json(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> Any:
    """Return the JSON value in a file; None when there is no such file.

    Raises:
        error: as `read_text`, or not valid JSON.
    """
    text = read_text(path, error, limit=limit)
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path}: not valid JSON ({cause}); fix: get the file again") from None


def read_json(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> dict[str, Any] | None:
    """Return the JSON object in a file; None when there is no such file.

    Raises:
        error: as `parse_json`, or not an object.
    """
    value = parse_json(path, error, limit=limit)
    if value is not None and not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}; fix: get the file again")
    return value


def sha256_hex(path: Path, error: type[MLXBertError]) -> str | None:
    """Return the SHA-256 of a regular file in hex, read in pieces; None when there is no such file.

    Raises:
        error: not a regular file, or unreadable.
    """
    file = open_regular(path, error)
    if file is None:
        return None
    with file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as cause:
            raise error(reading_failed(path, cause)) from cause


def require_inside(path: Path, directory: Path, error: type[MLXBertError]) -> Path:
    """Return `path` if what it leads to, links followed, lies in `directory`; a file need not be there.

    A link in a directory that somebody else made may lead to a private file of the user, which would then be copied
    and published. The Hub's cache is allowed: its `snapshots/COMMIT/NAME` are links into `blobs` beside `snapshots`.

    Raises:
        error: it leads out of the directory.
    """
    try:
        root, real = (Path(os.path.realpath(place)) for place in (directory, path))
    except (OSError, ValueError) as cause:
        raise error(reading_failed(path, cause)) from cause
    if real.is_relative_to(root):
        return path
    snapshot = next((place for place in (root, *root.parents) if place.parent.name == "snapshots"), None)
    if snapshot is not None and real.parent == snapshot.parent.parent / "blobs":
        return path
    raise error(
        f"{path}: a link that leads out of {directory}, to {real}; fix: if you trust that file, "
        f"copy it there in the place of the link (cp -L)"
    )


def require_own_files(directory: Path, error: type[MLXBertError]) -> None:
    """Check that everything in a directory is a regular file or a folder, and that no link leads out of it.

    Raises:
        error: a pipe, socket or device, or a link that leads out (`require_inside`).
    """
    try:
        for path in sorted(directory.rglob("*")):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                require_inside(path, directory, error)
                mode = path.stat().st_mode
            if not stat.S_ISDIR(mode):
                _require_regular(path, mode, error)
    except OSError as cause:
        raise error(reading_failed(directory, cause)) from cause


def reading_failed(path: Path, cause: OSError | ValueError) -> str:
    """Return the message for a file that the system does not let us read, with the fix."""
    if isinstance(cause, PermissionError):
        return f"{path}: permission denied; fix: make it readable (chmod u+r {path})"
    reason = cause.strerror if isinstance(cause, OSError) else None
    return f"{printable(str(path))}: cannot be read: {reason or cause}; fix: check the path"


def _require_regular(path: Path, mode: int, error: type[MLXBertError]) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "a device")
        raise error(f"{path}: is {kind}, not a regular file; fix: put a regular file there")
