"""`fill_mask`: the words that a masked-LM head would put in the place of [MASK]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxbert.pipelines.batches import PipelineError, check_top_k, padded_batches, require_class, softmax, to_numpy
from mlxbert.pretrained.model import PretrainedBert
from mlxbert.tokenization import Tokenizer
from mlxbert.tokenization.encoding import Encoding

CLASSES = ("BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel")

Filled = list[dict[str, Any]]


def fill_mask(
    model: PretrainedBert,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    top_k: int = 5,
    *,
    batch_size: int = 16,
) -> Filled | list[Filled] | list[Filled | list[Filled]]:
    """The `top_k` likeliest words for every mask, likeliest first; transformers' pipeline "fill-mask".

    Args:
        model, tokenizer: from `mlxbert.load_with_head`.
        texts: one text or several, each with at least one mask token.
        top_k: how many words.
        batch_size: texts computed at once.

    Returns:
        For a text with one mask a list of dicts `score` (probability), `token` (id), `token_str` and `sequence` (the
        text with it); for a text with several masks a list of such lists, each mask by itself. For several texts a
        list of those; for a list of one text, as in transformers, that text's own.

    Raises:
        PipelineError: the model has no masked-LM head, or a text has no mask.
        TokenizerError: something that is not text.
    """
    require_class(model, "fill_mask", CLASSES)
    check_top_k(top_k)
    if tokenizer.mask_token_id is None:
        raise PipelineError("fill_mask: the tokenizer has no mask token; fix: use the tokenizer of the model's source")
    rows = tokenizer.encode(texts)
    for i, row in enumerate(rows):
        if tokenizer.mask_token_id not in row.ids:
            cut = f" in its first {len(row)} tokens, which is all that the model takes" if row.n_truncated else ""
            mask = tokenizer.id_to_token(tokenizer.mask_token_id)
            raise PipelineError(f"fill_mask: text {i} has no {mask}{cut}; fix: write {mask} for the word to guess")
    filled: list[Filled | list[Filled]] = []
    for part, batch in padded_batches(rows, tokenizer.pad_token_id, batch_size):
        places = [(i, j) for i, row in enumerate(part) for j, t in enumerate(row.ids) if t == tokenizer.mask_token_id]
        hidden = model.core(**batch).last_hidden_state  # (B, L, D)
        at = np.array(places)
        # The decoder is as wide as the vocabulary: it scores the masks alone.
        masked = hidden[mx.array(at[:, 0]), mx.array(at[:, 1])]  # (N, D)
        decode = model.core.embeddings.word_embeddings.as_linear
        scores = softmax(to_numpy(model.head.cls.predictions(masked, decode)))  # (N, V)
        for i, row in enumerate(part):
            columns = [column for text, column in places if text == i]
            own = scores[at[:, 0] == i]
            filled.append(_fill(tokenizer, row, columns, own, top_k))
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
    ids = [one for one in ids if one != tokenizer.pad_token_id]
    # With other masks left the special tokens stay, or those masks would vanish from the text.
    return tokenizer.decode(ids, skip_special_tokens=one_mask)
