"""Read the files of a checkpoint or a run: regular files only, of a bounded size, with errors that name the fix.

A FIFO, a socket or a device would block the reader or never end. So every file is opened without blocking and is
checked before its first byte is read. The whole project reads its small files with this module.

JSON becomes dataclasses here too (`from_json`): every field is checked against its annotation. A field that the
dataclass does not have is ignored, because a later version may have written it.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from mlxbert.errors import MLXBertError, printable, shortened

# The largest published vocabularies are below 40 MB; anything near this limit is something else.
MAX_TEXT_BYTES = 256 << 20

_PATH_FIXES = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "give one that you may look at, or ask its owner",
    errno.ELOOP: "remove one of the links",
}
_FILE_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


class PathError(MLXBertError, ValueError):
    """A path that no command can read or write, or a file of a converted directory that cannot be read."""


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` and `~user` expanded, which a shell does not expand in `--out=~/x`.

    An unknown user's `~name` stays as it is. The path need not exist.

    Raises:
        PathError: the system refuses to look there: a name is too long, a folder on the way may not be entered, or
            links form a circle.
    """
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user
    try:
        expanded.stat()
    except ValueError:
        raise PathError(f"{printable(expanded)}: no path has a NUL character in it; fix: check the path") from None
    except OSError as error:
        if error.errno in _PATH_FIXES:
            raise PathError(f"{printable(expanded)}: {error.strerror}; fix: {_PATH_FIXES[error.errno]}") from None
    return expanded


def open_regular(path: Path, error: type[MLXBertError]) -> io.FileIO | None:
    """Open a regular file, or the one that a link leads to, for unbuffered reading; return None if it does not exist.

    Raises:
        error: a directory, pipe, socket or device, or the system refuses.
    """
    try:
        # Check before opening: opening some devices already has an effect, and a socket cannot be opened.
        _require_regular(path, path.stat().st_mode, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as cause:
        raise error(reading_failed(path, cause)) from cause
    try:
        # Check again: the name may lead to something else by now.
        _require_regular(path, os.fstat(descriptor).st_mode, error)
        return io.FileIO(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> bytes | None:
    """Return the content of a regular file; None if it does not exist.

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
        pieces, length = [], 0
        try:
            # Never read beyond the limit, even if the file grows or reports a size of 0 (as files in /proc do).
            while length <= limit and (piece := file.read(min(1 << 20, limit + 1 - length))):
                pieces.append(piece)
                length += len(piece)
        except OSError as cause:
            raise error(reading_failed(path, cause)) from cause
    if length > limit:
        raise error(f"{path}: more than {limit / 2**20:.0f} MB; fix: check what was put there")
    return b"".join(pieces)


def read_text(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> str | None:
    """Return the text of a file in UTF-8, with or without a byte-order mark; None if it does not exist.

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


@overload
def sha256_hex(content: bytes | io.FileIO) -> str: ...


@overload
def sha256_hex(content: Path, error: type[MLXBertError]) -> str | None: ...


def sha256_hex(content: bytes | io.FileIO | Path, error: type[MLXBertError] = MLXBertError) -> str | None:
    """Return the SHA-256, in hex, of bytes, of an open file from its position on, or of the regular file at a path.

    Files are read in pieces. The result is None if no file exists at the path.

    Raises:
        error: the path is not a regular file, or cannot be read.
    """
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    if isinstance(content, io.FileIO):
        return hashlib.file_digest(content, "sha256").hexdigest()
    file = open_regular(content, error)
    if file is None:
        return None
    with file:
        try:
            return sha256_hex(file)
        except OSError as cause:
            raise error(reading_failed(content, cause)) from cause


def require_inside(path: Path, directory: Path, error: type[MLXBertError]) -> Path:
    """Return `path` if it leads, links followed, to a place in `directory`; the file need not exist.

    A link in a directory from a stranger may lead to a private file of the user, which would then be copied and
    published. The Hub's cache is allowed: its `snapshots/COMMIT/NAME` are links into `blobs` beside `snapshots`.

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
    """Check that a directory holds only regular files and folders, and that no link leads out of it.

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
    """Return the message, with its fix, for a file that the system refuses to read."""
    if isinstance(cause, PermissionError):
        return f"{path}: permission denied; fix: make it readable (chmod u+r {path})"
    reason = cause.strerror if isinstance(cause, OSError) else None
    return f"{printable(str(path))}: cannot be read: {reason or cause}; fix: check the path"


def _require_regular(path: Path, mode: int, error: type[MLXBertError]) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _FILE_KINDS if test(mode)), "a device")
        raise error(f"{path}: is {kind}, not a regular file; fix: put a regular file there")


def parse_json(path: Path, error: type[MLXBertError], *, limit: int = MAX_TEXT_BYTES) -> Any:
    """Return the JSON value in a file, of any type; None if the file does not exist.

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
    """Return the JSON object in a file; None if the file does not exist.

    Raises:
        error: as `parse_json`, or not an object.
    """
    value = parse_json(path, error, limit=limit)
    if value is not None and not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}; fix: get the file again")
    return value


T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


class _MismatchError(Exception):
    """A field that is missing or of another type; the text names it."""


def from_json(
    kind: type[T], value: Any, *, place: str, fix: str, error: type[MLXBertError], null_is_nan: bool = False
) -> T:
    """Return the dataclass instance that a JSON object describes.

    Fields may be str, int, float, bool, None, Literal, tuple[X, ...], Mapping[str, X], dataclasses, unions of these,
    and Any. A field that is absent takes the dataclass's default.

    Args:
        kind: the dataclass.
        value: the parsed JSON.
        place: where the value comes from, such as the file's path; every message begins with it.
        fix: how every message ends.
        error: the class of the error.
        null_is_nan: read null as NaN where a number is expected, because this project writes NaN as null.

    Raises:
        error: a field is missing or of another type (one line: its name, what it must be, what was found), or the
            dataclass itself refuses a value.
    """
    try:
        result: T = _read(kind, value, "", null_is_nan)
    except _MismatchError as mismatch:
        raise error(f"{place}: {mismatch}; {fix}") from None
    return result


def _read(hint: Any, value: Any, name: str, null_is_nan: bool) -> Any:
    """Return the value as the annotation `hint` asks; `name` is its place in the JSON, for messages."""
    if hint is Any:
        return value
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if _fits(choice, value):
            return _converted(choice, value, name, null_is_nan)
    if value is None and null_is_nan and float in choices:
        return math.nan
    expected = " or ".join(_description(choice) for choice in choices)
    raise _MismatchError(f"{name or 'the content'} must be {expected}, found {_shown(value)}")


def _fits(hint: Any, value: Any) -> bool:
    """Return whether the outermost type of a JSON value is the one that `hint` asks; its items are checked later."""
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(hint))
    if hint is int:
        return type(value) is int and abs(value) < 1 << 63
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 1 << 63)
    if hint is str:
        return type(value) is str and _is_unicode(value)
    if hint in (bool, NoneType):
        return type(value) is hint
    if origin in (tuple, list, Sequence):
        return isinstance(value, list)
    return isinstance(value, dict) and all(map(_is_unicode, value))


def _is_unicode(text: str) -> bool:
    """Return whether a file can hold the text: JSON can spell lone surrogates, which no encoding has."""
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _converted(hint: Any, value: Any, name: str, null_is_nan: bool) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (tuple, list, Sequence):
        return tuple(_read(inner[0], item, f"{name}[{i}]", null_is_nan) for i, item in enumerate(value))
    if origin in (dict, Mapping):
        return {key: _read(inner[1], item, _inside(name, key), null_is_nan) for key, item in value.items()}
    if not isinstance(hint, type) or not dataclasses.is_dataclass(hint):
        return value
    arguments = {}
    for field, annotation in _fields(hint):
        if field.name in value:
            arguments[field.name] = _read(annotation, value[field.name], _inside(name, field.name), null_is_nan)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _MismatchError(f"{_inside(name, field.name)} is missing")
    try:
        return hint(**arguments)
    except MLXBertError as refusal:
        # The dataclass's fix is for a caller in Python; for a file, the fix of `from_json` is the right one.
        reason = str(refusal).partition("; fix:")[0]
        raise _MismatchError(f"{name}: {reason}" if name else reason) from None


@cache
def _fields(kind: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """Return the fields of a dataclass with their annotations as types."""
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def _inside(name: str, key: str) -> str:
    return f"{name}.{shortened(key, 60)}" if name else shortened(key, 60)


def _description(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if origin in (tuple, list, Sequence):
        return f"a list of {_PLURALS.get(get_args(hint)[0], 'values')}"
    return _NAMES.get(hint, "an object")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return shortened(json.dumps(value, ensure_ascii=isinstance(value, str) and not _is_unicode(value)), 60)
