"""What both of torch.save's containers give: one object, and where the bytes of its storages lie.

torch.save's zip container, the default since torch 1.6 (caffe2/serialize/inline_container.h).

`NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes of each storage, `NAME/byteorder` their endianness.

torch.save's format before 1.6 (torch/serialization.py, `_legacy_save`).

Five pickles in a row (magic number, protocol version, system info, the object, the storage keys), then for
each key its element count as eight bytes and its raw elements.

Finds the state dict in what torch.save wrote: bare, wrapped, or in a training framework's checkpoint.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from converter.readers.pickle_machine import MAX_PICKLE_BYTES, MalformedPickle, PickleMachine, Placeholder
from converter.readers.safetensors import DTYPES, StridedTensor, TensorEntry, tensor_entry
from converter.readers.source_files import ByteRange, FileBytes, SourceError, file_size, open_file
from converter.readers.torch_pickle import OTHER_ITEM_SIZES, StorageRef, TensorRef, UnreadableTensor, load_torch_pickle
from converter.readers.zip_archive import AGAIN, ZipArchive
from mlxbert.errors import first_ten, printable
from mlxbert.files.reading import reading_failed


@dataclass(frozen=True)
class TorchFile:
    """A parsed torch.save file; `data` by storage key."""

    path: Path
    top: Any
    data: dict[str, ByteRange]

    def entry(self, key: str, ref: TensorRef) -> TensorEntry:
        """A tensor of this file, as `key`; SourceError when it claims bytes that are not there."""
        data = self.data.get(ref.storage.key)
        if data is None:
            raise SourceError(f"{self.path}: tensor {printable(key)} has no data in the file; fix: get the file again")
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
    """Whether the archive holds a torch pickle."""
    return any(_is_pickle(name) for name in archive.names)


def read_torch_zip(archive: ZipArchive) -> TorchFile:
    """Parse the pickle and find each storage it mentions; nothing else is read."""
    path = archive.path
    pickles = [name for name in archive.names if _is_pickle(name)]
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
    # a storage that is missing is said of the tensor that needs it: an optimizer's may be gone
    names = set(archive.names)
    data = {key: archive.member(f"{root}data/{key}") for key in storages if f"{root}data/{key}" in names}
    return TorchFile(path, top, dict(data))


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001


def read_torch_legacy(path: Path) -> TorchFile:
    """Parse the pickles and find each storage; no storage is read."""
    size = file_size(path)
    try:
        with io.BufferedReader(open_file(path)) as file:
            _check_preamble(path, file)
            top, storages = load_torch_pickle(path, file)
            keys = _plain(path, file, "list of storages")
            return TorchFile(path, top, _locate(path, file, size, keys, storages))
    except OSError as error:
        raise SourceError(reading_failed(path, error)) from error


def _check_preamble(path: Path, file: BinaryIO) -> None:
    if _magic(path, file) != MAGIC_NUMBER:
        raise SourceError(
            f"{path}: is a plain pickle, not a file of torch.save (nothing was run); "
            "fix: torch.save(model.state_dict(), FILE)"
        )
    version = _plain(path, file, "protocol version")
    if version != PROTOCOL_VERSION:
        raise SourceError(f"{path}: its legacy torch format is damaged (protocol version); {AGAIN}")
    info = _plain(path, file, "system info")
    if not isinstance(info, dict) or info.get("little_endian") is not True:
        raise SourceError(
            f"{path}: was saved on a big-endian machine, or its header is damaged; "
            "fix: load it in torch on a little-endian machine and torch.save it again"
        )


def _magic(path: Path, file: BinaryIO) -> Any:
    """The first pickle; through the torch rules, so that an attack in a plain pickle is named as one."""
    return load_torch_pickle(path, file)[0]


def _plain(path: Path, file: BinaryIO, what: str) -> Any:
    """A pickle of plain data."""
    try:
        machine = PickleMachine(lambda found: None, lambda callee, _: Placeholder(str(callee)), lambda value: None)
        return machine.run(file)
    except MalformedPickle as error:
        raise SourceError(f"{path}: its {what} is damaged or cut off ({printable(str(error))}); {AGAIN}") from error


def _locate(path: Path, file: BinaryIO, size: int, keys: Any, storages: dict[str, StorageRef]) -> dict[str, ByteRange]:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise SourceError(f"{path}: its list of storages is damaged; {AGAIN}")
    data: dict[str, ByteRange] = {}
    at = file.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in data:
            raise SourceError(f"{path}: its list of storages does not fit its tensors; {AGAIN}")
        item_size = DTYPES[storage.dtype].itemsize if storage.dtype in DTYPES else OTHER_ITEM_SIZES.get(storage.dtype)
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


# Lightning and most scripts; the PyTorch tutorial; fairseq and many scripts; DeepSpeed
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
MAX_DEPTH = 8
LIGHTNING_KEYS = ("pytorch-lightning_version", "hyper_parameters")


@dataclass(frozen=True)
class StateDict:
    """A checkpoint's own tensors, under the names it gives them."""

    entries: dict[str, TensorEntry]
    notes: tuple[str, ...] = ()
    lightning: bool = False


def find_state_dict(file: TorchFile) -> StateDict:
    """Unwrap to the dictionary of tensors.

    At each level the one wrapper key whose value holds tensors is followed. Values that are no tensors are
    left out with a note. Raises SourceError: a whole pickled model, nothing to be found, several state dicts,
    or a tensor of a kind that is not read.
    """
    top, within, notes = file.top, "", []
    level = _mapping(top)
    lightning = level is not None and any(key in level for key in LIGHTNING_KEYS)
    for _ in range(MAX_DEPTH):
        if level is None:
            raise _no_state_dict(file, top)
        wrapped = [key for key in WRAPPERS if (inner := _mapping(level.get(key))) and _holds_tensors(inner)]
        if not wrapped:
            break
        if len(wrapped) > 1:
            raise SourceError(
                f"{file.path}: has several state dicts ({', '.join(wrapped)}); "
                f"fix: torch.save(torch.load(FILE)[{wrapped[0]!r}], NEW_FILE) with the one you mean"
            )
        stray = [_label(key) for key, value in level.items() if isinstance(value, TensorRef)]
        if stray:
            notes.append(f"tensors beside {wrapped[0]!r} ignored: {_listed(stray)}")
        within = wrapped[0]
        level = _mapping(level[within])
    else:
        raise SourceError(
            f"{file.path}: wraps its state dict more than {MAX_DEPTH} deep; fix: torch.save(model.state_dict(), FILE)"
        )
    assert level is not None
    if not any(isinstance(value, TensorRef | UnreadableTensor) for value in level.values()):
        raise _no_state_dict(file, top)
    return _collect(file, level, notes, lightning)


def _collect(file: TorchFile, level: Mapping[Any, Any], notes: list[str], lightning: bool) -> StateDict:
    unreadable = [f"{_label(k)}: {printable(v.kind)}" for k, v in level.items() if isinstance(v, UnreadableTensor)]
    if unreadable:
        raise SourceError(
            f"{file.path}: {_count(unreadable)} of a kind that is not read (quantized, sparse or a subclass); "
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
    return StateDict(entries, tuple(notes), lightning)


def _mapping(value: Any) -> dict[Any, Any] | None:
    """A dictionary, or the items of an unknown dictionary class."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, Placeholder) and value.items else None


def _holds_tensors(value: dict[Any, Any]) -> bool:
    """Whether tensors lie in this dictionary or below its wrapper keys; each dictionary is looked at once."""
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
    save = "fix: torch.save(model.state_dict(), FILE)"
    if isinstance(top, Placeholder):
        return SourceError(
            f"{file.path}: is a whole pickled model ({printable(top.name)}), not a state dict: loading it would run "
            f"code from the file, so nothing was loaded; {save} where the model's class is at hand"
        )
    if isinstance(top, TensorRef | UnreadableTensor):
        return SourceError(f"{file.path}: holds a single tensor, not a state dict; {save}")
    if not isinstance(top, dict):
        return SourceError(f"{file.path}: holds a {type(top).__name__}, not a state dict; {save}")
    if not top:
        return SourceError(f"{file.path}: holds an empty state dict; {save} after the model is built")
    dicts = [key for key, v in top.items() if isinstance(key, str) and isinstance(v, dict) and _holds_tensors(v)]
    if dicts:
        return SourceError(
            f"{file.path}: has no state dict under {', '.join(WRAPPERS)}, but tensors under {_listed(dicts)}; "
            f"fix: torch.save(torch.load(FILE)[{printable(dicts[0])!r}], NEW_FILE)"
        )
    whole = [(k, v) for k, v in top.items() if isinstance(v, Placeholder) and isinstance(v.state, dict)]
    for key, value in whole:
        if "_parameters" in value.state or "_modules" in value.state:
            return SourceError(
                f"{file.path}: has a whole pickled model ({printable(value.name)}) under {_label(key)}, no state "
                f"dict: loading it would run code from the file, so nothing was loaded; {save}"
            )
    return SourceError(f"{file.path}: holds no tensors (it has {_listed([_label(k) for k in top])}); {save}")


def _listed(names: list[str]) -> str:
    more = f" … and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(printable(name) for name in names[:10]) + more


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
