"""RoBERTa, and two models that differ from it in vocabulary and tokenizer: XLM-RoBERTa and CamemBERT.

RoBERTa: Liu et al. 2019, https://arxiv.org/abs/1907.11692; transformers `models/roberta/modeling_roberta.py`.
XLM-RoBERTa: Conneau et al. 2019, https://arxiv.org/abs/1911.02116; `models/xlm_roberta/modeling_xlm_roberta.py`.
CamemBERT: Martin et al. 2019, https://arxiv.org/abs/1911.03894; `models/camembert/modeling_camembert.py`.

Their layers are BERT's. Three things differ. Positions are counted from the ids, without padding, so that their table
has `pad_token_id` + 1 rows more than a text may have tokens. The tokenizer (byte-level BPE; for the other two
SentencePiece) gives no token types, but the checkpoint has a table of one row for them. The language-model and
classification heads are their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx

from heads.pretrained import MultipleChoiceHead
from heads.pretrained.roberta import RobertaClassificationHead, RobertaMaskedLMHead, RobertaPredictions
from mlxbert.activations import ACTIVATIONS
from mlxbert.models.architecture import HeadClass, HeadKind
from mlxbert.models.base import Context, Inputs
from mlxbert.models.bert import BERT, TABLES, BertConfig, BertCore, span_head, token_head
from mlxbert.models.config_fields import ConfigError


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The fields of a RoBERTa configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/roberta/configuration_roberta.py`.
    """

    model_type: ClassVar[str] = "roberta"

    vocab_size: int = 50265
    pad_token_id: int | None = 1

    @property
    def first_position(self) -> int:
        """The position of a text's first token; padding has the position before it."""
        assert self.pad_token_id is not None  # `from_hf` refuses that
        return self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input, special ones included."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> RobertaConfig:
        """Read a parsed `config.json`, as `EncoderConfig.from_hf`.

        Raises:
            ConfigError: also if positions cannot be counted, or none is left for a token.
        """
        parsed = super().from_hf(config)
        if parsed.pad_token_id is None:
            raise ConfigError(
                "config.json: pad_token_id is null, and positions are counted from it; fix: give the id of <pad>"
            )
        if parsed.max_length < 1:
            raise ConfigError(
                f"config.json: max_position_embeddings {parsed.max_position_embeddings} leaves no position for a "
                f"token after pad_token_id {parsed.pad_token_id}"
            )
        return parsed


@dataclass(frozen=True)
class XLMRobertaConfig(RobertaConfig):
    """The fields of an XLM-RoBERTa configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/xlm_roberta/configuration_xlm_roberta.py`.
    """

    model_type: ClassVar[str] = "xlm-roberta"

    vocab_size: int = 30522


@dataclass(frozen=True)
class CamembertConfig(RobertaConfig):
    """The fields of a CamemBERT configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/camembert/configuration_camembert.py`.
    """

    model_type: ClassVar[str] = "camembert"

    vocab_size: int = 30522


class RobertaCore(BertCore):
    """BERT's modules; positions are counted from the ids."""

    config: RobertaConfig

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings, and the mask if there is one."""
        keep = inputs.keep
        positions = inputs.counted_positions(self.config.first_position - 1)
        return self.embeddings(inputs, positions), {} if keep is None else {"mask": keep}

    @property
    def padding_rows(self) -> Mapping[str, int]:
        """Return the rows of padding, of words and of positions, which have no gradient."""
        pad = self.config.first_position - 1
        return {f"{TABLES[name]}.weight": pad for name in ("word", "position")}


def _masked_lm_head(config: RobertaConfig, labels: int, tensors: Iterable[str]) -> RobertaMaskedLMHead:
    names = set(tensors)
    own_bias = "lm_head.decoder.bias" in names
    predictions = RobertaPredictions(
        config.hidden_size,
        config.vocab_size,
        ACTIVATIONS["gelu"],  # `hidden_act` does not change it
        config.layer_norm_eps,
        bias="lm_head.bias" in names or not own_bias,
        decoder_weight="lm_head.decoder.weight" in names or not config.tie_word_embeddings,
        decoder_bias=own_bias,
    )
    return RobertaMaskedLMHead(predictions)


def _sequence_head(config: RobertaConfig, labels: int, tensors: Iterable[str]) -> RobertaClassificationHead:
    return RobertaClassificationHead(config.hidden_size, labels, config.head_dropout)


def _choice_head(config: RobertaConfig, labels: int, tensors: Iterable[str]) -> MultipleChoiceHead:
    return MultipleChoiceHead(config.hidden_size, config.hidden_dropout_prob)  # whatever `classifier_dropout` says


def _heads(name: str) -> dict[str, HeadClass]:
    """Return the heads of the model whose classes in transformers begin with `name`."""
    tied_bias = ("lm_head.decoder.bias", "lm_head.bias")
    parts, classifier = ("classifier.dense.", "classifier.out_proj."), ("classifier.weight", "classifier.bias")
    return {
        f"{name}ForMaskedLM": HeadClass(HeadKind.MASKED_LM, ("lm_head.",), _masked_lm_head, tied_bias=tied_bias),
        f"{name}ForSequenceClassification": HeadClass(
            HeadKind.SEQUENCE, parts, _sequence_head, labels="classifier.out_proj"
        ),
        f"{name}ForTokenClassification": HeadClass(HeadKind.TOKEN, classifier, token_head, labels="classifier"),
        f"{name}ForMultipleChoice": HeadClass(HeadKind.CHOICE, classifier, _choice_head, has_pooler=True),
        f"{name}ForQuestionAnswering": HeadClass(HeadKind.SPAN, ("qa_outputs.",), span_head),
    }


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a `config.json` with the fields whose default is another one in other packages.

    Without `pad_token_id`, mlx-swift-lm counts positions from 0; without `layer_norm_eps`, mlx-embeddings takes 1e-5.
    """
    fields = ("layer_norm_eps", "pad_token_id", "type_vocab_size")
    return config | {name: getattr(RobertaConfig, name) for name in fields if name not in config}


ROBERTA = replace(
    BERT,  # its modules, and so the names, the limits and what Swift calls them
    model_type="roberta",
    table="roberta",
    config=RobertaConfig,
    encoder=RobertaCore,
    encoder_class="RobertaModel",
    prefix="roberta.",
    heads=_heads("Roberta"),
    tokenizer_class="RobertaTokenizer",
    has_token_types=False,
    assumed=lambda config: False,
    known_to=frozenset({"MLXEmbedders"}),
    variants={
        "roberta-prelayernorm": "RoBERTa with the norms before attention and feed-forward layer",
        "data2vec-text": "the text encoder of data2vec, RoBERTa with classes and a prefix of its own",
        "longformer": "Longformer, with attention in windows",
        "ibert": "I-BERT, with whole-number arithmetic",
        "luke": "LUKE, with entities",
        "lilt": "LiLT, with the places of words on a page",
        "layoutlmv3": "LayoutLMv3, with the places of words on a page and images",
        "markuplm": "MarkupLM, with places in a web page",
    },
    written_config=_with_defaults,
    tiny={**BERT.tiny, "vocab_size": 300, "type_vocab_size": 1, "max_position_embeddings": 66, "pad_token_id": 1},
)

XLM_ROBERTA = replace(
    ROBERTA,
    model_type="xlm-roberta",
    config=XLMRobertaConfig,
    encoder_class="XLMRobertaModel",
    heads=_heads("XLMRoberta"),
    tokenizer_class="XLMRobertaTokenizer",
    known_to=frozenset(
        {"mlx-embeddings", "mlx-vlm (load_embedding_model)", "mlx-vlm (load_reranker)", "MLXEmbedders"}
    ),
    variants={
        "xlm-roberta-xl": "XLM-RoBERTa XL, with the norms before attention and feed-forward layer",
        "xmod": "X-MOD, with an adapter for each language",
        "jina_embeddings_v3": "Jina embeddings v3, with rotary positions and adapters",
        "xlm": "XLM, the model before XLM-RoBERTa, with embeddings of languages",
        "flaubert": "FlauBERT, an XLM for French",
    },
)

CAMEMBERT = replace(
    ROBERTA,
    model_type="camembert",
    config=CamembertConfig,
    encoder_class="CamembertModel",
    heads=_heads("Camembert"),
    tokenizer_class="CamembertTokenizer",
    known_to=frozenset(),
    variants={},  # not RoBERTa's
)

ARCHITECTURES = (ROBERTA, XLM_ROBERTA, CAMEMBERT)
