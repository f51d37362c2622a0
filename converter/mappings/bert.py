"""BERT's tensor names: Hugging Face (`models/bert/modeling_bert.py`), its TensorFlow-era forms (`gamma`, `beta`), and
mlx-examples (`bert/convert.py`: `layers`, `query_proj`, `ln1`, `linear1`, `norm`, `lm_head`)."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Drop, Rename
from mlxbert.models.bert import BERT

V, D, F = "vocab_size", "hidden_size", "intermediate_size"
LAYER = "encoder.layer.{i}"
MLX_LAYER = "encoder.layers.{i}"
HEAD = "cls.predictions"

MAPPING = ArchitectureMapping(
    model_type=BERT.model_type,
    base_class=BERT.encoder_class,
    base_prefix=BERT.prefix,
    encoder=(
        Rename("embeddings.word_embeddings.weight", (V, D)),
        Rename("embeddings.position_embeddings.weight", ("max_position_embeddings", D)),
        Rename("embeddings.token_type_embeddings.weight", ("type_vocab_size", D)),
        Rename("embeddings.LayerNorm.weight", (D,), also=("embeddings.LayerNorm.gamma", "embeddings.norm.weight")),
        Rename("embeddings.LayerNorm.bias", (D,), also=("embeddings.LayerNorm.beta", "embeddings.norm.bias")),
        Rename(f"{LAYER}.attention.self.query.weight", (D, D), also=(f"{MLX_LAYER}.attention.query_proj.weight",)),
        Rename(f"{LAYER}.attention.self.query.bias", (D,), also=(f"{MLX_LAYER}.attention.query_proj.bias",)),
        Rename(f"{LAYER}.attention.self.key.weight", (D, D), also=(f"{MLX_LAYER}.attention.key_proj.weight",)),
        Rename(f"{LAYER}.attention.self.key.bias", (D,), also=(f"{MLX_LAYER}.attention.key_proj.bias",)),
        Rename(f"{LAYER}.attention.self.value.weight", (D, D), also=(f"{MLX_LAYER}.attention.value_proj.weight",)),
        Rename(f"{LAYER}.attention.self.value.bias", (D,), also=(f"{MLX_LAYER}.attention.value_proj.bias",)),
        Rename(f"{LAYER}.attention.output.dense.weight", (D, D), also=(f"{MLX_LAYER}.attention.out_proj.weight",)),
        Rename(f"{LAYER}.attention.output.dense.bias", (D,), also=(f"{MLX_LAYER}.attention.out_proj.bias",)),
        Rename(
            f"{LAYER}.attention.output.LayerNorm.weight",
            (D,),
            also=(f"{LAYER}.attention.output.LayerNorm.gamma", f"{MLX_LAYER}.ln1.weight"),
        ),
        Rename(
            f"{LAYER}.attention.output.LayerNorm.bias",
            (D,),
            also=(f"{LAYER}.attention.output.LayerNorm.beta", f"{MLX_LAYER}.ln1.bias"),
        ),
        Rename(f"{LAYER}.intermediate.dense.weight", (F, D), also=(f"{MLX_LAYER}.linear1.weight",)),
        Rename(f"{LAYER}.intermediate.dense.bias", (F,), also=(f"{MLX_LAYER}.linear1.bias",)),
        Rename(f"{LAYER}.output.dense.weight", (D, F), also=(f"{MLX_LAYER}.linear2.weight",)),
        Rename(f"{LAYER}.output.dense.bias", (D,), also=(f"{MLX_LAYER}.linear2.bias",)),
        Rename(
            f"{LAYER}.output.LayerNorm.weight",
            (D,),
            also=(f"{LAYER}.output.LayerNorm.gamma", f"{MLX_LAYER}.ln2.weight"),
        ),
        Rename(
            f"{LAYER}.output.LayerNorm.bias",
            (D,),
            also=(f"{LAYER}.output.LayerNorm.beta", f"{MLX_LAYER}.ln2.bias"),
        ),
        Rename("pooler.dense.weight", (D, D), also=("pooler.weight",)),
        Rename("pooler.dense.bias", (D,), also=("pooler.bias",)),
    ),
    optional=("pooler.",),
    heads=(
        # BertForMaskedLM, BertForPreTraining
        Rename(f"{HEAD}.bias", (V,)),
        Rename(f"{HEAD}.transform.dense.weight", (D, D), also=("lm_head.dense.weight",)),
        Rename(f"{HEAD}.transform.dense.bias", (D,), also=("lm_head.dense.bias",)),
        Rename(
            f"{HEAD}.transform.LayerNorm.weight",
            (D,),
            also=(f"{HEAD}.transform.LayerNorm.gamma", "lm_head.ln.weight"),
        ),
        Rename(f"{HEAD}.transform.LayerNorm.bias", (D,), also=(f"{HEAD}.transform.LayerNorm.beta", "lm_head.ln.bias")),
        Rename(
            f"{HEAD}.decoder.weight",
            (V, D),
            also=("lm_head.decoder.weight",),
            tied_to="embeddings.word_embeddings.weight",
        ),
        Rename(f"{HEAD}.decoder.bias", (V,), also=("lm_head.decoder.bias",), tied_to=f"{HEAD}.bias"),
        # BertForNextSentencePrediction, BertForPreTraining
        Rename("cls.seq_relationship.weight", (2, D)),
        Rename("cls.seq_relationship.bias", (2,)),
        # BertForSequenceClassification, BertForTokenClassification, BertForMultipleChoice
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
        # BertForQuestionAnswering
        Rename("qa_outputs.weight", (None, D)),
        Rename("qa_outputs.bias", (None,)),
    ),
    drops=(
        Drop("embeddings.position_ids", why="a constant: 0, 1, 2, …"),
        Drop("embeddings.token_type_ids", why="a constant: zeros"),
    ),
)
