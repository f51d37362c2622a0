"""`Encoding`, one text as ids, and `padded`, a batch of them as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text (or pair), not padded.

    Attributes:
        ids: token ids, special tokens included.
        type_ids: 0 for the first text, 1 for the second.
        offsets: start and end of each token in its own text, in characters; (0, 0) for a special token.
        special_tokens_mask: 1 for tokens that the tokenizer put in ([CLS], [SEP]), 0 for the text's own.
        n_truncated: tokens cut off because the text was longer than the limit.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special_tokens_mask: tuple[int, ...]
    n_truncated: int

    def __len__(self) -> int:
        return len(self.ids)


def padded(
    ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> dict[str, mx.array]:
    """A batch as the model takes it: `input_ids`, `token_type_ids`, `attention_mask`, each (B, length) int32.

    Padding is always on the right: BERT's positions count from the left.
    """
    shape = (len(ids), length)
    token_ids = np.full(shape, pad_id, np.int32)
    types, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, (row, row_types) in enumerate(zip(ids, type_ids, strict=True)):
        n = len(row)
        token_ids[i, :n], types[i, :n], mask[i, :n] = row, row_types, 1
    return {"input_ids": mx.array(token_ids), "token_type_ids": mx.array(types), "attention_mask": mx.array(mask)}
