"""The sequence-classification head; transformers `BertForSequenceClassification`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.dropout import Dropout
from heads.pretrained.head import Decode, PretrainedHead, require_pooled


class SequenceClassificationHead(PretrainedHead):
    """`BertForSequenceClassification`: `logits` (B, K) for single-label, multi-label and regression alike.

    What a logit means (`problem_type`) is for who reads it: see `mlxbert.pipelines.texts`.
    """

    fields: ClassVar[tuple[str, ...]] = ("logits",)
    needs_pooler: ClassVar[bool] = True

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, D) -> (B, K)."""
        return {"logits": self.classifier(self.dropout(require_pooled(pooled, self)))}
