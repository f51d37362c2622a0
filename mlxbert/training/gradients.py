"""The gradients of one batch: adversarial training, gradient checkpointing, their sums, and the threads of a step.

The shards of a batch are computed on several streams (`mlxbert.backend.threads`), and the weights are updated in parts
on several streams. Norm and update treat every parameter by itself, so the parts change no bit. A shard's products and
sums are of its own rows, so the number of shards changes the last bits: a run records its number of threads, and a
resumed run needs the same. Dropout belongs to the rows (`heads.dropout`), so the shards are to rounding the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from heads.dropout import RowKeys, by_rows, current_keys
from mlxbert.backend.threads import streams
from mlxbert.models.base import Context, Encoder
from mlxbert.training.linear import linears_for_training
from mlxbert.training.optimizer import CORE, Arrays, ConfigurationError, is_matrix, padding_rows
from mlxbert.training.word_rows import INDEX, rows_of

# A smaller shard takes less time than its thread's overhead.
_LEAST_TOKENS = 256
# Every shard has its own gradients, as large as the weights.
MOST_SHARDS = 8
# Norm and update wait for the memory, and more threads wait no less.
_MOST_PARTS = 2


@dataclass(frozen=True)
class Shard:
    """Some rows of a batch, as arguments of `Gradients.of`, their stream, and the number of the first of them."""

    stream: mx.Stream
    inputs: Arrays
    targets: mx.array
    rows: mx.array
    first: int


@dataclass(frozen=True)
class Part:
    """The names of some parameters, and their stream."""

    stream: mx.Stream
    names: tuple[str, ...]


def split_batch(
    inputs: Arrays, targets: mx.array, rows: mx.array, streams: list[mx.Stream], first: int = 0
) -> list[Shard]:
    """Return one shard for each stream, of equal size where possible; fewer if a shard would have under 256 tokens.

    Args:
        inputs: "input_ids" (B, L), and others of first axis B.
        targets: first axis B.
        rows: (B,).
        streams: at least one; the first is used first.
        first: the number of the first row in the whole batch, if these are a part of it.
    """
    count = min(len(streams), max(inputs["input_ids"].size // _LEAST_TOKENS, 1), len(rows))
    if count == 1:
        return [Shard(streams[0], inputs, targets, rows, first)]
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(len(rows)), count)])[:-1].tolist()
    split_inputs = {name: mx.split(array, ends) for name, array in inputs.items()}
    split_targets, split_rows = mx.split(targets, ends), mx.split(rows, ends)
    mx.eval(split_inputs, split_targets, split_rows)  # on this stream, before others read them
    return [
        Shard(
            stream,
            {name: parts[i] for name, parts in split_inputs.items()},
            split_targets[i],
            split_rows[i],
            first + start,
        )
        for i, (stream, start) in enumerate(zip(streams[:count], [0, *ends], strict=True))
    ]


def parts(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """Deal parameters with these numbers of elements to two of `streams`, the largest first."""
    chosen = streams(_MOST_PARTS)
    names: list[list[str]] = [[] for _ in chosen]
    load = [0] * len(chosen)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        names[least].append(name)
        load[least] += sizes[name]
    return tuple(Part(stream, tuple(part)) for stream, part in zip(chosen, names, strict=True) if part)


def take(names: Sequence[str], arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """Remove the arrays of these names from `arrays` and return them: MLX updates an array without other owners in
    place.
    """
    return {name: arrays.pop(name) for name in names if name in arrays}


def in_dtype(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Return a parameter in this dtype; packed weights and their exponents, whole numbers, stay as they are."""
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


COMPUTE_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
Sums = dict[str, Any]
"""{"gradients": by name, Σ w_i ∇l_i times the loss scale; "loss": Σ w_i l_i; "weight": Σ w_i; "rows"}, float32."""
SCALARS = ("loss", "weight", "rows")


# Added to a norm before a division: then a zero gradient moves nothing.
_TINY = 1e-12


@dataclass(frozen=True)
class FGM:
    """Fast gradient method on the word embeddings: Miyato et al. 2017, https://arxiv.org/abs/1605.07725.

        E ← E + ε · g / ‖g‖₂

    The whole table moves, as one array, not each text's vectors: the usual form for BERT.
    """

    epsilon: float = 1.0

    def __post_init__(self) -> None:
        _check("FGM", "epsilon", self.epsilon)

    def perturb(self, weights: Arrays, gradients: Arrays, words: str, norms: Arrays | None = None) -> Arrays:
        """Return the weights at which the adversarial gradient is taken.

        Args:
            weights: w; of the word embeddings, the rows in use are enough.
            gradients: g.
            words: the word embeddings' name.
            norms: not used.

        Raises:
            ConfigurationError: the word embeddings are frozen.
        """
        if words not in gradients:
            raise ConfigurationError("FGM perturbs the word embeddings, which are frozen; fix: train them, or use AWP")
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

    def perturb(self, weights: Arrays, gradients: Arrays, words: str, norms: Arrays | None = None) -> Arrays:
        """Return the weights at which the adversarial gradient is taken.

        Args:
            weights: w; of the word embeddings, the rows in use are enough.
            gradients: g.
            words: not used.
            norms: ‖w‖ of parameters of which `weights` has only some rows.
        """
        moved = {}
        for name, gradient in gradients.items():
            if is_matrix(name, gradient):
                w = weights[name]
                norm = norms[name] if norms and name in norms else _norm(w)
                moved[name] = w + (self.gamma * norm / (_norm(gradient) + _TINY)) * gradient
        return {**weights, **moved}


def _norm(array: mx.array) -> mx.array:
    return mx.sqrt(mx.square(array).sum())


def _check(what: str, name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"{what}: {name} must be a number above 0, not {value}")


def add_up(arrays: Sequence[Arrays]) -> Arrays:
    """Return the sum of dicts with the same names, added by name in their order."""
    return {name: reduce(add, (one[name] for one in arrays)) for name in arrays[0]}


class Gradients:
    """Gradients of a fixed model with fixed settings.

    `of` is a pure function of its arrays, and of the random state where a head draws without `heads.dropout.Dropout`.
    """

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
        key: mx.array,
        first: mx.array,
        word_ids: mx.array | None = None,
    ) -> Sums:
        """Return the sums of one batch; the arguments stay in the model, and the caller puts the weights back.

        The dropout of each row follows from `key` (2,), that of the whole batch, and the row's number in it; the first
        row here has the number `first`. The two passes of an adversarial step drop different units.

        With `word_ids`, `WordRows.ids`, the gradient of the word embeddings is that of these rows, (n, D), and the
        inputs have their `INDEX`.
        """
        inputs = dict(inputs)
        index = inputs.pop(INDEX, None)
        table = {} if word_ids is None else {self.words: weights[self.words]}
        start = {**weights, **rows_of(table, word_ids)} if word_ids is not None else weights
        keys = RowKeys(key, first + mx.arange(len(rows), dtype=mx.uint32))

        def objective(at: Arrays) -> tuple[mx.array, mx.array]:
            # The model reads the rows through `inputs_embeds`: the table itself gets no gradient.
            self._set({**frozen, **at, **table})
            self.model.train()
            embeds = {} if index is None else {"inputs_embeds": at[self.words].astype(self.dtype)[index]}
            with by_rows(keys), layers(self.model.core):
                loss = self.model.loss(self.model(**inputs, **embeds), targets, rows=rows).astype(mx.float32)
            return loss * weight * loss_scale, loss

        layers = checkpointed_layers if self.checkpoint_layers else nullcontext
        weight = self.model.head.loss_weight(targets, rows=rows)
        differentiate: Any = mx.value_and_grad(objective)
        with linears_for_training(self.model):
            (_, loss), gradients = differentiate(start)
        gradients = self._without_padding(gradients, word_ids)
        if self.adversarial is not None:
            norms = {name: _norm(array) for name, array in table.items()}
            moved = self.adversarial.perturb(start, gradients, self.words, norms)
            with linears_for_training(self.model):
                _, second = differentiate(moved)
            second = self._without_padding(second, word_ids)
            gradients = {name: 0.5 * (first + second[name]) for name, first in gradients.items()}
        return {"gradients": gradients, "loss": loss * weight, "weight": weight, "rows": rows.sum()}

    def _set(self, arrays: Arrays) -> None:
        # Only the encoder computes in the narrow dtype; its float32 weights get float32 gradients through the cast.
        cast_arrays = [
            (name, in_dtype(array, self.dtype) if name.startswith(CORE) else array) for name, array in arrays.items()
        ]
        self.model.update(tree_unflatten(cast_arrays))

    def _without_padding(self, gradients: Arrays, word_ids: mx.array | None) -> Arrays:
        """Return no gradient for the padding token's rows, as `torch.nn.Embedding(padding_idx=…)` has none."""
        masked = dict(gradients)
        for name, row in self.padding_rows.items():
            ids = word_ids if name == self.words else None
            ids = mx.arange(masked[name].shape[0]) if ids is None else ids
            is_real = mx.not_equal(ids, row)[:, None]
            masked[name] = mx.where(is_real, masked[name], 0)
        return masked


@contextmanager
def checkpointed_layers(core: Encoder) -> Iterator[None]:
    """Let every layer of `core` recompute its activations in the backward pass instead of keeping them.

    Chen et al. 2016, https://arxiv.org/abs/1604.06174. MLX's `checkpoint` runs the layer's Python code again. Dropout
    that draws from the global stream would then drop other units, and the gradients would be wrong. So both times the
    masks follow from the same keys, which are an input of the layer.

    A layer's parameters are read when it is called: set the parameters to differentiate by before.
    """
    core.layer_runner = partial(_recomputed, core)
    try:
        yield
    finally:
        core.layer_runner = None


def _recomputed(
    core: Encoder, i: int, x: mx.array, context: Context, output_attentions: bool = False
) -> tuple[mx.array, None]:
    """Run layer `i` of `core`, and keep only its inputs for the backward pass."""
    if output_attentions:
        raise ValueError("a checkpointed layer keeps no attention weights")
    modules = core.layer_modules(i)
    keys = current_keys() or RowKeys(_new_key(), mx.arange(len(x), dtype=mx.uint32))
    first = keys.place

    def run(parameters: list[Any], x: mx.array, *arrays: mx.array) -> mx.array:
        for module, values in zip(modules, parameters, strict=True):
            module.update(values)
        # MLX's checkpoint differentiates by every input. Keys, masks and indices have no gradient, and some fused
        # kernels raise where they are asked for one.
        *given, key, numbers = (a if mx.issubdtype(a.dtype, mx.floating) else mx.stop_gradient(a) for a in arrays)
        again = RowKeys(key, numbers, first)
        with by_rows(again):
            y = core.run_layer(i, x, dict(zip(context, given, strict=True)))[0]
        keys.place = max(
            keys.place, again.place
        )  # the backward pass runs the layers again, from the last to the first
        return y

    # Every array is an input: a captured one would get a zero gradient in silence.
    recomputed: Any = mx.checkpoint(run)
    parameters = [module.trainable_parameters() for module in modules]
    return recomputed(parameters, x, *context.values(), keys.key, keys.numbers), None


def _new_key() -> mx.array:
    """Return a key (2,) from the global random stream."""
    return mx.random.randint(-(2**31), 2**31 - 1, (2,), mx.int32).view(mx.uint32)


def split_state(count: int) -> list[list[int]]:
    """Return `count` independent keys, two words of 32 bits each, a function of MLX's global random state alone."""
    state: Any = mx.random.state
    keys: list[list[int]] = cast(Any, mx.random.split(state[0], count).tolist())
    return keys


def seed_of(key: Sequence[int]) -> int:
    """Return the number from which `mx.random.seed` makes this key, two words of 32 bits."""
    high, low = (int(word) for word in key)
    return (high << 32) | low
