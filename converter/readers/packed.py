"""A quantized MLX checkpoint as a source: every packed matrix an entry that unpacks when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import TensorEntry
from mlxbert.quantization import LayerQuantization, QuantizationConfig, QuantizationError

_KEYS = ("quantization", "quantization_config")


def dequantized(
    where: Path, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """The configuration without its quantization, and the entries with float32 ones in the place of packed ones.

    Raises:
        SourceError: scales or biases are missing, or shapes and `config.json` contradict each other.
    """
    try:
        parsed = QuantizationConfig.from_hf(config)
    except QuantizationError as error:
        raise SourceError(f"{where}: {error}") from error
    assert parsed is not None  # read_config has seen it
    paths = [key.removesuffix(".scales") for key in entries if key.endswith(".scales")]
    unpacked: dict[str, TensorEntry] = {}
    taken = {f"{path}.{leaf}" for path in paths for leaf in ("scales", "biases")}
    for key, entry in entries.items():
        path = key.removesuffix(".weight")
        if key in taken:
            continue
        if path != key and path in paths:
            layer = parsed.of(path.removeprefix("bert.")) or parsed.of(path)
            if layer is None:
                raise SourceError(f"{where}: {path} is packed, and config.json says not; fix: get the files again")
            entry = _entry(where, path, layer, entries)
        unpacked[key] = entry
    return _without(config), unpacked


def _without(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(block := plain.get("mlxbert"), dict):
        plain["mlxbert"] = {key: value for key, value in block.items() if key != "quantization"}
    return plain


def _entry(where: Path, path: str, layer: LayerQuantization, entries: Mapping[str, TensorEntry]) -> TensorEntry:
    names = ["weight", "scales", "biases"] if layer.has_biases else ["weight", "scales"]
    missing = [name for name in names if f"{path}.{name}" not in entries]
    if missing:
        lacks = " and no ".join(missing)
        raise SourceError(f"{where}: {path} is packed, and has no {lacks}; fix: get the files again")
    parts = [entries[f"{path}.{name}"] for name in names]
    weight, scales = parts[0], parts[1]
    width = weight.shape[-1] * 32 // layer.bits if len(weight.shape) == 2 else 0
    groups = (weight.shape[0] if weight.shape else 0, width // layer.group_size)
    if weight.dtype != "U32" or not width or any(part.shape != groups for part in parts[1:]):
        raise SourceError(
            f"{where}: {path}.weight {weight.shape} and its scales {scales.shape} are not {layer.bits} bits in groups "
            f"of {layer.group_size}, as config.json says; fix: get the files again"
        )
    return TensorEntry(f"{path}.weight", (weight.shape[0], width), "F32", partial(_unpack, parts, layer))


def _unpack(parts: list[TensorEntry], layer: LayerQuantization) -> np.ndarray:
    from mlxbert.quantization.packed import unpack  # imports MLX, which a source that is not packed does not need

    weight, *scales = [part.read() for part in parts]
    if layer.has_biases:  # MLX does not take NumPy's bfloat16
        scales = [array.astype(np.float32) for array in scales]
    scale, bias = (*scales, None)[:2]
    return np.concatenate([np.array(rows) for rows in unpack(weight, scale, bias, layer)])
