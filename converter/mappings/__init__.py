"""One table of tensor names for each architecture, in a file named as its encoder's in `mlxbert/models/`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from converter.mapping import ArchitectureMapping
from mlxbert.models.architecture import architecture, supported

__all__ = ["mapping_for", "supported"]


def mapping_for(config: Mapping[str, Any]) -> ArchitectureMapping:
    """Return the table for a Hugging Face configuration.

    Raises:
        ConfigError: `model_type` is missing or not known here; says which are.
    """
    declared = architecture(config.get("model_type"))
    mapping: ArchitectureMapping = importlib.import_module(f"converter.mappings.{declared.table}").MAPPING
    return replace(
        mapping,
        model_type=declared.model_type,
        base_class=declared.encoder_class,
        base_prefix=declared.prefix,
    )
