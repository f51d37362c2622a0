"""DistilBERT's tensor names: Hugging Face (`models/distilbert/modeling_distilbert.py`), and `gamma` and `beta`."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Drop, Rename
from mlxbert.models.distilbert import DISTILBERT

V, D, F = "vocab_size", "hidden_size", "hidden_dim"
LAYER = "transformer.layer.{i}"

MAPPING = ArchitectureMapping(
    model_type=DISTILBERT.model_type,
    base_class=DISTILBERT.encoder_class,
    base_prefix=DISTILBERT.prefix,
    encoder=(
        Rename("embeddings.word_embeddings.weight", (V, D)),
        Rename("embeddings.position_embeddings.weight", ("max_position_embeddings", D)),
        Rename("embeddings.LayerNorm.weight", (D,), also=("embeddings.LayerNorm.gamma",)),
        Rename("embeddings.LayerNorm.bias", (D,), also=("embeddings.LayerNorm.beta",)),
        Rename(f"{LAYER}.attention.q_lin.weight", (D, D)),
        Rename(f"{LAYER}.attention.q_lin.bias", (D,)),
        Rename(f"{LAYER}.attention.k_lin.weight", (D, D)),
        Rename(f"{LAYER}.attention.k_lin.bias", (D,)),
        Rename(f"{LAYER}.attention.v_lin.weight", (D, D)),
        Rename(f"{LAYER}.attention.v_lin.bias", (D,)),
        Rename(f"{LAYER}.attention.out_lin.weight", (D, D)),
        Rename(f"{LAYER}.attention.out_lin.bias", (D,)),
        Rename(f"{LAYER}.sa_layer_norm.weight", (D,), also=(f"{LAYER}.sa_layer_norm.gamma",)),
        Rename(f"{LAYER}.sa_layer_norm.bias", (D,), also=(f"{LAYER}.sa_layer_norm.beta",)),
        Rename(f"{LAYER}.ffn.lin1.weight", (F, D)),
        Rename(f"{LAYER}.ffn.lin1.bias", (F,)),
        Rename(f"{LAYER}.ffn.lin2.weight", (D, F)),
        Rename(f"{LAYER}.ffn.lin2.bias", (D,)),
        Rename(f"{LAYER}.output_layer_norm.weight", (D,), also=(f"{LAYER}.output_layer_norm.gamma",)),
        Rename(f"{LAYER}.output_layer_norm.bias", (D,), also=(f"{LAYER}.output_layer_norm.beta",)),
    ),
    heads=(
        # DistilBertForMaskedLM
        Rename("vocab_transform.weight", (D, D)),
        Rename("vocab_transform.bias", (D,)),
        Rename("vocab_layer_norm.weight", (D,), also=("vocab_layer_norm.gamma",)),
        Rename("vocab_layer_norm.bias", (D,), also=("vocab_layer_norm.beta",)),
        Rename("vocab_projector.weight", (V, D), tied_to="embeddings.word_embeddings.weight"),
        Rename("vocab_projector.bias", (V,)),
        # DistilBertForSequenceClassification, DistilBertForMultipleChoice
        Rename("pre_classifier.weight", (D, D)),
        Rename("pre_classifier.bias", (D,)),
        # DistilBertForSequenceClassification, DistilBertForMultipleChoice, DistilBertForTokenClassification
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
        # DistilBertForQuestionAnswering
        Rename("qa_outputs.weight", (None, D)),
        Rename("qa_outputs.bias", (None,)),
    ),
    drops=(Drop("embeddings.position_ids", why="a constant: 0, 1, 2, …"),),
)
