"""DeBERTa-v2's tensor names: transformers (`models/deberta_v2/modeling_deberta_v2.py`), and Microsoft's checkpoints,
which also hold the heads of pre-training."""

from __future__ import annotations

from converter.mapping import ArchitectureMapping, Drop, Refuse, Rename
from mlxbert.models.deberta_v2 import C2P, DEBERTA_V2, P2C

V, E, D, F = "vocab_size", "embedding_size", "hidden_size", "intermediate_size"
LAYER = "encoder.layer.{i}"
SELF = f"{LAYER}.attention.self"
HEAD = "cls.predictions"
LM = "lm_predictions.lm_head"
_V1 = "it is a tensor of DeBERTa v1 (model_type 'deberta'), which is not computed; fix: give a v2 or v3 checkpoint"

MAPPING = ArchitectureMapping(
    model_type=DEBERTA_V2.model_type,
    base_class=DEBERTA_V2.encoder_class,
    base_prefix=DEBERTA_V2.prefix,
    encoder=(
        Rename("embeddings.word_embeddings.weight", (V, E)),
        Rename(
            "embeddings.position_embeddings.weight",
            ("max_position_embeddings", E),
            when=lambda config: config.position_biased_input,
            otherwise="position_biased_input is false: the model reads no absolute positions",
        ),
        Rename(
            "embeddings.token_type_embeddings.weight",
            ("type_vocab_size", E),
            when=lambda config: config.type_vocab_size > 0,
        ),
        Rename(
            "embeddings.embed_proj.weight", (D, E), when=lambda config: config.embedding_size != config.hidden_size
        ),
        Rename("embeddings.LayerNorm.weight", (D,), also=("embeddings.LayerNorm.gamma",)),
        Rename("embeddings.LayerNorm.bias", (D,), also=("embeddings.LayerNorm.beta",)),
        Rename("encoder.rel_embeddings.weight", ("distance_rows", D), when=lambda config: config.relative_attention),
        Rename(
            "encoder.LayerNorm.weight",
            (D,),
            also=("encoder.LayerNorm.gamma",),
            when=lambda config: bool(config.norm_rel_ebd),
        ),
        Rename(
            "encoder.LayerNorm.bias",
            (D,),
            also=("encoder.LayerNorm.beta",),
            when=lambda config: bool(config.norm_rel_ebd),
        ),
        Rename(
            "encoder.conv.conv.weight",
            (D, "conv_inputs", "conv_kernel_size"),
            when=lambda config: config.conv_kernel_size > 0,
        ),
        Rename("encoder.conv.conv.bias", (D,), when=lambda config: config.conv_kernel_size > 0),
        Rename(
            "encoder.conv.LayerNorm.weight",
            (D,),
            also=("encoder.conv.LayerNorm.gamma",),
            when=lambda config: config.conv_kernel_size > 0,
        ),
        Rename(
            "encoder.conv.LayerNorm.bias",
            (D,),
            also=("encoder.conv.LayerNorm.beta",),
            when=lambda config: config.conv_kernel_size > 0,
        ),
        Rename(f"{SELF}.query_proj.weight", (D, D)),
        Rename(f"{SELF}.query_proj.bias", (D,)),
        Rename(f"{SELF}.key_proj.weight", (D, D)),
        Rename(f"{SELF}.key_proj.bias", (D,)),
        Rename(f"{SELF}.value_proj.weight", (D, D)),
        Rename(f"{SELF}.value_proj.bias", (D,)),
        Rename(f"{SELF}.pos_key_proj.weight", (D, D), when=lambda config, i: config.projects_distances(C2P)),
        Rename(f"{SELF}.pos_key_proj.bias", (D,), when=lambda config, i: config.projects_distances(C2P)),
        Rename(f"{SELF}.pos_query_proj.weight", (D, D), when=lambda config, i: config.projects_distances(P2C)),
        Rename(f"{SELF}.pos_query_proj.bias", (D,), when=lambda config, i: config.projects_distances(P2C)),
        Rename(f"{LAYER}.attention.output.dense.weight", (D, D)),
        Rename(f"{LAYER}.attention.output.dense.bias", (D,)),
        Rename(
            f"{LAYER}.attention.output.LayerNorm.weight", (D,), also=(f"{LAYER}.attention.output.LayerNorm.gamma",)
        ),
        Rename(f"{LAYER}.attention.output.LayerNorm.bias", (D,), also=(f"{LAYER}.attention.output.LayerNorm.beta",)),
        Rename(f"{LAYER}.intermediate.dense.weight", (F, D)),
        Rename(f"{LAYER}.intermediate.dense.bias", (F,)),
        Rename(f"{LAYER}.output.dense.weight", (D, F)),
        Rename(f"{LAYER}.output.dense.bias", (D,)),
        Rename(f"{LAYER}.output.LayerNorm.weight", (D,), also=(f"{LAYER}.output.LayerNorm.gamma",)),
        Rename(f"{LAYER}.output.LayerNorm.bias", (D,), also=(f"{LAYER}.output.LayerNorm.beta",)),
    ),
    heads=(
        # DebertaV2ForMaskedLM, legacy
        Rename(f"{HEAD}.bias", (V,)),
        Rename(f"{HEAD}.transform.dense.weight", (E, D)),
        Rename(f"{HEAD}.transform.dense.bias", (E,)),
        Rename(f"{HEAD}.transform.LayerNorm.weight", (E,), also=(f"{HEAD}.transform.LayerNorm.gamma",)),
        Rename(f"{HEAD}.transform.LayerNorm.bias", (E,), also=(f"{HEAD}.transform.LayerNorm.beta",)),
        Rename(f"{HEAD}.decoder.weight", (V, E), tied_to="embeddings.word_embeddings.weight"),
        Rename(f"{HEAD}.decoder.bias", (V,), tied_to=f"{HEAD}.bias"),
        # DebertaV2ForMaskedLM with legacy=false, and Microsoft's checkpoints
        Rename(f"{LM}.bias", (V,)),
        Rename(f"{LM}.dense.weight", (D, D)),
        Rename(f"{LM}.dense.bias", (D,)),
        Rename(f"{LM}.LayerNorm.weight", (D,), also=(f"{LM}.LayerNorm.gamma",)),
        Rename(f"{LM}.LayerNorm.bias", (D,), also=(f"{LM}.LayerNorm.beta",)),
        # DebertaV2ForSequenceClassification, DebertaV2ForMultipleChoice
        Rename("pooler.dense.weight", (D, D)),
        Rename("pooler.dense.bias", (D,)),
        # these, and DebertaV2ForTokenClassification
        Rename("classifier.weight", (None, D)),
        Rename("classifier.bias", (None,)),
        # DebertaV2ForQuestionAnswering
        Rename("qa_outputs.weight", (None, D)),
        Rename("qa_outputs.bias", (None,)),
    ),
    drops=(
        Drop("embeddings.position_ids", why="a constant: 0, 1, 2, …"),
        *(
            Drop(f"mask_predictions.{name}", why="the discriminator of pre-training (v3), which transformers has not")
            for name in (
                *("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias"),
                *("classifier.weight", "classifier.bias"),
            )
        ),
    ),
    refused=tuple(
        Refuse(f"{SELF}.{name}", why=_V1)
        for name in ("in_proj.weight", "q_bias", "v_bias", "pos_proj.weight", "pos_q_proj.weight", "pos_q_proj.bias")
    ),
)
