"""One new file of a conversion: created exclusively, hashed while it is written, synced before it is closed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mlxbert.errors import MLXBertError

# One write call: macOS refuses more than 2 GiB at a time, and Ctrl-C is answered between two of them.
CHUNK_BYTES = 16 << 20
# Below this, handing the bytes to the hashing thread costs more than hashing them here.
THREAD_FROM_BYTES = 1 << 20

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(MLXBertError):
    """The output could not be written, or must not be: one line with the path, the reason and the fix."""


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> FileRecord:
        """The record of a file with the content `data`."""
        return cls(len(data), hashlib.sha256(data).hexdigest())


def format_bytes(count: int) -> str:
    """Write a byte count for people, in powers of ten: ``438.0 MB``."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


_FIX = "give another output with -o"


@contextmanager
def write_errors(path: Path, needed: int, *, fix: str = _FIX) -> Iterator[None]:
    """Turn an ``OSError`` of writing `path` into a one-line :class:`WriteError`, which ends in `fix`.

    `needed` is what the whole write takes, in bytes; a full disk (or quota, or file-size limit) names it.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in NO_SPACE:
            raise WriteError(
                f"{path.parent}: no room for {path.name} ({reason}): {format_bytes(needed)} needed there; "
                f"{fix if fix.startswith('free') else f'free some space or {fix}'}"
            ) from error
        raise WriteError(f"{path}: cannot be written: {reason}; {fix}") from error


class HashedFile:
    """A new file, written front to back; its SHA-256 is taken on the way, so it is never read again.

    Large pieces are hashed by a second thread while this one writes them (hashlib and ``write`` both
    release the GIL). :meth:`write` returns when both are done, so the caller may reuse or free the buffer.

    Raises :class:`WriteError` when the file exists or the disk is full; `needed` (bytes) and `fix` are for that
    message.
    """

    def __init__(self, path: Path, *, needed: int, fix: str = _FIX) -> None:
        self.path = path
        self._needed, self._fix = needed, fix
        self._size = 0
        self._sha256 = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        with write_errors(path, needed, fix=fix):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

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
        """Size and SHA-256 of what has been written so far."""
        return FileRecord(self._size, self._sha256.hexdigest())

    def _append(self, view: memoryview) -> None:
        with write_errors(self.path, self._needed, fix=self._fix):
            start = 0
            while start < view.nbytes:
                start += os.write(self._descriptor, view[start : start + CHUNK_BYTES])
            self._size += view.nbytes

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.shutdown()
        try:
            if kind is None:
                with write_errors(self.path, self._needed, fix=self._fix):
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)


def write_bytes(path: Path, data: bytes) -> FileRecord:
    """Write a small file in one go."""
    with HashedFile(path, needed=len(data)) as file:
        file.write(data)
        return file.record()


def copy_file(source: Path, path: Path) -> FileRecord:
    """Copy the bytes of `source` (a link is followed: the copy is a plain file) to the new file `path`.

    Raises :class:`WriteError` when `source` is not a readable regular file.
    """
    try:
        # A FIFO would block the open for ever: look first.
        if not source.is_file():
            raise WriteError(f"{source}: cannot be copied: not a regular file (or it is gone)")
        reader = source.open("rb", buffering=0)
    except OSError as error:
        raise WriteError(f"{source}: cannot be copied: {error.strerror or error}") from error
    with reader, HashedFile(path, needed=os.fstat(reader.fileno()).st_size) as file:
        buffer = bytearray(THREAD_FROM_BYTES)
        while True:
            try:
                count = reader.readinto(buffer)
            except OSError as error:
                raise WriteError(f"{source}: cannot be copied: {error.strerror or error}") from error
            if not count:
                return file.record()
            file.write(memoryview(buffer)[:count])


def fsync_directory(directory: Path) -> None:
    """Make the names in `directory` durable (creation and renaming of files are its contents)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write beside `path`, sync, rename onto it: whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
