"""torch.save's zip container, the default since torch 1.6 (caffe2/serialize/inline_container.h).

`NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes of each storage, `NAME/byteorder` their endianness.
"""

from __future__ import annotations

import io

from converter.readers.pickle_objects import MAX_PICKLE_BYTES
from converter.readers.source_error import SourceError
from converter.readers.torch_file import TorchFile
from converter.readers.torch_pickle import load_torch_pickle
from converter.readers.zip_archive import AGAIN, ZipArchive


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
