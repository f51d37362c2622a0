"""numpy's .npz, as mlx-examples' `bert/convert.py` and mlx.core.savez write it.

The .npy header is numpy's, format versions 1 to 3: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import (
    DTYPES,
    StridedTensor,
    TensorEntry,
    contiguous_strides,
    plausible_shape,
    tensor_entry,
)
from converter.readers.zip_archive import AGAIN, ZipArchive, ZipMember
from mlxbert.errors import printable

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
