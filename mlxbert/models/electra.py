"""ELECTRA: Clark et al. 2020, https://arxiv.org/abs/2003.10555; transformers `models/electra/modeling_electra.py`.

Its layers are BERT's. Two things differ. The embeddings may be narrower than the layers: a linear layer then follows
them. There is no pooler. The discriminator and the generator are two checkpoints of this one encoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained.electra import (
    SUMMARIES,
    ElectraDiscriminatorHead,
    ElectraMaskedLMHead,
    ElectraMultipleChoiceHead,
)
from heads.pretrained.roberta import RobertaClassificationHead
from mlxbert.activations import ACTIVATIONS
from mlxbert.errors import shown
from mlxbert.models.architecture import Architecture, HeadClass, HeadKind
from mlxbert.models.base import Context, Inputs
from mlxbert.models.bert import TABLES, TOLERANCES, BertConfig, BertCore, span_head, token_head
from mlxbert.models.config_fields import Checks, ConfigError, activation, flag, probability, size


def _text(name: str, value: Any) -> str:
    """Return a text; `ElectraForMultipleChoice` alone reads it, so that alone refuses one that is unknown."""
    if not isinstance(value, str):
        raise ConfigError(f"config.json: {name} must be a text, not {shown(value)}")
    return value


@dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """The fields of an ELECTRA configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/electra/configuration_electra.py`; `ElectraSequenceSummary` also reads
    `summary_first_dropout` and `summary_proj_to_labels`, which that file does not list.
    """

    model_type: ClassVar[str] = "electra"

    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str = "gelu"
    summary_proj_to_labels: bool = False
    summary_first_dropout: float = 0.0
    summary_last_dropout: float = 0.1

    CHECKS: ClassVar[Checks] = {
        **BertConfig.CHECKS,
        "embedding_size": size,
        "summary_type": _text,
        "summary_use_proj": flag,
        "summary_activation": _text,
        "summary_proj_to_labels": flag,
        "summary_first_dropout": probability,
        "summary_last_dropout": probability,
    }


class ElectraCore(BertCore):
    """BERT's modules without a pooler, and a projection of the embeddings to the width of the layers."""

    config: ElectraConfig

    def __init__(self, config: ElectraConfig, add_pooling_layer: bool = False):
        """Make the encoder; `add_pooling_layer` changes nothing, because ELECTRA has no pooler."""
        super().__init__(config, add_pooling_layer=False)
        if config.embedding_size != config.hidden_size:
            self.embeddings_project = nn.Linear(config.embedding_size, config.hidden_size)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the projected embeddings, and the mask if there is one."""
        x, context = super().embed_inputs(inputs)
        return self.embeddings_project(x) if "embeddings_project" in self else x, context

    def depth_of(self, name: str) -> int:
        """Return 0 for the embeddings and their projection, i + 1 for layer i."""
        return 0 if name.startswith("embeddings_project.") else super().depth_of(name)


# The checkpoint's own heads


def _discriminator_head(config: ElectraConfig, labels: int, tensors: Iterable[str]) -> ElectraDiscriminatorHead:
    return ElectraDiscriminatorHead(config.hidden_size, ACTIVATIONS[config.hidden_act])


def _masked_lm_head(config: ElectraConfig, labels: int, tensors: Iterable[str]) -> ElectraMaskedLMHead:
    return ElectraMaskedLMHead(
        config.hidden_size,
        config.embedding_size,
        config.vocab_size,
        ACTIVATIONS["gelu"],  # `hidden_act` does not change it
        config.layer_norm_eps,
        # If the configuration unties it, it must be there: with the embeddings the numbers would silently differ.
        decoder_weight="generator_lm_head.weight" in set(tensors) or not config.tie_word_embeddings,
    )


def _sequence_head(config: ElectraConfig, labels: int, tensors: Iterable[str]) -> RobertaClassificationHead:
    gelu = ACTIVATIONS["gelu"]  # `hidden_act` does not change it
    return RobertaClassificationHead(config.hidden_size, labels, config.head_dropout, gelu)


def _choice_head(config: ElectraConfig, labels: int, tensors: Iterable[str]) -> ElectraMultipleChoiceHead:
    """Return an empty head for one text of several.

    Raises:
        ConfigError: a summary that transformers cannot run, or an activation with weights of its own.
    """
    if config.summary_type not in SUMMARIES:
        raise ConfigError(
            f"config.json: summary_type {shown(config.summary_type)} cannot be run by ElectraForMultipleChoice; "
            f"it runs: {', '.join(SUMMARIES)}"
        )
    if config.summary_use_proj and config.summary_proj_to_labels and labels != config.hidden_size:
        raise ConfigError(
            f"config.json: summary_proj_to_labels=True makes a summary of {labels} numbers (num_labels), and the "
            f"classifier of ElectraForMultipleChoice takes {config.hidden_size} (hidden_size); fix: set it to false"
        )
    act = config.summary_activation
    return ElectraMultipleChoiceHead(
        config.hidden_size,
        config.summary_type,
        has_projection=config.summary_use_proj,
        activation=ACTIVATIONS[activation("summary_activation", act)] if act else None,
        first_dropout=config.summary_first_dropout,
        last_dropout=config.summary_last_dropout,
    )


# The facts about ELECTRA

_DISCRIMINATOR, _LM = ("discriminator_predictions.",), ("generator_predictions.", "generator_lm_head.")
_SEQUENCE, _SPAN = ("classifier.dense.", "classifier.out_proj."), ("qa_outputs.",)
_CLASSIFIER, _SUMMARY = ("classifier.weight", "classifier.bias"), ("sequence_summary.",)

ELECTRA = Architecture(
    model_type="electra",
    table="electra",
    config=ElectraConfig,
    encoder=ElectraCore,
    encoder_class="ElectraModel",
    prefix="electra.",
    parts=("embeddings.", "embeddings_project.", "encoder."),
    heads={
        "ElectraForPreTraining": HeadClass(HeadKind.REPLACED_TOKEN, _DISCRIMINATOR, _discriminator_head),
        "ElectraForMaskedLM": HeadClass(HeadKind.MASKED_LM, _LM, _masked_lm_head),
        "ElectraForSequenceClassification": HeadClass(
            HeadKind.SEQUENCE, _SEQUENCE, _sequence_head, labels="classifier.out_proj"
        ),
        "ElectraForTokenClassification": HeadClass(HeadKind.TOKEN, _CLASSIFIER, token_head, labels="classifier"),
        # Without `summary_use_proj` its summary has no tensors.
        "ElectraForMultipleChoice": HeadClass(HeadKind.CHOICE, _CLASSIFIER, _choice_head, optional=_SUMMARY),
        "ElectraForQuestionAnswering": HeadClass(HeadKind.SPAN, _SPAN, span_head),
    },
    tables=TABLES,
    tokenizer_class="ElectraTokenizer",
    has_token_types=True,
    tolerances=TOLERANCES,
    tiny={
        "vocab_size": 97,
        "embedding_size": 32,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 80,
        "max_position_embeddings": 64,
    },
)

ARCHITECTURES = (ELECTRA,)
