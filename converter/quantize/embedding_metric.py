"""Which errors of a token's embedding matter: the metric in which tables of embeddings are rounded.

Half of a small BERT is its word embeddings. They have no inputs whose moments could weigh errors, but what they give
is read by the encoder, and some directions of it move the encoder's output far more than others: LayerNorm takes the
mean away, and no layer reads all directions alike. To first order an error e of one token's embedding moves the output
by J e, so that its square is eᵀ Jᵀ J e; Jᵀ J is estimated from gradients of random projections of the output
(Hutchinson's estimate), averaged over tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from converter.quantize.texts import TokenBatch
from mlxbert.core import BertCore

Array = np.ndarray[Any, Any]

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
