"""Read a quantized directory's facts, compare its matrices with the source's, and measure what it costs on text."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlx.utils import tree_flatten

from converter.quantize.cost import ERROR_LIMITS, KEPT_LIMITS, Kept, LayerReport, Quality, QuantizationReport, Skipped
from converter.quantize.precision import recipe_of, row, text_limits
from converter.quantize.quality import Model, core_of, measure_on_random_ids, measure_quality, pooling_of
from mlxbert.model_tensors import named_parameters

if TYPE_CHECKING:
    from mlxbert.quantization.packed import PackedWeights

Tensors = Mapping[str, Any]


def describe_quantization(
    directory: Path, config: Mapping[str, Any], exact: Model, written: Model
) -> QuantizationReport:
    """Read a quantized directory's facts and measure its quality.

    Args:
        directory: with its weights, its tokenizer and its `modules.json`; `config.json` may be missing still.
        config: what that holds, or will hold.
        exact: the float32 model.
        written: the directory's, as it is loaded.
    """
    packed: PackedWeights = core_of(written).packed
    original: Any = dict(tree_flatten(core_of(exact).parameters()))
    numbers = dict(packed.dequantized())
    calibrated = ((config.get("mlxbert") or {}).get("quantization") or {}).get("calibration") is not None
    encoder_bytes = sum(tensor.nbytes for tensor in packed.tensors.values())
    return QuantizationReport(
        recipe=recipe_of(config),
        calibrated=calibrated,
        bytes=weight_bytes(directory),
        parameters=packed.parameters,
        bits_per_weight=round(8 * encoder_bytes / packed.parameters, 3),
        layers=_layers(packed, original, numbers),
        skipped=tuple(Skipped(path, reason) for path, reason in packed.config.skipped.items()),
        kept=_kept(packed, exact, written, numbers, calibrated=calibrated),
        quality=_quality(directory, exact, written),
        limits=text_limits(config, _mean_bits(packed), calibrated=calibrated),
    )


def weight_bytes(directory: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _layers(packed: PackedWeights, original: Tensors, numbers: Tensors) -> tuple[LayerReport, ...]:
    layers = []
    for path, layer in packed.layers.items():
        begin = time.perf_counter()
        error = _relative(np.array(original[f"{path}.weight"]), np.array(numbers[f"{path}.weight"]))
        leaves = ("weight", "scales", "biases") if layer.has_biases else ("weight", "scales")
        layers.append(
            LayerReport(
                path=path,
                mode=layer.mode,
                bits=layer.bits,
                group_size=layer.group_size,
                bytes=sum(packed.tensors[f"{path}.{leaf}"].nbytes for leaf in leaves),
                error=error,
                limit=ERROR_LIMITS[row(layer)],
                seconds=time.perf_counter() - begin,
            )
        )
    return tuple(layers)


def _mean_bits(packed: PackedWeights) -> float:
    """Of a packed weight, scales aside: every code has its layer's bits."""
    words = {path: packed.tensors[f"{path}.weight"].size for path in packed.layers}
    weights = sum(32 * words[path] / layer.bits for path, layer in packed.layers.items())
    return 32 * sum(words.values()) / weights if weights else 0.0


def _kept(packed: PackedWeights, exact: Model, written: Model, numbers: Tensors, *, calibrated: bool) -> Kept | None:
    """The tensor that is furthest from the source's of those that are not packed, the own head's included."""
    original: dict[str, Any] = dict(tree_flatten(core_of(exact).parameters()))
    pairs = {name: (array, numbers[name]) for name, array in original.items()}
    if core_of(exact) is not exact and core_of(written) is not written:
        ours = named_parameters(written.head)
        pairs |= {name: (array, ours[name]) for name, array in named_parameters(exact.head).items()}
    packed_names = {f"{path}.weight" for path in packed.layers}
    if calibrated:  # calibration corrects the biases of what it packs
        packed_names |= {f"{path}.bias" for path in packed.layers}
    errors = {
        name: _relative(np.array(a), np.array(b.astype(a.dtype)))
        for name, (a, b) in pairs.items()
        if name not in packed_names
    }
    if not errors:
        return None
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return Kept(worst, errors[worst], KEPT_LIMITS[packed.dtype])


def _quality(directory: Path, exact: Model, written: Model) -> tuple[Quality, ...]:
    from mlxbert.tokenization import Tokenizer, TokenizerError

    core, pooling = core_of(exact), pooling_of(directory)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return measure_on_random_ids(exact, written, pooling)
    try:
        tokenizer = Tokenizer.from_directory(directory, max_length=core.config.max_position_embeddings)
    except TokenizerError:  # what is wrong with it, the parity report's notes say
        return measure_on_random_ids(exact, written, pooling)
    if tokenizer.vocab_size > core.config.vocab_size:
        return measure_on_random_ids(exact, written, pooling)
    return measure_quality(exact, written, tokenizer, pooling)


def _relative(exact: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(exact))
    difference = float(np.linalg.norm(other - exact))
    return difference / length if length else difference
