"""A choice of pooling, from a name or settings to a module and back: what a checkpoint says about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.nn as nn

from mlxbert.pooling import STRATEGIES, AttentionPooling, Pooling, PoolingError, WeightedLayerPooling

PoolingModule = Pooling | AttentionPooling | WeightedLayerPooling
CHOICES = (*STRATEGIES, "attention", "weighted_layers")


def make_pooling(choice: str | Mapping[str, Any] | PoolingModule, hidden_size: int, layers: int) -> PoolingModule:
    """The module for a name of `CHOICES`, settings as `pooling_settings` gives them, or a module itself.

    Args:
        choice: "weighted_layers" mixes the top 4 layers by their mean; settings or a module say otherwise.
        hidden_size: of the encoder.
        layers: of the encoder.

    Raises:
        PoolingError: an unknown name or setting, or more layers than the encoder has hidden states.
    """
    if isinstance(choice, str):
        choice = {"name": choice}
    # A module first: every nn.Module is a dict too.
    if isinstance(choice, nn.Module) or not isinstance(choice, Mapping):
        return _checked(choice, layers)
    settings = dict(choice)
    name = settings.pop("name", None)
    if name == "weighted_layers":
        mixed, strategy = settings.pop("layers", min(4, layers + 1)), settings.pop("strategy", "mean")
        _refuse(settings, name)
        if isinstance(mixed, bool) or not isinstance(mixed, int) or mixed < 1:
            raise PoolingError(f"pooling 'weighted_layers': layers must be a positive whole number, not {mixed!r}")
        _check_layers(mixed, layers)
        return _checked(WeightedLayerPooling(mixed, strategy), layers)
    _refuse(settings, name)
    if name == "attention":
        return AttentionPooling(hidden_size)
    if name not in STRATEGIES:
        raise PoolingError(f"pooling {name!r} is unknown; known: {', '.join(CHOICES)}")
    return Pooling(name)


def pooling_settings(module: PoolingModule) -> dict[str, Any]:
    """What `make_pooling` makes the same module of, without its weights; JSON-able."""
    if isinstance(module, WeightedLayerPooling):
        return {"name": "weighted_layers", "layers": module.layer_logits.shape[0], "strategy": module.strategy}
    if isinstance(module, AttentionPooling):
        return {"name": "attention"}
    return {"name": module.strategy}


def _checked(module: Any, layers: int) -> PoolingModule:
    if not isinstance(module, Pooling | AttentionPooling | WeightedLayerPooling):
        raise PoolingError(f"pooling: {module!r} is neither a name, nor settings, nor a module of mlxbert.pooling")
    if isinstance(module, WeightedLayerPooling):
        _check_layers(module.layer_logits.shape[0], layers)
        if module.strategy not in STRATEGIES or module.strategy == "pooler":
            raise PoolingError(f"pooling 'weighted_layers': strategy {module.strategy!r} cannot pool a mix of layers")
    return module


def _check_layers(mixed: int, layers: int) -> None:
    if mixed > layers + 1:
        raise PoolingError(
            f"pooling 'weighted_layers': {mixed} layers asked for, and an encoder of "
            f"{layers} layers has {layers + 1} hidden states"
        )


def _refuse(settings: Mapping[str, Any], name: Any) -> None:
    if settings:
        raise PoolingError(f"pooling {name!r} has no setting {next(iter(settings))!r}")
