"""ModernBERT: Warner et al. 2024, https://arxiv.org/abs/2412.13663.

Source: transformers `models/modernbert/modeling_modernbert.py`. A norm comes before attention and before the
feed-forward block, not after them; layer 0 has none before attention, and `final_norm` follows the last layer.
Positions are rotations of queries and keys. Most layers attend only to a window of neighbours (local), the others to
the whole text (global); each kind has its own rotary base. The feed-forward block is gated (GLU). There are neither
token types nor a pooler, and by default no biases.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout, LayerNorm
from heads.pretrained.modernbert import (
    HeadSettings,
    ModernBertChoiceHead,
    ModernBertClassifier,
    ModernBertMaskedLMHead,
    ModernBertSequenceHead,
    ModernBertSpanHead,
    ModernBertTokenHead,
)
from mlxbert.activations import ACTIVATIONS
from mlxbert.errors import shown
from mlxbert.model_arrays import embedded
from mlxbert.models.architecture import Architecture, Elsewhere, HeadClass, HeadKind
from mlxbert.models.attention import attend, merge_heads
from mlxbert.models.base import Context, Encoder, Inputs
from mlxbert.models.bert import BERT
from mlxbert.models.config_fields import (
    Checks,
    ConfigError,
    EncoderConfig,
    Refusals,
    activation,
    deviation,
    epsilon,
    flag,
    layer_count,
    number,
    probability,
    size,
    token_id,
)
from mlxbert.models.rotary import rope_type, rotary_table, rotated

# The configuration

GLOBAL, LOCAL = "full_attention", "sliding_attention"
_EVERY = "global_attn_every_n_layers"
# Kind of layer -> the field of its rotary base, as transformers before 5 and other packages spell it.
_THETAS = {GLOBAL: "global_rope_theta", LOCAL: "local_rope_theta"}


def _pooling(name: str, value: Any) -> str:
    if value not in ("cls", "mean"):
        raise ConfigError(f"config.json: {name} must be 'cls' or 'mean', not {shown(value)}")
    return str(value)


def _theta(name: str, value: Any) -> float:
    return number(name, value, 1e-6, 1e30)


def _is_plain(value: Any) -> bool:
    """Return whether `rope_scaling` changes nothing; transformers 5 copies its other keys into `rope_parameters`."""
    return rope_type(value) == "default" and (value is None or set(value) <= {"rope_type", "type"})


@dataclass(frozen=True)
class ModernBertConfig(EncoderConfig):
    """The fields of a ModernBERT configuration that change numbers, with transformers' own defaults; immutable.

    Source: transformers `models/modernbert/configuration_modernbert.py`. `from_hf` reads `layer_types` and
    `rope_parameters` (transformers 5), and `global_attn_every_n_layers` and `…_rope_theta` (before).

    Attributes:
        layer_types: "full_attention" or "sliding_attention" for each layer.
        local_attention: width of the window of a local layer; a token sees the half of it on each side, rounded down.
    """

    model_type: ClassVar[str] = "modernbert"

    vocab_size: int = 50368
    hidden_size: int = 768
    num_hidden_layers: int = 22
    num_attention_heads: int = 12
    intermediate_size: int = 1152
    hidden_act: str = "gelu"
    max_position_embeddings: int = 8192
    norm_eps: float = 1e-5
    norm_bias: bool = False
    pad_token_id: int | None = 50283
    attention_bias: bool = False
    attention_dropout: float = 0.0
    layer_types: tuple[str, ...] = ()
    global_rope_theta: float = 160_000.0
    local_rope_theta: float = 10_000.0
    local_attention: int = 128
    embedding_dropout: float = 0.0
    mlp_bias: bool = False
    mlp_dropout: float = 0.0
    decoder_bias: bool = True
    classifier_pooling: str = "cls"
    classifier_dropout: float = 0.0
    classifier_bias: bool = False
    classifier_activation: str = "gelu"
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True

    ALIASES: ClassVar[Mapping[str, str]] = {"hidden_act": "hidden_activation"}
    CHECKS: ClassVar[Checks] = {
        **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size"), size),
        **dict.fromkeys(("max_position_embeddings", "local_attention"), size),
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "decoder_bias", "classifier_bias"), flag),
        **dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"), probability),
        **dict.fromkeys(("hidden_act", "classifier_activation"), activation),
        **dict.fromkeys(_THETAS.values(), _theta),
        "num_hidden_layers": layer_count,
        "norm_eps": epsilon,
        "pad_token_id": token_id,
        "classifier_pooling": _pooling,
        "initializer_range": deviation,
        "tie_word_embeddings": flag,
        "layer_types": lambda name, value: value,  # from `_layer_types`
    }
    REFUSED: ClassVar[Refusals] = {
        "rope_scaling": (_is_plain, "scaled rotary positions, or bases that rope_parameters does not say"),
        "head_dim": (lambda value: value is None, "heads of another width than hidden_size / num_attention_heads"),
        "sliding_window": (lambda value: value is None, "a window that `local_attention` does not say"),
    }

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection to queries, keys and values."""
        return 3 * self.hidden_size

    @property
    def gated_size(self) -> int:
        """Rows of the fused projection to the activated half and its gate."""
        return 2 * self.intermediate_size

    @property
    def max_length(self) -> int:
        """The number of tokens of the longest input; transformers itself does not limit it."""
        return self.max_position_embeddings

    @property
    def table_rows(self) -> Mapping[str, int]:
        """The number of different ids; a position may be any number, because it is an angle."""
        return {"input_ids": self.vocab_size}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModernBertConfig:
        """Read a parsed `config.json`, as `EncoderConfig.from_hf`.

        Raises:
            ConfigError: also if the old and the new spelling of a field disagree, or for scaled rotary positions.
        """
        layers = layer_count("num_hidden_layers", config.get("num_hidden_layers", cls.num_hidden_layers))
        kinds = _layer_types(config, layers)
        parsed = super().from_hf({**config, **_rotary_thetas(config), "layer_types": kinds})
        if parsed.head_size % 2:
            raise ConfigError(
                f"config.json: hidden_size {parsed.hidden_size} / num_attention_heads {parsed.num_attention_heads} is "
                f"{parsed.head_size}; rotary positions turn pairs, so it must be even"
            )
        return parsed

    @property
    def every_nth_global(self) -> int | None:
        """The old spelling of `layer_types`: every n-th layer is global, from the first on; None: it is not so."""
        kinds, layers = self.layer_types, self.num_hidden_layers
        return next((n for n in range(1, layers + 1) if _every_nth(n, layers) == kinds), None)

    def theta(self, kind: str) -> float:
        """Return the rotary base of a kind of layer."""
        return self.global_rope_theta if kind == GLOBAL else self.local_rope_theta


def _every_nth(every: int, layers: int) -> tuple[str, ...]:
    """Return the kinds of layers if every n-th one is global, beginning with the first."""
    return tuple(LOCAL if i % every else GLOBAL for i in range(layers))


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """Return the kind of each layer."""
    given, every = config.get("layer_types"), config.get(_EVERY)
    if given is None:
        return _every_nth(size(_EVERY, config.get(_EVERY, 3)), layers)
    if not isinstance(given, list | tuple) or not all(kind in (GLOBAL, LOCAL) for kind in given):
        raise ConfigError(f"config.json: layer_types must list '{GLOBAL}' and '{LOCAL}', not {shown(given)}")
    if len(given) != layers:
        raise ConfigError(
            f"config.json: layer_types has {len(given)} entries, and num_hidden_layers is {layers}; fix: one a layer"
        )
    if every is not None and _every_nth(size(_EVERY, every), layers) != tuple(given):
        raise _disagree("layer_types", _EVERY, every)
    return tuple(given)


def _rotary_thetas(config: Mapping[str, Any]) -> dict[str, float]:
    """Return the rotary bases that are given, in the old spelling."""
    given = {} if config.get("rope_parameters") is None else config["rope_parameters"]
    if not isinstance(given, Mapping) or not set(given) <= set(_THETAS):
        raise ConfigError(f"config.json: rope_parameters must have '{GLOBAL}' and '{LOCAL}', not {shown(given)}")
    thetas: dict[str, float] = {}
    for kind, old in _THETAS.items():
        parameters = given.get(kind, {})
        place = f"rope_parameters.{kind}"
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"config.json: {place} must be an object, not {shown(parameters)}")
        if (scaling := rope_type(parameters)) != "default":
            raise ConfigError(
                f"config.json: {place}.rope_type={shown(scaling)} asks for scaled positions; not computed here; "
                "fix: convert a checkpoint with plain rotary positions"
            )
        if "rope_theta" in parameters:
            thetas[old] = _theta(f"{place}.rope_theta", parameters["rope_theta"])
            if old in config and config[old] != thetas[old]:
                raise _disagree(f"{place}.rope_theta={thetas[old]:g}", old, config[old])
    return thetas


def _disagree(new: str, old: str, value: Any) -> ConfigError:
    return ConfigError(
        f"config.json: {new} and {old}={shown(value)} disagree, and packages read one or the other; "
        "fix: remove the wrong one"
    )


def in_both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` with the fields that transformers 5 and other packages spell differently in both ways.

    mlx-embeddings and mlx-vlm read the old way, and take their defaults in silence where it is missing. Kinds of
    layers that it cannot express become null there, which these packages refuse.
    """
    parsed = ModernBertConfig.from_hf(config)
    return {
        **{name: value for name, value in config.items() if name not in ("rope_scaling", "sliding_window")},
        "layer_types": list(parsed.layer_types),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": parsed.theta(kind)} for kind in _THETAS},
        "local_attention": parsed.local_attention,
        _EVERY: config.get(_EVERY) or parsed.every_nth_global,
        **{old: parsed.theta(kind) for kind, old in _THETAS.items()},
    }


# The modules


def _norm(config: ModernBertConfig) -> nn.LayerNorm:
    return LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.norm_bias)


class ModernBertEmbeddings(nn.Module):
    """LayerNorm(word); transformers `ModernBertEmbeddings`."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = _norm(config)
        self.dropout = Dropout(config.embedding_dropout)

    def __call__(self, inputs: Inputs) -> mx.array:
        """Map ids (B, L) to embeddings (B, L, D).

        Raises:
            InputError: an id outside the table; NaN instead while the call is traced.
        """
        words = inputs.embeds
        if words is None:
            assert inputs.ids is not None  # one of the two is there
            words = embedded("input_ids", self.tok_embeddings, inputs.ids)
        return self.dropout(self.norm(words))


class ModernBertAttention(nn.Module):
    """Attention with one fused projection and rotary positions; transformers `ModernBertAttention`."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = config.head_size**-0.5
        self.Wqkv = nn.Linear(config.hidden_size, config.qkv_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.dropout = Dropout(config.attention_dropout)
        self.out_drop = Dropout(config.attention_dropout)

    def __call__(
        self, x: mx.array, table: mx.array, mask: mx.array | None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L).

        `mask` is boolean and broadcasts to (B, H, L, L), True = attend.
        """
        B, L, _ = x.shape
        qkv = self.Wqkv(x).reshape(B, L, 3, self.num_heads, -1)
        # The CPU rotates contiguous halves twice as fast, and its products copy the values anyway.
        qkv = mx.contiguous(qkv.transpose(2, 0, 3, 1, 4))  # (3, B, H, L, Dh)
        qk = rotated(qkv[:2], table)
        y, weights = attend(qk[0], qk[1], qkv[2], self.scale, mask, self.dropout, output_attentions)
        return self.out_drop(self.Wo(merge_heads(y))), weights


class ModernBertMLP(nn.Module):
    """Wo(activation(first half of Wi) · second half); GLU, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModernBertConfig):
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, config.gated_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.dropout = Dropout(config.mlp_dropout)
        self._activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        """Map (B, L, D) to (B, L, D)."""
        inner, gate = mx.split(self.Wi(x), 2, axis=-1)  # (B, L, F) each
        return self.Wo(self.dropout(self._activation(inner) * gate))


class ModernBertLayer(nn.Module):
    """Attention, then the feed-forward block, each with a norm before it and a residual around both."""

    def __init__(self, config: ModernBertConfig, i: int):
        super().__init__()
        if i > 0:  # the embeddings' norm comes before layer 0
            self.attn_norm = _norm(config)
        self.attn = ModernBertAttention(config)
        self.mlp_norm = _norm(config)
        self.mlp = ModernBertMLP(config)

    def __call__(
        self, x: mx.array, table: mx.array, mask: mx.array | None, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Map (B, L, D) to (B, L, D) and, on request, the attention weights (B, H, L, L)."""
        y, weights = self.attn(self.attn_norm(x) if "attn_norm" in self else x, table, mask, output_attentions)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), weights


class ModernBertCore(Encoder):
    """Embeddings, layers and the final norm; there is never a pooler."""

    config: ModernBertConfig

    layers_path = "layers"
    above_layers = ("final_norm.",)

    def __init__(self, config: ModernBertConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = [ModernBertLayer(config, i) for i in range(config.num_hidden_layers)]
        self.final_norm = _norm(config)

    def embed_inputs(self, inputs: Inputs) -> tuple[mx.array, Context]:
        """Return the embeddings; the rotary table of each kind of layer, and its mask if it has one."""
        L = inputs.shape[1]
        positions = mx.arange(L)[None] if inputs.positions is None else inputs.positions
        context: Context = {
            f"{kind}_table": rotary_table(positions, self.config.head_size, self.config.theta(kind))
            for kind in dict.fromkeys(self.config.layer_types)
        }
        keep = inputs.keep
        half = self.config.local_attention // 2  # on each side
        places = mx.arange(L)  # a window counts places in the text, whatever positions the caller gives
        near = mx.abs(places[:, None] - places) <= half if half < L - 1 else None  # (L, L)
        masks = {GLOBAL: keep, LOCAL: near if keep is None else keep if near is None else keep & near}
        context |= {f"{kind}_mask": mask for kind, mask in masks.items() if mask is not None}
        return self.embeddings(inputs), context

    def run_layer(
        self, i: int, x: mx.array, context: Context, output_attentions: bool = False
    ) -> tuple[mx.array, mx.array | None]:
        """Run layer `i`."""
        kind = self.config.layer_types[i]
        table, mask = context[f"{kind}_table"], context.get(f"{kind}_mask")
        output: tuple[mx.array, mx.array | None] = self.layers[i](x, table, mask, output_attentions)
        return output

    def finish(self, x: mx.array) -> mx.array:
        """Normalize the last layer's output."""
        return self.final_norm(x)


# The checkpoint's own heads


def _settings(config: ModernBertConfig) -> HeadSettings:
    return HeadSettings(
        hidden_size=config.hidden_size,
        activation=ACTIVATIONS[config.classifier_activation],
        norm_eps=config.norm_eps,
        norm_bias=config.norm_bias,
        dense_bias=config.classifier_bias,
        pooling=config.classifier_pooling,
        dropout=config.classifier_dropout,
    )


def _masked_lm_head(config: ModernBertConfig, labels: int, tensors: Iterable[str]) -> ModernBertMaskedLMHead:
    # If the configuration unties the decoder, it must be there: with the embeddings the numbers would silently differ.
    weight = "decoder.weight" in set(tensors) or not config.tie_word_embeddings
    return ModernBertMaskedLMHead(_settings(config), config.vocab_size, weight=weight, bias=config.decoder_bias)


def _classifier(kind: HeadKind, head: type[ModernBertClassifier]) -> HeadClass:
    def build(config: ModernBertConfig, labels: int, tensors: Iterable[str]) -> ModernBertClassifier:
        return head(_settings(config), labels)

    return HeadClass(kind, ("head.", "classifier."), build, labels=None if head.outputs else "classifier")


# The facts about ModernBERT


def _order_problem(config: ModernBertConfig) -> str | None:
    return None if config.every_nth_global else "it cannot express this order of local and global layers"


def _gelu_problem(config: ModernBertConfig) -> str | None:
    if ACTIVATIONS[config.hidden_act] is ACTIVATIONS["gelu_new"]:
        return None
    return "it always computes GELU by tanh; hidden states of a model with exact GELU are off by some 1e-3"


_ACCEPTED = frozenset({"not exact GELU", "a head that encoders' loaders do not leave out"})
_HALF = "its attention takes no mask in half precision"
_POOLED = "its `last_hidden_state` is a pooled vector (`classifier_pooling`), and it computes GELU by tanh"

_TINY = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "local_attention": 6,
    _EVERY: 2,
    **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True),
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "cls_token_id", "eos_token_id", "sep_token_id"), 2),
}

MODERNBERT = Architecture(
    model_type="modernbert",
    table="modernbert",
    config=ModernBertConfig,
    encoder=ModernBertCore,
    encoder_class="ModernBertModel",
    prefix="model.",
    parts=("embeddings.", "layers.", "final_norm."),
    heads={
        "ModernBertForMaskedLM": HeadClass(HeadKind.MASKED_LM, ("head.",), _masked_lm_head, optional=("decoder.",)),
        "ModernBertForSequenceClassification": _classifier(HeadKind.SEQUENCE, ModernBertSequenceHead),
        "ModernBertForTokenClassification": _classifier(HeadKind.TOKEN, ModernBertTokenHead),
        "ModernBertForMultipleChoice": _classifier(HeadKind.CHOICE, ModernBertChoiceHead),
        "ModernBertForQuestionAnswering": _classifier(HeadKind.SPAN, ModernBertSpanHead),
    },
    tables={"word": "embeddings.tok_embeddings"},
    tokenizer_class="PreTrainedTokenizerFast",
    has_token_types=False,
    tolerances=BERT.tolerances,
    projections=dict.fromkeys(("query", "key", "value"), "Wqkv"),
    written_config=in_both_spellings,
    known_to=frozenset({"mlx-embeddings", "mlx-vlm (load_embedding_model)", "mlx-vlm (load_reranker)"}),
    elsewhere={
        "mlx-embeddings": Elsewhere(lambda config: _POOLED, _order_problem, _ACCEPTED, {"quantized": _HALF}),
        "mlx-vlm": Elsewhere(_gelu_problem, _order_problem, _ACCEPTED),
    },
    variants={"modernbert-decoder": "ModernBERT's decoder, with causal attention"},
    tiny=_TINY,
)

ARCHITECTURES = (MODERNBERT,)
