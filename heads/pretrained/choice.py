"""The multiple-choice head; transformers `BertForMultipleChoice`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.dropout import Dropout
from heads.pretrained.head import Decode, PretrainedHead, require_pooled


class MultipleChoiceHead(PretrainedHead):
    """`BertForMultipleChoice`: one score for each choice, `logits` (B, C)."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)
    needs_pooler: ClassVar[bool] = True

    def __init__(self, hidden_size: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, 1)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, C, D), the pooled vector of each choice -> (B, C)."""
        return {"logits": self.classifier(self.dropout(require_pooled(pooled, self))).squeeze(-1)}
