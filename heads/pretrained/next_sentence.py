"""The next-sentence head; transformers `BertOnlyNSPHead`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.head import Decode, PretrainedHead, require_pooled


class NextSentenceHead(PretrainedHead):
    """`BertForNextSentencePrediction`: `logits` (B, 2), for "is the next sentence" and "is a random one"."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)
    needs_pooler: ClassVar[bool] = True

    def __init__(self, hidden_size: int):
        super().__init__()
        self.cls = nn.Module()
        self.cls.seq_relationship = nn.Linear(hidden_size, 2)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, D) -> (B, 2)."""
        return {"logits": self.cls.seq_relationship(require_pooled(pooled, self))}
