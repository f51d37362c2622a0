"""Adapters as a small file beside the settings that belong to it; the base is named by its place and its digest.

adapter.safetensors   "<path of the layer>.lora_a" (rank, in), ".lora_b" (out, rank), ".magnitude" (out,), float32
adapter.json          {"format": "mlxbert-adapter", "version": 1, "settings": as `LoRA.to_dict`,
                       "base": {"path": "mlx_models/minilm", "sha256": "…"}}
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
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
from mlxbert.checkpoint import load_core, resolve, weight_files
from mlxbert.errors import first_ten, printable, shown
from mlxbert.files.reading import from_json, read_json, sha256_hex
from mlxbert.files.safetensors import PlannedTensor, read_safetensors
from mlxbert.model_arrays import DTYPE_CODES, named_parameters, read_array
from mlxbert.models.base import Encoder, module_at

ADAPTER_FILE, SETTINGS_FILE = "adapter.safetensors", "adapter.json"
_FORMAT, _VERSION = "mlxbert-adapter", 1
_FIX = "fix: save or download the adapter again"


@dataclass(frozen=True)
class Base:
    """The encoder below adapters: the directory that it came from (None: none), and `weights_sha256` of it."""

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


def weights_sha256(directory: Path) -> str:
    """Return the SHA-256, in hex, of a checkpoint's weights, config.json not included.

    Of one file it is that file's, as `sha256sum model.safetensors` prints it. Of several files it is the digest of
    those lines: `sha256sum model-*.safetensors | sha256sum`.

    Raises:
        CheckpointError: a file is missing or cannot be read.
    """
    files = weight_files(directory)
    stats = [file.stat() for file in files]
    digests = [
        _sha256(file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)
    ]
    if len(files) == 1:
        return digests[0]
    lines = (f"{digest}  {file.name}\n" for digest, file in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def _sha256(file: Path, *_state: int) -> str:
    """Return the digest of a file; the same file in the same state is read once."""
    digest = sha256_hex(file, AdapterError)
    if digest is None:
        raise AdapterError(f"{file} is gone; fix: convert or download the checkpoint again")
    return digest


def adapter_json(settings: LoRA, base: Path | None) -> dict[str, Any]:
    """Return the content of adapter.json for adapters on the encoder of the directory `base`.

    If that is a directory of adapters itself, they belong to its own base.
    """
    if base is None:
        found = Base(None, None)
    elif is_adapter_directory(base):
        found = read_adapter(base).base
    else:
        found = Base(str(base), weights_sha256(base))
    return {"format": _FORMAT, "version": _VERSION, "settings": settings.to_dict(), "base": vars(found)}


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
            (a, b), rows = (arrays[leaf].shape for leaf in LEAVES[:2]), arrays["lora_b"].shape[0]
            fits = len(a) == len(b) == 2 and a[0] == b[1] == rank
            fits = fits and ("magnitude" not in arrays or arrays["magnitude"].shape == (rows,))
            problems += [] if fits else [f"{path}: {a} and {b} are no adapter of rank {rank}"]
    if not layers or problems:
        listed = first_ten(problems or ["it has no adapter"])
        raise AdapterError(f"{file}: not the tensors that {SETTINGS_FILE} calls for; {_FIX}\n{listed}")
    return SavedAdapter(parsed.settings, layers, parsed.base)


def load_adapted(
    directory: Path,
    *,
    base: str | Path | None = None,
    dtype: mx.Dtype | None = None,
    dequantize: bool | None = None,
    lazy: bool = False,
) -> Encoder:
    """Return the encoder of a directory of adapters, in evaluation mode: its base with the adapters on it.

    Args:
        directory: with adapter.json and adapter.safetensors.
        base: the base's directory, or its id on the Hub; None: the recorded place.
        dtype: of the base's computation, as for `mlxbert.load`; likewise `dequantize` and `lazy`.

    Raises:
        AdapterError: the base is not there, or is another one (both digests are named), or the files are damaged.
    """
    saved = read_adapter(directory)
    place = _base_directory(directory, saved.base, base)
    core = load_core(place, dtype=dtype, dequantize=dequantize, lazy=lazy)
    add_saved(core, saved, place=str(directory))
    core.eval()
    return core


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
    mx.eval([layer.parameters() for layer in adapted(core).values()])
    for path, layer in adapted(core).items():
        finite = [mx.isfinite(layer[leaf]).all() for leaf in LEAVES if leaf in layer]
        if not all(bool(each.item()) for each in finite):
            raise AdapterError(f"{place}: the adapter of {path} has numbers that are not finite; {_FIX}")


def _base_directory(directory: Path, recorded: Base, given: str | Path | None) -> Path:
    """Return the directory of the base, after comparing its digest with the recorded one."""
    if given is not None:
        place = resolve(given)
    elif recorded.path is not None and "\0" not in recorded.path and Path(recorded.path).is_dir():
        place = Path(recorded.path)
    else:
        where = "of a model without a directory" if recorded.path is None else f"at {printable(recorded.path)}"
        raise AdapterError(
            f"{directory}: the base of this adapter was {where} (sha256 {shown(recorded.sha256)}), and is not there; "
            "fix: name it: --base DIRECTORY (Python: base=)"
        )
    if is_adapter_directory(place):
        raise AdapterError(f"{place} is an adapter itself, not the base of {directory}; fix: base= its own base")
    if recorded.sha256 is None:
        return place
    found = weights_sha256(place)
    if found != recorded.sha256:
        raise AdapterError(
            f"{directory}: the adapter belongs to a base whose weights have the sha256 {printable(recorded.sha256)}, "
            f"and those of {place} have {found}; fix: name its own base: --base DIRECTORY (Python: base=)"
        )
    return place
