"""Reads zip containers (torch.save since 1.6, NumPy's .npz) without extracting them and without trust in their sizes.

An .npz is read as mlx-examples' converter and mlx.core.savez write it. The .npy header is NumPy's, format versions 1
to 3 (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html). It is hostile input, so it is parsed
here, where only one plain literal is accepted.
"""

from __future__ import annotations

import ast
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from converter.readers.safetensors import (
    StridedTensor,
    TensorEntry,
    contiguous_strides,
    plausible_shape,
    tensor_entry,
)
from converter.readers.source_files import AGAIN, SourceError, file_size, open_file, read_bytes, read_into
from mlxbert.errors import printable
from mlxbert.files.reading import reading_failed
from mlxbert.files.safetensors import NUMPY_DTYPES

# What the standard library raises for a damaged archive.
_DAMAGE = (
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
# Weights hardly shrink: an archive that inflates to far more than its size was made to fill the memory, or is empty.
_MAX_INFLATION = 20
_INFLATED_FREELY = 64 << 20
_MAX_DEFLATE_RATIO = 1032  # https://zlib.net/zlib_tech.html: deflate cannot do better
_MAX_HEADER_BYTES = 10_000  # NumPy's own limit
# NumPy's kind and item size -> safetensors' dtype.
_DTYPES = {f"{dtype.kind}{dtype.itemsize}": name for name, dtype in NUMPY_DTYPES.items() if name != "BF16"}
# mlx and ml_dtypes save bfloat16 as two raw bytes, because NumPy has no name for it.
_DTYPES["V2"] = "BF16"


@dataclass(frozen=True)
class ZipMember:
    """The content of one archive member as a byte range, without its first bytes (`head`) if these were read already.

    Reading the whole member checks its CRC-32; a part cannot be checked. A CRC of 0 is not checked, because torch
    writes 0 when it is told to compute none (torch.serialization.set_crc32_options).

    Attributes:
        data_offset: where the content begins in the file; None for a compressed member.
    """

    path: Path
    name: str
    size: int
    crc: int
    data_offset: int | None
    head: bytes = b""

    @property
    def nbytes(self) -> int:
        """Number of bytes behind the head."""
        return self.size - len(self.head)

    def after(self, head: bytes) -> ZipMember:
        """Return the same member without its first bytes."""
        return replace(self, head=head)

    def read_into(self, start: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `start` on, counted behind the head."""
        if start < 0 or start + len(out) > self.nbytes:
            raise SourceError(f"{self.path}: a tensor reaches beyond its data in {printable(self.name)}; {AGAIN}")
        if self.data_offset is None:
            self._inflate(len(self.head) + start, out)
            return
        read_into(self.path, self.data_offset + len(self.head) + start, out)
        if len(out) == self.nbytes and self.crc and zlib.crc32(out, zlib.crc32(self.head)) != self.crc:
            raise SourceError(f"{self.path}: {printable(self.name)} is damaged (its CRC-32 is wrong); {AGAIN}")

    def read(self, start: int, count: int) -> bytes:
        """Return `count` bytes from `start` on."""
        out = bytearray(count)
        self.read_into(start, memoryview(out))
        return bytes(out)

    def _inflate(self, start: int, out: memoryview) -> None:
        try:
            with open_file(self.path) as file, zipfile.ZipFile(file) as archive, archive.open(self.name) as stream:
                while start:
                    start -= len(stream.read(min(start, 1 << 20))) or _raise_early_end()
                done = 0
                while done < len(out):
                    piece = out[done : done + (1 << 20)]
                    done += cast(zipfile.ZipExtFile, stream).readinto(piece) or _raise_early_end()
        except OSError as error:
            raise SourceError(reading_failed(self.path, error)) from error
        except _DAMAGE as error:
            raise SourceError(f"{self.path}: {printable(self.name)} is damaged ({error}); {AGAIN}") from error


def _raise_early_end() -> int:
    raise EOFError("it ends early")


class ZipArchive:
    """The table of contents of a zip file."""

    def __init__(self, path: Path) -> None:
        """Read the central directory; raise SourceError if it is damaged or inflates far more than weights do."""
        self.path = path
        self._size = file_size(path)
        try:
            with open_file(path) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except OSError as error:
            raise SourceError(reading_failed(path, error)) from error
        except _DAMAGE as error:
            raise SourceError(f"{path}: is a truncated or damaged zip ({error}); {AGAIN}") from error
        compressed = [info for info in infos if info.compress_type != zipfile.ZIP_STORED]
        inflated = sum(info.file_size for info in compressed)
        if inflated > max(_INFLATED_FREELY, _MAX_INFLATION * sum(info.compress_size for info in compressed)):
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
        """Return a member; raise SourceError if it is missing, there twice, encrypted, or of impossible sizes."""
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
        offset = self._data_offset(info, label)
        if offset + info.compress_size > self._size:
            raise SourceError(f"{label} reaches beyond the end of the file (truncated?); {AGAIN}")
        stored = info.compress_type == zipfile.ZIP_STORED
        if stored and info.compress_size != info.file_size:
            raise SourceError(f"{label} claims two different sizes; {AGAIN}")
        if info.file_size > _MAX_DEFLATE_RATIO * (info.compress_size + 64):
            raise SourceError(f"{label} claims more bytes than it can hold (a zip bomb?); {AGAIN}")
        return ZipMember(self.path, name, info.file_size, info.CRC, offset if stored else None)

    def _data_offset(self, info: zipfile.ZipInfo, label: str) -> int:
        """Return where the member's bytes begin: behind a local header, whose lengths the table does not repeat."""
        if info.header_offset < 0 or info.header_offset + 30 > self._size:
            raise SourceError(f"{label} lies outside the file (truncated?); {AGAIN}")
        header = read_bytes(self.path, info.header_offset, 30)
        signature, name_length, extra_length = struct.unpack("<4s22xHH", header)
        if signature != b"PK\x03\x04":
            raise SourceError(f"{label} has no local header (damaged?); {AGAIN}")
        return info.header_offset + 30 + name_length + extra_length


def read_npz(archive: ZipArchive) -> dict[str, TensorEntry]:
    """Return every array of an .npz, in the archive's order; the member `a.npy` is the tensor `a`."""
    keys = [name.removesuffix(".npy") for name in archive.names if name.endswith(".npy")]
    return {key: _array_entry(archive.path, key, archive.member(f"{key}.npy")) for key in keys}


def _array_entry(path: Path, key: str, member: ZipMember) -> TensorEntry:
    invalid = SourceError(f"{path}: array {printable(key)} has no valid .npy header; {AGAIN}")
    prelude = member.read(0, min(12, member.size))
    if len(prelude) < 12 or prelude[:6] != b"\x93NUMPY" or prelude[6] not in (1, 2, 3):
        raise invalid
    begin, width = (10, 2) if prelude[6] == 1 else (12, 4)
    length = int.from_bytes(prelude[8 : 8 + width], "little")
    if length > min(_MAX_HEADER_BYTES, member.size - begin):
        raise invalid
    header = _parse_header(member.read(begin, length))
    if header is None:
        raise invalid
    descr, fortran_order, shape = header
    if descr.lstrip("|<>=").startswith("O"):
        raise SourceError(
            f"{path}: array {printable(key)} holds pickled Python objects, which are never loaded; "
            "fix: save plain number arrays"
        )
    dtype = _DTYPES.get(descr.lstrip("|<>="), descr)
    strides = contiguous_strides(shape[::-1])[::-1] if fortran_order else contiguous_strides(shape)
    data = member.after(member.read(0, begin + length))
    tensor = StridedTensor(data, dtype, shape, strides, big_endian=descr.startswith(">"))
    return tensor_entry(path, key, tensor, whole=True, kind="array")


def _parse_header(raw: bytes) -> tuple[str, bool, tuple[int, ...]] | None:
    """Return dtype, Fortran order and shape; None for an invalid header or a structured dtype."""
    try:
        header: Any = ast.literal_eval(raw.decode("utf-8").strip())  # literals only: nothing is run
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        return None
    descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(descr, str) or type(fortran_order) is not bool or not isinstance(shape, tuple):
        return None
    return (descr, fortran_order, shape) if plausible_shape(shape) else None
