"""One mapping table per architecture: a file here named as its `model_type` is an architecture that converts."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from converter.mapping import ArchitectureMapping
from mlxbert.config import ConfigError


def supported() -> tuple[str, ...]:
    """The `model_type`s that have a table."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def mapping_for(config: dict[str, Any]) -> ArchitectureMapping:
    """The table for a Hugging Face configuration.

    Raises:
        ConfigError: `model_type` is missing or has no table; says which have.
    """
    model_type = config.get("model_type")
    if model_type not in supported():
        raise ConfigError(
            f"config.json: model_type {model_type!r} is not supported; supported: {', '.join(supported())}"
            + ("" if model_type else '; fix: add "model_type" to config.json, or pass one with --config')
        )
    mapping: ArchitectureMapping = importlib.import_module(f"converter.mappings.{model_type}").MAPPING
    return mapping
