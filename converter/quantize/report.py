"""The "quantization" object of `parity.json`: what was packed how, what it takes, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlx.utils import tree_flatten

from converter.quantize.precision import recipe_of
from converter.quantize.quality import Model, Quality, core_of, measure_quality, pooling_of

if TYPE_CHECKING:
    from mlxbert.quantization.packed import PackedWeights


@dataclass(frozen=True)
class LayerReport:
    """One packed matrix; `bytes` with scales and biases; `error` is |W − Ŵ| / |W|, Frobenius."""

    path: str
    mode: str
    bits: int
    group_size: int
    bytes: int
    error: float


@dataclass(frozen=True)
class Skipped:
    """A layer that keeps its numbers, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class QuantizationReport:
    """All that the terminal, `parity.json`, the HTML page and the card say of a quantization.

    Attributes:
        recipe: its name; where another tool wrote the files, their packing.
        calibrated: whether text chose the codes.
        bytes: of all weight files, headers and heads included.
        parameters: true count, of the encoder.
        bits_per_weight: of storage: the encoder's bytes · 8 / parameters.
        layers, skipped, quality: details; `quality` is empty where there is no tokenizer.
    """

    recipe: str
    calibrated: bool
    bytes: int
    parameters: int
    bits_per_weight: float
    layers: tuple[LayerReport, ...]
    skipped: tuple[Skipped, ...]
    quality: tuple[Quality, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QuantizationReport:
        """What `to_dict` gave.

        Raises:
            KeyError, TypeError: a field is missing, or one too many.
        """
        values = dict(data)
        for name, kind in (("layers", LayerReport), ("skipped", Skipped), ("quality", Quality)):
            values[name] = tuple(kind(**item) for item in values[name])
        return cls(**values)


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
    facts = (config.get("mlxbert") or {}).get("quantization") or {}
    layers = []
    for path, layer in packed.layers.items():
        name = f"{path}.weight"
        parts = [packed.tensors[f"{path}.{leaf}"] for leaf in ("weight", "scales", "biases") if leaf in _leaves(layer)]
        error = _relative(np.array(original[name]), np.array(numbers[name]))
        size = sum(part.nbytes for part in parts)
        layers.append(LayerReport(path, layer.mode, layer.bits, layer.group_size, size, error))
    encoder_bytes = sum(tensor.nbytes for tensor in packed.tensors.values())
    return QuantizationReport(
        recipe=recipe_of(config),
        calibrated=facts.get("calibration") is not None,
        bytes=weight_bytes(directory),
        parameters=packed.parameters,
        bits_per_weight=round(8 * encoder_bytes / packed.parameters, 3),
        layers=tuple(layers),
        skipped=tuple(Skipped(path, reason) for path, reason in packed.config.skipped.items()),
        quality=_quality(directory, exact, written),
    )


def weight_bytes(directory: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _quality(directory: Path, exact: Model, written: Model) -> tuple[Quality, ...]:
    from mlxbert.tokenization import Tokenizer, TokenizerError

    core = core_of(exact)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return ()
    try:
        tokenizer = Tokenizer.from_directory(directory, max_length=core.config.max_position_embeddings)
    except TokenizerError:  # what is wrong with it, the parity report's notes say
        return ()
    if tokenizer.vocab_size > core.config.vocab_size:
        return ()
    return measure_quality(exact, written, tokenizer, pooling_of(directory))


def _leaves(layer: Any) -> Sequence[str]:
    return ("weight", "scales", "biases") if layer.has_biases else ("weight", "scales")


def _relative(exact: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(exact))
    return float(np.linalg.norm(other - exact)) / length if length else 0.0
