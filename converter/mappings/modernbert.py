"""ModernBERT's tensor names in Hugging Face (`models/modernbert/modeling_modernbert.py`)."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Rename
from mlxbert.models.modernbert import MODERNBERT, ModernBertConfig

V, D, F = "vocab_size", "hidden_size", "intermediate_size"
QKV, GLU = "qkv_size", "gated_size"
LAYER = "layers.{i}"


def _norm_bias(config: ModernBertConfig, *_: int) -> bool:
    return config.norm_bias


def _attention_bias(config: ModernBertConfig, *_: int) -> bool:
    return config.attention_bias


def _mlp_bias(config: ModernBertConfig, *_: int) -> bool:
    return config.mlp_bias


def _after_first(config: ModernBertConfig, i: int) -> bool:
    return i > 0


def _after_first_with_bias(config: ModernBertConfig, i: int) -> bool:
    return i > 0 and config.norm_bias


MAPPING = ArchitectureMapping(
    model_type=MODERNBERT.model_type,
    base_class=MODERNBERT.encoder_class,
    base_prefix=MODERNBERT.prefix,
    encoder=(
        Rename("embeddings.tok_embeddings.weight", (V, D)),
        Rename("embeddings.norm.weight", (D,)),
        Rename("embeddings.norm.bias", (D,), when=_norm_bias),
        # The embeddings' norm comes before layer 0, which has none before attention.
        Rename(f"{LAYER}.attn_norm.weight", (D,), when=_after_first),
        Rename(f"{LAYER}.attn_norm.bias", (D,), when=_after_first_with_bias),
        Rename(f"{LAYER}.attn.Wqkv.weight", (QKV, D)),
        Rename(f"{LAYER}.attn.Wqkv.bias", (QKV,), when=_attention_bias),
        Rename(f"{LAYER}.attn.Wo.weight", (D, D)),
        Rename(f"{LAYER}.attn.Wo.bias", (D,), when=_attention_bias),
        Rename(f"{LAYER}.mlp_norm.weight", (D,)),
        Rename(f"{LAYER}.mlp_norm.bias", (D,), when=_norm_bias),
        Rename(f"{LAYER}.mlp.Wi.weight", (GLU, D)),
        Rename(f"{LAYER}.mlp.Wi.bias", (GLU,), when=_mlp_bias),
        Rename(f"{LAYER}.mlp.Wo.weight", (D, F)),
        Rename(f"{LAYER}.mlp.Wo.bias", (D,), when=_mlp_bias),
        Rename("final_norm.weight", (D,)),
        Rename("final_norm.bias", (D,), when=_norm_bias),
    ),
    heads=(
        # all classes with a head
        Rename("head.dense.weight", (D, D)),
        Rename("head.dense.bias", (D,)),
        Rename("head.norm.weight", (D,)),
        Rename("head.norm.bias", (D,)),
        # ModernBertForMaskedLM
        Rename("decoder.weight", (V, D), tied_to="embeddings.tok_embeddings.weight"),
        Rename("decoder.bias", (V,)),
        # the other classes
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
    ),
)
