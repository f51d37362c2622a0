"""Read and write files of arrays: safetensors, one tensor at a time, and the uncompressed .npz of this project.

Writing streams: the header is planned first, then one tensor at a time is read, written and released. Format:
https://huggingface.co/docs/safetensors/index#format (8-byte little-endian header length, JSON header padded with
spaces, then the tensors' bytes without gaps).
"""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.lib.format as npy

from mlxbert.errors import MLXBertError, first_ten
from mlxbert.files.output_file import FileRecord, HashedFile, WriteError
from mlxbert.files.reading import open_regular

MLX_METADATA = {"format": "mlx"}
MAX_SHARD_SIZE = 5_000_000_000

# safetensors name -> dtype on disk (always little-endian).
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

# Errors of zipfile and NumPy for an archive with a flipped byte; one flag bit even means encryption.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

Metadata = dict[str, str]


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written: its name, shape and dtype; `read` returns its numbers.

    `dtype` is safetensors' name (a key of ``NUMPY_DTYPES``); BF16 is read as ``ml_dtypes.bfloat16``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray[Any, Any]]

    @property
    def parameters(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Return the bytes on disk."""
        return self.parameters * NUMPY_DTYPES[self.dtype].itemsize


def in_file_order(tensors: Iterable[PlannedTensor]) -> list[PlannedTensor]:
    """Return the tensors, wide dtypes first, otherwise in their order: so each is aligned without padding.

    Raises :class:`WriteError` when a name occurs twice or a dtype has no safetensors name.
    """
    tensors = list(tensors)
    twice = [name for name, count in Counter(tensor.name for tensor in tensors).items() if count > 1]
    if twice:
        raise WriteError(f"{len(twice)} tensor name(s) planned twice\n{first_ten(twice)}")
    for tensor in tensors:
        if tensor.dtype not in NUMPY_DTYPES:
            raise WriteError(
                f"{tensor.name}: dtype {tensor.dtype} cannot be written; one of {', '.join(NUMPY_DTYPES)} can"
            )
    return sorted(tensors, key=lambda tensor: -NUMPY_DTYPES[tensor.dtype].itemsize)


def header(tensors: Sequence[PlannedTensor], metadata: Mapping[str, str]) -> bytes:
    """Return the file's header with its length prefix: a multiple of 8 bytes, so that the data begins aligned."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def safetensors_bytes(tensors: Iterable[PlannedTensor], metadata: Mapping[str, str] = MLX_METADATA) -> int:
    """Return the size of the file that :func:`write_safetensors` writes."""
    ordered = in_file_order(tensors)
    return len(header(ordered, metadata)) + sum(tensor.nbytes for tensor in ordered)


def write_safetensors(
    target: Path | io.BufferedWriter,
    tensors: Iterable[PlannedTensor],
    *,
    metadata: Mapping[str, str] = MLX_METADATA,
    needed: int | None = None,
    fix: str | None = None,
    on_tensor: Callable[[PlannedTensor], None] | None = None,
) -> FileRecord:
    """Write `tensors` to a new file, or to an open one; only one of them is in memory at a time.

    Args:
        target: where to write.
        tensors: what to write.
        metadata: the file's.
        needed: bytes of the whole output, for the message about a full disk; None: the size of this file.
        fix: how that message ends; None: as `write_errors` ends it.
        on_tensor: called after each tensor (progress).

    Raises:
        WriteError: the disk is full, or a tensor is read with another shape or dtype than planned.
    """
    ordered = in_file_order(tensors)
    head = header(ordered, metadata)
    size = safetensors_bytes(ordered, metadata)
    options = {} if fix is None else {"fix": fix}
    with HashedFile(target, needed=size if needed is None else needed, **options) as file:
        file.write(head)
        for tensor in ordered:
            file.write(_bytes_of(tensor))
            if on_tensor is not None:
                on_tensor(tensor)
        return file.record()


def plan_shards(
    tensors: Iterable[PlannedTensor], *, stem: str = "model", max_shard_size: int = MAX_SHARD_SIZE
) -> dict[str, list[PlannedTensor]]:
    """Return file name -> tensors: one ``model.safetensors``, or ``model-00001-of-0000n.safetensors`` and so on.

    A file holds at most `max_shard_size` bytes of tensors, or one tensor that is larger than that.
    """
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in in_file_order(tensors):
        if shards[-1] and filled + tensor.nbytes > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors": shard for number, shard in enumerate(shards, start=1)
    }


def shard_index(shards: Mapping[str, Sequence[PlannedTensor]], parameters: int | None = None) -> dict[str, object]:
    """Return the content of ``model.safetensors.index.json``: total bytes and parameters, and each tensor's file.

    `parameters` is the number of parameters; None: the number of elements.
    """
    tensors = [tensor for shard in shards.values() for tensor in shard]
    return {
        "metadata": {
            "total_size": sum(tensor.nbytes for tensor in tensors),
            "total_parameters": parameters or sum(tensor.parameters for tensor in tensors),
        },
        "weight_map": dict(sorted((tensor.name, name) for name, shard in shards.items() for tensor in shard)),
    }


def _bytes_of(tensor: PlannedTensor) -> memoryview:
    """Read the tensor and return its bytes, without a copy when it is C-contiguous."""
    array = tensor.read()
    dtype = NUMPY_DTYPES[tensor.dtype]
    if array.shape != tensor.shape or array.dtype != dtype:
        raise WriteError(f"{tensor.name}: read as {array.dtype} {array.shape}, planned as {dtype} {tensor.shape}")
    # NumPy cannot export bfloat16 through the buffer protocol; it can export the bytes.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def read_safetensors(
    file: Path, error: type[MLXBertError], *, fix: str = "fix: convert or download again"
) -> tuple[dict[str, mx.array], Metadata] | None:
    """Return a file's tensors, lazy and in the order of their bytes, and its metadata; None if it does not exist.

    Args:
        file: a safetensors file; its suffix does not matter.
        error: the class of the error.
        fix: how the message about a damaged file ends.

    Raises:
        error: not a regular file, unreadable, or damaged.
    """
    stream = open_regular(file, error)
    if stream is None:
        return None
    stream.close()
    try:
        # MLX cannot open a path that is not UTF-8 (a folder's name in another encoding), but it reads an open file.
        is_text = not any("\ud800" <= character <= "\udfff" for character in str(file))
        target = str(file) if is_text else file.open("rb")
        loaded, metadata = cast(Any, mx.load(target, format="safetensors", return_metadata=True))
        return {name: loaded[name] for name in _file_order(file)}, metadata
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as cause:
        raise error(f"{file} is damaged ({cause}); {fix}") from cause


def _file_order(file: Path) -> list[str]:
    """Return the names in a file that MLX has read, in the order of their bytes: MLX's dictionary has no order."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    return sorted(header, key=lambda name: header[name]["data_offsets"])


def read_array_file(file: Path, error: type[MLXBertError], *, fix: str) -> dict[str, np.ndarray] | None:
    """Return the arrays that `numpy.savez` wrote to a file, by name; None if the file does not exist.

    Not `numpy.load`, because the file may be hostile: this takes no more memory than twice the file, and refuses
    compressed entries, pickles and sizes that the file does not have.

    Raises:
        error: not a regular file, or damaged; the message ends in `fix`.
    """
    opened = open_regular(file, error)
    if opened is None:
        return None
    try:
        with opened, zipfile.ZipFile(opened) as archive:
            return {entry.filename.removesuffix(".npy"): _array(archive, entry) for entry in archive.infolist()}
    except _DAMAGE as cause:
        raise error(f"{file} is damaged ({cause}); {fix}") from cause


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed, and mlxbert compresses nothing")
    content = io.BytesIO(archive.read(entry))
    shape, fortran_order, dtype = _HEADERS[npy.read_magic(content)](content)
    data = bytearray(content.read())
    # Checked before an array exists: a header may claim any size and any type.
    if dtype.kind not in "iufU" or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{entry.filename} is no plain array of numbers or texts")
    return np.ndarray(shape, dtype, buffer=data, order="F" if fortran_order else "C")
