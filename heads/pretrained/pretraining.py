"""Both heads that BERT is pre-trained with; transformers `BertPreTrainingHeads`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.head import Decode, PretrainedHead, require_pooled
from heads.pretrained.masked_lm import Predictions


class PretrainingHead(PretrainedHead):
    """`BertForPreTraining`: `prediction_logits` (B, L, V) and `seq_relationship_logits` (B, 2)."""

    fields: ClassVar[tuple[str, ...]] = ("prediction_logits", "seq_relationship_logits")
    needs_pooler: ClassVar[bool] = True

    def __init__(self, predictions: Predictions, hidden_size: int):
        super().__init__()
        self.cls = nn.Module()
        self.cls.predictions = predictions
        self.cls.seq_relationship = nn.Linear(hidden_size, 2)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> (B, L, V), and (B, D) -> (B, 2)."""
        return {
            "prediction_logits": self.cls.predictions(hidden, decode),
            "seq_relationship_logits": self.cls.seq_relationship(require_pooled(pooled, self)),
        }
