"""What a quantization cost, on text that calibration never saw: quantized against float32, both in MLX."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from converter.quantize.cost import Quality
from converter.quantize.texts import HELD_OUT, TextList, TokenBatch, batched, built_in, token_batches
from mlxbert.encode.modules import SentenceModuleError
from mlxbert.encode.sentence_modules import pooling_strategies
from mlxbert.models.base import BertOutput, Encoder, HeadKind

if TYPE_CHECKING:
    from mlxbert.pretrained.model import PretrainedBert
    from mlxbert.tokenization.tokenizer import Tokenizer

Model = Any
"""A `Encoder`, or a `PretrainedBert`."""

# A head's outputs that are scores of classes along their last axis.
_CLASS_SCORES = ("logits", "prediction_logits", "seq_relationship_logits")
_SPAN_SCORES = ("start_logits", "end_logits")
RANDOM = "random ids"


def measure_quality(
    exact: Model,
    quantized: Model,
    tokenizer: Tokenizer,
    pooling: Sequence[str],
    lists: Sequence[TextList] | None = None,
) -> tuple[Quality, ...]:
    """Compare two models on every held-out list.

    Args:
        exact: float32.
        quantized: the same class.
        tokenizer: theirs.
        pooling: strategies, joined one after the other: those of the checkpoint.
        lists: the texts; None: the two that ship with the package.
    """
    lists = [built_in(name) for name in HELD_OUT] if lists is None else lists
    return tuple(_on_list(exact, quantized, tokenizer, pooling, texts) for texts in lists)


def pooling_of(directory: Path) -> tuple[str, ...]:
    """How the checkpoint makes embeddings of texts, by its `modules.json`; the mean where it has none."""
    try:
        return pooling_strategies(directory) or ("mean",)
    except SentenceModuleError:  # a strategy that is not known here: the encoder's own cost can be told all the same
        return ("mean",)


def embeddings(core: Encoder, batches: Sequence[TokenBatch], pooling: Sequence[str]) -> np.ndarray:
    """Embeddings of length 1 of all texts, (N, dimension) float32, in the order of the batches."""
    found = [pooled(core(batch.input_ids, batch.attention_mask), batch, pooling) for batch in batches]
    return unit(np.concatenate(found))


def pooled(output: BertOutput, batch: TokenBatch, pooling: Sequence[str]) -> np.ndarray:
    """(B, dimension) float32."""
    mask = mx.array(batch.attention_mask)
    vectors = [output.pool(strategy, mask).astype(mx.float32) for strategy in pooling]
    return np.array(mx.concatenate(vectors, axis=-1))


def core_of(model: Model) -> Any:
    """The encoder of a model, which may be one itself."""
    return model if isinstance(model, Encoder) else model.core


def unit(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's correlation of two sequences; None where one of them is constant."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (a, b)]
    centred = [values - values.mean() for values in ranks]
    lengths = [float(np.sqrt(values @ values)) for values in centred]
    return float(centred[0] @ centred[1] / (lengths[0] * lengths[1])) if all(lengths) else None


def divergence(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(exact ‖ other) in nats of two rows of logits, along the last axis."""
    log_p, log_q = (_log_softmax(logits.astype(np.float64)) for logits in (exact, other))
    p = np.exp(log_p)
    # Where p is 0 (a masked position), both logarithms are -inf, and the term is 0.
    return (p * np.subtract(log_p, log_q, where=p > 0, out=np.zeros_like(p))).sum(axis=-1)


def measure_on_random_ids(exact: Model, quantized: Model, pooling: Sequence[str]) -> tuple[Quality, ...]:
    """`measure_quality` for a model without a tokenizer: 64 seeded rows of ids, of 4 to 32 tokens each."""
    config = core_of(exact).config
    rng = np.random.default_rng(0)
    longest = min(32, config.max_length)
    rows = [rng.integers(0, config.vocab_size, rng.integers(min(4, longest), longest + 1)) for _ in range(64)]
    return (_on_batches(exact, quantized, batched(sorted(rows, key=len), config.pad_token_id or 0), pooling, RANDOM),)


def _on_list(exact: Model, quantized: Model, tokenizer: Tokenizer, pooling: Sequence[str], texts: TextList) -> Quality:
    batches = token_batches(texts.texts, tokenizer, max_length=core_of(exact).config.max_length)
    return _on_batches(exact, quantized, batches, pooling, texts.name)


def _on_batches(
    exact: Model, quantized: Model, batches: Sequence[TokenBatch], pooling: Sequence[str], name: str
) -> Quality:
    begin = time.perf_counter()
    cores = [core_of(model) for model in (exact, quantized)]
    vectors: tuple[list[np.ndarray], ...] = ([], [])
    agreement, kl = [], []
    problem = exact.labels.problem_type if _is_sequence_classifier(exact) else None
    for batch in batches:
        outputs = [core(batch.input_ids, batch.attention_mask) for core in cores]
        for found, output in zip(vectors, outputs, strict=True):
            found.append(pooled(output, batch, pooling))
        if cores[0] is not exact and not _is_choice(exact):
            scores = [
                distributions(model.apply_head(output), batch, problem)
                for model, output in zip((exact, quantized), outputs, strict=True)
            ]
            for a, b in zip(*scores, strict=True):
                agreement.append((a.argmax(axis=-1) == b.argmax(axis=-1)).reshape(-1))
                kl.append(divergence(a, b).reshape(-1))
    a, b = (unit(np.concatenate(found)) for found in vectors)
    cosines = (a * b).sum(axis=1)
    upper = np.triu_indices(len(a), 1)
    return Quality(
        text=name,
        sentences=len(a),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        rank_correlation=rank_correlation((a @ a.T)[upper], (b @ b.T)[upper]) if len(a) > 2 else None,
        logit_agreement=float(np.concatenate(agreement).mean()) if agreement else None,
        logit_kl=_finite(float(np.concatenate(kl).mean())) if kl else None,
        seconds=time.perf_counter() - begin,
    )


def distributions(outputs: dict[str, mx.array], batch: TokenBatch, problem: str | None) -> list[np.ndarray]:
    """The head's scores as rows of logits, over real positions alone; `problem`: its `problem_type`."""
    rows = []
    for name, array in outputs.items():
        scores = np.array(array.astype(mx.float32))
        if name in _SPAN_SCORES:
            rows.append(np.where(batch.keep, scores, -np.inf))
        elif problem == "multi_label_classification":  # each label by itself: yes or no
            rows.append(np.stack([scores, np.zeros_like(scores)], axis=-1))
        elif name in _CLASS_SCORES and scores.shape[-1] > 1 and problem != "regression":
            rows.append(scores[batch.keep] if scores.ndim == 3 else scores)
    return rows


def _is_sequence_classifier(model: Model) -> bool:
    return core_of(model) is not model and model.kind is HeadKind.SEQUENCE


def _is_choice(model: PretrainedBert) -> bool:
    # A multiple-choice head ranks texts of one question, and a list of sentences has no questions.
    return model.kind is HeadKind.CHOICE


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
