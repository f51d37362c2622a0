"""RoBERTa's tensor names in Hugging Face (`models/roberta/modeling_roberta.py`): BERT's encoder, its own heads."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Rename
from converter.mappings import bert
from mlxbert.models.roberta import ROBERTA

V, D = "vocab_size", "hidden_size"
_PLAIN = bert.MAPPING

MAPPING = ArchitectureMapping(
    model_type=ROBERTA.model_type,
    base_class=ROBERTA.encoder_class,
    base_prefix=ROBERTA.prefix,
    encoder=_PLAIN.encoder,
    optional=_PLAIN.optional,
    heads=(
        # RobertaForMaskedLM
        Rename("lm_head.bias", (V,)),
        Rename("lm_head.dense.weight", (D, D)),
        Rename("lm_head.dense.bias", (D,)),
        Rename("lm_head.layer_norm.weight", (D,), also=("lm_head.layer_norm.gamma",)),
        Rename("lm_head.layer_norm.bias", (D,), also=("lm_head.layer_norm.beta",)),
        Rename("lm_head.decoder.weight", (V, D), tied_to="embeddings.word_embeddings.weight"),
        Rename("lm_head.decoder.bias", (V,), tied_to="lm_head.bias"),
        # RobertaForSequenceClassification
        Rename("classifier.dense.weight", (D, D)),
        Rename("classifier.dense.bias", (D,)),
        Rename("classifier.out_proj.weight", (None, D)),
        Rename("classifier.out_proj.bias", (None,)),
        # RobertaForTokenClassification, RobertaForMultipleChoice
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
        # RobertaForQuestionAnswering
        Rename("qa_outputs.weight", (None, D)),
        Rename("qa_outputs.bias", (None,)),
    ),
    drops=_PLAIN.drops,
)
