"""Tensors that are read on demand, and the readers of safetensors files, their shards and packed MLX checkpoints.

Format: eight bytes of header length, a JSON header, the tensors (https://github.com/huggingface/safetensors). The
reader is our own because a source is hostile input: every claim of a header is checked before it is used.
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

import numpy as np

from converter.readers.source_files import (
    AGAIN,
    ByteRange,
    FileBytes,
    SourceError,
    check_name,
    file_size,
    read_bytes,
    read_json_object,
)
from mlxbert.errors import first_ten, printable
from mlxbert.files.reading import require_inside
from mlxbert.files.safetensors import NUMPY_DTYPES
from mlxbert.quantization import LayerQuantization, QuantizationConfig, QuantizationError, unpack

_MAX_AXES = 32
_MAX_ELEMENTS = 1 << 48
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_AGAIN_WHOLE = "fix: get the files again"
_SHARDS_AGAIN = "fix: get the shards and their index again, from one version of the model"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a source, not read yet.

    Attributes:
        key: name of the tensor.
        shape: its dimensions.
        dtype: safetensors' name of the dtype ("F32", "BF16", …), as in every reader here.
        read: reads this tensor alone and returns a C-contiguous array of the host's endianness; raises SourceError.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class StridedTensor:
    """A tensor in a byte range, as torch describes it; offset and strides count elements."""

    data: ByteRange
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    big_endian: bool = False

    def span(self) -> int:
        """Return the number of elements from the first to the last one that the tensor touches."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))

    def __call__(self) -> np.ndarray:
        """Read the tensor."""
        dtype = NUMPY_DTYPES[self.dtype]
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


@dataclass(frozen=True)
class Weights:
    """The tensors of a file or of all shards, under the names that the files give them.

    Attributes:
        format: "safetensors", "pytorch" or "npz".
        lightning: whether they are a PyTorch Lightning checkpoint, which has hyper-parameters but no configuration.
    """

    format: str
    entries: dict[str, TensorEntry]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    lightning: bool = False


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row-major strides of a shape, in elements."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def plausible_shape(shape: Sequence[object]) -> bool:
    """Return whether a tensor can have this shape; ask before anything is computed from it."""
    if len(shape) > _MAX_AXES:
        return False
    elements = 1
    for n in shape:
        if type(n) is not int or not 0 <= n <= _MAX_ELEMENTS:
            return False
        elements *= n or 1
    return elements <= _MAX_ELEMENTS


def tensor_entry(
    file: Path, key: str, tensor: StridedTensor, *, whole: bool = False, kind: str = "tensor"
) -> TensorEntry:
    """Check a tensor's claims against its bytes, and return its entry.

    Args:
        file: the file, for messages.
        key: name of the tensor.
        tensor: what the file claims.
        whole: whether the tensor must fill its bytes exactly.
        kind: the file format's word for a tensor, for messages.

    Raises:
        SourceError: the dtype is not read, the shape is negative or absurd, elements lie outside the bytes, or the
            tensor has more elements than the bytes hold (a small file must not make a huge array).
    """
    name = printable(key)
    if tensor.dtype not in NUMPY_DTYPES:
        raise SourceError(
            f"{file}: tensor {name} has dtype {printable(tensor.dtype)}, which is not read "
            f"(read are {', '.join(NUMPY_DTYPES)}); fix: cast it to float32 or float16 and save it again"
        )
    sizes = (*tensor.strides, tensor.offset)
    if (
        not plausible_shape(tensor.shape)
        or len(tensor.strides) != len(tensor.shape)
        or any(type(n) is not int or not 0 <= n <= _MAX_ELEMENTS for n in sizes)
    ):
        raise SourceError(f"{file}: tensor {name} has an impossible shape, stride or offset; {AGAIN}")
    elements = math.prod(tensor.shape)
    item_size = NUMPY_DTYPES[tensor.dtype].itemsize
    held = tensor.data.nbytes // item_size
    if 0 not in tensor.shape and (tensor.offset + tensor.span() > held or elements > held):
        raise SourceError(
            f"{file}: tensor {name} of shape {tensor.shape} needs more elements than the {held} its storage holds; "
            f"{AGAIN}, or save the tensor with .contiguous()"
        )
    if whole and elements * item_size != tensor.data.nbytes:
        raise SourceError(
            f"{file}: {kind} {name}, {tensor.dtype} of shape {tensor.shape}, does not fit its {tensor.data.nbytes} "
            f"bytes; {AGAIN}"
        )
    return TensorEntry(key, tensor.shape, tensor.dtype, tensor)


def read_safetensors(file: Path) -> dict[str, TensorEntry]:
    """Return every tensor of a safetensors file, in the order of their bytes.

    The tensors must cover the file exactly, without gap, overlap or trailing byte, as in the safetensors library.
    """
    size = file_size(file)
    if size < 8:
        raise SourceError(f"{file}: is truncated, {size} bytes is no safetensors file; {AGAIN}")
    header_bytes = int.from_bytes(read_bytes(file, 0, 8), "little")
    if header_bytes > size - 8 or header_bytes > _MAX_HEADER_BYTES:
        raise SourceError(
            f"{file}: is truncated or no safetensors file: its header claims {header_bytes} bytes and the file has "
            f"{size}; {AGAIN}"
        )
    header = _parse_header(file, read_bytes(file, 8, header_bytes))
    begin, length = 8 + header_bytes, size - 8 - header_bytes
    spans = [(*_offsets(file, key, claim), key) for key, claim in header.items()]
    spans.sort(key=lambda span: (span[0], span[1]))
    entries, at = {}, 0
    for start, end, key in spans:
        if start != at:
            raise SourceError(f"{file}: tensor {printable(key)} leaves a gap or overlaps another; {AGAIN}")
        entries[key] = _claimed_entry(file, key, header[key], FileBytes(file, begin + start, end - start))
        at = end
    if at != length:
        fault = "is truncated" if at > length else "has trailing bytes"
        raise SourceError(f"{file}: {fault}: its header promises {at} data bytes, there are {length}; {AGAIN}")
    return entries


def _parse_header(file: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            raise ValueError("a name occurs twice")
        return names

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "a name occurs twice" if "occurs twice" in str(error) else "it is not JSON"
        raise SourceError(
            f"{file}: is no valid safetensors file, its header cannot be parsed ({reason}); {AGAIN}"
        ) from error
    if not isinstance(header, dict):
        raise SourceError(f"{file}: is no valid safetensors file, its header is not an object; {AGAIN}")
    header.pop("__metadata__", None)
    return header


def _offsets(file: Path, key: str, claim: Any) -> tuple[int, int]:
    offsets = claim.get("data_offsets") if isinstance(claim, dict) else None
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(type(n) is not int for n in offsets)
        or not 0 <= offsets[0] <= offsets[1]
    ):
        raise SourceError(f"{file}: tensor {printable(key)} has no valid data_offsets; {AGAIN}")
    return offsets[0], offsets[1]


def _claimed_entry(file: Path, key: str, claim: dict[str, Any], data: FileBytes) -> TensorEntry:
    dtype, shape = claim.get("dtype"), claim.get("shape")
    if not isinstance(dtype, str) or not isinstance(shape, list) or not plausible_shape(shape):
        raise SourceError(f"{file}: tensor {printable(key)} has no valid dtype and shape; {AGAIN}")
    tensor = StridedTensor(data, dtype, tuple(shape), contiguous_strides(tuple(shape)))
    return tensor_entry(file, key, tensor, whole=True)


def read_shards(index: Path, root: Path, read: Callable[[Path], dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """Return every tensor of a sharded checkpoint, shard by shard.

    Args:
        index: the file that says which tensor lies in which shard.
        root: the directory that no link may lead out of.
        read: reads one shard.

    Raises:
        SourceError: the index is malformed, a shard is missing or lies outside `root`, or a shard does not hold
            exactly the tensors that the index lists.
    """
    entries: dict[str, TensorEntry] = {}
    for name, listed in _shard_names(index).items():
        shard = require_inside(index.parent / name, root, SourceError)
        tensors = read(shard)
        lacking = [printable(key) for key in listed if key not in tensors]
        if lacking:
            raise SourceError(
                f"{shard}: lacks tensors that {index.name} promises; {_SHARDS_AGAIN}\n{first_ten(lacking)}"
            )
        extra = [printable(key) for key in sorted(set(tensors) - set(listed))]
        if extra:
            raise SourceError(
                f"{shard}: has tensors that {index.name} does not list; {_SHARDS_AGAIN}\n{first_ten(extra)}"
            )
        entries.update(tensors)
    return entries


def _shard_names(index: Path) -> dict[str, list[str]]:
    """Return the tensors that the index lists for each shard, in the index's order."""
    weight_map = read_json_object(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise SourceError(f"{index}: has no weight_map of tensor names to file names; {_SHARDS_AGAIN}")
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        shards.setdefault(check_name(index, name), []).append(key)
    missing = [printable(name) for name in shards if not os.path.lexists(index.parent / name)]
    if missing:
        raise SourceError(
            f"{index}: {len(missing)} of {len(shards)} shards missing; fix: download them too\n{first_ten(missing)}"
        )
    return shards


def dequantized(
    file: Path, config: Mapping[str, Any], entries: Mapping[str, TensorEntry], *, prefix: str
) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Return the configuration of a packed MLX checkpoint without its quantization, and its entries unpacked.

    A packed matrix becomes one float32 entry that is unpacked when it is read. `prefix` is the beginning of the
    encoder's names in a checkpoint with a head.

    Raises:
        SourceError: scales or biases are missing, or shapes and `config.json` contradict each other.
    """
    try:
        quantization = QuantizationConfig.from_hf(config)
    except QuantizationError as error:
        raise SourceError(f"{file}: {error}") from error
    assert quantization is not None  # read_config has checked it
    paths = [key.removesuffix(".scales") for key in entries if key.endswith(".scales")]
    parts = {f"{path}.{leaf}" for path in paths for leaf in ("scales", "biases")}
    unpacked: dict[str, TensorEntry] = {}
    for key, entry in entries.items():
        path = key.removesuffix(".weight")
        if key in parts:
            continue
        if path != key and path in paths:
            layer = quantization.of(path.removeprefix(prefix)) or quantization.of(path)
            if layer is None:
                raise SourceError(f"{file}: {path} is packed, and config.json says not; {_AGAIN_WHOLE}")
            entry = _unpacked_entry(file, path, layer, entries)
        unpacked[key] = entry
    plain = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    if isinstance(block := plain.get("mlxbert"), dict):
        plain["mlxbert"] = {key: value for key, value in block.items() if key != "quantization"}
    return plain, unpacked


def _unpacked_entry(
    file: Path, path: str, layer: LayerQuantization, entries: Mapping[str, TensorEntry]
) -> TensorEntry:
    names = ["weight", "scales", "biases"] if layer.has_biases else ["weight", "scales"]
    missing = [name for name in names if f"{path}.{name}" not in entries]
    if missing:
        raise SourceError(f"{file}: {path} is packed, and has no {' and no '.join(missing)}; {_AGAIN_WHOLE}")
    parts = [entries[f"{path}.{name}"] for name in names]
    weight, scales = parts[0], parts[1]
    width = weight.shape[-1] * 32 // layer.bits if len(weight.shape) == 2 else 0
    groups = (weight.shape[0] if weight.shape else 0, width // layer.group_size)
    if weight.dtype != "U32" or not width or any(part.shape != groups for part in parts[1:]):
        raise SourceError(
            f"{file}: {path}.weight {weight.shape} and its scales {scales.shape} are not {layer.bits} bits in groups "
            f"of {layer.group_size}, as config.json says; {_AGAIN_WHOLE}"
        )
    return TensorEntry(f"{path}.weight", (weight.shape[0], width), "F32", partial(_unpack, parts, layer))


def _unpack(parts: list[TensorEntry], layer: LayerQuantization) -> np.ndarray:
    weight, *scales = [part.read() for part in parts]
    if layer.has_biases:  # MLX does not take NumPy's bfloat16
        scales = [array.astype(np.float32) for array in scales]
    scale, bias = (*scales, None)[:2]
    return np.concatenate([np.array(rows) for rows in unpack(weight, scale, bias, layer)])
