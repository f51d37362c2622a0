"""Classification heads: a whole text, each token, one of several choices, and the span of an answer.

They follow transformers' `BertForSequenceClassification`, `BertForTokenClassification`, `BertForMultipleChoice` and
`BertForQuestionAnswering`.
"""

from __future__ import annotations

from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.base import Decode, Dropout, PretrainedHead, require_pooled


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
