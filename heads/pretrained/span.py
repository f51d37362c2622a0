"""The extractive question-answering head; transformers `BertForQuestionAnswering`."""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.head import Decode, PretrainedHead


class SpanHead(PretrainedHead):
    """`BertForQuestionAnswering`: `start_logits` and `end_logits`, (B, L) each."""

    fields: ClassVar[tuple[str, ...]] = ("start_logits", "end_logits")

    def __init__(self, hidden_size: int):
        super().__init__()
        self.qa_outputs = nn.Linear(hidden_size, 2)

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """(B, L, D) -> twice (B, L)."""
        logits = self.qa_outputs(hidden)  # (B, L, 2)
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
