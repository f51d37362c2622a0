"""MPNet's tensor names in Hugging Face (`models/mpnet/modeling_mpnet.py`): its own encoder, RoBERTa's heads."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Drop, Rename
from converter.mappings import roberta
from mlxbert.models.mpnet import MPNET

V, D, F = "vocab_size", "hidden_size", "intermediate_size"
LAYER = "encoder.layer.{i}"

MAPPING = ArchitectureMapping(
    model_type=MPNET.model_type,
    base_class=MPNET.encoder_class,
    base_prefix=MPNET.prefix,
    encoder=(
        Rename("embeddings.word_embeddings.weight", (V, D)),
        Rename("embeddings.position_embeddings.weight", ("max_position_embeddings", D)),
        Rename("embeddings.LayerNorm.weight", (D,), also=("embeddings.LayerNorm.gamma",)),
        Rename("embeddings.LayerNorm.bias", (D,), also=("embeddings.LayerNorm.beta",)),
        Rename("encoder.relative_attention_bias.weight", ("relative_attention_num_buckets", "num_attention_heads")),
        Rename(f"{LAYER}.attention.attn.q.weight", (D, D)),
        Rename(f"{LAYER}.attention.attn.q.bias", (D,)),
        Rename(f"{LAYER}.attention.attn.k.weight", (D, D)),
        Rename(f"{LAYER}.attention.attn.k.bias", (D,)),
        Rename(f"{LAYER}.attention.attn.v.weight", (D, D)),
        Rename(f"{LAYER}.attention.attn.v.bias", (D,)),
        Rename(f"{LAYER}.attention.attn.o.weight", (D, D)),
        Rename(f"{LAYER}.attention.attn.o.bias", (D,)),
        Rename(f"{LAYER}.attention.LayerNorm.weight", (D,), also=(f"{LAYER}.attention.LayerNorm.gamma",)),
        Rename(f"{LAYER}.attention.LayerNorm.bias", (D,), also=(f"{LAYER}.attention.LayerNorm.beta",)),
        Rename(f"{LAYER}.intermediate.dense.weight", (F, D)),
        Rename(f"{LAYER}.intermediate.dense.bias", (F,)),
        Rename(f"{LAYER}.output.dense.weight", (D, F)),
        Rename(f"{LAYER}.output.dense.bias", (D,)),
        Rename(f"{LAYER}.output.LayerNorm.weight", (D,), also=(f"{LAYER}.output.LayerNorm.gamma",)),
        Rename(f"{LAYER}.output.LayerNorm.bias", (D,), also=(f"{LAYER}.output.LayerNorm.beta",)),
        Rename("pooler.dense.weight", (D, D)),
        Rename("pooler.dense.bias", (D,)),
    ),
    optional=("pooler.",),
    heads=roberta.MAPPING.heads,
    drops=(Drop("embeddings.position_ids", why="a constant: 0, 1, 2, …"),),
)
