"""A tensor that can be read when it is needed: its name, shape, dtype, and where its elements lie.

A quantized MLX checkpoint as a source: every packed matrix an entry that unpacks when it is read.

safetensors: eight bytes of header length, a JSON header, the tensors (https://github.com/huggingface/safetensors).

A checkpoint in several files, with the index that says which tensor lies in which.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from converter.readers.source_files import (
    ByteRange,
    FileBytes,
    SourceError,
    file_size,
    own_name,
    read_bytes,
    read_json_object,
)
from mlxbert.errors import first_ten, printable
from mlxbert.files.reading import require_inside
from mlxbert.quantization import LayerQuantization, QuantizationConfig, QuantizationError

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


_KEYS = ("quantization", "quantization_config")


def dequantized(
    where: Path, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """The configuration without its quantization, and the entries with float32 ones in the place of packed ones.

    Raises:
        SourceError: scales or biases are missing, or shapes and `config.json` contradict each other.
    """
    try:
        parsed = QuantizationConfig.from_hf(config)
    except QuantizationError as error:
        raise SourceError(f"{where}: {error}") from error
    assert parsed is not None  # read_config has seen it
    paths = [key.removesuffix(".scales") for key in entries if key.endswith(".scales")]
    unpacked: dict[str, TensorEntry] = {}
    taken = {f"{path}.{leaf}" for path in paths for leaf in ("scales", "biases")}
    for key, entry in entries.items():
        path = key.removesuffix(".weight")
        if key in taken:
            continue
        if path != key and path in paths:
            layer = parsed.of(path.removeprefix("bert.")) or parsed.of(path)
            if layer is None:
                raise SourceError(f"{where}: {path} is packed, and config.json says not; fix: get the files again")
            entry = _entry(where, path, layer, entries)
        unpacked[key] = entry
    return _without(config), unpacked


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(block := plain.get("mlxbert"), dict):
        plain["mlxbert"] = {key: value for key, value in block.items() if key != "quantization"}
    return plain


def _entry(where: Path, path: str, layer: LayerQuantization, entries: Mapping[str, TensorEntry]) -> TensorEntry:
    names = ["weight", "scales", "biases"] if layer.has_biases else ["weight", "scales"]
    missing = [name for name in names if f"{path}.{name}" not in entries]
    if missing:
        lacks = " and no ".join(missing)
        raise SourceError(f"{where}: {path} is packed, and has no {lacks}; fix: get the files again")
    parts = [entries[f"{path}.{name}"] for name in names]
    weight, scales = parts[0], parts[1]
    width = weight.shape[-1] * 32 // layer.bits if len(weight.shape) == 2 else 0
    groups = (weight.shape[0] if weight.shape else 0, width // layer.group_size)
    if weight.dtype != "U32" or not width or any(part.shape != groups for part in parts[1:]):
        raise SourceError(
            f"{where}: {path}.weight {weight.shape} and its scales {scales.shape} are not {layer.bits} bits in groups "
            f"of {layer.group_size}, as config.json says; fix: get the files again"
        )
    return TensorEntry(f"{path}.weight", (weight.shape[0], width), "F32", partial(_unpack, parts, layer))


def _unpack(parts: list[TensorEntry], layer: LayerQuantization) -> np.ndarray:
    from mlxbert.quantization import unpack  # imports MLX, which a source that is not packed does not need

    weight, *scales = [part.read() for part in parts]
    if layer.has_biases:  # MLX does not take NumPy's bfloat16
        scales = [array.astype(np.float32) for array in scales]
    scale, bias = (*scales, None)[:2]
    return np.concatenate([np.array(rows) for rows in unpack(weight, scale, bias, layer)])


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
        entries[key] = _header_entry(path, key, header[key], FileBytes(path, begin + start, end - start))
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


def _header_entry(path: Path, key: str, claim: dict[str, Any], data: FileBytes) -> TensorEntry:
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


_SHARDS_AGAIN = "fix: get the shards and their index again, from one version of the model"


def shard_names(index: Path) -> dict[str, list[str]]:
    """File name -> the tensors that the index promises in it, in the index's order.

    Raises SourceError: no usable weight_map, a name that leads outside the directory, missing shards.
    """
    weight_map = read_json_object(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise SourceError(f"{index}: has no weight_map of tensor names to file names; {_SHARDS_AGAIN}")
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        shards.setdefault(own_name(index, name), []).append(key)
    missing = [printable(name) for name in shards if not os.path.lexists(index.parent / name)]
    if missing:
        raise SourceError(
            f"{index}: {len(missing)} of {len(shards)} shards missing; fix: download them too\n{first_ten(missing)}"
        )
    return shards


def read_shards(index: Path, root: Path, read: Callable[[Path], dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """Every tensor of a sharded checkpoint, shard by shard; index and shards must agree exactly.

    Raises SourceError as `shard_names`, or for a shard that is a link out of `root`.
    """
    entries: dict[str, TensorEntry] = {}
    for name, promised in shard_names(index).items():
        shard = require_inside(index.parent / name, root, SourceError)
        there = read(shard)
        lacking = [printable(key) for key in promised if key not in there]
        if lacking:
            raise SourceError(
                f"{shard}: lacks tensors that {index.name} promises; {_SHARDS_AGAIN}\n{first_ten(lacking)}"
            )
        extra = [printable(key) for key in sorted(set(there) - set(promised))]
        if extra:
            raise SourceError(
                f"{shard}: has tensors that {index.name} does not list; {_SHARDS_AGAIN}\n{first_ten(extra)}"
            )
        entries.update(there)
    return entries
