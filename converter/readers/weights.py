"""Reads one weight file, or the shards of an index, whatever its format; names are still the file's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from converter.readers.npz import read_npz
from converter.readers.safetensors import read_safetensors
from converter.readers.shards import read_shards
from converter.readers.sniff import identify
from converter.readers.source_error import SourceError
from converter.readers.state_dict import find_state_dict
from converter.readers.tensor_entry import TensorEntry
from converter.readers.torch_file import TorchFile
from converter.readers.torch_legacy import read_torch_legacy
from converter.readers.torch_zip import is_torch_zip, read_torch_zip
from converter.readers.zip_archive import ZipArchive


@dataclass(frozen=True)
class Weights:
    """The tensors of a file or of all shards."""

    format: str  # "safetensors" | "pytorch" | "npz"
    entries: dict[str, TensorEntry]
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    lightning: bool = False  # a PyTorch Lightning checkpoint, which has hyper-parameters but no config


def read_weights(path: Path) -> Weights:
    """Parse a weight file by its contents, not its name; SourceError if it cannot be read or is empty."""
    kind = identify(path)
    if kind == "safetensors":
        weights = Weights("safetensors", read_safetensors(path), (path,))
    elif kind == "pickle":
        weights = _torch(read_torch_legacy(path))
    else:
        archive = ZipArchive(path)
        if is_torch_zip(archive):
            weights = _torch(read_torch_zip(archive))
        elif any(name.endswith(".npy") for name in archive.names):
            weights = Weights("npz", read_npz(archive), (path,))
        else:
            raise SourceError(
                f"{path}: is a zip without a torch pickle or .npy arrays; fix: unpack it and give the directory"
            )
    if not weights.entries:
        raise SourceError(f"{path}: holds no tensors; fix: save the model's state_dict() into it")
    return weights


def read_sharded(index: Path, root: Path) -> Weights:
    """Parse every shard that an index names; none may be a link out of `root`."""
    parts: list[Weights] = []

    def read(shard: Path) -> dict[str, TensorEntry]:
        parts.append(read_weights(shard))
        return parts[-1].entries

    entries = read_shards(index, root, read)
    formats = {part.format for part in parts}
    if len(formats) > 1:
        raise SourceError(f"{index}: names shards of different formats; fix: get the shards and their index again")
    files = tuple(file for part in parts for file in part.files)
    return Weights(formats.pop(), entries, files, tuple(note for part in parts for note in part.notes))


def _torch(file: TorchFile) -> Weights:
    found = find_state_dict(file)
    return Weights("pytorch", found.entries, (file.path,), found.notes, found.lightning)
