"""Which row of the precision gate's limits a quantized checkpoint answers to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxbert.quantization import LayerQuantization, QuantizationConfig


def recipe_of(config: Mapping[str, Any]) -> str:
    """The recipe that a `config.json` names; of another tool's files its packing."""
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    recipe = facts.get("recipe") if isinstance(facts, dict) else None
    return recipe if isinstance(recipe, str) else coarsest(config)


def coarsest(config: Mapping[str, Any]) -> str:
    """The limits' row of the narrowest packing that any layer has: "4bit", "mxfp4", …"""
    parsed = QuantizationConfig.from_hf(config)
    assert parsed is not None  # asked of quantized ones alone
    # Where every layer has an entry of its own, the default is nobody's.
    layers = [*parsed.overrides.values(), parsed.default] if recipe_default(config) else [*parsed.overrides.values()]
    return row(min(layers or [parsed.default], key=lambda layer: (layer.bits, layer.mode == "affine")))


def recipe_default(config: Mapping[str, Any]) -> bool:
    """Whether the default packing is some layer's: always, except where bits were allotted one by one."""
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    return not (isinstance(facts, dict) and facts.get("recipe") == "auto")


def row(layer: LayerQuantization) -> str:
    """The name of a packing in `converter.parity.tolerances`."""
    return f"{layer.bits}bit" if layer.mode == "affine" else layer.mode
