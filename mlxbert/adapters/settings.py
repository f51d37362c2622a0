"""`LoRA`: the settings of low-rank adapters, as text, as PEFT writes them, and as JSON.

LoRA.make("rank=8,alpha=16,layers=query+value")
LoRA.make({"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]})
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from mlxbert.errors import MLXBertError, MLXBertWarning, shown

QUERY, KEY, VALUE = "query", "key", "value"
ALL = ("all", "all-linear")
_DEFAULT_LAYERS = (QUERY, VALUE)
_LARGEST_RANK = 2**16


class AdapterWarning(MLXBertWarning):
    """Adapters are trained, or used, in another way than the settings' words suggest."""


class AdapterError(MLXBertError):
    """Settings of adapters, or a file of adapters, that no model can have."""


# PEFT's name of an option -> ours of the same meaning; https://huggingface.co/docs/peft, LoraConfig.
_PEFT = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "layers",
    "use_dora": "dora",
}
# PEFT's other options, with the values at which they change nothing.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_rslora": (False,),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True,),
    "inference_mode": (False, True),
    "peft_type": ("LORA",),
    "task_type": (None, "SEQ_CLS", "FEATURE_EXTRACTION", "TOKEN_CLS"),
    "modules_to_save": (None,),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None,),
    "layers_pattern": (None,),
    "lora_bias": (False,),
}
_YES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters: y = W x + (alpha / rank) · B A x, where only A and B are trained.

    LoRA: Hu et al. 2021, https://arxiv.org/abs/2106.09685. DoRA: Liu et al. 2024, https://arxiv.org/abs/2402.09353.

    Attributes:
        rank: rows of A and columns of B.
        alpha: the update is scaled by alpha / rank; None: twice the rank.
        dropout: share of the adapter's inputs that are dropped in training.
        layers: which linear layers get an adapter: "query", "key", "value", the ends of their paths, as in PEFT's
            `target_modules`, whole paths, or "all".
        dora: also train the length of each row of the weight.
        merge: whether saving adds the adapters to the weights; None: yes, unless the encoder is quantized.

    Raises:
        AdapterError: on construction; names the setting, its value and what it may be.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    layers: tuple[str, ...] = _DEFAULT_LAYERS
    dora: bool = False
    merge: bool | None = None

    def __post_init__(self) -> None:
        layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        layers = tuple(word for entry in layers for word in (entry.split("+") if isinstance(entry, str) else (entry,)))
        object.__setattr__(self, "layers", tuple(dict.fromkeys(layers)))
        if not _is_number(self.rank, int) or not 1 <= self.rank <= _LARGEST_RANK:
            raise AdapterError(f"lora: rank must be a whole number from 1, not {shown(self.rank)}; fix: rank=8")
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        if not _is_number(alpha, float) or not 0 < alpha < math.inf:
            raise AdapterError(f"lora: alpha must be a number above 0, not {shown(alpha)}; fix: alpha=16")
        object.__setattr__(self, "alpha", float(alpha))
        if not _is_number(self.dropout, float) or not 0 <= self.dropout < 1:
            raise AdapterError(
                f"lora: dropout must be a number from 0 to below 1, not {shown(self.dropout)}; fix: dropout=0.1"
            )
        object.__setattr__(self, "dropout", float(self.dropout))
        if not self.layers or not all(isinstance(word, str) and word.strip() == word != "" for word in self.layers):
            raise AdapterError(
                f"lora: layers must name linear layers, not {shown(list(self.layers))}; fix: layers=query+value"
            )
        if not isinstance(self.dora, bool):
            raise AdapterError(f"lora: dora must be yes or no, not {shown(self.dora)}")
        if self.merge is not None and not isinstance(self.merge, bool):
            raise AdapterError(f"lora: merge must be yes or no, not {shown(self.merge)}")

    @property
    def scale(self) -> float:
        """The factor of B A."""
        assert self.alpha is not None  # __post_init__ sets it
        return self.alpha / self.rank

    def __str__(self) -> str:
        """Return the settings as `make` reads them: "rank=8,alpha=16,layers=query+value"."""
        words = [f"rank={self.rank}", f"alpha={_written(self.alpha)}"]
        words += [f"dropout={_written(self.dropout)}"] if self.dropout else []
        words.append(f"layers={'+'.join(self.layers)}")
        words += ["dora=yes"] if self.dora else []
        words += [] if self.merge is None else [f"merge={'yes' if self.merge else 'no'}"]
        return ",".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values; `make` reads them."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def make(cls, value: Any) -> Self:
        """Return the settings of a text, a mapping with our names or PEFT's, or of a `LoRA`.

        Raises:
            AdapterError: an option is unknown (the message has the nearest names), or its value cannot be.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = _parsed(value)
        if not isinstance(value, Mapping):
            raise AdapterError(f"lora must be settings such as rank=8,alpha=16,layers=query+value, not {shown(value)}")
        given: dict[str, Any] = {}
        for name, setting in value.items():
            ours = _our_name(name, setting)
            if ours is None:
                continue
            if ours in given:
                raise AdapterError(f"lora: {ours} is given twice; fix: leave one out")
            given[ours] = _layers(setting) if ours == "layers" else setting
        return cls(**given)


def _written(number: float | None) -> str:
    """Return a number's shortest text that reads back as it: 16, 0.1."""
    return repr(number).removesuffix(".0")


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def _layers(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Iterable) and not isinstance(value, Mapping):
        return tuple(sorted(value) if isinstance(value, set | frozenset) else value)
    raise AdapterError(f"lora: layers must name linear layers, not {shown(value)}; fix: layers=query+value")


def _our_name(name: Any, value: Any) -> str | None:
    """Return our name of an option; None: it is PEFT's, and its value changes nothing."""
    known = [setting.name for setting in fields(LoRA)]
    name = name.strip().replace("-", "_") if isinstance(name, str) else name
    if name in known:
        return str(name)
    if name in _PEFT:
        return _PEFT[name]
    if name in _WITHOUT_EFFECT:
        if any(value == harmless for harmless in _WITHOUT_EFFECT[name]):
            return None
        raise AdapterError(
            f"lora: PEFT's option {name}={shown(value)} is not computed here; options: {', '.join(known)}"
        )
    near = difflib.get_close_matches(str(name), [*known, *_PEFT], n=2, cutoff=0.6)
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"options: {', '.join(known)}"
    raise AdapterError(f"lora: there is no option {shown(name)}; {fix}")


def _parsed(text: str) -> dict[str, Any]:
    """Return the options of a text such as "rank=8,layers=query+value"; "" has none."""
    options: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = word.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise AdapterError(f"lora: {shown(word)}: give NAME=VALUE, such as rank=8,alpha=16,layers=query+value")
        if name in options:
            raise AdapterError(f"lora: {name} is given twice; fix: leave one out")
        options[name] = _value(_PEFT.get(name, name), value)
    return options


def _value(name: str, text: str) -> Any:
    """Return the value of a word; where it is none of the right type, the text, which `LoRA` refuses."""
    if name in ("dora", "merge", "use_rslora", "fan_in_fan_out", "lora_bias"):
        return _YES.get(text.lower(), text)
    kind = {"rank": int, "alpha": float, "dropout": float}.get(name)
    try:
        return text if kind is None else kind(text)
    except ValueError:
        return text


def chosen_layers(
    words: Sequence[str], paths: Sequence[str], projections: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the layers that `words` name, in the order of `paths`, and notes for the user.

    Args:
        words: of `LoRA.layers`.
        paths: of every linear layer of the encoder.
        projections: "query", "key" and "value" -> end of the path of the layer that computes it.

    Raises:
        AdapterError: a word names no layer; the message has the nearest names.
    """
    chosen: set[str] = set()
    fused: dict[str, list[str]] = {}
    for word in words:
        end = projections.get(word, word)
        found = set(paths) if word in ALL else {path for path in paths if f".{path}".endswith(f".{end}")}
        if not found:
            raise _no_layer(word, paths, projections)
        chosen |= found
        if list(projections.values()).count(end) > 1 and word in projections:
            fused.setdefault(end, []).append(word)
    notes = []
    for end, named in fused.items():
        inside = [word for word, other in projections.items() if other == end]
        notes.append(
            f"lora: {' and '.join(named)} {'is' if len(named) == 1 else 'are'} computed by the fused layer {end} "
            f"({', '.join(inside)}); the adapter takes the whole layer, as PEFT does"
        )
    return tuple(path for path in paths if path in chosen), tuple(notes)


def _no_layer(word: str, paths: Sequence[str], projections: Mapping[str, str]) -> AdapterError:
    ends = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    # Two names from the end tell `attention.output.dense` from `intermediate.dense`.
    longer = dict.fromkeys(".".join(path.split(".")[-2:]) for path in paths)
    names = [name for name in dict.fromkeys((*projections, *ends, *longer, ALL[0])) if not name.isdigit()]
    near = difflib.get_close_matches(word, [*names, *paths], n=3, cutoff=0.6)
    if near:
        return AdapterError(f"lora: no linear layer is called {shown(word)}; did you mean {' or '.join(near)}?")
    short = [name for name in names if name not in longer or name in projections]
    return AdapterError(f"lora: no linear layer is called {shown(word)}; fix: one of {', '.join(short)}")
