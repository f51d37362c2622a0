"""Which limits a quantized checkpoint answers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.quantize.cost import TEXT_LIMITS, CostLimits
from converter.quantize.recipes import AUTO, MIXED
from mlxbert.quantization import LayerQuantization, QuantizationConfig


def recipe_of(config: Mapping[str, Any]) -> str:
    """The recipe that a `config.json` names; of another tool's files its packing."""
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    recipe = facts.get("recipe") if isinstance(facts, dict) else None
    return recipe if isinstance(recipe, str) else coarsest(config)


def text_limits(config: Mapping[str, Any], mean_bits: float, *, calibrated: bool) -> CostLimits:
    """The recipe's own limits; of allotted bits those of the best uniform recipe that takes no more of them.

    Args:
        config: a quantized checkpoint's `config.json`.
        mean_bits: of a packed weight, scales aside.
        calibrated: whether text chose the codes.
    """
    recipe = recipe_of(config)
    if recipe == AUTO:
        fitting = [bits for bits in (2, 3, 4, 5, 6, 8) if bits <= mean_bits]
        return TEXT_LIMITS[f"{max(fitting, default=2)}bit"]
    return TEXT_LIMITS[MIXED if recipe == MIXED and calibrated else coarsest(config)]


def coarsest(config: Mapping[str, Any]) -> str:
    """The limits' row of the narrowest packing that any layer has: "4bit", "mxfp4", …"""
    parsed = QuantizationConfig.from_hf(config)
    assert parsed is not None  # asked of quantized ones alone
    return row(
        min([*parsed.overrides.values(), parsed.default], key=lambda layer: (layer.bits, layer.mode == "affine"))
    )


def row(layer: LayerQuantization) -> str:
    """The name of a packing in `converter.quantize.cost`."""
    return f"{layer.bits}bit" if layer.mode == "affine" else layer.mode
