"""Pooling and task heads in PyTorch and NumPy: an encoder's output to predictions.

They are written here a second time on purpose: `mlxbert-verify` compares a trained model with this file, which shares
no code with `mlxbert.pooling` and `heads/`. `HEADS` has an entry for each head that can be exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from converter.export.inference_modules.tables import InferenceError

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, torch.Tensor]
"""The tensors of head.safetensors: `head.…`, `pooling.…` and `history.…`."""


# Pooling: (B, L, D) and a boolean mask (B, L) to (B, D).


def _first(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[:, 0]


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _max(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden.masked_fill(~mask[..., None], -torch.inf).amax(1)


def _mean_sqrt_len(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).sqrt()


def _weighted_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1, hidden.shape[1] + 1, device=hidden.device) * mask
    return (hidden * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)


def _last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]  # padding is on the right


POOLING: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _first,
    "mean": _mean,
    "max": _max,
    "mean_sqrt_len": _mean_sqrt_len,
    "weighted_mean": _weighted_mean,
    "last_token": _last_token,
}


def pool(settings: Mapping[str, Any], tensors: Tensors, output: Any, mask: torch.Tensor) -> torch.Tensor:
    """Pool an encoder's output to (B, D), by a member's pooling settings and tensors."""
    name, hidden = settings["name"], output.last_hidden_state
    if name == "pooler":
        return output.pooler_output
    if name == "attention":
        inner = functional.linear(hidden, tensors["pooling.dense.weight"], tensors["pooling.dense.bias"]).tanh()
        scores = functional.linear(inner, tensors["pooling.score.weight"])[..., 0]  # (B, L)
        weights = scores.masked_fill(~mask, -torch.inf).softmax(1)
        return (hidden * weights[..., None]).sum(1)
    if name == "weighted_layers":
        weights = tensors["pooling.layer_logits"].softmax(0)  # (layers,)
        mixed = torch.stack(output.hidden_states[-len(weights) :]).mul(weights[:, None, None, None]).sum(0)
        return POOLING[settings["strategy"]](mixed, mask)
    return POOLING[name](hidden, mask)


# Outcomes: logits to what is averaged over the members, in float64.


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e⁻ˣ), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _each_alone(head: Mapping[str, Any], logits: Array) -> Array:
    """Return P(positive) or P(label)."""
    return sigmoid(logits / head["temperature"])


def _one_of(head: Mapping[str, Any], logits: Array) -> Array:
    """Return P(class)."""
    return softmax(logits / head["temperature"])


def _above(head: Mapping[str, Any], logits: Array) -> Array:
    """Return P(y > k)."""
    above = sigmoid(logits)
    return np.cumprod(above, axis=1) if head["objective"] == "corn" else above


def _numbers(head: Mapping[str, Any], logits: Array) -> Array:
    """Return values in the user's units."""
    values = logits[:, : head["targets"]]  # "gaussian" has the variances behind the means
    scaler = head["scaler"]
    if scaler is None:
        return values
    values = values * scaler["scale"] + scaler["center"]
    return np.expm1(values) if scaler["log"] else values


# Decisions: the members' mean outcome and mean thresholds to predictions.


@dataclass(frozen=True)
class Predictions:
    """Averaged over the members.

    Attributes:
        probabilities: P(positive) (N,); P(class) (N, C) of multiclass and ordinal; P(label) (N, L). None for numbers.
        labels: (N,) in the user's own values, or 0 and 1 (N, L) of multilabel. None for numbers.
        values: numbers in the user's units, (N, targets); of a time series (forecasts, horizon). None for classes.
    """

    probabilities: Array | None = None
    labels: list[Any] | None = None
    values: Array | None = None


def _decide_binary(head: Mapping[str, Any], mean: Array, thresholds: Array) -> Predictions:
    return Predictions(mean[:, 0], [head["classes"][int(above)] for above in mean[:, 0] >= thresholds[0]])


def _decide_multilabel(head: Mapping[str, Any], mean: Array, thresholds: Array) -> Predictions:
    return Predictions(mean, (mean >= thresholds).astype(int).tolist())


def _decide_multiclass(head: Mapping[str, Any], mean: Array, thresholds: Array) -> Predictions:
    return Predictions(mean, [head["classes"][i] for i in mean.argmax(axis=1)])


def _decide_ordinal(head: Mapping[str, Any], mean: Array, thresholds: Array) -> Predictions:
    edges = np.concatenate([np.ones((len(mean), 1)), mean, np.zeros((len(mean), 1))], axis=1)
    median = (mean > 0.5).sum(axis=1)
    return Predictions(np.maximum(-np.diff(edges, axis=1), 0.0), [head["classes"][i] for i in median])


def _decide_numbers(head: Mapping[str, Any], mean: Array, thresholds: Array) -> Predictions:
    return Predictions(values=mean)


# Logits: pooled features, and histories and times of a time series, to (B, outputs).


def _linear(
    head: Mapping[str, Any], tensors: Tensors, features: torch.Tensor, extra: Mapping[str, Array]
) -> torch.Tensor:
    return functional.linear(features, tensors["head.output.weight"], tensors.get("head.output.bias"))


def _ordered(
    head: Mapping[str, Any], tensors: Tensors, features: torch.Tensor, extra: Mapping[str, Array]
) -> torch.Tensor:
    logits = _linear(head, tensors, features, extra)
    return logits - tensors["head.thresholds"] if "head.thresholds" in tensors else logits


def _ahead(
    head: Mapping[str, Any], tensors: Tensors, features: torch.Tensor, extra: Mapping[str, Array]
) -> torch.Tensor:
    """Return what the network adds to a naive forecast, and that forecast."""
    window, period, horizon = head["window"], head["period"], head["horizon"]
    parts, naive = [features], features.new_zeros(len(features), horizon)
    if window:
        past = torch.from_numpy(scaled_history(head, tensors, extra["history"]).astype(np.float32)).to(features.device)
        last = past[:, window - 1 : window]
        if head["baseline"] == "last":
            naive = last.expand(-1, horizon)
        elif head["baseline"] == "seasonal":
            naive = past[:, window - period + torch.arange(horizon) % period]
        levels = 2 * window if period else window  # the seasonal part has no level
        relative = torch.cat([past[:, :levels] - last, past[:, levels:]], dim=1)
        layer = functional.linear(relative, tensors["head.history_layer.weight"], tensors["head.history_layer.bias"])
        parts.append(functional.gelu(layer))
    if head["calendar"]:
        calendar = calendar_features(head["calendar"], extra["made_at"]).astype(np.float32)
        parts.append(torch.from_numpy(calendar).to(features.device))
    logits = _linear(head, tensors, torch.cat(parts, dim=1), extra)
    return logits[:, :horizon] + naive


def scaled_history(head: Mapping[str, Any], tensors: Tensors, history: Array) -> Array:
    """Return histories (B, window) in the user's units as (B, columns): scaled, then their trend and season.

    Trend and season are STL's, as two matrices.
    """
    scaler = head["scaler"]
    if not np.isfinite(history).all() or (scaler["log"] and (history <= -1).any()):
        raise InferenceError("the history has a value that is missing, or that has no logarithm; fix: fill it in")
    scaled = ((np.log1p(history) if scaler["log"] else history) - scaler["center"]) / scaler["scale"]
    if not head["period"]:
        return scaled
    trend, season = (tensors[f"history.{name}"].double().cpu().numpy() for name in ("trend", "seasonal"))
    return np.concatenate([scaled, scaled @ trend, scaled @ season], axis=1)


def calendar_features(cycles: Sequence[str], times: Array) -> Array:
    """Return sine and cosine of how far each date is into each cycle: (B, 2 · cycles)."""
    if times.dtype.kind != "M":
        raise InferenceError(f"calendar features need dates, and the times are {times.dtype}; fix: give ISO dates")
    seconds = times.astype("datetime64[s]")
    day = (seconds - seconds.astype("datetime64[D]")) / np.timedelta64(1, "D")
    parts = {"day": day, "week": ((seconds.astype("datetime64[D]").astype(np.int64) + 3) % 7 + day) / 7}
    for name, unit in (("month", "M"), ("year", "Y")):
        start = seconds.astype(f"datetime64[{unit}]")
        length = (start + 1).astype("datetime64[s]") - start.astype("datetime64[s]")
        parts[name] = (seconds - start.astype("datetime64[s]")) / length
    angles = [2 * np.pi * parts[cycle] for cycle in cycles]
    return np.stack([function(angle) for angle in angles for function in (np.sin, np.cos)], axis=1)


@dataclass(frozen=True)
class TorchHead:
    """What a head computes; the settings of each function are those of `head.json`.

    Attributes:
        outcome: (settings, logits (B, outputs)) to what is averaged over the members.
        decide: (settings, mean outcome (N, …), mean thresholds) to predictions.
        logits: (settings, tensors, features (B, D), histories and times) to logits (B, outputs).
    """

    outcome: Callable[[Mapping[str, Any], Array], Array]
    decide: Callable[[Mapping[str, Any], Array, Array], Predictions]
    logits: Callable[[Mapping[str, Any], Tensors, torch.Tensor, Mapping[str, Array]], torch.Tensor] = _linear


HEADS = {
    "binary": TorchHead(_each_alone, _decide_binary),
    "multiclass": TorchHead(_one_of, _decide_multiclass),
    "multilabel": TorchHead(_each_alone, _decide_multilabel),
    "regression": TorchHead(_numbers, _decide_numbers),
    "ordinal": TorchHead(_above, _decide_ordinal, _ordered),
    "time_series": TorchHead(_numbers, _decide_numbers, _ahead),
}
"""Every head that can be exported, by its name; `converter.export.head_settings` writes their settings."""


def torch_head(settings: Mapping[str, Any]) -> TorchHead:
    """Return the head that `head.json` names.

    Raises:
        InferenceError: this file has none of that name.
    """
    if settings["name"] not in HEADS:
        raise InferenceError(
            f"the head {settings['name']!r} is unknown; known: {', '.join(HEADS)}; fix: export again with this version"
        )
    return HEADS[settings["name"]]
