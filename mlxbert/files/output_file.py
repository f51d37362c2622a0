"""Write files: a new file of a conversion with its SHA-256, an output that replaces an old one, and `manifest.json`.

`manifest.json` lists the size and the SHA-256 of every file of a converted directory but its own:

``{"format": "mlxbert-manifest", "version": 1, "files": {"config.json": {"size": …, "sha256": "…"}, …}}``

It also marks a directory as written by this project.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import PathError, open_regular, read_bytes, reading_failed, sha256_hex

# The name of the manifest in a converted directory.
NAME = "manifest.json"
FORMAT = "mlxbert-manifest"
VERSION = 1
# A manifest of 100,000 files is 15 MB.
MAX_BYTES = 64 << 20

# Bytes of one write call: macOS refuses more than 2 GiB, and Ctrl-C is handled between two calls.
CHUNK_BYTES = 16 << 20
# For less than this, a call of the hashing thread costs more than the hashing.
THREAD_FROM_BYTES = 1 << 20

# A killed writer leaves beside NAME: `.NAME.0123456789abcdef.tmp`.
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DESCRIPTOR = re.compile(r"/dev/(stdout|stderr)|/(?:dev|proc/self)/fd/(\d+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIX = "give another output with -o"


class WriteError(MLXBertError):
    """The output cannot be written, or must not be: one line with the path, the reason and the fix."""


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """Return the record of a file with the content `data`."""
        return cls(len(data), sha256_hex(data))


def format_bytes(count: int) -> str:
    """Return a byte count for people, in powers of ten: ``438.0 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@contextmanager
def write_errors(path: Path, needed: int, *, fix: str = _FIX) -> Iterator[None]:
    """Turn an ``OSError`` of writing `path` into a one-line :class:`WriteError` that ends in `fix`.

    `needed` is the size of the whole output in bytes; the message about a full disk (or quota, or file-size limit)
    names it.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_SPACE:
            raise WriteError(
                f"{path.parent}: no room for {path.name} ({reason}): {format_bytes(needed)} needed there; "
                f"{fix if fix.startswith('free') else f'free some space or {fix}'}"
            ) from error
        raise WriteError(f"{path}: cannot be written: {reason}; {fix}") from error


class HashedFile:
    """A file that is written from front to back, new or already open, and hashed on the way.

    A second thread hashes large pieces while this one writes them (hashlib and ``write`` both release the GIL).
    :meth:`write` returns when both are done, so the caller may reuse or free the buffer.

    Raises :class:`WriteError` when the file exists or the disk is full; `needed` (bytes) and `fix` are for that
    message. A file that was open before (from :func:`replacing`) stays open; whoever opened it syncs and closes it.
    """

    def __init__(self, target: Path | io.BufferedWriter, *, needed: int, fix: str = _FIX) -> None:
        self._is_borrowed = not isinstance(target, Path)
        self.path = target if isinstance(target, Path) else Path(str(target.name))
        self._needed, self._fix = needed, fix
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        with self._errors():
            if isinstance(target, Path):
                self._descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            else:
                target.flush()
                self._descriptor = target.fileno()

    def write(self, data: bytes | memoryview) -> None:
        """Append `data` (a flat view of bytes)."""
        view = memoryview(data)
        if view.nbytes < THREAD_FROM_BYTES:
            self._sha256.update(view)
            self._append(view)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        hashed = self._thread.submit(self._sha256.update, view)
        try:
            self._append(view)
        finally:
            hashed.result()

    def record(self) -> FileRecord:
        """Return size and SHA-256 of what has been written so far."""
        return FileRecord(self._size, self._sha256.hexdigest())

    def _append(self, view: memoryview) -> None:
        with self._errors():
            start = 0
            while start < view.nbytes:
                start += os.write(self._descriptor, view[start : start + CHUNK_BYTES])
            self._size += view.nbytes

    def _errors(self) -> AbstractContextManager[None]:
        return write_errors(self.path, self._needed, fix=self._fix)

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        if self._is_borrowed:
            return
        try:
            if kind is None:
                with self._errors():
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def write_bytes(path: Path, data: bytes) -> FileRecord:
    """Write a small new file at once."""
    with HashedFile(path, needed=len(data)) as file:
        file.write(data)
        return file.record()


def copy_file(source: Path, path: Path) -> FileRecord:
    """Copy the bytes of `source` to the new file `path`; of a link, the bytes of the file that it leads to.

    Raises :class:`WriteError` when `source` is not a readable regular file.
    """
    reader = open_regular(source, WriteError)
    if reader is None:
        raise WriteError(f"{source}: cannot be copied: it is gone; fix: run it again")
    with reader, HashedFile(path, needed=os.fstat(reader.fileno()).st_size) as file:
        buffer = bytearray(THREAD_FROM_BYTES)
        while True:
            try:
                count = reader.readinto(buffer)
            except OSError as error:
                raise WriteError(reading_failed(source, error)) from error
            if not count:
                return file.record()
            file.write(memoryview(buffer)[:count])


def json_text(value: Any, *, ensure_ascii: bool = True, allow_nan: bool = True) -> str:
    """Return `value` as indented JSON with a newline at the end, as this project writes all of its JSON files."""
    return json.dumps(value, indent=2, ensure_ascii=ensure_ascii, allow_nan=allow_nan) + "\n"


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable: creating and renaming a file changes its directory."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes | memoryview, *, fix: str = _FIX, follow_links: bool = True) -> None:
    """Write `data` to `path`, whole or not at all: :func:`replacing` for data that is in memory."""
    with replacing(path, needed=len(data), fix=fix, follow_links=follow_links) as file:
        file.write(data)


@contextmanager
def replacing(
    path: Path, *, needed: int = 0, fix: str = _FIX, follow_links: bool = True
) -> Iterator[io.BufferedWriter]:
    """Yield a file that becomes `path` when the block ends without an exception; the only way to write an output.

    A reader, a kill and a full disk see the old file or the new one, never a part: the new file is written beside the
    old one, synced, and renamed onto it. The permissions and the owner of the old file stay. Missing parents are
    created. A link stays a link, and the file that it leads to is replaced. A pipe, a terminal, ``/dev/null`` and
    ``/dev/stdout`` are written into.

    Args:
        path: the output.
        needed: bytes that will be written, for the message about a full disk.
        fix: how every message ends.
        follow_links: False for a file of a run or a model, whose directory may come from a stranger: a link is
            replaced by the file, so that nothing outside is written, and pipes and devices are refused.

    Raises:
        WriteError: a directory, a socket, a disk, a pipe without a reader, a write-protected file, or the system
            refuses, also inside the block.
    """
    with write_errors(path, needed, fix=fix):
        special = _open_special(path, fix, follow_links=follow_links)
        if special is not None:
            with _buffered(path, special) as file:
                yield file
            return
        real = Path(os.path.realpath(path)) if follow_links else path
        real.parent.mkdir(parents=True, exist_ok=True)
        old = _status_of_file(real)
        temporary, descriptor = _new_temporary(real)
        try:
            # The file is closed, and with that unlocked, after the renaming: until then no other process deletes it.
            with _buffered(path, descriptor) as file:
                if old is not None:
                    _take_over_rights(descriptor, old)
                yield file
                file.flush()
                os.fsync(descriptor)
                os.replace(temporary, real)  # noqa: PTH105 - the call that tests count
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with suppress(PermissionError):  # a directory may allow new files but no listing
            fsync_directory(real.parent)
            _delete_abandoned(real)


def is_standard_output(path: Path) -> bool:
    """Return whether `path` is the standard output, where a command prints its lines."""
    alias = _DESCRIPTOR.fullmatch(os.path.abspath(path))  # noqa: PTH100 - resolves no links
    return alias is not None and (alias[1] == "stdout" or alias[2] == "1")


def _buffered(path: Path, descriptor: int) -> io.BufferedWriter:
    """Return the descriptor as a file whose name is the output's."""
    return open(path, "wb", opener=lambda *_: descriptor)


def _open_special(path: Path, fix: str, *, follow_links: bool) -> int | None:
    """Open a file that is written into, not replaced; None for a regular file, or where nothing exists yet."""
    alias = _DESCRIPTOR.fullmatch(os.path.abspath(path)) if follow_links else None  # noqa: PTH100 - resolves no links
    if alias is not None:
        sys.stdout.flush()
        return os.dup({"stdout": 1, "stderr": 2}.get(alias[1]) or int(alias[2]))
    if "\0" in str(path):
        raise WriteError(f"{path}: no path has a NUL character; {fix}")
    try:
        mode = path.stat(follow_symlinks=follow_links).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return None
    if stat.S_ISDIR(mode):
        raise WriteError(f"{path}: is a directory, not a file; {fix}")
    if not follow_links or not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise WriteError(f"{path}: is {kind}, which is not replaced by a file; {fix}")
    try:
        # Without O_NONBLOCK, opening a pipe that has no reader would wait for ever.
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
            raise WriteError(f"{path}: is a pipe that nobody reads; start its reader first, or {fix}") from error
        raise
    os.set_blocking(descriptor, True)
    return descriptor


def _status_of_file(path: Path) -> os.stat_result | None:
    """Return the status of the regular file to replace, None if there is none; refuse a write-protected file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    os.close(os.open(path, os.O_WRONLY | os.O_NOFOLLOW))  # a rename does not ask whether the old file may be written
    return status


def _take_over_rights(descriptor: int, old: os.stat_result) -> None:
    """Give a new file the permissions and, as far as the system allows, the owner of the file that it replaces."""
    new = os.fstat(descriptor)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        with suppress(PermissionError):  # only root may give a file away
            os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _new_temporary(path: Path) -> tuple[Path, int]:
    """Create a file beside `path` and lock it, so that the file of a live writer differs from that of a dead one."""
    while True:
        temporary = path.with_name(f".{_stem(path)}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if not _is_deleted(temporary, descriptor):
            return temporary, descriptor
        os.close(descriptor)


def _is_deleted(temporary: Path, descriptor: int) -> bool:
    """Lock a temporary file; return True if another process took it for abandoned before that, and deleted it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not os.path.samestat(os.fstat(descriptor), temporary.stat())
    except (BlockingIOError, FileNotFoundError):
        return True
    except OSError:  # a file system without locks: no other process can lock the file either, so none deletes it
        return False


def _delete_abandoned(path: Path) -> None:
    """Delete the temporary files of `path` whose writers are dead."""
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{16}}\.tmp")
    with os.scandir(path.parent) as entries:
        names = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for name in names:
        delete_if_abandoned(Path(name))


def delete_if_abandoned(temporary: Path) -> None:
    """Delete a temporary file whose writer is dead."""
    with suppress(OSError):  # its writer lives, or another process deletes it: no concern of the caller
        descriptor = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()
        finally:
            os.close(descriptor)


def _stem(path: Path) -> str:
    """Return the file's name, cut so that the name of its temporary file is not too long for the file system."""
    name = path.name
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return name


def manifest_bytes(files: Mapping[str, FileRecord]) -> bytes:
    """Return the manifest of `files` (relative POSIX name -> record), sorted by name."""
    entries = {name: {"size": files[name].size, "sha256": files[name].sha256} for name in sorted(files)}
    return json_text({"format": FORMAT, "version": VERSION, "files": entries}).encode()


def read_manifest(directory: Path) -> dict[str, FileRecord] | None:
    """Return the files that the manifest of `directory` lists; None if it is absent, damaged or another tool's.

    Raises:
        PathError: not a regular file, too large, or unreadable.
    """
    data = read_bytes(directory / NAME, PathError, limit=MAX_BYTES)
    if data is None:
        return None
    try:
        content = json.loads(data)  # not `read_json`: a damaged manifest is no error here
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
        return None
    records = {name: _record(entry) for name, entry in content["files"].items()}
    return {name: record for name, record in records.items() if record is not None} if all(records.values()) else None


def _record(entry: Any) -> FileRecord | None:
    """Return the record that one entry of a manifest describes; None for an entry of another form."""
    if not isinstance(entry, dict):
        return None
    size, sha256 = entry.get("size"), entry.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        return None
    return FileRecord(size, sha256)


def replace_listed_files(directory: Path, files: Mapping[str, bytes], *, fix: str) -> None:
    """Replace files of a directory and, if it has a manifest, their entries there.

    The entries are removed first and added last. So a kill in between leaves files that the manifest does not list,
    which is harmless, and never a file that it describes wrongly, which looks like damage.

    Raises:
        WriteError: a file cannot be written; the message ends in `fix`.
    """
    records = read_manifest(directory)
    if records is not None:
        records = {name: record for name, record in records.items() if name not in files}
        replace_file(directory / NAME, manifest_bytes(records), fix=fix, follow_links=False)
    for name, data in files.items():
        replace_file(directory / name, data, fix=fix, follow_links=False)
    if records is not None:
        records |= {name: FileRecord.of(data) for name, data in files.items()}
        replace_file(directory / NAME, manifest_bytes(records), fix=fix, follow_links=False)


def is_complete(directory: Path) -> bool:
    """Return whether this is a converted directory with every listed file at its size; no hash is computed."""
    try:
        files = read_manifest(directory)
    except PathError:
        return False
    if files is None or "config.json" not in files:
        return False
    return all(
        (directory / name).is_file() and (directory / name).stat().st_size == record.size
        for name, record in files.items()
    )


def manifest_problems(directory: Path) -> list[str]:
    """Compare every file with the manifest, hashes included; return one line for each difference.

    Raises:
        PathError: the manifest or a file cannot be read.
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
    """Return whether the file has the size and the SHA-256 of the record.

    Raises:
        PathError: it cannot be read.
    """
    if not path.is_file() or path.stat().st_size != record.size:
        return False
    return sha256_hex(path, PathError) == record.sha256


def unlisted(directory: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """Return the names of files, links and empty directories that are neither in `files` nor the manifest."""
    return sorted(
        name
        for path in directory.rglob("*")
        if (name := path.relative_to(directory).as_posix()) not in files
        and name != NAME
        and (path.is_symlink() or not path.is_dir() or not any(path.iterdir()))
    )
