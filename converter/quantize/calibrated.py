"""Calibrated rounding: one Linear after the other, each on the inputs that the quantized layers before it give.

Two models run side by side over the calibration batches, one stage (the embeddings, a layer, the pooler) at a time:
the float32 model, whose outputs are the target, and the quantized one. Both are the same encoder; the quantized one
computes with rounded weights in the place of its own. Of each model only the hidden states of the current stage are in
memory.

The embedding tables come first. They have no inputs, so the errors of a row are weighed by their effect on the output
of the encoder (`embedding_metric`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from converter.quantize.recipes import TokenBatch
from converter.quantize.rounding import (
    AffineWeight,
    Array,
    Moments,
    check_finite,
    compensate,
    compensate_table,
    corrected_bias,
)
from mlxbert.model_arrays import named_parameters
from mlxbert.models.base import Context, Encoder, LinearGroup, module_at
from mlxbert.quantization import QuantizationConfig

Progress = Callable[[int, int], None]
"""Called with the number of finished matrices, and of all."""

# A gradient costs three times its output. Some thousand tokens are enough for a matrix as wide as a hidden state: each
# of them counts with its own random projection.
_METRIC_TOKENS = 6000


def embedding_metric(
    core: Encoder, batches: Sequence[TokenBatch], *, seed: int = 0, progress: Progress | None = None
) -> Array:
    """Return the metric (D, D) float64 in which errors of embeddings are measured: the mean of Jᵀ J over tokens.

    J is the derivative of a text's mean hidden state, scaled to length 1, by the embedding of one of its tokens. To
    first order an error e of that embedding moves the output by J e, whose square is eᵀ Jᵀ J e. Some directions move
    it far more than others: LayerNorm removes the mean, and no layer reads all directions alike. Jᵀ J is estimated
    from the gradients of random projections of the output (Hutchinson's estimate).

    Args:
        core: the float32 encoder.
        batches: calibration text; if it has more than some thousand tokens, only every n-th batch counts.
        seed: seed of the projections.
        progress: called with the number of finished batches, and of all.
    """
    rng = np.random.default_rng(seed)
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    spaced = batches[:: max(1, round(tokens / _METRIC_TOKENS))]
    metric: Any = 0.0
    count = 0
    for done, batch in enumerate(spaced, 1):
        shape = len(batch.input_ids), core.config.hidden_size
        gradients = _gradients(core, batch, mx.array(rng.standard_normal(shape, np.float32)))
        metric = metric + (gradients.T @ gradients).astype(np.float64)
        count += len(gradients)
        if progress is not None:
            progress(done, len(spaced))
    return metric / count


def _gradients(core: Encoder, batch: TokenBatch, projections: mx.array) -> Array:
    """Return the gradients (tokens, D) float32 of each text's projected mean by the embeddings of its tokens."""
    ids, mask = mx.array(batch.input_ids), mx.array(batch.attention_mask)
    counts = mask.sum(axis=1, keepdims=True).astype(mx.float32)

    def projected(words: mx.array) -> mx.array:
        x = core(ids, mask, inputs_embeds=words).last_hidden_state
        # The errors of a text's tokens are independent and partly cancel, by the root of their number: multiplied by
        # it, each text counts by its tokens.
        means = (x * mask[..., None]).sum(axis=1) / counts
        means /= mx.linalg.norm(means, axis=1, keepdims=True)
        return (means * projections * mx.sqrt(counts)).sum()

    words = module_at(core, core.architecture.tables["word"])(ids)
    return np.array(mx.grad(projected)(words))[batch.keep]


@dataclass
class Calibrated:
    """Rounded weights by path, and the biases that changed with them by name; biases are float32."""

    weights: dict[str, AffineWeight] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)


def calibrate(
    core: Encoder,
    batches: Sequence[TokenBatch],
    config: QuantizationConfig,
    *,
    dtype: str = "float16",
    alone: bool = False,
    metric: Array | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Round every Linear and embedding table that `config` packs; `core` (float32) stays as it is.

    Args:
        core: the float32 encoder.
        batches: calibration text.
        config: the packing of every layer; affine.
        dtype: dtype of scales and biases.
        alone: whether each layer is rounded as the only one, on inputs of the float32 model.
        metric: `embedding_metric` of the encoder; None: it is computed where a table is packed.
        progress: called after each matrix.

    Raises:
        DtypeError: a weight is too large for the dtype of the scales.
    """
    return _Calibration(core, batches, config, dtype=dtype, alone=alone, metric=metric, progress=progress).run()


class _Calibration:
    """One run of `calibrate`."""

    def __init__(
        self,
        core: Encoder,
        batches: Sequence[TokenBatch],
        config: QuantizationConfig,
        *,
        dtype: str,
        alone: bool,
        metric: Array | None,
        progress: Progress | None,
    ):
        self._core, self._batches, self._config, self._dtype = core, batches, config, dtype
        self._metric, self._progress = metric, progress
        self._exact = _Side(core, batches)
        # Alone, each layer reads what the float32 model gives.
        self._own = self._exact if alone else _Side(core, batches)
        self._sides = (self._exact,) if alone else (self._exact, self._own)
        self._result = Calibrated()
        self._tables = tuple(core.tables.values())
        self._groups = core.linears()
        # How often each Linear runs: layers may share their parameters.
        self._uses = Counter(path for group in self._groups for path in group.paths)
        self._finished = 0

    def run(self) -> Calibrated:
        """Round the tables, then the Linears of every stage."""
        self._round_tables()
        self._round_shared()
        for stage in range(self._core.num_layers + 2):
            for group in self._groups:
                if group.stage == stage:
                    self._round_group(group)
            if stage <= self._core.num_layers:
                for side in self._sides:
                    side.advance(stage)
                    side.rounded = {path: linear for path, linear in side.rounded.items() if self._uses[path] > 1}
        return self._result

    def _round_tables(self) -> None:
        packed = {path: layer for path in self._tables if (layer := self._config.of(path)) is not None}
        if packed and self._metric is None:
            self._metric = embedding_metric(self._core, self._batches)
        for path in self._tables:
            if path in packed:
                assert self._metric is not None
                table = np.array(module_at(self._core, path).weight)
                rounded = compensate_table(table, self._metric, packed[path], dtype=self._dtype)
                self._accept(path, rounded)
                if self._own is not self._exact:
                    self._own.tables.append((f"{path}.weight", mx.array(rounded.numbers)))
            self._count()

    def _round_shared(self) -> None:
        """Round each Linear that runs several times on the float32 inputs of all its uses."""
        moments = {path: self._no_moments(path) for path, uses in self._uses.items() if uses > 1}
        if not moments:
            return
        for i, batch in enumerate(self._batches):

            def call(path: str, linear: nn.Module, x: mx.array, i: int = i) -> mx.array:
                if path in moments:
                    rows = self._rows(x, i)
                    moments[path].add(rows, rows)
                output: mx.array = linear(x)
                return output

            with self._core.watched(call):
                mx.eval(self._core(batch.input_ids, batch.attention_mask).last_hidden_state)
        for path, of_path in moments.items():
            self._round(path, of_path)

    def _round_group(self, group: LinearGroup) -> None:
        """Round Linears that read the same array, on what they read of every batch."""
        paths = [path for path in group.paths if self._uses[path] == 1]
        if all(self._config.of(path) is None for path in paths):
            for _ in paths:
                self._count()
            return
        first = paths[0]
        moments = self._no_moments(first)
        # The outputs of a Linear that is no wider than a hidden state stay in memory until the next group, which then
        # does not compute them again. Wider ones would need several times the memory.
        widest = max(module_at(self._core, first).weight.shape)
        keeps_outputs = len(group.paths) == 1 and widest <= self._core.config.hidden_size
        kept: list[list[mx.array]] = []
        for i in range(len(self._batches)):
            inputs = [side.input_of(first, group.stage, i) for side in self._sides]
            moments.add(self._rows(inputs[0], i), self._rows(inputs[-1], i))
            if keeps_outputs:
                kept.append(inputs)
        for path in paths:
            self._round(path, moments)
        if keeps_outputs:
            for side, of_side in zip(self._sides, zip(*kept, strict=True), strict=True):
                side.keep_outputs(first, of_side)

    def _no_moments(self, path: str) -> Moments:
        return Moments.empty(module_at(self._core, path).weight.shape[1])

    def _rows(self, x: mx.array, i: int) -> Array:
        """Return the inputs of the real tokens, (tokens, D); all of them where there is one vector a text."""
        keep = self._batches[i].keep
        rows = np.array(x)
        of_tokens = rows.ndim == 3 and rows.shape[:2] == keep.shape
        return rows[keep] if of_tokens else rows.reshape(-1, rows.shape[-1])

    def _round(self, path: str, moments: Moments) -> None:
        """Round one Linear; from now on the quantized model computes with it."""
        layer = self._config.of(path)
        if layer is not None:
            linear = module_at(self._core, path)
            weight = np.array(linear.weight)
            rounded = compensate(weight, moments, layer, dtype=self._dtype)
            self._accept(path, rounded)
            bias = None
            if "bias" in linear:
                bias = corrected_bias(np.array(linear.bias), weight, rounded.numbers, moments)
                self._result.biases[f"{path}.bias"] = bias
            if self._own is not self._exact:
                self._own.rounded[path] = _linear(rounded.numbers, bias)
        self._count()

    def _accept(self, path: str, weight: AffineWeight) -> None:
        check_finite(path, weight.scales, weight.biases, self._dtype)
        self._result.weights[path] = weight

    def _count(self) -> None:
        self._finished += 1
        if self._progress is not None:
            self._progress(self._finished, len(self._tables) + len(self._uses))


class _Side:
    """One of the two models, between two stages.

    Attributes:
        states: hidden states (B, L, D) of every batch.
        contexts: what the layers need besides, of every batch.
        tables: names and weights of the rounded tables.
        rounded: path -> the Linear that computes in the place of the encoder's own.
        outputs: path -> outputs of every batch, where they are known.
    """

    def __init__(self, core: Encoder, batches: Sequence[TokenBatch]):
        self._core, self._batches = core, batches
        self.states: list[mx.array] = []
        self.contexts: list[Context] = []
        self.tables: list[tuple[str, mx.array]] = []
        self.rounded: dict[str, nn.Module] = {}
        self.outputs: dict[str, Sequence[mx.array]] = {}

    def input_of(self, path: str, stage: int, i: int) -> mx.array:
        """Return what a Linear reads of batch `i`; MLX computes only what this needs."""
        inputs: list[mx.array] = []
        self._run(stage, i, lambda name, x: inputs.append(x) if name == path else None)
        mx.eval(inputs[0])
        return inputs[0]

    def keep_outputs(self, path: str, inputs: Sequence[mx.array]) -> None:
        """Compute the outputs of a Linear for every batch, and remember them for this stage."""
        linear = self.rounded.get(path, module_at(self._core, path))
        outputs = []
        for x in inputs:
            output = linear(x)
            mx.eval(output)  # before the next batch: the graph of all would hold every intermediate array
            outputs.append(output)
        self.outputs = {path: outputs}

    def advance(self, stage: int) -> None:
        """Replace the states by the output of a stage."""
        states, contexts = [], []
        for i in range(len(self._batches)):
            x, context = self._run(stage, i)
            mx.eval(x, context)
            states.append(x)
            contexts.append(context)
        self.states, self.contexts, self.outputs = states, contexts, {}

    def _run(
        self, stage: int, i: int, note: Callable[[str, mx.array], None] = lambda path, x: None
    ) -> tuple[mx.array, Context]:
        """Run a stage on batch `i`: 0 the embeddings, then the layers, then what follows them.

        `note` gets the path and the input of each Linear.
        """

        def call(path: str, linear: nn.Module, x: mx.array) -> mx.array:
            note(path, x)
            output: mx.array = self.outputs[path][i] if path in self.outputs else self.rounded.get(path, linear)(x)
            return output

        with self._core.watched(call):
            if stage == 0:
                with self._rounded_tables():
                    return self._core.embed(self._batches[i].input_ids, self._batches[i].attention_mask)
            x, context = self.states[i], self.contexts[i]
            if stage <= self._core.num_layers:
                return self._core.run_layer(stage - 1, x, context)[0], context
            self._core.pool(self._core.finish(x))
            return x, context

    @contextmanager
    def _rounded_tables(self) -> Iterator[None]:
        """Inside, the encoder has the rounded tables."""
        before = named_parameters(self._core)
        try:
            self._core.load_weights(self.tables, strict=False)
            yield
        finally:
            self._core.load_weights([(name, before[name]) for name, _ in self.tables], strict=False)


def _linear(weight: Array, bias: Array | None) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=bias is not None)
    linear.weight = mx.array(weight)
    if bias is not None:
        linear.bias = mx.array(bias)
    return linear
