"""A checkpoint in several files, with the index that says which tensor lies in which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from converter.readers.json_file import read_json_object, require_inside
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import TensorEntry
from mlxbert.errors import first_ten, printable

AGAIN = "fix: get the shards and their index again, from one version of the model"


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
        raise SourceError(f"{index}: has no weight_map of tensor names to file names; {AGAIN}")
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        shards.setdefault(require_inside(index, name), []).append(key)
    missing = [printable(name) for name in shards if not (index.parent / name).exists()]
    if missing:
        raise SourceError(
            f"{index}: {len(missing)} of {len(shards)} shards missing; fix: download them too\n{first_ten(missing)}"
        )
    return shards


def read_shards(index: Path, read: Callable[[Path], dict[str, TensorEntry]]) -> dict[str, TensorEntry]:
    """Every tensor of a sharded checkpoint, shard by shard; index and shards must agree exactly."""
    entries: dict[str, TensorEntry] = {}
    for name, promised in shard_names(index).items():
        shard = index.parent / name
        there = read(shard)
        lacking = [printable(key) for key in promised if key not in there]
        if lacking:
            raise SourceError(f"{shard}: lacks tensors that {index.name} promises; {AGAIN}\n{first_ten(lacking)}")
        extra = [printable(key) for key in sorted(set(there) - set(promised))]
        if extra:
            raise SourceError(f"{shard}: has tensors that {index.name} does not list; {AGAIN}\n{first_ten(extra)}")
        entries.update(there)
    return entries
