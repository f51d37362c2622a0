"""Pipelines for whole texts, and functions that all pipelines use: checks, padded batches, windows over a long text.

`classify`: labels of whole texts, by a sequence-classification head.

`fill_mask`: the words that a masked-LM head predicts for [MASK].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import EllipsisType
from typing import Any

import mlx.core as mx
import numpy as np

from heads.arrays import sigmoid, softmax
from mlxbert.errors import MLXBertError
from mlxbert.models.architecture import HeadKind
from mlxbert.pretrained import Labels, PretrainedBert
from mlxbert.tokenization.encoding import Encoding, padded, warn_of_truncation
from mlxbert.tokenization.tokenizer import Tokenizer


class PipelineError(MLXBertError):
    """A model of another class, or a text that the pipeline cannot use."""


def require_kind(model: PretrainedBert, pipeline: str, *kinds: HeadKind) -> None:
    """Raise PipelineError if the model's head is of none of these kinds."""
    if model.kind not in kinds:
        heads = model.core.architecture.heads
        classes = [name for kind in kinds for name, head in heads.items() if head.kind is kind]
        raise PipelineError(
            f"{pipeline} needs {' or '.join(classes)}, and this model is {model.architecture}; "
            "fix: load a checkpoint that was trained for it"
        )


def padded_batches(
    rows: Sequence[Encoding], pad_id: int | None, batch_size: int
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Yield batches of rows of similar lengths, the longest first: their numbers, and the arrays for the model."""
    check_positive("batch_size", batch_size)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    for start in range(0, len(rows), batch_size):
        numbers = order[start : start + batch_size]
        part = [rows[number] for number in numbers]
        length = max(map(len, part))
        yield numbers, padded([r.ids for r in part], [r.type_ids for r in part], length=length, pad_id=pad_id or 0)


def warn_of_cut(rows: Sequence[Encoding], tokenizer: Tokenizer, *, stacklevel: int) -> None:
    """Warn once if texts were cut to the model's longest input; `stacklevel` 1 is the caller of this function."""
    cut = [row for row in rows if row.n_truncated]
    if cut:
        longest = max(len(row) + row.n_truncated for row in cut)
        more = any(row.uncounted for row in cut)
        limit = tokenizer.max_length
        warn_of_truncation(len(cut), len(rows), longest, limit, stacklevel=stacklevel + 1, at_least=more)


def without_limit(tokenizer: Tokenizer) -> Tokenizer:
    """Return the same tokenizer without a length limit, for texts that are read in windows."""
    unlimited = copy.copy(tokenizer)
    unlimited.max_length = unlimited.model_limit = None
    return unlimited


def windows(tokens: int, room: int, stride: int, *, name: str = "stride") -> list[tuple[int, int]]:
    """Return ranges of at most `room` tokens that cover `tokens` tokens, each overlapping the last by `stride`.

    As in the package tokenizers (`truncate_encoding`, direction right). No tokens: one empty range.

    Raises:
        PipelineError: the overlap is as large as a window.
    """
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 0:
        raise PipelineError(f"{name} must be a whole number from 0, not {stride!r}")
    if tokens <= room:
        return [(0, tokens)]
    if stride >= room:
        raise PipelineError(f"{name}={stride} leaves nothing of the {room} tokens that a window holds; fix: lower it")
    ranges = []
    for start in range(0, tokens, room - stride):
        ranges.append((start, min(start + room, tokens)))
        if start + room >= tokens:
            break
    return ranges


def cut_out(row: Encoding, body: Sequence[int], start: int, stop: int) -> Encoding:
    """Return a row without the tokens at the indices `body`, except `body[start:stop]`."""
    dropped = set(body[:start]) | set(body[stop:])
    keep = [index for index in range(len(row)) if index not in dropped]
    return Encoding(
        ids=tuple(row.ids[i] for i in keep),
        type_ids=tuple(row.type_ids[i] for i in keep),
        offsets=tuple(row.offsets[i] for i in keep),
        special_tokens_mask=tuple(row.special_tokens_mask[i] for i in keep),
        sequences=tuple(row.sequences[i] for i in keep),
        n_truncated=len(dropped),
    )


def to_numpy(array: mx.array | None) -> np.ndarray:
    """Return a float32 array on the host."""
    assert array is not None  # the class was checked
    return np.array(array.astype(mx.float32))


def check_positive(name: str, value: int) -> None:
    """Refuse anything but a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PipelineError(f"{name} must be a positive whole number, not {value!r}")


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
    """Return the labels of texts with their scores; transformers' pipeline "text-classification".

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        texts: one text or several; a pair is {"text": …, "text_pair": …}. As in transformers, a pair whose second text
            is empty is its first text alone.
        top_k: how many labels, best first; None: all; left out: the best one.
        function_to_apply: from logits to scores: "sigmoid", "softmax" or "none"; None: by the model's problem
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
    require_kind(model, "classify", HeadKind.SEQUENCE)
    if top_k is not ... and top_k is not None:
        check_positive("top_k", top_k)
    function = default_function(model.labels) if function_to_apply is None else function_to_apply
    if function not in FUNCTIONS:
        raise PipelineError(f"classify: function_to_apply {function!r} is not known; known are {', '.join(FUNCTIONS)}")
    alone = isinstance(texts, str | Mapping)
    if not isinstance(texts, Iterable):
        raise PipelineError(f"classify: expected a text or several, not {type(texts).__name__}")
    items = [texts] if isinstance(texts, str | Mapping) else list(texts)
    rows = [tokenizer.encode([text], pair)[0] for text, pair in map(_text_and_pair, items)]
    warn_of_cut(rows, tokenizer, stacklevel=2)
    results: list[Any] = [None] * len(rows)
    for numbers, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        logits = to_numpy(model(**batch).logits)  # (B, K)
        scores = softmax(logits) if function == "softmax" else sigmoid(logits) if function == "sigmoid" else logits
        for number, row_scores in zip(numbers, scores, strict=True):
            results[number] = _labelled(model.labels, row_scores, top_k)
    if not alone:
        return results
    return results if isinstance(texts, str) and top_k is ... else results[0]


def default_function(labels: Labels) -> str:
    """Return the function from a classifier's logits to scores, as transformers chooses it."""
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


Filled = list[dict[str, Any]]


def fill_mask(
    model: PretrainedBert,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    top_k: int = 5,
    *,
    batch_size: int = 16,
) -> Filled | list[Filled] | list[Filled | list[Filled]]:
    """Return the `top_k` likeliest words for every mask, likeliest first; transformers' pipeline "fill-mask".

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        texts: one text or several, each with at least one mask token.
        top_k: how many words.
        batch_size: texts computed at once.

    Returns:
        For a text with one mask a list of dicts `score` (probability), `token` (id), `token_str` and `sequence` (the
        text with it); for a text with several masks a list of such lists, each mask by itself. For several texts a
        list of those; for a list of one text, as in transformers, that text's list.

    Raises:
        PipelineError: the model has no masked-LM head, or a text has no mask.
        TokenizerError: something that is not text.
    """
    require_kind(model, "fill_mask", HeadKind.MASKED_LM, HeadKind.PRETRAINING)
    check_positive("top_k", top_k)
    if tokenizer.mask_token_id is None:
        raise PipelineError("fill_mask: the tokenizer has no mask token; fix: use the tokenizer of the model's source")
    rows = tokenizer.encode(texts)
    for i, row in enumerate(rows):
        if tokenizer.mask_token_id not in row.ids:
            cut = f" in its first {len(row)} tokens, the limit of the model" if row.n_truncated else ""
            mask = tokenizer.id_to_token(tokenizer.mask_token_id)
            raise PipelineError(f"fill_mask: text {i} has no {mask}{cut}; fix: write {mask} for the word to guess")
    filled: list[Filled | list[Filled]] = [[]] * len(rows)
    for numbers, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        part = [rows[number] for number in numbers]
        places = [(i, j) for i, row in enumerate(part) for j, t in enumerate(row.ids) if t == tokenizer.mask_token_id]
        hidden = model.core(**batch).last_hidden_state  # (B, L, D)
        at = np.array(places)
        # The decoder is as wide as the vocabulary: it scores the masks alone.
        masked = hidden[mx.array(at[:, 0]), mx.array(at[:, 1])]  # (N, D)
        scores = softmax(to_numpy(model.head.word_logits(masked, model.core.decode)))  # (N, V)
        for i, number in enumerate(numbers):
            columns = [column for text, column in places if text == i]
            mask_scores = scores[at[:, 0] == i]
            filled[number] = _fill(tokenizer, rows[number], columns, mask_scores, top_k)
    return filled[0] if len(filled) == 1 else filled


def _fill(
    tokenizer: Tokenizer, row: Encoding, columns: list[int], scores: np.ndarray, top_k: int
) -> Filled | list[Filled]:
    results = []
    for column, probabilities in zip(columns, scores, strict=True):
        best = np.argsort(-probabilities, kind="stable")[:top_k]
        results.append(
            [
                {
                    "score": float(probabilities[token]),
                    "token": int(token),
                    "token_str": tokenizer.decode([int(token)], skip_special_tokens=False),
                    "sequence": _sequence(tokenizer, row, column, int(token), one_mask=len(columns) == 1),
                }
                for token in best
            ]
        )
    return results[0] if len(results) == 1 else results


def _sequence(tokenizer: Tokenizer, row: Encoding, column: int, token: int, *, one_mask: bool) -> str:
    ids = [*row.ids[:column], token, *row.ids[column + 1 :]]
    ids = [i for i in ids if i != tokenizer.pad_token_id]
    # If there are other masks, keep special tokens, because masks are special tokens too.
    return tokenizer.decode(ids, skip_special_tokens=one_mask)
