"""The token-classification head; transformers `BertForTokenClassification`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.dropout import Dropout
from heads.pretrained.head import Decode, PretrainedHead


class TokenClassificationHead(PretrainedHead):
    """`BertForTokenClassification`: `logits` (B, L, K)."""

    fields: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> (B, L, K)."""
        return {"logits": self.classifier(self.dropout(hidden))}
