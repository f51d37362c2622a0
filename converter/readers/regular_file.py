"""Plain reads of plain files: no mmap, so a page that was read never counts against our memory."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from converter.readers.source_error import SourceError
from mlxbert.files.reading import open_regular, reading_failed


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


def open_file(path: Path) -> io.FileIO:
    """Open a regular file (or the one that a link leads to) unbuffered.

    Raises:
        SourceError: it is absent, a directory, pipe, socket or device, or must not be read.
    """
    file = open_regular(path, SourceError)
    if file is None:
        raise SourceError(f"{path}: no such file; fix: check the path")
    return file


def file_size(path: Path) -> int:
    """Size in bytes of a regular file; SourceError for anything else."""
    with open_file(path) as file:
        return os.fstat(file.fileno()).st_size


def read_into(path: Path, offset: int, out: memoryview) -> None:
    """Fill `out` with the file's bytes from `offset` on."""
    with open_file(path) as file:
        try:
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
            raise SourceError(reading_failed(path, error)) from error


def read_bytes(path: Path, offset: int, count: int) -> bytes:
    """`count` bytes of the file from `offset` on."""
    out = bytearray(count)
    read_into(path, offset, memoryview(out))
    return bytes(out)
