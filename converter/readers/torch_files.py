"""Reads the files of torch.save: its zip container, its format before torch 1.6, and the state dict in them.

Zip container (caffe2/serialize/inline_container.h): `NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes of each
storage, `NAME/byteorder` their endianness. Old format (torch/serialization.py, `_legacy_save`): five pickles in a row
(magic number, protocol version, system info, the object, the storage keys), then for each key its number of elements
as eight bytes and its raw elements.

The state dict may be bare, wrapped, or in a training framework's checkpoint.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from converter.readers.pickle_machine import MAX_PICKLE_BYTES, MalformedPickle, PickleMachine, Placeholder
from converter.readers.safetensors import StridedTensor, TensorEntry, Weights, tensor_entry
from converter.readers.source_files import AGAIN, ByteRange, FileBytes, SourceError, file_size, open_file
from converter.readers.torch_pickle import OTHER_ITEM_SIZES, StorageRef, TensorRef, UnreadableTensor, load_torch_pickle
from converter.readers.zip_archive import ZipArchive
from mlxbert.errors import first_ten, printable
from mlxbert.files.reading import reading_failed
from mlxbert.files.safetensors import NUMPY_DTYPES

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001
# Lightning and most scripts; the PyTorch tutorial; fairseq and many scripts; DeepSpeed
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_MAX_DEPTH = 8
_LIGHTNING_KEYS = ("pytorch-lightning_version", "hyper_parameters")
_SAVE = "fix: torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class TorchFile:
    """A parsed torch.save file.

    Attributes:
        path: the file.
        top: the object that was saved.
        data: bytes of each storage, by its key.
    """

    path: Path
    top: Any
    data: dict[str, ByteRange]

    def entry(self, key: str, ref: TensorRef) -> TensorEntry:
        """Return the entry of a tensor; raise SourceError if it claims bytes that are not there."""
        data = self.data.get(ref.storage.key)
        if data is None:
            raise SourceError(f"{self.path}: tensor {printable(key)} has no data in the file; {AGAIN}")
        offset = ref.offset
        if ref.storage.offset and type(offset) is int:
            if ref.dtype != ref.storage.dtype:
                raise SourceError(
                    f"{self.path}: tensor {printable(key)} reads a storage view as another dtype; "
                    "fix: torch.load and torch.save it with a current torch"
                )
            offset += ref.storage.offset
        return tensor_entry(self.path, key, StridedTensor(data, ref.dtype, ref.shape, ref.strides, offset))


def is_torch_zip(archive: ZipArchive) -> bool:
    """Return whether the archive holds a torch pickle."""
    return bool(_pickles(archive))


def _pickles(archive: ZipArchive) -> list[str]:
    return [
        name for name in archive.names if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)
    ]


def read_torch_zip(archive: ZipArchive) -> TorchFile:
    """Parse the pickle and find the storages that it mentions; no storage is read."""
    path, pickles = archive.path, _pickles(archive)
    if len(pickles) != 1:
        raise SourceError(f"{path}: holds {len(pickles)} pickles (data.pkl) where torch.save writes one; {AGAIN}")
    root = pickles[0].removesuffix("data.pkl")
    if any(name == f"{root}constants.pkl" or name.startswith(f"{root}code/") for name in archive.names):
        raise SourceError(
            f"{path}: is a TorchScript program (torch.jit.save), not a state dict; "
            "fix: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if f"{root}byteorder" in archive.names:
        member = archive.member(f"{root}byteorder")
        if member.read(0, min(member.size, 16)) != b"little":
            raise SourceError(
                f"{path}: was saved on a big-endian machine; "
                "fix: load it in torch on a little-endian one and torch.save it again"
            )
    pickle = archive.member(pickles[0])
    if pickle.size > MAX_PICKLE_BYTES:
        raise SourceError(f"{path}: its pickle of {pickle.size} bytes is too large for a checkpoint; {AGAIN}")
    top, storages = load_torch_pickle(path, io.BytesIO(pickle.read(0, pickle.size)))
    # The tensor that needs a missing storage reports it: those of an optimizer may be gone.
    names = set(archive.names)
    data = {key: archive.member(f"{root}data/{key}") for key in storages if f"{root}data/{key}" in names}
    return TorchFile(path, top, dict(data))


def read_torch_legacy(path: Path) -> TorchFile:
    """Parse the pickles of the old format and find each storage; no storage is read."""
    size = file_size(path)
    try:
        with io.BufferedReader(open_file(path)) as file:
            _check_preamble(path, file)
            top, storages = load_torch_pickle(path, file)
            keys = _plain_pickle(path, file, "list of storages")
            return TorchFile(path, top, _storage_bytes(path, file, size, keys, storages))
    except OSError as error:
        raise SourceError(reading_failed(path, error)) from error


def _check_preamble(path: Path, file: BinaryIO) -> None:
    # The first pickle is read by the rules for torch pickles, so that an attack in a plain pickle is reported as one.
    if load_torch_pickle(path, file)[0] != _MAGIC_NUMBER:
        raise SourceError(f"{path}: is a plain pickle, not a file of torch.save (nothing was run); {_SAVE}")
    if _plain_pickle(path, file, "protocol version") != _PROTOCOL_VERSION:
        raise SourceError(f"{path}: its legacy torch format is damaged (protocol version); {AGAIN}")
    info = _plain_pickle(path, file, "system info")
    if not isinstance(info, dict) or info.get("little_endian") is not True:
        raise SourceError(
            f"{path}: was saved on a big-endian machine, or its header is damaged; "
            "fix: load it in torch on a little-endian machine and torch.save it again"
        )


def _plain_pickle(path: Path, file: BinaryIO, what: str) -> Any:
    """Return the content of a pickle of plain data."""
    try:
        machine = PickleMachine(lambda name: None, lambda callee, _: Placeholder(str(callee)), lambda value: None)
        return machine.run(file)
    except MalformedPickle as error:
        raise SourceError(f"{path}: its {what} is damaged or cut off ({printable(str(error))}); {AGAIN}") from error


def _storage_bytes(
    path: Path, file: BinaryIO, size: int, keys: Any, storages: dict[str, StorageRef]
) -> dict[str, ByteRange]:
    """Return where the bytes of each storage lie; the file stands behind the list of keys."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise SourceError(f"{path}: its list of storages is damaged; {AGAIN}")
    data: dict[str, ByteRange] = {}
    at = file.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in data:
            raise SourceError(f"{path}: its list of storages does not fit its tensors; {AGAIN}")
        dtype = NUMPY_DTYPES.get(storage.dtype)
        item_size = OTHER_ITEM_SIZES.get(storage.dtype) if dtype is None else dtype.itemsize
        if item_size is None:
            raise SourceError(
                f"{path}: has a {printable(storage.dtype)}, which is not read; fix: cast it to float32 and save "
                "it again"
            )
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        nbytes = count * item_size
        if at + 8 + nbytes > size:
            raise SourceError(f"{path}: is truncated: it ends inside its tensors' data; {AGAIN}")
        if count != storage.numel:
            raise SourceError(f"{path}: a storage has {count} elements, not the {storage.numel} claimed; {AGAIN}")
        data[key] = FileBytes(path, at + 8, nbytes)
        at += 8 + nbytes
    return data


def find_state_dict(file: TorchFile) -> Weights:
    """Return the dictionary of tensors, out of its wrappers.

    At each level, follow the one wrapper key whose value holds tensors. Leave out values that are no tensors, with a
    note.

    Raises:
        SourceError: the file holds a whole pickled model, no state dict, several state dicts, or a tensor of a kind
            that is not read.
    """
    notes: list[str] = []
    level = _mapping(file.top)
    lightning = level is not None and any(key in level for key in _LIGHTNING_KEYS)
    for _ in range(_MAX_DEPTH):
        if level is None:
            raise _no_state_dict(file, file.top)
        wrapped = [key for key in WRAPPERS if (inner := _mapping(level.get(key))) and _holds_tensors(inner)]
        if not wrapped:
            break
        if len(wrapped) > 1:
            raise SourceError(
                f"{file.path}: has several state dicts ({', '.join(wrapped)}); "
                f"fix: torch.save(torch.load(FILE)[{wrapped[0]!r}], NEW_FILE) with the one you mean"
            )
        beside = [_label(key) for key, value in level.items() if isinstance(value, TensorRef)]
        if beside:
            notes.append(f"tensors beside {wrapped[0]!r} ignored: {_listed(beside)}")
        level = _mapping(level[wrapped[0]])
    else:
        raise SourceError(f"{file.path}: wraps its state dict more than {_MAX_DEPTH} deep; {_SAVE}")
    assert level is not None
    if not any(isinstance(value, TensorRef | UnreadableTensor) for value in level.values()):
        raise _no_state_dict(file, file.top)
    return _collect(file, level, notes, lightning)


def _collect(file: TorchFile, level: Mapping[Any, Any], notes: list[str], lightning: bool) -> Weights:
    unreadable = [f"{_label(k)}: {printable(v.kind)}" for k, v in level.items() if isinstance(v, UnreadableTensor)]
    if unreadable:
        count = "1 tensor" if len(unreadable) == 1 else f"{len(unreadable)} tensors"
        raise SourceError(
            f"{file.path}: {count} of a kind that is not read (quantized, sparse or a subclass); "
            f"fix: save a plain dense state dict (dequantized)\n{first_ten(unreadable)}"
        )
    entries, other = {}, []
    for key, value in level.items():
        if isinstance(key, str) and isinstance(value, TensorRef):
            entries[key] = file.entry(key, value)
        else:
            other.append(_label(key))
    if other:
        notes.append(f"no tensors, ignored: {_listed(other)}")
    if not entries:
        raise _no_state_dict(file, level)
    return Weights("pytorch", entries, (file.path,), tuple(notes), lightning)


def _mapping(value: Any) -> dict[Any, Any] | None:
    """Return a dictionary, or the items of an unknown dictionary class; None for anything else."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, Placeholder) and value.items else None


def _holds_tensors(value: dict[Any, Any]) -> bool:
    """Return whether tensors lie in this dictionary or below its wrapper keys; look at each dictionary once."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        level = waiting.pop()
        if id(level) in seen:
            continue
        seen.add(id(level))
        if any(isinstance(item, TensorRef | UnreadableTensor) for item in level.values()):
            return True
        waiting.extend(inner for key in WRAPPERS if (inner := _mapping(level.get(key))) is not None)
    return False


def _label(key: Any) -> str:
    return printable(key) if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _no_state_dict(file: TorchFile, top: Any) -> SourceError:
    """Return the error that says what the file holds instead of a state dict."""
    if isinstance(top, Placeholder):
        return SourceError(
            f"{file.path}: is a whole pickled model ({printable(top.name)}), not a state dict: loading it would run "
            f"code from the file, so nothing was loaded; {_SAVE} where the model's class is at hand"
        )
    if isinstance(top, TensorRef | UnreadableTensor):
        return SourceError(f"{file.path}: holds a single tensor, not a state dict; {_SAVE}")
    if not isinstance(top, dict):
        return SourceError(f"{file.path}: holds a {type(top).__name__}, not a state dict; {_SAVE}")
    if not top:
        return SourceError(f"{file.path}: holds an empty state dict; {_SAVE} after the model is built")
    dicts = [key for key, v in top.items() if isinstance(key, str) and isinstance(v, dict) and _holds_tensors(v)]
    if dicts:
        return SourceError(
            f"{file.path}: has no state dict under {', '.join(WRAPPERS)}, but tensors under {_listed(dicts)}; "
            f"fix: torch.save(torch.load(FILE)[{printable(dicts[0])!r}], NEW_FILE)"
        )
    for key, value in top.items():
        state = value.state if isinstance(value, Placeholder) else None
        if isinstance(state, dict) and ("_parameters" in state or "_modules" in state):
            return SourceError(
                f"{file.path}: has a whole pickled model ({printable(value.name)}) under {_label(key)}, no state "
                f"dict: loading it would run code from the file, so nothing was loaded; {_SAVE}"
            )
    return SourceError(f"{file.path}: holds no tensors (it has {_listed([_label(k) for k in top])}); {_SAVE}")


def _listed(names: list[str]) -> str:
    more = f" … and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(printable(name) for name in names[:10]) + more
