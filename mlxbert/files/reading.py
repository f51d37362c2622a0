"""Paths as people write them: `~` in one, and names that no file can have.

Read the files of a checkpoint or a run: regular files only, of a bounded size, with errors that name the fix.

A FIFO, a socket or a device would block the reader or never end, so each file is opened without blocking and looked at
before its first byte is read. Everything in this project that reads a small file of its own calls this module.

Read JSON of this project's own files into dataclasses: every field is checked against its annotation, in one place.

`run.json`, `scores.json`, `blend.json`, the lines of `metrics.jsonl` and the position in a saved training state are
read with it. A field that the dataclass does not have is left out (a later version may have written it).
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
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mlxbert.errors import MLXBertError, printable, shortened

_FIXES = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "give one that you may look at, or ask its owner",
    errno.ELOOP: "remove one of the links",
}


class PathError(MLXBertError, ValueError):
    """A path that no command can read or write, whatever lies there."""


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` and `~user` expanded, which a shell leaves alone in `--out=~/x`.

    It is as it was where there is no such user; nothing needs to lie there.

    Raises:
        PathError: the system refuses to look there: a name is too long, a folder on the way may not be entered, links
            lead in a circle.
    """
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user
    try:
        expanded.stat()
    except ValueError:
        raise PathError(f"{printable(expanded)}: no path has a NUL character in it; fix: check the path") from None
    except OSError as error:
        if error.errno in _FIXES:
            raise PathError(f"{printable(expanded)}: {error.strerror}; fix: {_FIXES[error.errno]}") from None
    return expanded


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


T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


class _MismatchError(Exception):
    """A field that is missing or of another type; the text names it."""


def from_json(
    kind: type[T], value: Any, *, place: str, fix: str, error: type[MLXBertError], null_is_nan: bool = False
) -> T:
    """Return the instance of a dataclass that a JSON object describes.

    Fields may be str, int, float, bool, None, Literal, tuple[X, ...], Mapping[str, X], dataclasses, unions of these,
    and Any. A field that is absent takes the dataclass's default.

    Args:
        kind: the dataclass.
        value: as `json.loads` gives it.
        place: of the value, such as the file's path: the beginning of every message.
        fix: the end of every message.
        error: the class of the error.
        null_is_nan: read null as NaN where a number is expected, as this project's writers mean it.

    Raises:
        error: a field is missing or of another type (one line: its name, what it must be, what was found), or the
            dataclass itself refuses a value.
    """
    try:
        read: T = _read(kind, value, "", null_is_nan)
    except _MismatchError as mismatch:
        raise error(f"{place}: {mismatch}; {fix}") from None
    return read


def _read(hint: Any, value: Any, name: str, null_is_nan: bool) -> Any:
    if hint is Any:
        return value
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if _fits(choice, value):
            return _converted(choice, value, name, null_is_nan)
    if value is None and null_is_nan and float in choices:
        return math.nan
    expected = " or ".join(_words(choice) for choice in choices)
    raise _MismatchError(f"{name or 'the content'} must be {expected}, found {_shown(value)}")


def _fits(hint: Any, value: Any) -> bool:
    """Whether the JSON value is of the kind that `hint` reads; what is inside it is looked at later."""
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
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
    """Whether a file can hold the text: JSON can spell lone surrogates, which no encoding has."""
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _converted(hint: Any, value: Any, name: str, null_is_nan: bool) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (tuple, list, Sequence):
        return tuple(_read(inner[0], one, f"{name}[{i}]", null_is_nan) for i, one in enumerate(value))
    if origin in (dict, Mapping):
        return {key: _read(inner[1], one, _inside(name, key), null_is_nan) for key, one in value.items()}
    if not isinstance(hint, type) or not dataclasses.is_dataclass(hint):
        return value
    given = {}
    for field, annotation in _fields(hint):
        if field.name in value:
            given[field.name] = _read(annotation, value[field.name], _inside(name, field.name), null_is_nan)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _MismatchError(f"{_inside(name, field.name)} is missing")
    try:
        return hint(**given)
    except MLXBertError as refusal:
        # The dataclass's own fix is for whoever calls it; of a file the reader's is the right one.
        reason = str(refusal).partition("; fix:")[0]
        raise _MismatchError(f"{name}: {reason}" if name else reason) from None


@cache
def _fields(kind: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """The fields of a dataclass with their annotations as types."""
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def _inside(name: str, key: str) -> str:
    return f"{name}.{shortened(key, 60)}" if name else shortened(key, 60)


def _words(hint: Any) -> str:
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
