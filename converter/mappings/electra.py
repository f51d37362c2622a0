"""ELECTRA's tensor names in Hugging Face (`models/electra/modeling_electra.py`): BERT's layers, its own embeddings."""

from __future__ import annotations

from typing import Any

from converter.mapping import ArchitectureMapping, Rename
from converter.mappings import bert
from mlxbert.models.electra import ELECTRA

V, E, D = "vocab_size", "embedding_size", "hidden_size"


def _is_projected(config: Any) -> bool:
    """Return whether the embeddings have another width than the layers."""
    return bool(config.embedding_size != config.hidden_size)


MAPPING = ArchitectureMapping(
    model_type=ELECTRA.model_type,
    base_class=ELECTRA.encoder_class,
    base_prefix=ELECTRA.prefix,
    encoder=(
        Rename("embeddings.word_embeddings.weight", (V, E)),
        Rename("embeddings.position_embeddings.weight", ("max_position_embeddings", E)),
        Rename("embeddings.token_type_embeddings.weight", ("type_vocab_size", E)),
        Rename("embeddings.LayerNorm.weight", (E,), also=("embeddings.LayerNorm.gamma",)),
        Rename("embeddings.LayerNorm.bias", (E,), also=("embeddings.LayerNorm.beta",)),
        Rename("embeddings_project.weight", (D, E), when=_is_projected),
        Rename("embeddings_project.bias", (D,), when=_is_projected),
        *(rename for rename in bert.MAPPING.encoder if rename.target.startswith("encoder.")),
    ),
    heads=(
        # ElectraForPreTraining
        Rename("discriminator_predictions.dense.weight", (D, D)),
        Rename("discriminator_predictions.dense.bias", (D,)),
        Rename("discriminator_predictions.dense_prediction.weight", (1, D)),
        Rename("discriminator_predictions.dense_prediction.bias", (1,)),
        # ElectraForMaskedLM
        Rename("generator_predictions.dense.weight", (E, D)),
        Rename("generator_predictions.dense.bias", (E,)),
        Rename("generator_predictions.LayerNorm.weight", (E,), also=("generator_predictions.LayerNorm.gamma",)),
        Rename("generator_predictions.LayerNorm.bias", (E,), also=("generator_predictions.LayerNorm.beta",)),
        Rename("generator_lm_head.weight", (V, E), tied_to="embeddings.word_embeddings.weight"),
        Rename("generator_lm_head.bias", (V,)),
        # ElectraForSequenceClassification
        Rename("classifier.dense.weight", (D, D)),
        Rename("classifier.dense.bias", (D,)),
        Rename("classifier.out_proj.weight", (None, D)),
        Rename("classifier.out_proj.bias", (None,)),
        # ElectraForTokenClassification, ElectraForMultipleChoice
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
        # ElectraForMultipleChoice
        Rename("sequence_summary.summary.weight", (None, D)),
        Rename("sequence_summary.summary.bias", (None,)),
        # ElectraForQuestionAnswering
        Rename("qa_outputs.weight", (None, D)),
        Rename("qa_outputs.bias", (None,)),
    ),
    drops=bert.MAPPING.drops,
)
