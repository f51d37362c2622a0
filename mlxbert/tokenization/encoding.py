"""`Encoding`, one text as ids, and `padded`, a batch of them as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import tokenizers

from mlxbert.tokenization.long_text import Tokens


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text (or pair), not padded.

    Attributes:
        ids: token ids, special tokens included.
        type_ids: 0 for the first text, 1 for the second.
        offsets: start and end of each token in its own text, in characters; (0, 0) for a special token.
        special_tokens_mask: 1 for tokens that the tokenizer put in ([CLS], [SEP]), 0 for the text's own.
        n_truncated: tokens cut off because the text was longer than the limit.
        uncounted: whether still more was cut off: of a text of more than 65,536 characters only the beginning is read.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special_tokens_mask: tuple[int, ...]
    n_truncated: int
    uncounted: bool = False

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around a text or a pair.

    Attributes:
        specials: id and type id of those before the first text, between both and after the second; two lists for one.
        types: the type id of each text's tokens.
    """

    specials: tuple[tuple[tuple[int, int], ...], ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, *, pair: bool) -> Frame:
        """What the pipeline puts around one token, or around two of them."""
        row = backend.encode("a", "a" if pair else None)
        specials: list[list[tuple[int, int]]] = [[]]
        types: list[int] = []
        sequence = None
        for token, kind, special, of in zip(
            row.ids, row.type_ids, row.special_tokens_mask, row.sequence_ids, strict=True
        ):
            if special:
                specials[-1].append((token, kind))
            elif of != sequence:
                sequence = of
                types.append(kind)
                specials.append([])
        return cls(tuple(map(tuple, specials)), tuple(types))

    @property
    def highest_type(self) -> int:
        """The highest type id of all."""
        return max([*self.types, *(kind for part in self.specials for _, kind in part)], default=0)

    def around(self, *texts: Tokens, n_truncated: int, uncounted: bool) -> Encoding:
        """The row of these texts' tokens."""
        ids: list[int] = []
        types: list[int] = []
        offsets: list[tuple[int, int]] = []
        mask: list[int] = []
        for i, specials in enumerate(self.specials):
            ids += [token for token, _ in specials]
            types += [kind for _, kind in specials]
            offsets += [(0, 0)] * len(specials)
            mask += [1] * len(specials)
            if i < len(texts):
                ids += texts[i].ids
                types += [self.types[i]] * len(texts[i])
                offsets += texts[i].offsets
                mask += [0] * len(texts[i])
        return Encoding(tuple(ids), tuple(types), tuple(offsets), tuple(mask), n_truncated, uncounted)


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
