"""The heads that transformers' `BertFor*` classes put on the encoder; a converted checkpoint brings its own tensors.

Each module tree has the names of those classes (`cls.predictions.transform.dense.weight`, `classifier.weight`, …), so
that a checkpoint's tensors load without a mapping.
"""

from heads.pretrained.choice import MultipleChoiceHead
from heads.pretrained.head import Decode, PretrainedHead
from heads.pretrained.masked_lm import MaskedLMHead
from heads.pretrained.next_sentence import NextSentenceHead
from heads.pretrained.pretraining import PretrainingHead
from heads.pretrained.sequence import SequenceClassificationHead
from heads.pretrained.span import SpanHead
from heads.pretrained.token import TokenClassificationHead

__all__ = [
    "Decode",
    "MaskedLMHead",
    "MultipleChoiceHead",
    "NextSentenceHead",
    "PretrainedHead",
    "PretrainingHead",
    "SequenceClassificationHead",
    "SpanHead",
    "TokenClassificationHead",
]
