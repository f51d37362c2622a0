"""The one error that reading a source raises.

Plain reads of plain files: no mmap, so a page that was read never counts against our memory.

What a weight file really is, by its first bytes: names lie (an HTML error page called .bin).

JSON files of a checkpoint: config.json, shard indexes, modules.json.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from mlxbert.errors import MLXBertError, printable
from mlxbert.files.reading import open_regular, parse_json, reading_failed, require_inside


class SourceError(MLXBertError):
    """A source cannot be read; the message names the file, what is wrong with it, and the fix."""


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


FileKind = Literal["safetensors", "zip", "pickle"]

TF_FIX = (
    "fix: with transformers<5 (5 dropped {label}): AutoModelForPreTraining.from_pretrained(DIR, {flag}=True)"
    ".save_pretrained(NEW_DIR), then convert NEW_DIR"
)
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file (TensorFlow/Keras weights)",
        TF_FIX.format(label="TensorFlow", flag="from_tf"),
    ),
    (b"GGUF", "a GGUF file (llama.cpp)", "fix: give the original PyTorch or safetensors checkpoint"),
    (b"\x1f\x8b", "gzip-compressed", "fix: decompress it first (gunzip)"),
    (b"\xfd7zXZ\x00", "xz-compressed", "fix: decompress it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "fix: decompress it first (unzstd)"),
    (b"PK\x05\x06", "an empty zip", "fix: get the file again"),
)


def refuse_stand_in(path: Path, head: bytes) -> None:
    """Raise SourceError when `head` is a Git-LFS pointer or a web page in the place of the real file."""
    if head.startswith(b"version https://git-lfs"):
        raise SourceError(f"{path}: is a Git-LFS pointer, not the file itself; fix: git lfs pull in its repository")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error", b"<head")):
        raise SourceError(
            f"{path}: is an HTML or XML page (an error or login page saved under this name); "
            "fix: download the file again, logged in if the model is gated"
        )


def identify(path: Path) -> FileKind:
    """The container format of a weight file, or SourceError naming what it is instead."""
    size = file_size(path)
    if size == 0:
        raise SourceError(f"{path}: is empty; fix: get the file again")
    head = read_bytes(path, 0, min(size, 512))
    refuse_stand_in(path, head)
    # first: a safetensors header of 128 bytes begins with 0x80 too, as every pickle does
    if head[5:9] == b"\x00\x00\x00{":
        return "safetensors"
    for magic, what, fix in _OTHERS:
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
    if _is_text(head):
        raise SourceError(f"{path}: is text, not weights; fix: download the file again, or check the path")
    if path.suffix == ".safetensors":
        return "safetensors"  # its reader says what is wrong
    raise SourceError(
        f"{path}: is no checkpoint that is read here (safetensors, torch.save, .npz), or is damaged; "
        "fix: get the file again"
    )


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head) and head.isascii()


MAX_JSON_BYTES = 64 << 20


def read_json(path: Path) -> Any:
    """The JSON value in a file; SourceError when it is missing, not JSON, too large, or something else."""
    refuse_stand_in(path, read_bytes(path, 0, min(file_size(path), 512)))
    return parse_json(path, SourceError, limit=MAX_JSON_BYTES)


def check_file(path: Path, root: Path) -> None:
    """Check a source's file before it is read or copied.

    Raises:
        SourceError: a link that leads out of `root`, a pipe, socket or device, a directory, a Git-LFS pointer or a web
            page.
    """
    size = file_size(path)
    require_inside(path, root, SourceError)
    refuse_stand_in(path, read_bytes(path, 0, min(size, 512)))


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; SourceError as `read_json`, or when it holds anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        found = "null" if value is None else type(value).__name__
        raise SourceError(f"{path}: expected a JSON object, found {found}; fix: get the file again")
    return value


def own_name(path: Path, name: str) -> str:
    """A name that `path` (an index, modules.json) gives; SourceError if it leads out of the directory."""
    pure = PurePosixPath(name)
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in name
    if outside or not pure.parts:
        raise SourceError(
            f"{path}: names {printable(name)!r}, which points outside its directory; "
            "fix: do not trust this checkpoint, or repair the file to name files beside it"
        )
    return name
