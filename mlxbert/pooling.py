"""Pool the vectors of a text's tokens to one vector.

Sums run in float32 for every dtype (a float16 sum over 512 tokens overflows at 128 a token), and the result has
the dtype of the hidden states. Padding never changes a result; a row that is all padding gives zeros, never NaN.
Strategies follow sentence-transformers `models/Pooling.py`.

`make_pooling` and `pooling_settings` convert between a name or settings in a checkpoint and a module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from mlxbert.errors import MLXBertError

if TYPE_CHECKING:
    from mlxbert.models.base import BertOutput


class PoolingError(MLXBertError):
    """An unknown strategy, or one that this model cannot compute."""


def cls(hidden: mx.array, mask: mx.array) -> mx.array:
    """Return the first token's hidden state; zeros for a row without tokens."""
    return mx.where(mask.any(axis=1, keepdims=True), hidden[:, 0], 0)


def mean(hidden: mx.array, mask: mx.array) -> mx.array:
    """Return the mean over the real tokens."""
    return _weighted_sum(hidden, mask) / mx.maximum(_count(mask), 1)


def max_(hidden: mx.array, mask: mx.array) -> mx.array:
    """Return the maximum over the real tokens, feature by feature."""
    highest = mx.where(mask[..., None], hidden, -mx.inf).max(axis=1)  # (B, D)
    return mx.where(mask.any(axis=1, keepdims=True), highest, 0)


def mean_sqrt_len(hidden: mx.array, mask: mx.array) -> mx.array:
    """Return the sum over the real tokens, divided by the square root of their number."""
    return _weighted_sum(hidden, mask) / mx.sqrt(mx.maximum(_count(mask), 1))


def weighted_mean(hidden: mx.array, mask: mx.array) -> mx.array:
    """Return the mean weighted by position, 1 for the first column; SGPT, https://arxiv.org/abs/2202.08904."""
    weights = mx.arange(1, hidden.shape[1] + 1, dtype=mx.float32) * mask  # (B, L)
    total = weights.sum(axis=1, keepdims=True)
    return _weighted_sum(hidden, weights) / mx.maximum(total, 1)


def last_token(hidden: mx.array, mask: mx.array) -> mx.array:
    """Return the hidden state of the last real token, padded left or right."""
    positions = mx.where(mask, mx.arange(hidden.shape[1]), -1).max(axis=1)  # (B,), −1 for an all-pad row
    picked = mx.take_along_axis(hidden, mx.maximum(positions, 0)[:, None, None], axis=1)[:, 0]
    return mx.where((positions >= 0)[:, None], picked, 0)


POOLING: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "cls": cls,
    "mean": mean,
    "max": max_,
    "mean_sqrt_len": mean_sqrt_len,
    "weighted_mean": weighted_mean,
    "last_token": last_token,
}
STRATEGIES = (*POOLING, "pooler")


def pool(
    strategy: str, hidden: mx.array, mask: mx.array | None = None, pooler_output: mx.array | None = None
) -> mx.array:
    """Pool (B, L, D) hidden states with a (B, L) mask, 1 for real tokens (None: all are), to (B, D).

    Raises:
        PoolingError: the strategy is unknown, or is "pooler" and the model has none.
    """
    if strategy == "pooler":
        if pooler_output is None:
            raise PoolingError("pooling 'pooler': this checkpoint has no pooler; fix: use 'cls' or 'mean'")
        return pooler_output
    if strategy not in POOLING:
        raise PoolingError(f"pooling {strategy!r} is unknown; known: {', '.join(STRATEGIES)}")
    if mask is None:
        mask = mx.ones(hidden.shape[:2])
    elif mask.shape != hidden.shape[:2]:
        raise PoolingError(
            f"pooling {strategy!r}: the mask has shape {mask.shape}; expected {hidden.shape[:2]} (batch, length)"
        )
    return POOLING[strategy](hidden, mask.astype(mx.bool_)).astype(hidden.dtype)


class Pooling(nn.Module):
    """A strategy without weights as a module, for use inside a model."""

    def __init__(self, strategy: str = "mean"):
        super().__init__()
        if strategy not in STRATEGIES:
            raise PoolingError(f"pooling {strategy!r} is unknown; known: {', '.join(STRATEGIES)}")
        self.strategy = strategy

    def __call__(self, output: BertOutput, mask: mx.array | None = None) -> mx.array:
        """Map `BertOutput` and a (B, L) mask to (B, D)."""
        return output.pool(self.strategy, mask)


class AttentionPooling(nn.Module):
    """Mean weighted by a learned score, wᵀ tanh(W h); Yang et al. 2016, https://aclanthology.org/N16-1174."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def __call__(self, output: BertOutput, mask: mx.array | None = None) -> mx.array:
        """Map `BertOutput` and a (B, L) mask to (B, D)."""
        hidden = output.last_hidden_state
        keep = mx.ones(hidden.shape[:2], mx.bool_) if mask is None else mask.astype(mx.bool_)
        scores = self.score(mx.tanh(self.dense(hidden)))[..., 0].astype(mx.float32)  # (B, L)
        # The lowest finite score, not −inf: a row that is all padding must give zeros, not NaN.
        weights = mx.softmax(mx.where(keep, scores, mx.finfo(mx.float32).min), axis=1)
        return _weighted_sum(hidden, weights * keep).astype(hidden.dtype)


class WeightedLayerPooling(nn.Module):
    """A learned mix of the top layers' hidden states, pooled; ELMo's scalar mix, https://arxiv.org/abs/1802.05365.

    The model has to be called with `output_hidden_states=True`. The mix begins as the plain mean.
    """

    def __init__(self, layers: int = 4, strategy: str = "mean"):
        super().__init__()
        self.layer_logits = mx.zeros((layers,))
        self.strategy = strategy

    def __call__(self, output: BertOutput, mask: mx.array | None = None) -> mx.array:
        """Map `BertOutput` with hidden states and a (B, L) mask to (B, D)."""
        layers = self.layer_logits.shape[0]
        if output.hidden_states is None or len(output.hidden_states) < layers:
            raise PoolingError(
                f"weighted-layer pooling needs {layers} hidden states; fix: call the model with "
                "output_hidden_states=True, or mix fewer layers"
            )
        weights = mx.softmax(self.layer_logits.astype(mx.float32))
        pairs = zip(weights, output.hidden_states[-layers:], strict=True)
        mixed = sum((weight * hidden.astype(mx.float32) for weight, hidden in pairs), mx.array(0.0))  # (B, L, D)
        if self.strategy == "pooler":
            raise PoolingError("weighted-layer pooling cannot use 'pooler', which reads the last layer alone")
        return pool(self.strategy, mixed, mask).astype(output.last_hidden_state.dtype)


def _count(mask: mx.array) -> mx.array:
    return mask.sum(axis=1, keepdims=True).astype(mx.float32)  # (B, 1)


def _weighted_sum(hidden: mx.array, weights: mx.array) -> mx.array:
    """Return Σ over L of weights (B, L) · hidden (B, L, D), in float32; a weight of 0 also silences inf and NaN."""
    weights = weights.astype(mx.float32)[..., None]  # (B, L, 1)
    return mx.where(weights > 0, hidden.astype(mx.float32) * weights, 0).sum(axis=1)


PoolingModule = Pooling | AttentionPooling | WeightedLayerPooling
CHOICES = (*STRATEGIES, "attention", "weighted_layers")


def make_pooling(choice: str | Mapping[str, Any] | PoolingModule, hidden_size: int, layers: int) -> PoolingModule:
    """Return the module for a name of `CHOICES`, settings as `pooling_settings` returns them, or a module itself.

    Args:
        choice: "weighted_layers" mixes the top 4 layers by their mean; settings or a module can differ.
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
    """Return settings for JSON from which `make_pooling` makes the same module, without its weights."""
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
