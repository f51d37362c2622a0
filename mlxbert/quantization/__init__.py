"""`QuantizationConfig`: which layers of a checkpoint are quantized and how, as `config.json` says it.

The form on disk is mlx-lm's (`mlx_lm/utils.py`, `load_model`), so that its relatives load the same directory:
`"quantization": {"group_size": 64, "bits": 4, "mode": "affine", "encoder.layer.0.output.dense": {"group_size": 64,
"bits": 6, "mode": "affine"}, "pooler.dense": false}`. A layer has its entry twice: under its path here and under that
in Swift (`mlxbert.quantization.swift_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mlxbert.errors import MLXBertError, shown
from mlxbert.quantization.swift_names import from_swift_path, swift_path

AFFINE = "affine"

# What MLX computes: mode -> (bits, group sizes); https://ml-explore.github.io/mlx, mlx.core.quantize.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    AFFINE: ((2, 3, 4, 5, 6, 8), (32, 64, 128)),
    "mxfp4": ((4,), (32,)),
    "mxfp8": ((8,), (32,)),
    "nvfp4": ((4,), (16,)),
}

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class QuantizationError(MLXBertError):
    """A quantization that MLX does not compute, or that does not fit the tensors."""


@dataclass(frozen=True)
class LayerQuantization:
    """How one layer's weight is packed.

    Attributes:
        bits: of one weight.
        group_size: weights of a row that share a scale (and in affine mode a bias).
        mode: "affine", "mxfp4", "mxfp8" or "nvfp4".
    """

    bits: int
    group_size: int
    mode: str = AFFINE

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise QuantizationError(f"quantization mode {self.mode!r} is unknown; known: {', '.join(MODES)}")
        bits, groups = MODES[self.mode]
        for name, value, known in (("bits", self.bits, bits), ("group_size", self.group_size, groups)):
            if type(value) is not int or value not in known:
                allowed = ", ".join(map(str, known))
                raise QuantizationError(f"quantization mode {self.mode}: {name} {value!r} is none of {allowed}")

    @property
    def has_biases(self) -> bool:
        """Whether a group has a bias beside its scale."""
        return self.mode == AFFINE

    def fits(self, width: int) -> bool:
        """Whether rows of this width divide into whole groups, and those into whole 32-bit words."""
        return width % self.group_size == 0

    def bytes_of(self, rows: int, width: int, scale_bytes: int = 2) -> int:
        """Bytes of a packed (rows, width) weight with its scales and biases."""
        groups = rows * width // self.group_size
        overhead = 2 * scale_bytes if self.has_biases else 1
        return rows * width * self.bits // 8 + groups * overhead

    def to_mlx(self) -> dict[str, Any]:
        """mlx-lm's form."""
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}

    @classmethod
    def from_mlx(cls, parsed: Mapping[str, Any], where: str) -> LayerQuantization:
        """Read mlx-lm's form; `mode` is missing in older files.

        Raises:
            QuantizationError: a number is missing, or MLX does not compute it.
        """
        missing = [name for name in ("group_size", "bits") if name not in parsed]
        if missing:
            raise QuantizationError(f"config.json: {where} has no {' and no '.join(missing)}; fix: convert again")
        try:
            return cls(parsed["bits"], parsed["group_size"], parsed.get("mode", AFFINE))
        except (QuantizationError, TypeError) as error:
            raise QuantizationError(f"config.json: {where}: {error}") from error


@dataclass(frozen=True)
class QuantizationConfig:
    """How a checkpoint is quantized.

    Attributes:
        default: for every layer that has no entry of its own.
        overrides: path of a layer ("encoder.layer.0.output.dense") to how it is packed.
        skipped: path of a layer that keeps its numbers, to the reason.
    """

    default: LayerQuantization
    overrides: Mapping[str, LayerQuantization] = field(default_factory=lambda: _EMPTY)
    skipped: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    def of(self, path: str) -> LayerQuantization | None:
        """How the layer at `path` is packed; None: it keeps its numbers."""
        return None if path in self.skipped else self.overrides.get(path, self.default)

    def to_mlx(self) -> dict[str, Any]:
        """Return `config.json`'s "quantization" (and "quantization_config"), each layer under both its paths."""
        layers: dict[str, Any] = {path: layer.to_mlx() for path, layer in self.overrides.items()}
        layers |= dict.fromkeys(self.skipped, False)
        return {**self.default.to_mlx(), **layers, **{swift_path(path): value for path, value in layers.items()}}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> QuantizationConfig | None:
        """What a parsed `config.json` says; None: not quantized. The reasons are in its "mlxbert" block.

        Raises:
            QuantizationError: it says something that MLX does not compute.
        """
        parsed = config.get("quantization")
        if parsed is None:
            return None
        if not isinstance(parsed, dict):
            raise QuantizationError(
                f"config.json: quantization must be an object, not {shown(parsed)}; fix: convert again"
            )
        default = LayerQuantization.from_mlx(parsed, "quantization")
        overrides, skipped = {}, {}
        reasons = _reasons(config)
        for path, value in parsed.items():
            canonical = from_swift_path(path)
            if canonical != path and canonical in parsed:  # said twice, for two kinds of readers
                if value != parsed[canonical]:
                    raise QuantizationError(
                        f"config.json: quantization says {parsed[canonical]} of {canonical}, and {value} of {path}, "
                        "which is Swift's name for it; fix: convert again"
                    )
            elif isinstance(value, dict):
                overrides[path] = LayerQuantization.from_mlx(value, f"quantization of {path}")
            elif value is False:
                skipped[path] = reasons.get(path, "config.json says so")
        return cls(default, overrides, skipped)


def _reasons(config: Mapping[str, Any]) -> Mapping[str, str]:
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    skipped = facts.get("skipped") if isinstance(facts, dict) else None
    return {str(path): str(why) for path, why in skipped.items()} if isinstance(skipped, dict) else {}
