"""`BertConfig.from_hf`: every field that changes numbers is read, and what is not computed is refused by name."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import transformers

from mlxbert.activations import ACTIVATIONS
from mlxbert.models.bert import BertConfig
from mlxbert.models.config_fields import ConfigError


def test_defaults_are_those_of_transformers() -> None:
    theirs = transformers.BertConfig()
    ours = BertConfig.from_hf({"model_type": "bert"})
    for field in dataclasses.fields(BertConfig):
        assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_every_field_is_read() -> None:
    changed = {
        "vocab_size": 11,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 7,
        "hidden_act": "silu",
        "hidden_dropout_prob": 0.25,
        "attention_probs_dropout_prob": 0.5,
        "max_position_embeddings": 9,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 3,
        "classifier_dropout": 0.75,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    config = BertConfig.from_hf({"model_type": "bert", **changed})
    assert dataclasses.asdict(config) == changed


def test_it_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BertConfig().vocab_size = 1  # type: ignore[misc]


def test_activation_names_are_those_that_are_computed_and_those_of_transformers_without_weights() -> None:
    from transformers.activations import ACT2CLS

    assert set(ACTIVATIONS) == set(ACT2CLS) - {"prelu", "xielu"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"is_decoder": True}, "is_decoder=True asks for a decoder (causal attention)"),
        ({"add_cross_attention": True}, "add_cross_attention=True asks for cross-attention"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder=True asks for an encoder-decoder"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' asks for relative"),
        ({"pruned_heads": {"0": [1]}}, "asks for pruned attention heads"),
        ({"hidden_act": "xielu"}, "hidden_act 'xielu' is not an activation this encoder computes"),
        ({"hidden_act": ["gelu"]}, "hidden_act ['gelu'] is not an activation"),
        ({"model_type": "roberta"}, "model_type 'roberta' is not supported; supported: 'bert'"),
        ({"model_type": None}, '"model_type": "bert"'),
        ({"hidden_size": 10, "num_attention_heads": 3}, "hidden_size 10 is not a multiple of num_attention_heads 3"),
        ({"vocab_size": -1}, "vocab_size must be a positive whole number, not -1"),
        ({"vocab_size": True}, "vocab_size must be a positive whole number, not True"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1000"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number between 0 and 1, not '1e-12'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be above 0, not 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a number"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob must be a number between 0 and 1, not 1.5"),
        ({"pad_token_id": 40000}, "pad_token_id 40000 is outside vocab_size 30522"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BertConfig.from_hf({"model_type": "bert", **fields})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


class _OtherNames(BertConfig):
    ALIASES: ClassVar = {"hidden_size": "dim"}


@pytest.mark.parametrize("fields", [{"dim": 24}, {"hidden_size": 24}, {"dim": 24, "hidden_size": 24}], ids=str)
def test_both_names_of_a_field_are_read(fields: dict[str, int]) -> None:
    assert _OtherNames.from_hf({"model_type": "bert", **fields}).hidden_size == 24


def test_two_values_of_one_field_are_refused() -> None:
    with pytest.raises(ConfigError, match="dim is 24 and hidden_size, the same field, 36; fix: remove the wrong one"):
        _OtherNames.from_hf({"model_type": "bert", "dim": 24, "hidden_size": 36})
