"""The cost of a quantization on text that calibration never saw: quantized against float32, both in MLX."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from converter.quantize.cost import Quality
from converter.quantize.recipes import HELD_OUT, TextList, TokenBatch, batched, built_in, token_batches
from mlxbert.encode.modules import SentenceModuleError
from mlxbert.encode.sentence_modules import pooling_strategies
from mlxbert.models.architecture import HeadKind
from mlxbert.models.base import BertOutput, Encoder
from mlxbert.pretrained import PretrainedBert
from mlxbert.tokenization.tokenizer import Tokenizer

Model = Encoder | PretrainedBert
"""An encoder, or one with its checkpoint's own head."""

RANDOM = "random ids"

# Outputs of a head that are scores of classes along their last axis, and of positions.
_CLASS_SCORES = ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
_SPAN_SCORES = ("start_logits", "end_logits")


def measure_quality(
    exact: Model,
    quantized: Model,
    tokenizer: Tokenizer,
    pooling: Sequence[str],
    lists: Sequence[TextList] | None = None,
) -> tuple[Quality, ...]:
    """Compare two models on every held-out list.

    Args:
        exact: the float32 model.
        quantized: the quantized model, of the same class.
        tokenizer: their tokenizer.
        pooling: the pooling strategies of the checkpoint; their vectors are joined.
        lists: the texts; None: the two lists of this package.
    """
    qualities = []
    for texts in [built_in(name) for name in HELD_OUT] if lists is None else lists:
        batches = token_batches(texts.texts, tokenizer, max_length=exact.core.config.max_length)
        qualities.append(_on_batches(exact, quantized, batches, pooling, texts.name))
    return tuple(qualities)


def measure_on_random_ids(exact: Model, quantized: Model, pooling: Sequence[str]) -> tuple[Quality, ...]:
    """Compare two models without a tokenizer: on 64 seeded rows of 4 to 32 ids each."""
    config = exact.core.config
    rng = np.random.default_rng(0)
    longest = min(32, config.max_length)
    rows = [rng.integers(0, config.vocab_size, rng.integers(min(4, longest), longest + 1)) for _ in range(64)]
    batches = batched(sorted(rows, key=len), config.pad_token_id or 0)
    return (_on_batches(exact, quantized, batches, pooling, RANDOM),)


def pooling_of(directory: Path) -> tuple[str, ...]:
    """Return the pooling strategies that `modules.json` names; the mean where there are none, or unknown ones."""
    try:
        return pooling_strategies(directory) or ("mean",)
    except SentenceModuleError:
        return ("mean",)


def embeddings(core: Encoder, batches: Sequence[TokenBatch], pooling: Sequence[str]) -> np.ndarray:
    """Return embeddings of length 1 of all texts, (N, dimension) float32, in the order of the batches."""
    return _unit(np.concatenate([_pooled(core(b.input_ids, b.attention_mask), b, pooling) for b in batches]))


def _pooled(output: BertOutput, batch: TokenBatch, pooling: Sequence[str]) -> np.ndarray:
    """Return one vector a text, (B, dimension) float32."""
    mask = mx.array(batch.attention_mask)
    vectors = [output.pool(strategy, mask).astype(mx.float32) for strategy in pooling]
    return np.array(mx.concatenate(vectors, axis=-1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _on_batches(
    exact: Model, quantized: Model, batches: Sequence[TokenBatch], pooling: Sequence[str], name: str
) -> Quality:
    begin = time.perf_counter()
    vectors: tuple[list[np.ndarray], ...] = ([], [])
    agreements, divergences = [], []
    for batch in batches:
        outputs = [model.core(batch.input_ids, batch.attention_mask) for model in (exact, quantized)]
        for pooled, output in zip(vectors, outputs, strict=True):
            pooled.append(_pooled(output, batch, pooling))
        if _has_decisions(exact):
            scores = [
                distributions(
                    model.apply_head(output, batch.attention_mask), batch, exact.kind, exact.labels.problem_type
                )
                for model, output in zip((exact, quantized), outputs, strict=True)
            ]
            for a, b in zip(*scores, strict=True):
                agreements.append((a.argmax(axis=-1) == b.argmax(axis=-1)).reshape(-1))
                divergences.append(divergence(a, b).reshape(-1))
    a, b = (_unit(np.concatenate(pooled)) for pooled in vectors)
    cosines = (a * b).sum(axis=1)
    upper = np.triu_indices(len(a), 1)
    kl = float(np.concatenate(divergences).mean()) if divergences else math.nan
    return Quality(
        text=name,
        sentences=len(a),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        rank_correlation=rank_correlation((a @ a.T)[upper], (b @ b.T)[upper]) if len(a) > 2 else None,
        logit_agreement=float(np.concatenate(agreements).mean()) if agreements else None,
        logit_kl=kl if math.isfinite(kl) else None,
        seconds=time.perf_counter() - begin,
    )


def _has_decisions(model: Any) -> bool:
    """Return whether the model has a head that decides on single texts; a multiple-choice head ranks several."""
    return isinstance(model, PretrainedBert) and model.kind is not HeadKind.CHOICE


def distributions(
    outputs: dict[str, mx.array], batch: TokenBatch, kind: HeadKind, problem: str | None = None
) -> list[np.ndarray]:
    """Return the scores of a head as rows of logits, for real positions only.

    Args:
        outputs: of the head, by name.
        batch: the tokens.
        kind: what the head does.
        problem: `problem_type` of a sequence classifier.
    """
    if kind is not HeadKind.SEQUENCE:
        problem = None
    rows = []
    for name, array in outputs.items():
        scores = np.array(array.astype(mx.float32))
        if name in _SPAN_SCORES:
            rows.append(np.where(batch.keep, scores, -np.inf))
        elif problem == "multi_label_classification":
            rows.append(_yes_or_no(scores))
        elif kind is HeadKind.REPLACED_TOKEN:
            rows.append(_yes_or_no(scores[batch.keep]))
        elif name in _CLASS_SCORES and scores.shape[-1] > 1 and problem != "regression":
            rows.append(scores[batch.keep] if scores.ndim == 3 else scores)
    return rows


def _yes_or_no(scores: np.ndarray) -> np.ndarray:
    """Return logits of "yes" (…) as logits of both answers, (…, 2)."""
    return np.stack([scores, np.zeros_like(scores)], axis=-1)


# By hand, as a conversion must work without scipy, which only the extra `kaggle` has.


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return Spearman's correlation of two sequences; None where one of them is constant."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    centred = [values - values.mean() for values in ranks]
    lengths = [float(np.sqrt(values @ values)) for values in centred]
    return float(centred[0] @ centred[1] / (lengths[0] * lengths[1])) if all(lengths) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def divergence(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return KL(exact ‖ other) in nats of two arrays of logits, along the last axis."""
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (exact, other))
    p = np.exp(log_p)
    # Where p is 0 (a masked position), both logarithms are -inf, and the term is 0.
    return (p * np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p))).sum(axis=-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
