"""torch.save's format before 1.6 (torch/serialization.py, `_legacy_save`).

Five pickles in a row (magic number, protocol version, system info, the object, the storage keys), then for
each key its element count as eight bytes and its raw elements.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from converter.readers.pickle_machine import PickleMachine
from converter.readers.pickle_objects import MalformedPickle, Placeholder
from converter.readers.regular_file import ByteRange, FileBytes, file_size, open_file
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import DTYPES
from converter.readers.torch_dtypes import OTHER_ITEM_SIZES
from converter.readers.torch_file import TorchFile
from converter.readers.torch_pickle import StorageRef, load_torch_pickle
from mlxbert.errors import printable
from mlxbert.files.reading import reading_failed

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
AGAIN = "fix: get the file again"


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
