"""safetensors: eight bytes of header length, a JSON header, the tensors (https://github.com/huggingface/safetensors)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from converter.readers.regular_file import FileBytes, file_size, read_bytes
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import (
    DTYPES,
    StridedTensor,
    TensorEntry,
    contiguous_strides,
    plausible_shape,
    tensor_entry,
)
from mlxbert.errors import printable

MAX_HEADER_BYTES = 100_000_000  # upstream's limit
AGAIN = "fix: get the file again"


def read_safetensors(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file, in the order of their bytes.

    As strict as upstream: the tensors cover the file exactly, without gap, overlap or trailing byte.
    """
    size = file_size(path)
    if size < 8:
        raise SourceError(f"{path}: is truncated, {size} bytes is no safetensors file; {AGAIN}")
    header_bytes = int.from_bytes(read_bytes(path, 0, 8), "little")
    if header_bytes > size - 8 or header_bytes > MAX_HEADER_BYTES:
        raise SourceError(
            f"{path}: is truncated or no safetensors file: its header claims {header_bytes} bytes and the file has "
            f"{size}; {AGAIN}"
        )
    header = _parse_header(path, read_bytes(path, 8, header_bytes))
    begin, length = 8 + header_bytes, size - 8 - header_bytes
    spans = [(*_offsets(path, key, claim), key) for key, claim in header.items()]
    spans.sort(key=lambda span: (span[0], span[1]))
    entries, at = {}, 0
    for start, end, key in spans:
        if start != at:
            raise SourceError(f"{path}: tensor {printable(key)} leaves a gap or overlaps another; {AGAIN}")
        entries[key] = _entry(path, key, header[key], FileBytes(path, begin + start, end - start))
        at = end
    if at != length:
        short = "is truncated" if at > length else "has trailing bytes"
        raise SourceError(f"{path}: {short}: its header promises {at} data bytes, there are {length}; {AGAIN}")
    return entries


def _parse_header(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) != len(pairs):
            raise ValueError("a name occurs twice")
        return seen

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "a name occurs twice" if "occurs twice" in str(error) else "it is not JSON"
        raise SourceError(
            f"{path}: is no valid safetensors file, its header cannot be parsed ({reason}); {AGAIN}"
        ) from error
    if not isinstance(header, dict):
        raise SourceError(f"{path}: is no valid safetensors file, its header is not an object; {AGAIN}")
    header.pop("__metadata__", None)
    return header


def _offsets(path: Path, key: str, claim: Any) -> tuple[int, int]:
    offsets = claim.get("data_offsets") if isinstance(claim, dict) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(n) is not int for n in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise SourceError(f"{path}: tensor {printable(key)} has no valid data_offsets; {AGAIN}")
    return offsets[0], offsets[1]


def _entry(path: Path, key: str, claim: dict[str, Any], data: FileBytes) -> TensorEntry:
    dtype, shape = claim.get("dtype"), claim.get("shape")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not plausible_shape(shape):
        raise SourceError(f"{path}: tensor {printable(key)} has no valid dtype and shape; {AGAIN}")
    entry = tensor_entry(path, key, StridedTensor(data, dtype, tuple(shape), contiguous_strides(tuple(shape))))
    if math.prod(shape) * DTYPES[dtype].itemsize != data.nbytes:
        raise SourceError(
            f"{path}: tensor {printable(key)}, {dtype} of shape {tuple(shape)}, does not fit its {data.nbytes} bytes; "
            f"{AGAIN}"
        )
    return entry
