"""Reads the files of a source: bytes at an offset, small JSON files, and the format of a weight file.

Bytes are read plainly, without mmap: a page of a mapped file would count against the memory of the process. A weight
file is identified by its first bytes, because names lie (an HTML error page is called .bin).
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from mlxbert.errors import MLXBertError, printable
from mlxbert.files.reading import open_regular, read_json, reading_failed, require_inside

MAX_JSON_BYTES = 64 << 20
AGAIN = "fix: get the file again"
_FIX = (
    "fix: with transformers<5 (5 dropped {name}): AutoModelForPreTraining.from_pretrained(DIR, {option}=True)"
    ".save_pretrained(NEW_DIR), then convert NEW_DIR"
)
TENSORFLOW_FIX = _FIX.format(name="TensorFlow", option="from_tf")
FLAX_FIX = _FIX.format(name="Flax", option="from_flax")
# First bytes of files that are not read, with their name and the fix.
_NOT_READ = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (TensorFlow/Keras weights)", TENSORFLOW_FIX),
    (b"GGUF", "a GGUF file (llama.cpp)", "fix: give the original PyTorch or safetensors checkpoint"),
    (b"\x1f\x8b", "gzip-compressed", "fix: decompress it first (gunzip)"),
    (b"\xfd7zXZ\x00", "xz-compressed", "fix: decompress it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "fix: decompress it first (unzstd)"),
    (b"PK\x05\x06", "an empty zip", AGAIN),
)

FileKind = Literal["safetensors", "zip", "pickle"]


class SourceError(MLXBertError):
    """A source cannot be read; the message names the file, the fault and the fix."""


class ByteRange(Protocol):
    """A range of bytes that is read on demand."""

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        ...

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on; raise SourceError if they cannot be read."""
        ...


@dataclass(frozen=True)
class FileBytes:
    """The `nbytes` bytes of a file from `offset` on."""

    path: Path
    offset: int
    nbytes: int

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on."""
        if start < 0 or start + len(out) > self.nbytes:
            raise SourceError(f"{self.path}: a tensor reaches beyond its data; {AGAIN}")
        read_into(self.path, self.offset + start, out)


def open_file(path: Path) -> io.FileIO:
    """Open a regular file, or the file that a link leads to, without buffering.

    Raises:
        SourceError: the file is missing or unreadable, or the path is a directory, pipe, socket or device.
    """
    file = open_regular(path, SourceError)
    if file is None:
        raise SourceError(f"{path}: no such file; fix: check the path")
    return file


def file_size(path: Path) -> int:
    """Return the size of a regular file in bytes; raise SourceError for anything else."""
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
                        f"{AGAIN} (it is truncated or was changed while it was read)"
                    )
                done += count
        except OSError as error:
            raise SourceError(reading_failed(path, error)) from error


def read_bytes(path: Path, offset: int, count: int) -> bytes:
    """Return `count` bytes of the file from `offset` on."""
    out = bytearray(count)
    read_into(path, offset, memoryview(out))
    return bytes(out)


def check_file(path: Path, root: Path) -> None:
    """Check a file of a source before it is read or copied.

    Raises:
        SourceError: the path is a link that leads out of `root`, a directory, pipe, socket or device, a Git-LFS
            pointer or a web page.
    """
    size = file_size(path)
    require_inside(path, root, SourceError)
    _refuse_stand_in(path, read_bytes(path, 0, min(size, 512)))


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        SourceError: the file is missing, too large or unreadable, a Git-LFS pointer or a web page, or no JSON object.
    """
    _refuse_stand_in(path, read_bytes(path, 0, min(file_size(path), 512)))
    value = read_json(path, SourceError, limit=MAX_JSON_BYTES)
    if value is None:
        raise SourceError(f"{path}: expected a JSON object, found null; {AGAIN}")
    return value


def check_name(path: Path, name: str) -> str:
    """Return the name of a file or folder that `path` (an index, `modules.json`) gives.

    Raises:
        SourceError: the name leads out of the directory.
    """
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    if outside or not pure.parts:
        raise SourceError(
            f"{path}: names {printable(name)!r}, which points outside its directory; "
            "fix: do not trust this checkpoint, or repair the file to name files beside it"
        )
    return name


def identify(path: Path) -> FileKind:
    """Return the container format of a weight file.

    Raises:
        SourceError: the file has another format; the message names it.
    """
    size = file_size(path)
    if size == 0:
        raise SourceError(f"{path}: is empty; {AGAIN}")
    head = read_bytes(path, 0, min(size, 512))
    _refuse_stand_in(path, head)
    # First, because a safetensors header of 128 bytes begins with 0x80, as every pickle does.
    if head[5:9] == b"\x00\x00\x00{":
        return "safetensors"
    for magic, what, fix in _NOT_READ:
        if head.startswith(magic):
            raise SourceError(f"{path}: is {what}, which is not read; {fix}")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    if head[257:262] == b"ustar":
        raise SourceError(
            f"{path}: is a tar archive (torch before 0.2, or a packed folder), which is not read; "
            "fix: unpack it, or torch.load it and torch.save its state_dict() again"
        )
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        raise SourceError(f"{path}: is text, not weights; fix: download the file again, or check the path")
    if path.suffix == ".safetensors":
        return "safetensors"  # the reader of safetensors names the fault
    raise SourceError(
        f"{path}: is no checkpoint that is read here (safetensors, torch.save, .npz), or is damaged; {AGAIN}"
    )


def _refuse_stand_in(path: Path, head: bytes) -> None:
    """Raise SourceError if the first bytes are those of a Git-LFS pointer or a web page."""
    if head.startswith(b"version https://git-lfs"):
        raise SourceError(f"{path}: is a Git-LFS pointer, not the file itself; fix: git lfs pull in its repository")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error", b"<head")):
        raise SourceError(
            f"{path}: is an HTML or XML page (an error or login page saved under this name); "
            "fix: download the file again, logged in if the model is gated"
        )
