"""The configuration of an encoder: the fields of Hugging Face's `config.json` that change numbers, and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from mlxbert.activations import ACTIVATIONS
from mlxbert.errors import MLXBertError, shown

Checks = Mapping[str, Callable[[str, Any], Any]]
"""Field -> function of its name and its content in `config.json` that returns its value or raises ConfigError."""

Refusals = Mapping[str, tuple[Callable[[Any], bool], str]]
"""Field -> (function: is this value supported?, the feature that any other value means)."""


class ConfigError(MLXBertError):
    """A `config.json` that is invalid, or that needs something this encoder does not compute."""


REFUSED_EVERYWHERE: Refusals = {
    "auto_map": (lambda value: not value, "code of its own, which is never run"),
    "is_decoder": (lambda value: not value, "a decoder (causal attention)"),
    "add_cross_attention": (lambda value: not value, "cross-attention"),
    "is_encoder_decoder": (lambda value: not value, "an encoder-decoder"),
    "pruned_heads": (lambda value: not value, "pruned attention heads"),
}
"""Features that no encoder here computes."""


class EncoderConfig:
    """The fields of a Hugging Face `config.json` that change the numbers of one architecture; immutable.

    A subclass is a frozen dataclass whose defaults are those of transformers. `CHECKS` checks each field;
    `REFUSED` lists fields of features that are not computed, beside `REFUSED_EVERYWHERE`; `ALIASES` has the fields
    whose key in `config.json` is another one (both spellings are read, as in transformers' `attribute_map`).
    """

    model_type: ClassVar[str]
    CHECKS: ClassVar[Checks]
    REFUSED: ClassVar[Refusals] = {}
    ALIASES: ClassVar[Mapping[str, str]] = {}

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    pad_token_id: int | None
    initializer_range: float
    tie_word_embeddings: bool

    @property
    def hidden_act(self) -> str:
        """The name of the activation of the feed-forward blocks."""
        raise NotImplementedError

    @property
    def embedding_size(self) -> int:
        """The width of a row of the word embeddings; an architecture may have its own field for it."""
        return self.hidden_size

    @property
    def num_layers(self) -> int:
        """The number of layers that run in sequence; they may share their parameters."""
        return self.num_hidden_layers

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input, special ones included."""
        raise NotImplementedError

    @property
    def longest_input(self) -> int:
        """The number of tokens that an input may have if the caller asks for more than `max_length`.

        More than that only for an encoder that has no table of positions: it was not trained on longer inputs.
        """
        return self.max_length

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids that each argument of the encoder may hold: the rows of its table."""
        raise NotImplementedError

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Read a parsed Hugging Face `config.json`; a field that it lacks has transformers' default.

        Raises:
            ConfigError: `model_type` is another one, a field has a value of the wrong type or range, or the
                configuration asks for something that this encoder does not compute (named).
        """
        if config.get("model_type") != cls.model_type:
            raise unsupported(config.get("model_type"), (cls.model_type,))
        config = cls._with_own_names(config)
        refuse(config, REFUSED_EVERYWHERE)
        refuse(config, cls.REFUSED)
        values = {
            name: check(name, config[name]) if name in config else getattr(cls, name)
            for name, check in cls.CHECKS.items()
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

    @classmethod
    def _with_own_names(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the configuration with the names of our fields instead of their aliases."""
        renamed = dict(config)
        for name, alias in cls.ALIASES.items():
            if alias in config and config.get(name, config[alias]) != config[alias]:
                raise ConfigError(
                    f"config.json: {alias} is {shown(config[alias])} and {name}, the same field, "
                    f"{shown(config[name])}; fix: remove the wrong one"
                )
            if alias in config:
                renamed[name] = config[alias]
        return renamed


def refuse(config: Mapping[str, Any], refusals: Refusals) -> None:
    """Raise ConfigError if a field asks for a feature that is not computed."""
    for name, (computed, what) in refusals.items():
        if name in config and not computed(config[name]):
            raise ConfigError(
                f"config.json: {name}={shown(config[name])} asks for {what}; not computed here; fix: convert a "
                f"checkpoint without it, or take {name} out of config.json if this one was trained without it"
            )


def size(name: str, value: Any) -> int:
    """Return a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ConfigError(f"config.json: {name} must be a positive whole number, not {shown(value)}")
    return value


def whole_number(name: str, value: Any) -> int:
    """Return a whole number, which may be negative; twice its value is still a number of rows."""
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**30:
        raise ConfigError(f"config.json: {name} must be a whole number below 2^30, not {shown(value)}")
    return value


def layer_count(name: str, value: Any) -> int:
    """Return a number of layers; a limit protects against a hostile config with a billion layers."""
    if size(name, value) > 1000:
        raise ConfigError(f"config.json: {name} must be at most 1000, not {value}")
    return value


def token_id(name: str, value: Any) -> int | None:
    """Return a token id, or None; torch accepts negative ones, which count from the end, but no model needs one."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigError(f"config.json: {name} must be a token id or null, not {shown(value)}")
    return value


def number(name: str, value: Any, low: float, high: float) -> float:
    """Return a number between two others."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"config.json: {name} must be a number between {low} and {high}, not {shown(value)}")
    return float(value)


def probability(name: str, value: Any) -> float:
    """Return a number from 0 to 1."""
    return number(name, value, 0, 1)


def optional_probability(name: str, value: Any) -> float | None:
    """Return a number from 0 to 1, or None."""
    return None if value is None else probability(name, value)


def epsilon(name: str, value: Any) -> float:
    """Return a number above 0: with 0, a constant row would be divided by 0."""
    eps = number(name, value, 0, 1)
    if eps == 0:
        raise ConfigError(f"config.json: {name} must be above 0, not {shown(value)}")
    return eps


def deviation(name: str, value: Any) -> float:
    """Return a standard deviation."""
    return number(name, value, 0, 1e3)


def flag(name: str, value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"config.json: {name} must be true or false, not {shown(value)}")
    return value


def activation(name: str, value: Any) -> str:
    """Return the name of a supported activation."""
    if not isinstance(value, str) or value not in ACTIVATIONS:
        raise ConfigError(
            f"config.json: {name} {shown(value)} is not an activation this encoder computes; "
            f"it computes: {', '.join(sorted(ACTIVATIONS))}"
        )
    return value


def unsupported(
    model_type: Any, known: Iterable[str], nearest: str | None = None, what: str | None = None, own_code: bool = False
) -> ConfigError:
    """Return the error for a `model_type` that is not in `known`.

    Args:
        model_type: as in `config.json`.
        known: every `model_type` that is supported.
        nearest: the one of them that is most like it; None: none is.
        what: what the unsupported one is; None: unknown.
        own_code: whether `config.json` names Python code of the checkpoint's own.
    """
    names = tuple(known)
    is_what = f" ({what})" if what else ""
    near = f"; nearest: {repr(nearest) if nearest else 'none of them'}" if model_type and names[1:] else ""
    code = "; its auto_map names code of its own, which is never run" if own_code else ""
    guess = nearest or (None if names[1:] else names[0])
    fix = "convert a checkpoint of a supported one, or add the architecture (CONTRIBUTING.md)"
    if not model_type:
        fix = f'add "model_type": "{guess}", or' if guess else 'add "model_type",'
        fix += " the one of these that this encoder is"
    return ConfigError(
        f"config.json: model_type {shown(model_type)} is not supported{is_what}; "
        f"supported: {', '.join(map(repr, names))}{near}{code}; fix: {fix}"
    )
