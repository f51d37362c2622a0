"""AdamW, gradient clipping and the moving average of weights, as functions of flat dicts of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlxbert.errors import MLXBertError
from mlxbert.training.groups import Rule

Arrays = dict[str, mx.array]


class OptimizerError(MLXBertError):
    """An optimizer setting out of its range."""


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and bias correction: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

    At step t, counted from 1, with gradient g and rate η_t (algorithm and order of torch's `adamw`):

        w ← w (1 − η_t λ)
        m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
        w ← w − η_t / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

    MLX's own `AdamW` has `bias_correction=False` by default, which makes the first step some three times the rate.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise OptimizerError(f"AdamW: {name} must be at least 0 and below 1, not {value}")
        if not 0 < self.eps < 1:
            raise OptimizerError(f"AdamW: eps must be above 0 and below 1, not {self.eps}")

    def scalars(self, rules: Mapping[str, Rule], factor: float, step: int) -> dict[str, mx.array]:
        """What step t = `step` ≥ 1 multiplies by, in double precision and then rounded, as torch does.

        Arrays and not numbers, because a number would be compiled into the update, anew at every step. One array each
        of "size", η_t / (1 − β₁ᵗ), and "shrink", 1 − η_t λ, for every distinct rule, and "root", 1 / √(1 − β₂ᵗ).
        """
        first = 1 - self.beta1**step
        values = {"root": 1 / math.sqrt(1 - self.beta2**step)}
        for rule in set(rules.values()):
            rate = rule.rate * factor
            values[_key("size", rule)] = rate / first
            values[_key("shrink", rule)] = 1 - rate * rule.weight_decay
        return {name: mx.array(value, mx.float32) for name, value in values.items()}

    def apply(
        self,
        weights: Arrays,
        means: Arrays,
        squares: Arrays,
        gradients: Arrays,
        rules: Mapping[str, Rule],
        scalars: Arrays,
    ) -> tuple[Arrays, Arrays, Arrays]:
        """One update of every parameter in `gradients`; all dicts are flat, by name, and float32.

        Args:
            weights: w.
            means: m.
            squares: v.
            gradients: g, clipped.
            rules: peak rate and decay of each.
            scalars: see `scalars`.

        Returns:
            New weights, means and squares; nothing is changed in place.
        """
        new_weights, new_means, new_squares = {}, {}, {}
        for name, gradient in gradients.items():
            size, shrink = (scalars[_key(what, rules[name])] for what in ("size", "shrink"))
            m = self.beta1 * means[name] + (1 - self.beta1) * gradient
            v = self.beta2 * squares[name] + (1 - self.beta2) * mx.square(gradient)
            new_weights[name] = weights[name] * shrink - size * m / (mx.sqrt(v) * scalars["root"] + self.eps)
            new_means[name], new_squares[name] = m, v
        return new_weights, new_means, new_squares


def _key(what: str, rule: Rule) -> str:
    return f"{what} {rule.rate!r} {rule.weight_decay!r}"


def squared_norms(gradients: Arrays) -> Arrays:
    """Σ g² over the elements of each array, in float32.

    Summed in the order of the indices: a gradient that a product left transposed in memory would be summed in another
    order than the same numbers read back from a saved state, and end in other bits.
    """
    return {name: mx.square(mx.contiguous(g.astype(mx.float32))).sum() for name, g in gradients.items()}


def global_norm(squared: Arrays) -> mx.array:
    """√Σ g² over every element of every gradient, of their `squared_norms`."""
    return mx.sqrt(mx.stack(list(squared.values())).sum())


def clip_factor(norm: float, max_norm: float | None) -> float:
    """min(1, max_norm / (norm + 1e-6)), torch's `clip_grad_norm_` (Pascanu et al. 2013); None: no clipping, 1."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def ema_decay(decay: float, step: int) -> float:
    """min(decay, (1 + t) / (10 + t)) at step t ≥ 1: a young average follows (TensorFlow's `num_updates`)."""
    return min(decay, (1 + step) / (10 + step))


def ema_update(average: Arrays, weights: Arrays, decay: mx.array) -> Arrays:
    """decay · average + (1 − decay) · weights, by name; Polyak and Juditsky 1992."""
    return {name: old + (1 - decay) * (weights[name] - old) for name, old in average.items()}
