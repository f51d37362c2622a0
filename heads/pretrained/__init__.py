"""The heads that transformers puts on an encoder; a converted checkpoint brings its own tensors.

Each module tree has the names of those classes (`cls.predictions.transform.dense.weight`, `classifier.weight`, …), so
that a checkpoint's tensors load without a mapping.
"""

from heads.pretrained.bert import (
    Decode,
    Dropout,
    LayerNorm,
    MaskedLMHead,
    MultipleChoiceHead,
    NextSentenceHead,
    Predictions,
    PretrainedHead,
    PretrainingHead,
    SequenceClassificationHead,
    SpanHead,
    TokenClassificationHead,
)

__all__ = [
    "Decode",
    "Dropout",
    "LayerNorm",
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
