"""Adversarial training: where the second gradient of a batch is taken."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from mlxbert.errors import MLXBertError
from mlxbert.training.groups import WORD_EMBEDDINGS, decays
from mlxbert.training.optim import Arrays

# Added to a norm that is divided by: a zero gradient then moves nothing.
_TINY = 1e-12


class AdversarialError(MLXBertError):
    """Adversarial training that this model cannot do."""


@dataclass(frozen=True)
class FGM:
    """Fast gradient method on the word embeddings: Miyato et al. 2017, https://arxiv.org/abs/1605.07725.

        E ← E + ε · g / ‖g‖₂

    The whole table is moved, as one array, not each text's vectors: the usual form for BERT.
    """

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        _check("FGM", "epsilon", self.epsilon)

    def perturb(self, weights: Arrays, gradients: Arrays) -> Arrays:
        """The weights at which the adversarial gradient is taken.

        Raises:
            AdversarialError: the word embeddings are frozen.
        """
        if WORD_EMBEDDINGS not in gradients:
            raise AdversarialError("FGM perturbs the word embeddings, which are frozen; fix: train them, or use AWP")
        gradient = gradients[WORD_EMBEDDINGS]
        step = self.epsilon / (_norm(gradient) + _TINY)
        return {**weights, WORD_EMBEDDINGS: weights[WORD_EMBEDDINGS] + step * gradient}


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation: Wu et al. 2020, https://arxiv.org/abs/2004.05884, equation 10, one step.

    w ← w + γ · ‖w‖₂ · g / ‖g‖₂     for every trained matrix; biases and LayerNorms stay
    """

    gamma: float = 1e-3

    def __post_init__(self) -> None:
        _check("AWP", "gamma", self.gamma)

    def perturb(self, weights: Arrays, gradients: Arrays) -> Arrays:
        """The weights at which the adversarial gradient is taken."""
        moved = {}
        for name, gradient in gradients.items():
            if gradient.ndim >= 2 and decays(name):
                w = weights[name]
                moved[name] = w + (self.gamma * _norm(w) / (_norm(gradient) + _TINY)) * gradient
        return {**weights, **moved}


def _norm(array: mx.array) -> mx.array:
    return mx.sqrt(mx.square(array).sum())


def _check(what: str, name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise AdversarialError(f"{what}: {name} must be a number above 0, not {value}")
