"""Which errors of a token's embedding matter: the metric in which tables of embeddings are rounded.

Half of a small BERT is its word embeddings. They have no inputs whose moments could weigh errors, but what they give
is read by the encoder, and some directions of it move the encoder's output far more than others: LayerNorm takes the
mean away, and no layer reads all directions alike. To first order an error e of one token's embedding moves the output
by J e, so that its square is eᵀ Jᵀ J e; Jᵀ J is estimated from gradients of random projections of the output
(Hutchinson's estimate), averaged over tokens.

Calibrated rounding: layer after layer, each on the inputs that the quantized layers before it give.

Two copies of the model run side by side over the calibration batches, one layer at a time: the float32 model, whose
outputs are wanted, and the quantized one, whose inputs are to be lived with. Of each only the hidden states of the
current layer are held.

The tables of embeddings come first; they have no inputs, and are rounded by what their errors do to the encoder's
output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from converter.quantize.rounding import (
    AffineWeight,
    Array,
    Moments,
    check_finite,
    compensate,
    compensate_table,
    corrected_bias,
)
from converter.quantize.texts import TokenBatch
from mlxbert.models.base import Inputs
from mlxbert.models.bert import BertCore, BertLayer
from mlxbert.quantization import QuantizationConfig

# Gradients cost three times what the output does; a few thousand tokens are enough for a matrix as wide as a hidden
# state, as each of them counts with its own random projection.
_TOKENS = 6000


def embedding_metric(
    core: BertCore,
    batches: Sequence[TokenBatch],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """(D, D) float64: mean over tokens of Jᵀ J, J the derivative of a text's mean hidden state (scaled to length 1).

    Args:
        core: the float32 encoder; only its last hidden states count.
        batches: calibration text; of more than some thousand tokens evenly spaced batches.
        seed: of the projections.
        progress: told how many batches are done.
    """
    rng = np.random.default_rng(seed)
    width = core.config.hidden_size
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    step = max(1, round(tokens / _TOKENS))
    metric, counted = np.zeros((width, width)), 0
    spaced = batches[::step]
    for done, batch in enumerate(spaced, 1):
        gradients = _gradients(core, batch, mx.array(rng.standard_normal((len(batch.input_ids), width), np.float32)))
        metric += gradients.T @ gradients
        counted += len(gradients)
        if progress is not None:
            progress(done, len(spaced))
    return metric / counted


def _gradients(core: BertCore, batch: TokenBatch, projections: mx.array) -> Array:
    """(tokens, D) float32: of each text's projection, by the sums of embeddings before their LayerNorm."""
    ids, mask = mx.array(batch.input_ids), mx.array(batch.attention_mask)
    keep = mask.astype(mx.bool_)[:, None, None, :]  # (B, 1, 1, L)
    tables = core.embeddings
    positions = tables.position_embeddings(mx.arange(ids.shape[1])[None])
    sums = tables.word_embeddings(ids) + tables.token_type_embeddings(mx.zeros_like(ids)) + positions
    counts = mask.sum(axis=1, keepdims=True).astype(mx.float32)

    def projected(sums: mx.array) -> mx.array:
        x = tables.LayerNorm(sums)
        for layer in core.encoder.layer:
            x, _ = layer(x, keep)
        # Errors of a text's tokens are independent and average out: over its root, each text counts by its tokens.
        means = (x * mask[..., None]).sum(axis=1) / counts
        means /= mx.linalg.norm(means, axis=1, keepdims=True)
        return (means * projections * mx.sqrt(counts)).sum()

    return np.array(mx.grad(projected)(sums))[batch.keep]


Progress = Callable[[int, int], None]
"""Called with matrices done, matrices in all."""

EMBEDDINGS = ("embeddings.word_embeddings", "embeddings.position_embeddings", "embeddings.token_type_embeddings")

States = list[mx.array]
"""(B, L, D) of every batch."""


@dataclass
class Calibrated:
    """Packed weights by path, and the biases that changed with them, by name; biases are float32."""

    weights: dict[str, AffineWeight] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)


def calibrate(
    core: BertCore,
    batches: Sequence[TokenBatch],
    config: QuantizationConfig,
    *,
    dtype: str = "float16",
    alone: bool = False,
    metric: Array | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Round every layer that `config` packs; `core` (float32) is not changed.

    Args:
        core: the float32 encoder.
        batches: calibration text.
        config: affine throughout.
        dtype: of scales and biases.
        alone: round each layer as if it were the only one: on the inputs that the float32 model gives it.
        metric: of the tables' errors, where it is known already: `embedding_metric` of the core.
        progress: told how many matrices are done.

    Raises:
        DtypeError: a weight is too large for the scales' dtype.
    """
    run = _Run(core, batches, config, dtype, alone, metric, progress)
    exact, own = run.embeddings()
    for index in range(core.config.num_hidden_layers):
        exact, own = run.layer(index, exact, own)
    run.pooler(exact, own)
    return run.result


class _Run:
    def __init__(
        self,
        core: BertCore,
        batches: Sequence[TokenBatch],
        config: QuantizationConfig,
        dtype: str,
        alone: bool,
        metric: Array | None,
        progress: Progress | None,
    ):
        self.core, self.batches, self.config, self.dtype, self._alone = core, batches, config, dtype, alone
        self.result = Calibrated()
        self._metric = metric
        self._progress = progress
        self._total = 3 + 6 * core.config.num_hidden_layers + ("pooler" in core)
        self._masks = [mx.array(batch.attention_mask).astype(mx.bool_)[:, None, None, :] for batch in batches]
        self._keep = [batch.keep.reshape(-1) for batch in batches]
        self._done = 0

    def embeddings(self) -> tuple[States, States]:
        """Round the embeddings; their outputs, float32 and rounded."""
        own = copy.deepcopy(self.core.embeddings)
        packed = {path: layer for path in EMBEDDINGS if (layer := self.config.of(path)) is not None}
        if packed and self._metric is None:
            self._metric = embedding_metric(self.core, self.batches)
        for path in EMBEDDINGS:
            table = own[path.rpartition(".")[2]]
            if path in packed:
                assert self._metric is not None
                weight = compensate_table(np.array(table.weight), self._metric, packed[path], dtype=self.dtype)
                self._accept(path, weight)
                if not self._alone:
                    table.weight = mx.array(weight.numbers)
            self._advance()
        ids = [Inputs(batch.input_ids.shape, mx.array(batch.input_ids)) for batch in self.batches]
        return _computed(map(self.core.embeddings, ids)), _computed(map(own, ids))

    def layer(self, index: int, exact: States, own: States) -> tuple[States, States]:
        """Round one layer in the order in which its matrices are used; its outputs, float32 and rounded."""
        path = f"encoder.layer.{index}"
        truth: BertLayer = self.core.encoder.layer[index]
        rounding = copy.deepcopy(truth)

        moments = self._moments(zip(exact, own, strict=True))
        for name in ("query", "key", "value"):
            self._round(f"{path}.attention.self.{name}", rounding.attention.self[name], moments)

        def attend(layer: BertLayer, states: States) -> States:
            return _computed(layer.attention.self(x, mask)[0] for x, mask in zip(states, self._masks, strict=True))

        contexts = attend(truth, exact), attend(rounding, own)
        moments = self._moments(zip(*contexts, strict=True))
        self._round(f"{path}.attention.output.dense", rounding.attention.output.dense, moments)
        exact = _computed(map(truth.attention.output, contexts[0], exact))
        own = _computed(map(rounding.attention.output, contexts[1], own))
        del contexts

        self._round(
            f"{path}.intermediate.dense", rounding.intermediate.dense, self._moments(zip(exact, own, strict=True))
        )
        # Four times as wide as the hidden states: made for one batch at a time, and once more below.
        wide = ((truth.intermediate(x), rounding.intermediate(y)) for x, y in zip(exact, own, strict=True))
        self._round(f"{path}.output.dense", rounding.output.dense, self._moments(wide))

        def finish(layer: BertLayer, states: States) -> States:
            return _computed(layer.output(layer.intermediate(x), x) for x in states)

        return finish(truth, exact), finish(rounding, own)

    def pooler(self, exact: States, own: States) -> None:
        """Round the pooler, which reads the first token alone."""
        if "pooler" not in self.core:
            return
        first = ((x[:, :1], y[:, :1]) for x, y in zip(exact, own, strict=True))
        moments = self._moments(first, every_token=False)
        self._round("pooler.dense", copy.deepcopy(self.core.pooler.dense), moments)

    def _moments(self, pairs: Any, *, every_token: bool = True) -> Moments:
        moments = None
        for keep, (exact, own) in zip(self._keep, pairs, strict=True):
            width = exact.shape[-1]
            rows = [np.array(x).reshape(-1, width) for x in (exact, own)]
            if every_token:
                rows = [x[keep] for x in rows]
            if moments is None:
                moments = Moments.empty(width)
            moments.add(*rows)
        assert moments is not None  # there is a batch
        return moments

    def _round(self, path: str, linear: Any, moments: Moments) -> None:
        """Round one linear layer, and put the rounded numbers into it."""
        layer = self.config.of(path)
        if layer is not None:
            weight, bias = np.array(linear.weight), np.array(linear.bias)
            packed = compensate(weight, moments, layer, dtype=self.dtype)
            self._accept(path, packed)
            self.result.biases[f"{path}.bias"] = corrected_bias(bias, weight, packed.numbers, moments)
            if not self._alone:
                linear.weight = mx.array(packed.numbers)
                linear.bias = mx.array(self.result.biases[f"{path}.bias"])
        self._advance()

    def _accept(self, path: str, weight: AffineWeight) -> None:
        check_finite(path, weight.scales, weight.biases, self.dtype)
        self.result.weights[path] = weight

    def _advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _computed(arrays: Any) -> States:
    """Each evaluated before the next: the graph of all batches at once would hold every intermediate."""
    states = []
    for array in arrays:
        mx.eval(array)
        states.append(array)
    return states
