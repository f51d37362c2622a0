"""ALBERT's tensor names in Hugging Face (`models/albert/modeling_albert.py`), with the names that Google's TensorFlow
checkpoint has for LayerNorm (`gamma`, `beta`)."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Drop, Rename
from mlxbert.models.albert import ALBERT

V, E, D, F = "vocab_size", "embedding_size", "hidden_size", "intermediate_size"
MAP = "encoder.embedding_hidden_mapping_in"
LAYER = "encoder.albert_layer_groups.{g}.albert_layers.{j}"
HEAD = "predictions"

MAPPING = ArchitectureMapping(
    model_type=ALBERT.model_type,
    base_class=ALBERT.encoder_class,
    base_prefix=ALBERT.prefix,
    counts={"g": "num_hidden_groups", "j": "inner_group_num"},
    encoder=(
        Rename("embeddings.word_embeddings.weight", (V, E)),
        Rename("embeddings.position_embeddings.weight", ("max_position_embeddings", E)),
        Rename("embeddings.token_type_embeddings.weight", ("type_vocab_size", E)),
        Rename("embeddings.LayerNorm.weight", (E,), also=("embeddings.LayerNorm.gamma",)),
        Rename("embeddings.LayerNorm.bias", (E,), also=("embeddings.LayerNorm.beta",)),
        Rename(f"{MAP}.weight", (D, E)),
        Rename(f"{MAP}.bias", (D,)),
        Rename(f"{LAYER}.attention.query.weight", (D, D)),
        Rename(f"{LAYER}.attention.query.bias", (D,)),
        Rename(f"{LAYER}.attention.key.weight", (D, D)),
        Rename(f"{LAYER}.attention.key.bias", (D,)),
        Rename(f"{LAYER}.attention.value.weight", (D, D)),
        Rename(f"{LAYER}.attention.value.bias", (D,)),
        Rename(f"{LAYER}.attention.dense.weight", (D, D)),
        Rename(f"{LAYER}.attention.dense.bias", (D,)),
        Rename(f"{LAYER}.attention.LayerNorm.weight", (D,), also=(f"{LAYER}.attention.LayerNorm.gamma",)),
        Rename(f"{LAYER}.attention.LayerNorm.bias", (D,), also=(f"{LAYER}.attention.LayerNorm.beta",)),
        Rename(f"{LAYER}.ffn.weight", (F, D)),
        Rename(f"{LAYER}.ffn.bias", (F,)),
        Rename(f"{LAYER}.ffn_output.weight", (D, F)),
        Rename(f"{LAYER}.ffn_output.bias", (D,)),
        Rename(f"{LAYER}.full_layer_layer_norm.weight", (D,), also=(f"{LAYER}.full_layer_layer_norm.gamma",)),
        Rename(f"{LAYER}.full_layer_layer_norm.bias", (D,), also=(f"{LAYER}.full_layer_layer_norm.beta",)),
        Rename("pooler.weight", (D, D)),
        Rename("pooler.bias", (D,)),
    ),
    optional=("pooler.",),
    heads=(
        # AlbertForMaskedLM, AlbertForPreTraining
        Rename(f"{HEAD}.bias", (V,)),
        Rename(f"{HEAD}.dense.weight", (E, D)),
        Rename(f"{HEAD}.dense.bias", (E,)),
        Rename(f"{HEAD}.LayerNorm.weight", (E,), also=(f"{HEAD}.LayerNorm.gamma",)),
        Rename(f"{HEAD}.LayerNorm.bias", (E,), also=(f"{HEAD}.LayerNorm.beta",)),
        Rename(f"{HEAD}.decoder.weight", (V, E), tied_to="embeddings.word_embeddings.weight"),
        Rename(f"{HEAD}.decoder.bias", (V,), tied_to=f"{HEAD}.bias"),
        # AlbertForPreTraining
        Rename("sop_classifier.classifier.weight", (None, D)),
        Rename("sop_classifier.classifier.bias", (None,)),
        # AlbertForSequenceClassification, AlbertForTokenClassification, AlbertForMultipleChoice
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
        # AlbertForQuestionAnswering
        Rename("qa_outputs.weight", (None, D)),
        Rename("qa_outputs.bias", (None,)),
    ),
    drops=(
        Drop("embeddings.position_ids", why="a constant: 0, 1, 2, …"),
        Drop("embeddings.token_type_ids", why="a constant: zeros"),
    ),
)
