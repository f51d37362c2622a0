"""MLX's global random state as numbers, to be kept, split and set again.

Adversarial training: where the second gradient of a batch is taken.

Gradient checkpointing of each encoder layer: its activations are computed again instead of kept.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. The second computation must drop what the first one dropped, and
MLX's `checkpoint` runs the layer's Python again, which draws anew from the global stream: the gradients would be those
of no network at all. So each layer's dropouts draw from keys of their own, handed to it as an input.

Gradients of one batch, and sums of them: the part of a step that is differentiated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from heads.pretrained import Dropout
from mlxbert.errors import MLXBertError
from mlxbert.models.base import Context, Encoder
from mlxbert.training.optimizer import CORE, Arrays, is_matrix, padding_rows


def split_state(count: int) -> list[int]:
    """`count` independent numbers for `mx.random.seed`, made of the global state and nothing else."""
    state: Any = mx.random.state
    return [seed_of(key) for key in cast(Any, mx.random.split(state[0], count).tolist())]


def seed_of(key: Sequence[int]) -> int:
    """The number of which `mx.random.seed` makes this key: its two words of 32 bits."""
    high, low = (int(word) for word in key)
    return (high << 32) | low


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

    def perturb(self, weights: Arrays, gradients: Arrays, words: str) -> Arrays:
        """Return the weights at which the adversarial gradient is taken; `words` is the word embeddings' name.

        Raises:
            AdversarialError: the word embeddings are frozen.
        """
        if words not in gradients:
            raise AdversarialError("FGM perturbs the word embeddings, which are frozen; fix: train them, or use AWP")
        gradient = gradients[words]
        step = self.epsilon / (_norm(gradient) + _TINY)
        return {**weights, words: weights[words] + step * gradient}


@dataclass(frozen=True)
class AWP:
    """Adversarial weight perturbation: Wu et al. 2020, https://arxiv.org/abs/2004.05884, equation 10, one step.

    w ← w + γ · ‖w‖₂ · g / ‖g‖₂     for every trained matrix; biases and norms stay
    """

    gamma: float = 1e-3

    def __post_init__(self) -> None:
        _check("AWP", "gamma", self.gamma)

    def perturb(self, weights: Arrays, gradients: Arrays, words: str) -> Arrays:
        """Return the weights at which the adversarial gradient is taken; which table `words` names does not matter."""
        moved = {}
        for name, gradient in gradients.items():
            if is_matrix(name, gradient):
                w = weights[name]
                moved[name] = w + (self.gamma * _norm(w) / (_norm(gradient) + _TINY)) * gradient
        return {**weights, **moved}


def _norm(array: mx.array) -> mx.array:
    return mx.sqrt(mx.square(array).sum())


def _check(what: str, name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise AdversarialError(f"{what}: {name} must be a number above 0, not {value}")


@contextmanager
def checkpointed_layers(core: Encoder) -> Iterator[None]:
    """Inside, every layer of `core` recomputes its activations in the backward pass; afterwards all as it was.

    A layer's parameters are read when it is called: set those that are differentiated by before.
    """
    core.layer_runner = partial(_recomputed, core)
    try:
        yield
    finally:
        core.layer_runner = None


class _KeyedDropout(nn.Module):
    """`nn.Dropout` whose mask is a function of a key."""

    def __init__(self, dropout: nn.Dropout, key: mx.array):
        super().__init__()
        if isinstance(dropout, Dropout):
            dropout.check_trainable()
        # A tuple under a private name: neither a parameter nor a child.
        self._keep_and_key = (dropout._p_1, key)

    drops = True  # as `Dropout.drops`

    def __call__(self, x: mx.array) -> mx.array:
        keep, key = self._keep_and_key
        return (mx.random.bernoulli(keep, x.shape, key=key) * x) * (1 / keep)


def _recomputed(
    core: Encoder, i: int, x: mx.array, context: Context, output_attentions: bool = False
) -> tuple[mx.array, None]:
    """Run layer `i` of `core`, and keep nothing of it for the backward pass but what it is called with."""
    if output_attentions:
        raise ValueError("a checkpointed layer keeps no attention weights")
    modules = core.layer_modules(i)
    dropouts = [
        (module, name, child)
        for layer in modules
        for module in layer.modules()
        for name, child in module.items()
        if isinstance(child, nn.Dropout) and child._p_1 < 1
    ]
    keys = [_keys(len(dropouts))] if dropouts and core.training else []

    def run(parameters: list[Any], x: mx.array, *arrays: mx.array) -> mx.array:
        for module, values in zip(modules, parameters, strict=True):
            module.update(values)
        if keys:
            # MLX's checkpoint differentiates by every input, and random bits have no gradient.
            for (module, name, dropout), key in zip(dropouts, mx.stop_gradient(arrays[-1]), strict=True):
                setattr(module, name, _KeyedDropout(dropout, key))
        try:
            return core.run_layer(i, x, dict(zip(context, arrays, strict=False)))[0]
        finally:
            for module, name, dropout in dropouts:
                setattr(module, name, dropout)

    # Every array is an input of its own: the gradient by one that is captured would be 0, without a word.
    recomputed: Any = mx.checkpoint(run)
    return recomputed([module.trainable_parameters() for module in modules], x, *context.values(), *keys), None


def _keys(count: int) -> mx.array:
    """(count, 2) keys from the global random stream, which takes no key of its own."""
    seed = mx.random.randint(-(2**31), 2**31 - 1, (2,), mx.int32).view(mx.uint32)
    return mx.stop_gradient(mx.random.split(seed, count))


COMPUTE_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
Sums = dict[str, Any]
"""{"gradients": by name, Σ w_i ∇l_i times the loss scale; "loss": Σ w_i l_i; "weight": Σ w_i; "rows"}, float32."""
SCALARS = ("loss", "weight", "rows")


def add_up(arrays: Sequence[Arrays]) -> Arrays:
    """Dicts of the same names, added name by name in their order."""
    return {name: reduce(add, (one[name] for one in arrays)) for name in arrays[0]}


class Gradients:
    """`of` is a pure function of its arrays and the random state; model and settings are what is compiled in."""

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        compute_dtype: str = "float32",
        checkpoint_layers: bool = False,
        adversarial: FGM | AWP | None = None,
    ):
        self.model = model
        self.dtype = COMPUTE_DTYPES[compute_dtype]
        self.checkpoint_layers, self.adversarial = checkpoint_layers, adversarial
        self.padding_rows = padding_rows(model, names)
        self.words = CORE + model.core.architecture.word_embeddings

    def of(
        self,
        weights: Arrays,
        frozen: Arrays,
        inputs: Arrays,
        targets: mx.array,
        rows: mx.array,
        loss_scale: mx.array,
    ) -> Sums:
        """The sums of one batch.

        It leaves whatever it was called with in the model: the caller puts the weights back.
        """

        def objective(at: Arrays) -> tuple[mx.array, mx.array]:
            self._set({**frozen, **at})
            self.model.train()
            layers = checkpointed_layers(self.model.core) if self.checkpoint_layers else nullcontext()
            with layers:
                loss = self.model.loss(self.model(**inputs), targets, rows=rows).astype(mx.float32)
            return loss * weight * loss_scale, loss

        weight = self.model.head.loss_weight(targets, rows=rows)
        differentiate = mx.value_and_grad(objective)
        (_, loss), gradients = cast(Any, differentiate)(weights)
        gradients = self._without_padding(gradients)
        if self.adversarial is not None:
            moved = self.adversarial.perturb(weights, gradients, self.words)
            _, second = cast(Any, differentiate)(moved)
            second = self._without_padding(second)
            gradients = {name: 0.5 * (first + second[name]) for name, first in gradients.items()}
        return {"gradients": gradients, "loss": loss * weight, "weight": weight, "rows": rows.sum()}

    def _set(self, arrays: Arrays) -> None:
        # The encoder alone computes in the narrow dtype; its master weights get float32 gradients through the cast.
        cast_arrays = [
            (name, array.astype(self.dtype) if name.startswith("core.") else array) for name, array in arrays.items()
        ]
        self.model.update(tree_unflatten(cast_arrays))

    def _without_padding(self, gradients: Arrays) -> Arrays:
        """Return no gradient for the padding token's rows, as `torch.nn.Embedding(padding_idx=…)` has none."""
        found = dict(gradients)
        for name, row in self.padding_rows.items():
            real = (mx.arange(found[name].shape[0]) != row)[:, None]
            found[name] = mx.where(real, found[name], 0)
        return found
