"""Configurations as published: for each `model_type`, the fields of transformers' configuration of its base model; and
random checkpoints of these sizes.

A field that is left out has transformers' default.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlxbert.models.architecture import HeadKind

_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
_ROBERTA: dict[str, Any] = {
    **_BASE,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}

BASE_SIZES: dict[str, dict[str, Any]] = {
    # albert/albert-base-v2
    "albert": {
        **_BASE,
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    # google-bert/bert-base-uncased
    "bert": {**_BASE, "vocab_size": 30522},
    # almanach/camembert-base
    "camembert": {**_ROBERTA, "vocab_size": 32005, "bos_token_id": 5, "eos_token_id": 6},
    # microsoft/deberta-v3-base
    "deberta-v2": {
        **_BASE,
        "vocab_size": 128100,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "relative_attention": True,
        "max_relative_positions": -1,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": "p2c|c2p",
        "position_biased_input": False,
        "pad_token_id": 0,
    },
    # distilbert/distilbert-base-uncased
    "distilbert": {
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
    },
    # google/electra-base-discriminator
    "electra": {**_BASE, "vocab_size": 30522, "embedding_size": 768},
    # answerdotai/ModernBERT-base
    "modernbert": {
        "vocab_size": 50368,
        "hidden_size": 768,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "intermediate_size": 1152,
        "max_position_embeddings": 8192,
        "local_attention": 128,
        "pad_token_id": 50283,
    },
    # microsoft/mpnet-base
    "mpnet": {
        **_BASE,
        "vocab_size": 30527,
        "max_position_embeddings": 514,
        "layer_norm_eps": 1e-5,
        "relative_attention_num_buckets": 32,
        "pad_token_id": 1,
    },
    # FacebookAI/roberta-base
    "roberta": {**_ROBERTA, "vocab_size": 50265},
    # FacebookAI/xlm-roberta-base
    "xlm-roberta": {**_ROBERTA, "vocab_size": 250002},
}


def write_checkpoint(directory: Path, model_type: str = "bert", kind: HeadKind | None = None, **changes: Any) -> None:
    """Save a base-sized model of random weights, as transformers initializes it, in Hugging Face's layout.

    Args:
        directory: where to.
        model_type: one of `BASE_SIZES`.
        kind: what the model's head does; None: the encoder alone.
        changes: fields of the configuration with other values.
    """
    import torch
    import transformers

    from mlxbert.models.architecture import architecture

    declared = architecture(model_type)
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**{**BASE_SIZES[model_type], **changes})
    name = declared.encoder_class if kind is None else declared.head_of(kind)
    getattr(transformers, str(name))(config).save_pretrained(directory, max_shard_size="10GB")
