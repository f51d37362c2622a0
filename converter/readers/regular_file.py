"""Plain reads of plain files: no mmap, so a page that was read never counts against our memory."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from converter.readers.source_error import SourceError, os_error


class ByteRange(Protocol):
    """Bytes that lie somewhere and are read when asked for."""

    @property
    def nbytes(self) -> int:
        """How many bytes there are."""
        ...

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on; SourceError when they cannot be had."""
        ...


@dataclass(frozen=True)
class FileBytes:
    """`nbytes` bytes of a file from `offset` on, as they are."""

    path: Path
    offset: int
    nbytes: int

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` from `start` bytes into the range."""
        if start < 0 or start + len(out) > self.nbytes:
            raise SourceError(f"{self.path}: a tensor reaches beyond its data; fix: get the file again")
        read_into(self.path, self.offset + start, out)


def file_size(path: Path) -> int:
    """Size in bytes of a regular file (or of what a link leads to); SourceError for anything else.

    A FIFO or a device would block or never end, so they are refused before they are opened.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; fix: check the path") from None
    except OSError as error:
        raise os_error(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise SourceError(f"{path}: is a directory where a file is needed; fix: check the path")
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{path}: is a pipe, socket or device, not a regular file; fix: copy its contents to a file")
    return status.st_size


def read_into(path: Path, offset: int, out: memoryview) -> None:
    """Fill `out` with the file's bytes from `offset` on."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < len(out):  # one read gives at most 2 GiB
                count = file.readinto(out[done:])
                if not count:
                    raise SourceError(
                        f"{path}: ends at byte {offset + done}, {len(out) - done} bytes early; "
                        "fix: get the file again (it is truncated or was changed while it was read)"
                    )
                done += count
    except OSError as error:
        raise os_error(path, error) from error


def read_bytes(path: Path, offset: int, count: int) -> bytes:
    """`count` bytes of the file from `offset` on."""
    out = bytearray(count)
    read_into(path, offset, memoryview(out))
    return bytes(out)
