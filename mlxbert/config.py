"""`BertConfig`: what a Hugging Face `config.json` says about the numbers that a BERT encoder computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxbert.errors import MLXBertError, shown

# ACT2FN of transformers less those with weights of their own (prelu, xielu). `activations.ACTIVATIONS` has
# exactly these keys (tested); they stand here so that a config can be checked without importing MLX.
ACTIVATION_NAMES = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu"),
    *("relu2", "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
)


class ConfigError(MLXBertError):
    """A `config.json` that is invalid, or that asks for something this encoder does not compute."""


@dataclass(frozen=True)
class BertConfig:
    """The fields of a BERT configuration that change numbers, with transformers' own defaults.

    Source: transformers `models/bert/configuration_bert.py`. Immutable; made with `from_hf`.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BertConfig:
        """Read a parsed Hugging Face `config.json`; a field that it lacks has transformers' default.

        Raises:
            ConfigError: `model_type` is not "bert", a field has a value of the wrong type or range, or the
                configuration asks for something that this encoder does not compute (named).
        """
        model_type = config.get("model_type")
        if model_type != "bert":
            raise ConfigError(
                f"config.json: model_type {shown(model_type)} is not supported; supported: 'bert'"
                + ("" if model_type else '; fix: add "model_type": "bert" if this is a BERT encoder')
            )
        for field, (computed, what) in _REFUSED.items():
            if field in config and not computed(config[field]):
                raise ConfigError(f"config.json: {field}={shown(config[field])} asks for {what}; not computed here")
        values = {
            name: check(name, config[name]) if name in config else getattr(cls, name)
            for name, check in _FIELDS.items()
        }
        if values["hidden_size"] % values["num_attention_heads"]:
            raise ConfigError(
                f"config.json: hidden_size {values['hidden_size']} is not a multiple of "
                f"num_attention_heads {values['num_attention_heads']}"
            )
        if values["pad_token_id"] is not None and values["pad_token_id"] >= values["vocab_size"]:
            raise ConfigError(
                f"config.json: pad_token_id {values['pad_token_id']} is outside vocab_size {values['vocab_size']}"
            )
        return cls(**values)


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ConfigError(f"config.json: {name} must be a positive whole number, not {shown(value)}")
    return value


def _layers(name: str, value: Any) -> int:
    # A hostile config with a billion layers must not be answered with a billion names.
    if _size(name, value) > 1000:
        raise ConfigError(f"config.json: {name} must be at most 1000, not {value}")
    return value


def _token_id(name: str, value: Any) -> int | None:
    # A negative padding index is legal in torch (it counts from the end), and nobody means it.
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigError(f"config.json: {name} must be a token id or null, not {shown(value)}")
    return value


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"config.json: {name} must be a number between {low} and {high}, not {shown(value)}")
    return float(value)


def _probability(name: str, value: Any) -> float:
    return _number(name, value, 0, 1)


def _optional_probability(name: str, value: Any) -> float | None:
    return None if value is None else _probability(name, value)


def _epsilon(name: str, value: Any) -> float:
    epsilon = _number(name, value, 0, 1)
    if epsilon == 0:  # MLX takes none, and a constant row would be divided by 0
        raise ConfigError(f"config.json: {name} must be above 0, not {shown(value)}")
    return epsilon


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {name} must be true or false, not {shown(value)}")
    return value


def _activation(name: str, value: Any) -> str:
    if value not in ACTIVATION_NAMES:
        raise ConfigError(
            f"config.json: {name} {shown(value)} is not an activation this encoder computes; "
            f"it computes: {', '.join(ACTIVATION_NAMES)}"
        )
    return value


_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "vocab_size": _size,
    "hidden_size": _size,
    "num_hidden_layers": _layers,
    "num_attention_heads": _size,
    "intermediate_size": _size,
    "hidden_act": _activation,
    "hidden_dropout_prob": _probability,
    "attention_probs_dropout_prob": _probability,
    "max_position_embeddings": _size,
    "type_vocab_size": _size,
    "layer_norm_eps": _epsilon,
    "pad_token_id": _token_id,
    "classifier_dropout": _optional_probability,
    "initializer_range": lambda name, value: _number(name, value, 0, 1e3),
    "tie_word_embeddings": _flag,
}

# field -> (is this value one that we compute?, what any other value asks for)
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "is_decoder": (lambda value: not value, "a decoder (causal attention)"),
    "add_cross_attention": (lambda value: not value, "cross-attention"),
    "is_encoder_decoder": (lambda value: not value, "an encoder-decoder"),
    # transformers >= 5 dropped relative positions, and reads such a checkpoint as an absolute one without a word.
    "position_embedding_type": (lambda value: value in ("absolute", None), "relative positions"),
    "pruned_heads": (lambda value: not value, "pruned attention heads"),
}
