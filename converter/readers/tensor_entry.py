"""A tensor that can be read when it is needed: its name, shape, dtype, and where its elements lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converter.readers.regular_file import ByteRange
from converter.readers.source_error import SourceError
from mlxbert.errors import printable

# safetensors' names: the vocabulary of every reader here
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

MAX_AXES = 32
MAX_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a source, not read yet.

    `dtype` is safetensors' name ("F32", "BF16", …). `read()` reads this tensor alone and gives a C-contiguous
    array of the host's endianness, bfloat16 as ml_dtypes.bfloat16; it raises SourceError.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class StridedTensor:
    """Elements in a byte range: torch's (storage, offset, size, stride), offset and strides in elements."""

    data: ByteRange
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    big_endian: bool = False

    def span(self) -> int:
        """Elements from the first to the last one touched, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def __call__(self) -> np.ndarray:
        """Read the tensor."""
        dtype = DTYPES[self.dtype]
        span = self.span()
        try:
            raw = np.empty(span * dtype.itemsize, np.uint8)
            if span:
                self.data.read_into(self.offset * dtype.itemsize, memoryview(raw.data))
            flat = raw != 0 if self.dtype == "BOOL" else raw.view(dtype)
            if self.strides == contiguous_strides(self.shape) or not span:
                array = flat.reshape(self.shape)
            else:
                byte_strides = tuple(s * dtype.itemsize for s in self.strides)
                view = np.lib.stride_tricks.as_strided(flat, self.shape, byte_strides)
                array = np.ascontiguousarray(view).reshape(self.shape)
        except MemoryError:
            raise SourceError(
                f"not enough memory for one tensor of {span * dtype.itemsize} bytes, shape {self.shape}; "
                "fix: convert on a machine with more memory"
            ) from None
        return array.byteswap() if self.big_endian else array


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _is_size(n: object) -> bool:
    return type(n) is int and 0 <= n <= MAX_ELEMENTS


def plausible_shape(shape: Sequence[object]) -> bool:
    """Whether this can be a tensor's shape at all; asked before anything is computed from it."""
    if len(shape) > MAX_AXES:
        return False
    elements = 1
    for n in shape:
        if type(n) is not int or not 0 <= n <= MAX_ELEMENTS:
            return False
        elements *= n or 1
    return elements <= MAX_ELEMENTS


def tensor_entry(where: Path, key: str, tensor: StridedTensor) -> TensorEntry:
    """Check a tensor's claims against the bytes that are there, and make it an entry.

    Raises SourceError: a dtype that is not read, a negative or absurd shape, elements outside the bytes, or
    more elements than the bytes hold (a small file must not make a huge array).
    """
    name = printable(key)
    if tensor.dtype not in DTYPES:
        raise SourceError(
            f"{where}: tensor {name} has dtype {printable(tensor.dtype)}, which is not read "
            f"(read are {', '.join(DTYPES)}); fix: cast it to float32 or float16 and save it again"
        )
    if (
        not plausible_shape(tensor.shape)
        or len(tensor.strides) != len(tensor.shape)
        or not all(_is_size(n) for n in (*tensor.strides, tensor.offset))
    ):
        raise SourceError(f"{where}: tensor {name} has an impossible shape, stride or offset; fix: get the file again")
    elements = math.prod(tensor.shape)
    held = tensor.data.nbytes // DTYPES[tensor.dtype].itemsize
    if 0 not in tensor.shape and (tensor.offset + tensor.span() > held or elements > held):
        raise SourceError(
            f"{where}: tensor {name} of shape {tensor.shape} needs more elements than the {held} its storage holds; "
            "fix: get the file again, or save the tensor with .contiguous()"
        )
    return TensorEntry(key, tensor.shape, tensor.dtype, tensor)
