"""`classify`: labels of whole texts, by a sequence-classification head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from mlxbert.pipelines.batches import (
    PipelineError,
    check_top_k,
    padded_batches,
    require_class,
    softmax,
    to_numpy,
    warn_of_cut,
)
from mlxbert.pretrained.labels import Labels
from mlxbert.pretrained.model import PretrainedBert
from mlxbert.tokenization import Tokenizer

FUNCTIONS = ("sigmoid", "softmax", "none")

Text = str | Mapping[str, str]
"""A text, or a pair of them: {"text": …, "text_pair": …}."""


def classify(
    model: PretrainedBert,
    tokenizer: Tokenizer,
    texts: Text | Sequence[Text],
    top_k: int | EllipsisType | None = ...,
    *,
    function_to_apply: str | None = None,
    batch_size: int = 16,
) -> Any:
    """The labels of texts with their scores; transformers' pipeline "text-classification".

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        texts: one text or several; a pair is {"text": …, "text_pair": …}. As in transformers, a pair whose second text
            is empty is its first text alone.
        top_k: how many labels, best first; None: all; left out: the best one.
        function_to_apply: what makes scores of logits: "sigmoid", "softmax" or "none"; None: by the model's problem
            type (regression: none; multi-label, or one label: sigmoid; else softmax).
        batch_size: texts computed at once.

    Returns:
        Dicts with `label` and `score`. Without `top_k` one for each text, in a list also for a single string. With
        it a list of them for each text.

    Raises:
        PipelineError: the model is no sequence classifier, or an argument is not understood.
        TokenizerError: something that is not text.

    Warns:
        TruncationWarning: texts were cut to the model's longest input.
    """
    require_class(model, "classify", ("BertForSequenceClassification",))
    if top_k is not ... and top_k is not None:
        check_top_k(top_k)
    function = default_function(model.labels) if function_to_apply is None else function_to_apply
    if function not in FUNCTIONS:
        raise PipelineError(f"classify: function_to_apply {function!r} is not known; known are {', '.join(FUNCTIONS)}")
    alone = isinstance(texts, str | Mapping)
    if not isinstance(texts, Iterable):
        raise PipelineError(f"classify: expected a text or several, not {type(texts).__name__}")
    items = [texts] if isinstance(texts, str | Mapping) else list(texts)
    rows = [tokenizer.encode([text], pair)[0] for text, pair in map(_text_and_pair, items)]
    warn_of_cut(rows, tokenizer, stacklevel=2)
    results: list[Any] = []
    for part, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        logits = to_numpy(model(**batch).logits)  # (B, K)
        scores = softmax(logits) if function == "softmax" else _sigmoid(logits) if function == "sigmoid" else logits
        results += [_labelled(model.labels, scores[i], top_k) for i in range(len(part))]
    if not alone:
        return results
    return results if isinstance(texts, str) and top_k is ... else results[0]


def default_function(labels: Labels) -> str:
    """What makes scores of a classifier's logits, as transformers decides it."""
    if labels.problem_type == "regression":
        return "none"
    if labels.problem_type == "multi_label_classification" or labels.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _text_and_pair(item: Text) -> tuple[str, list[str] | None]:
    if isinstance(item, str):
        return item, None
    if not isinstance(item, Mapping) or "text" not in item or set(item) - {"text", "text_pair"}:
        raise PipelineError(f'classify: expected a text or {{"text": …, "text_pair": …}}, not {item!r:.80}')
    pair = item.get("text_pair")
    return item["text"], None if pair is None or pair == "" else [pair]


def _labelled(labels: Labels, scores: np.ndarray, top_k: int | EllipsisType | None) -> Any:
    order = np.argsort(-scores, kind="stable")
    ranked = [{"label": labels.id2label[int(i)], "score": float(scores[i])} for i in order]
    return ranked[0] if isinstance(top_k, EllipsisType) else ranked[:top_k]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    # By the sign, so that exp never overflows.
    smaller = np.exp(-np.abs(logits))
    return np.where(logits >= 0, 1, smaller) / (1 + smaller)
