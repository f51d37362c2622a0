"""What a weight file really is, by its first bytes: names lie (an HTML error page called .bin)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from converter.readers.regular_file import file_size, read_bytes
from converter.readers.source_error import SourceError

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
