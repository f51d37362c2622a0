"""Zip containers (torch.save since 1.6, numpy's .npz), read without extracting and without trust.

numpy's .npz, as mlx-examples' `bert/convert.py` and mlx.core.savez write it.

The .npy header is numpy's, format versions 1 to 3: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import io
import math
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from converter.readers.safetensors import (
    DTYPES,
    StridedTensor,
    TensorEntry,
    contiguous_strides,
    plausible_shape,
    tensor_entry,
)
from converter.readers.source_files import SourceError, file_size, open_file, read_bytes, read_into
from mlxbert.errors import printable
from mlxbert.files.reading import reading_failed

AGAIN = "fix: get the file again"
# what the standard library raises on a damaged archive, beside BadZipFile
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    IndexError,
)
# Weights hardly shrink: what inflates to much more than it is was made to fill the memory, or is empty.
MAX_INFLATION = 20
INFLATED_FREELY = 64 << 20
MAX_DEFLATE_RATIO = 1032  # https://zlib.net/zlib_tech.html: deflate cannot do better


@dataclass(frozen=True)
class ZipMember:
    """The contents of one archive member, or what follows its first bytes (`head`): a ByteRange.

    Reading all of it compares the member's CRC-32; a part cannot be compared. torch writes 0 when told not to
    compute CRCs (torch.serialization.set_crc32_options), so 0 is not compared.
    """

    path: Path
    name: str
    size: int
    crc: int
    data_offset: int | None  # None when the member is compressed
    head: bytes = b""

    @property
    def nbytes(self) -> int:
        """Bytes behind the head."""
        return self.size - len(self.head)

    def after(self, head: bytes) -> ZipMember:
        """The same member without its first bytes, which were read already."""
        return replace(self, head=head)

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` from `start` bytes behind the head."""
        if start < 0 or start + len(out) > self.nbytes:
            raise SourceError(f"{self.path}: a tensor reaches beyond its data in {printable(self.name)}; {AGAIN}")
        if self.data_offset is None:
            self._inflate(len(self.head) + start, out)
            return
        read_into(self.path, self.data_offset + len(self.head) + start, out)
        if len(out) == self.nbytes and self.crc and zlib.crc32(out, zlib.crc32(self.head)) != self.crc:
            raise SourceError(f"{self.path}: {printable(self.name)} is damaged (its CRC-32 is wrong); {AGAIN}")

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on."""
        out = bytearray(count)
        self.read_into(start, memoryview(out))
        return bytes(out)

    def _inflate(self, start: int, out: memoryview) -> None:
        try:
            with open_file(self.path) as file, zipfile.ZipFile(file) as archive, archive.open(self.name) as stream:
                while start:
                    start -= len(stream.read(min(start, 1 << 20))) or _early_end()
                done = 0
                while done < len(out):
                    done += cast(zipfile.ZipExtFile, stream).readinto(out[done : done + (1 << 20)]) or _early_end()
        except OSError as error:
            raise SourceError(reading_failed(self.path, error)) from error
        except DAMAGED as error:
            raise SourceError(f"{self.path}: {printable(self.name)} is damaged ({error}); {AGAIN}") from error


def _early_end() -> int:
    raise EOFError("it ends early")


class ZipArchive:
    """The table of contents of a zip file."""

    def __init__(self, path: Path) -> None:
        """Read the central directory; SourceError when it is truncated or garbage."""
        self.path = path
        self._size = file_size(path)
        try:
            with open_file(path) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except OSError as error:
            raise SourceError(reading_failed(path, error)) from error
        except DAMAGED as error:
            raise SourceError(f"{path}: is a truncated or damaged zip ({error}); {AGAIN}") from error
        packed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
        inflated = sum(info.file_size for info in packed)
        if inflated > max(INFLATED_FREELY, MAX_INFLATION * sum(info.compress_size for info in packed)):
            raise SourceError(
                f"{path}: its {self._size / 2**20:.1f} MB would inflate to {inflated / 2**20:.0f} MB, far more than "
                "weights do (a zip bomb?); fix: do not trust it; if you do, unpack it and zip it as stored (zip -0)"
            )
        self._infos = {info.filename: info for info in infos}
        self._times = Counter(info.filename for info in infos)

    @property
    def names(self) -> list[str]:
        """Member names in the archive's order."""
        return list(self._infos)

    def member(self, name: str) -> ZipMember:
        """Find a member's bytes; SourceError: missing, twice there, encrypted, or with impossible sizes."""
        info = self._infos.get(name)
        if info is None:
            raise SourceError(f"{self.path}: has no {printable(name)} inside; {AGAIN}")
        label = f"{self.path}: {printable(name)}"
        if self._times[name] > 1:
            raise SourceError(f"{label} is in the archive twice; {AGAIN}")
        if info.flag_bits & 0x1:
            raise SourceError(f"{label} is encrypted; fix: unpack it with its password and zip it without one")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise SourceError(f"{label} is compressed by method {info.compress_type}; fix: zip it as stored")
        local = self._local_data_offset(info, label)
        if local + info.compress_size > self._size:
            raise SourceError(f"{label} reaches beyond the end of the file (truncated?); {AGAIN}")
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored and info.compress_size != info.file_size:
            raise SourceError(f"{label} claims two different sizes; {AGAIN}")
        if info.file_size > MAX_DEFLATE_RATIO * (info.compress_size + 64):
            raise SourceError(f"{label} claims more bytes than it can hold (a zip bomb?); {AGAIN}")
        return ZipMember(self.path, name, info.file_size, info.CRC, local if stored else None)

    def _local_data_offset(self, info: zipfile.ZipInfo, label: str) -> int:
        """Where the member's bytes begin: behind a local header whose lengths the table does not repeat."""
        if info.header_offset < 0 or info.header_offset + 30 > self._size:
            raise SourceError(f"{label} lies outside the file (truncated?); {AGAIN}")
        header = io.BytesIO(read_bytes(self.path, info.header_offset, 30))
        signature, name_length, extra_length = struct.unpack("<4s22xHH", header.read())
        if signature != b"PK\x03\x04":
            raise SourceError(f"{label} has no local header (damaged?); {AGAIN}")
        return info.header_offset + 30 + name_length + extra_length


MAX_HEADER_BYTES = 10_000  # numpy's own limit
_KINDS = {f"{dtype.kind}{dtype.itemsize}": name for name, dtype in DTYPES.items() if name != "BF16"}
# mlx and ml_dtypes save bfloat16 as two raw bytes, for want of a numpy name
_KINDS["V2"] = "BF16"


def read_npz(archive: ZipArchive) -> dict[str, TensorEntry]:
    """Every array of an .npz, in the archive's order; the member `a.npy` is the tensor `a`."""
    entries = {}
    for name in archive.names:
        if name.endswith(".npy"):
            key = name.removesuffix(".npy")
            entries[key] = _entry(archive.path, key, archive.member(name))
    return entries


def _entry(path: Path, key: str, member: ZipMember) -> TensorEntry:
    bad = SourceError(f"{path}: array {printable(key)} has no valid .npy header; {AGAIN}")
    prelude = member.read(0, min(12, member.size))
    if len(prelude) < 12 or prelude[:6] != b"\x93NUMPY" or prelude[6] not in (1, 2, 3):
        raise bad
    begin, width = (10, 2) if prelude[6] == 1 else (12, 4)
    length = int.from_bytes(prelude[8 : 8 + width], "little")
    if length > min(MAX_HEADER_BYTES, member.size - begin):
        raise bad
    header = _parse(member.read(begin, length))
    if header is None:
        raise bad
    descr, fortran, shape = header
    if descr.lstrip("|<>=").startswith("O"):
        raise SourceError(
            f"{path}: array {printable(key)} holds pickled Python objects, which are never loaded; "
            "fix: save plain number arrays"
        )
    dtype = _KINDS.get(descr.lstrip("|<>="), descr)
    strides = contiguous_strides(shape[::-1])[::-1] if fortran else contiguous_strides(shape)
    data = member.after(member.read(0, begin + length))
    entry = tensor_entry(path, key, StridedTensor(data, dtype, shape, strides, big_endian=descr.startswith(">")))
    if math.prod(shape) * DTYPES[dtype].itemsize != data.nbytes:
        raise SourceError(
            f"{path}: array {printable(key)}, {dtype} of shape {shape}, does not fit its {data.nbytes} bytes; {AGAIN}"
        )
    return entry


def _parse(raw: bytes) -> tuple[str, bool, tuple[int, ...]] | None:
    """dtype, Fortran order, and shape; None when the header is none, or of a structured dtype."""
    try:
        header: Any = ast.literal_eval(raw.decode("utf-8").strip())  # data only, by construction
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        return None
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str) or type(fortran) is not bool or not isinstance(shape, tuple):
        return None
    return (descr, fortran, shape) if plausible_shape(shape) else None
