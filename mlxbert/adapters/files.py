"""Adapters as a small file beside the settings that belong to it; the base is named by its place and its digest.

adapter.safetensors   "<path of the layer>.lora_a" (rank, in), ".lora_b" (out, rank), ".magnitude" (out,), float32
adapter.json          {"format": "mlxbert-adapter", "version": 1, "settings": as `LoRA.to_dict`,
                       "base": {"path": "mlx_models/minilm", "sha256": "…"}}
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxbert.adapters.linear import (
    BASE,
    LEAVES,
    adapted,
    is_adapter,
    linear_paths,
    put_adapters,
    refuse_packed,
    shape_of,
)
from mlxbert.adapters.settings import AdapterError, LoRA
from mlxbert.errors import first_ten, shown
from mlxbert.files.reading import from_json, read_json
from mlxbert.files.safetensors import PlannedTensor, read_safetensors
from mlxbert.model_arrays import DTYPE_CODES, named_parameters, read_array
from mlxbert.models.base import Encoder, module_at

ADAPTER_FILE, SETTINGS_FILE = "adapter.safetensors", "adapter.json"
_FORMAT, _VERSION = "mlxbert-adapter", 1
_FIX = "fix: save or download the adapter again"


@dataclass(frozen=True)
class Base:
    """The encoder below adapters: the directory that it came from (None: none), and the digest of its weights."""

    path: str | None
    sha256: str | None


@dataclass(frozen=True)
class _Content:
    """The fields of adapter.json."""

    settings: LoRA
    base: Base


@dataclass(frozen=True)
class SavedAdapter:
    """Adapters as they are in their files.

    Attributes:
        settings: of all adapters.
        layers: path of a linear layer -> its tensors by the names of `LEAVES`.
        base: the encoder that they belong to.
    """

    settings: LoRA
    layers: Mapping[str, Mapping[str, mx.array]]
    base: Base


def adapter_json(settings: LoRA, base: Base) -> dict[str, Any]:
    """Return the content of adapter.json for adapters on an encoder."""
    return {"format": _FORMAT, "version": _VERSION, "settings": settings.to_dict(), "base": vars(base)}


def adapter_tensors(core: Encoder) -> list[PlannedTensor]:
    """Return the tensors of adapter.safetensors."""
    arrays = {
        f"{path}.{leaf}": layer[leaf].astype(mx.float32)
        for path, layer in adapted(core).items()
        for leaf in LEAVES
        if leaf in layer
    }
    mx.eval(arrays)
    return [
        PlannedTensor(name, tuple(array.shape), "F32", lambda array=array: read_array(array))  # type: ignore[misc]
        for name, array in arrays.items()
    ]


def merged_tensors(core: Encoder) -> list[PlannedTensor]:
    """Return the encoder's tensors with its adapters merged into them; one is merged at a time, as it is written.

    Raises:
        AdapterError: the encoder is quantized.
    """
    refuse_packed(core)
    layers = adapted(core)
    planned = []
    for name, array in named_parameters(core).items():
        path, _, leaf = name.rpartition(".")
        layer = layers.get(path.removesuffix(f".{BASE}")) if path.endswith(f".{BASE}") else None
        if is_adapter(name) and path in layers:
            continue
        if layer is not None:
            name = f"{path.removesuffix(f'.{BASE}')}.{leaf}"
        if layer is not None and leaf == "weight":

            def read(layer: Any = layer, dtype: mx.Dtype = array.dtype) -> Any:
                return read_array(layer.merged_weight().astype(dtype))
        else:

            def read(array: mx.array = array) -> Any:  # type: ignore[misc]
                return read_array(array)

        planned.append(PlannedTensor(name, tuple(array.shape), DTYPE_CODES[array.dtype], read))
    return planned


def is_adapter_directory(directory: Path) -> bool:
    """Return whether a directory holds adapters whose base is elsewhere."""
    return (directory / SETTINGS_FILE).is_file()


def unmerged(directory: Path, config: Mapping[str, Any]) -> str:
    """Return why a directory of adapters is no whole model, with the commands that make one.

    Args:
        directory: it has adapters whose base is elsewhere.
        config: the content of its `config.json`.
    """
    block = config.get("mlxbert")
    if config.get("quantization") is not None:
        fix = f"use its base, which {directory / SETTINGS_FILE} names, with new adapters (--lora)"
    elif isinstance(block, Mapping) and "head" in block:
        lines = "from mlxbert.adapters import merge_adapters; from mlxbert.with_head import BertWithHead"
        lines += f"; model = BertWithHead.load({str(directory)!r}); merge_adapters(model.core); model.save('OUT')"
        fix = f"python -c {shlex.quote(lines)}, and take OUT"
    else:
        fix = "convert the adapter of PEFT that it was made from with --base, without --keep-adapter"
    return f"{directory} has adapters that are not merged into their base; fix: {fix}"


def read_adapter(directory: Path) -> SavedAdapter:
    """Return the adapters of a directory, without its base; arrays are read from the file when they are used.

    Raises:
        AdapterError: a file is missing or damaged, or names, shapes and settings do not belong together.
    """
    place = directory / SETTINGS_FILE
    content = read_json(place, AdapterError)
    if content is None:
        raise AdapterError(f"{directory} has no {SETTINGS_FILE}, so no adapter; {_FIX}")
    if content.get("format") != _FORMAT or content.get("version") != _VERSION:
        raise AdapterError(
            f"{place}: format {shown(content.get('format'))}, version {shown(content.get('version'))}; this mlxbert "
            f"reads {_FORMAT!r}, version {_VERSION}; fix: update mlxbert"
        )
    fields = {name: content.get(name) for name in ("settings", "base")}
    parsed = from_json(_Content, fields, place=str(place), fix=_FIX, error=AdapterError)
    file = directory / ADAPTER_FILE
    tensors, _ = read_safetensors(file, AdapterError, fix=_FIX) or ({}, {})
    layers: dict[str, dict[str, mx.array]] = {}
    problems = []
    leaves = LEAVES if parsed.settings.dora else LEAVES[:2]
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if not path or leaf not in leaves:
            problems.append(f"unexpected: {name}")
        elif tensor.dtype != mx.float32:
            problems.append(f"{name} has dtype {tensor.dtype}, not float32")
        else:
            layers.setdefault(path, {})[leaf] = tensor
    rank = parsed.settings.rank
    for path, arrays in layers.items():
        problems += [f"missing: {path}.{leaf}" for leaf in leaves if leaf not in arrays]
        if set(arrays) == set(leaves):
            a, b = (arrays[leaf].shape for leaf in LEAVES[:2])
            fits = len(a) == len(b) == 2 and a[0] == b[1] == rank
            fits = fits and ("magnitude" not in arrays or arrays["magnitude"].shape == b[:1])
            problems += [] if fits else [f"{path}: {a} and {b} are no adapter of rank {rank}"]
    if not layers or problems:
        listed = first_ten(problems or ["it has no adapter"])
        raise AdapterError(f"{file}: not the tensors that {SETTINGS_FILE} calls for; {_FIX}\n{listed}")
    return SavedAdapter(parsed.settings, layers, parsed.base)


def add_saved(core: Encoder, saved: SavedAdapter, *, place: str) -> None:
    """Put saved adapters on an encoder; `place` begins the message of an error.

    Raises:
        AdapterError: a layer does not exist, or has another shape.
    """
    known = set(linear_paths(core))
    problems = [f"{path} is no linear layer of this encoder" for path in saved.layers if path not in known]
    for path, arrays in saved.layers.items():
        if path in known:
            rows, width = shape_of(module_at(core, path))
            given = (arrays["lora_b"].shape[0], arrays["lora_a"].shape[1])
            problems += [] if given == (rows, width) else [f"{path} is {(rows, width)}, its adapter is for {given}"]
    if problems:
        raise AdapterError(f"{place}: the adapter does not fit its base; {_FIX}\n{first_ten(problems)}")
    put_adapters(core, saved.settings, list(saved.layers))
    for path, arrays in saved.layers.items():
        module_at(core, path).update(dict(arrays))
    core.eval()
    for path, layer in adapted(core).items():
        finite = [mx.isfinite(layer[leaf]).all() for leaf in LEAVES if leaf in layer]
        if not all(bool(each.item()) for each in finite):
            raise AdapterError(f"{place}: the adapter of {path} has numbers that are not finite; {_FIX}")
