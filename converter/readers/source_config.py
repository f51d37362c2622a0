"""A source's config.json, and what in a source says that it is quantized already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.mappings import supported
from converter.readers.json_file import check_file, read_json_object
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import TensorEntry
from mlxbert.errors import printable

# Transformers' name, then those of the architectures' own releases: bert_config.json
CONFIG_FILES = ("config.json", *(f"{model_type}_config.json" for model_type in supported()))
_ORIGINAL = "fix: give the original, unquantized checkpoint as SRC"
_UNPACK = f"{_ORIGINAL}, or --dequantize"


def read_config(
    directory: Path, config: Path | None, *, root: Path, lightning: bool = False, dequantize: bool = False
) -> tuple[dict[str, Any], Path]:
    """The parsed configuration, and the file: `config`, or one of CONFIG_FILES in the directory.

    Raises:
        SourceError: it is missing, a link out of `root`, invalid, or says that the weights are quantized (with
            `dequantize`: that they are not).
    """
    beside = (directory / name for name in CONFIG_FILES)
    path = config or next(filter(os.path.lexists, beside), None)
    if path is None:
        aside = (
            " (the Lightning checkpoint's hyper_parameters belong to its training script and are no BERT config)"
            if lightning
            else ""
        )
        raise SourceError(
            f"{directory}: no config.json beside the weights{aside}; "
            "fix: put the model's config.json there, or pass --config FILE"
        )
    if config is None:
        check_file(path, root)
    parsed = read_json_object(path)
    mlx, other = parsed.get("quantization"), parsed.get("quantization_config")
    if dequantize:
        if not isinstance(mlx, dict):
            raise SourceError(f'{path}: has no "quantization": nothing to unpack; fix: leave --dequantize out')
        return parsed, path
    if mlx:
        bits = mlx.get("bits") if isinstance(mlx, dict) else None
        to = f" to {bits} bits" if type(bits) is int else ""
        raise SourceError(f'{path}: says "quantization": this is an MLX checkpoint quantized{to} already; {_UNPACK}')
    if other:
        method = other.get("quant_method") if isinstance(other, dict) else None
        by = f" by {printable(method)}" if isinstance(method, str) else ""
        raise SourceError(f'{path}: says "quantization_config": its weights are quantized{by} already; {_ORIGINAL}')
    return parsed, path


def refuse_quantized(where: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Raise SourceError for MLX's packed weights: `x.weight` of uint32 beside `x.scales`."""
    for key, entry in entries.items():
        stem = key.removesuffix(".weight")
        if entry.dtype == "U32" and stem != key and f"{stem}.scales" in entries:
            raise SourceError(
                f"{where}: {printable(key)} is packed uint32 beside {printable(stem)}.scales: this is an MLX "
                f"checkpoint quantized already; {_UNPACK}"
            )
