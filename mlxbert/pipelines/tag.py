"""`tag`: labels of words, by a token-classification head; names, places, parts of speech."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from mlxbert.pipelines.batches import (
    PipelineError,
    cut_out,
    padded_batches,
    require_class,
    softmax,
    to_numpy,
    warn_of_cut,
    windows,
    without_limit,
)
from mlxbert.pipelines.word_groups import CONTINUES, STRATEGIES, Piece, aggregate, without_overlaps
from mlxbert.pretrained.model import PretrainedBert
from mlxbert.tokenization import Tokenizer
from mlxbert.tokenization.encoding import Encoding
from mlxbert.tokenization.text_input import check_texts

Entities = list[dict[str, Any]]


def tag(
    model: PretrainedBert,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    aggregation_strategy: str = "first",
    *,
    ignore_labels: Collection[str] | None = ("O",),
    stride: int | None = None,
    batch_size: int = 16,
) -> Entities | list[Entities]:
    """The labelled words of texts; transformers' pipeline "token-classification".

    A word is one that the tokenizer's pre-tokenizer makes; a piece of it begins with "##".

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        texts: one text or several.
        aggregation_strategy: "none": every word piece by itself. The others join neighbours of one label (B- begins
            another entity): "simple" pieces as they are; the next three whole words, labelled by their "first" piece,
            by the "average" of their pieces' probabilities, or by the piece with the highest probability ("max").
        ignore_labels: labels left out; one string is one label; None: "O", as in transformers.
        stride: tokens that windows over a text longer than the model overlap by; None: cut it, with a warning.
        batch_size: texts computed at once.

    Returns:
        For each text a list of dicts in the order of the text: `entity` and `index` (of the token) with "none",
        `entity_group` otherwise, with `score`, `word`, `start` and `end` (characters). For one string its list alone.

    Raises:
        PipelineError: the model is no token classifier, or an argument is not understood.
        TokenizerError: something that is not text.

    Warns:
        TruncationWarning: without a stride, texts were cut to the model's longest input.
    """
    require_class(model, "tag", ("BertForTokenClassification",))
    if aggregation_strategy not in STRATEGIES:
        raise PipelineError(
            f"tag: aggregation_strategy {aggregation_strategy!r} is not known; known are {', '.join(STRATEGIES)}"
        )
    if stride is not None and aggregation_strategy == "none":
        raise PipelineError('tag: with a stride, pieces seen twice are joined; fix: aggregation_strategy="simple"')
    ignored = (
        {ignore_labels} if isinstance(ignore_labels, str) else set(("O",) if ignore_labels is None else ignore_labels)
    )
    items = check_texts(texts)
    if stride is None:
        rows = tokenizer.encode(items)
        warn_of_cut(rows, tokenizer, stacklevel=2)
        owners = list(range(len(rows)))
    else:
        parts = [_in_windows(row, tokenizer, stride) for row in without_limit(tokenizer).encode(items)]
        rows = [row for part in parts for row in part]
        owners = [i for i, part in enumerate(parts) for _ in part]
    found: list[list[Entities]] = [[] for _ in items]
    done = 0
    for part_rows, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        scores = softmax(to_numpy(model(**batch).logits))  # (B, L, K)
        for row, row_scores in zip(part_rows, scores, strict=True):
            text = items[owners[done]]
            pieces = _pieces(tokenizer, text, row, row_scores)
            entities = aggregate(pieces, aggregation_strategy, model.labels.id2label)
            kept = [e for e in entities if e.get("entity", e.get("entity_group")) not in ignored]
            found[owners[done]].append(kept)
            done += 1
    results = [
        parts[0] if len(parts) == 1 else without_overlaps([e for part in parts for e in part]) for parts in found
    ]
    return results[0] if isinstance(texts, str) else results


def _in_windows(row: Encoding, tokenizer: Tokenizer, stride: int) -> list[Encoding]:
    body = [index for index, special in enumerate(row.special_tokens_mask) if not special]
    if tokenizer.max_length is None:
        return [row]
    room = tokenizer.max_length - (len(row) - len(body))
    return [cut_out(row, body, start, stop) for start, stop in windows(len(body), room, stride)]


def _pieces(tokenizer: Tokenizer, text: str, row: Encoding, scores: Any) -> list[Piece]:
    pieces = []
    for index, (token_id, (start, end)) in enumerate(zip(row.ids, row.offsets, strict=True)):
        if row.special_tokens_mask[index]:
            continue
        token = tokenizer.id_to_token(token_id) or ""
        continues = token.startswith(CONTINUES)
        if token_id == tokenizer.unk_token_id:
            token, continues = text[start:end], False
        pieces.append(Piece(token, scores[index], start, end, index, continues))
    return pieces
