"""The heads that transformers' `BertFor*` classes put on the encoder; a converted checkpoint brings its own tensors.

Each module tree has the names of those classes (`cls.predictions.transform.dense.weight`, `classifier.weight`, …), so
that a checkpoint's tensors load without a mapping.
"""

from heads.pretrained.base import Decode, Dropout, PretrainedHead
from heads.pretrained.classification import (
    MultipleChoiceHead,
    SequenceClassificationHead,
    SpanHead,
    TokenClassificationHead,
)
from heads.pretrained.language_model import MaskedLMHead, NextSentenceHead, Predictions, PretrainingHead

__all__ = [
    "Decode",
    "Dropout",
    "MaskedLMHead",
    "MultipleChoiceHead",
    "NextSentenceHead",
    "Predictions",
    "PretrainedHead",
    "PretrainingHead",
    "SequenceClassificationHead",
    "SpanHead",
    "TokenClassificationHead",
]
