"""A checkpoint in several files, with the index that says which tensor lies in which."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from converter.readers.json_file import own_name, read_json_object
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import TensorEntry
from mlxbert.errors import first_ten, printable
from mlxbert.files.reading import require_inside

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
            raise SourceError(f"{shard}: lacks tensors that {index.name} promises; {AGAIN}\n{first_ten(lacking)}")
        extra = [printable(key) for key in sorted(set(there) - set(promised))]
        if extra:
            raise SourceError(f"{shard}: has tensors that {index.name} does not list; {AGAIN}\n{first_ten(extra)}")
        entries.update(there)
    return entries
