"""The description of an architecture as data, and the registry of architectures.

A file in this folder is an architecture: it declares `ARCHITECTURES`, a tuple with an `Architecture` for each
`model_type` that it reads. Adding a file registers it. Nothing outside of this folder, `converter/mappings/` and
`heads/pretrained/` knows an architecture by name.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any

from mlxbert.models.config_fields import ConfigError, EncoderConfig, unsupported

if TYPE_CHECKING:
    from heads.pretrained import PretrainedHead
    from mlxbert.models.base import Encoder


POOLER = "pooler."
"""The beginning of the names of the encoder's pooler's tensors, in every architecture whose encoder has one."""


class HeadKind(StrEnum):
    """What a checkpoint's own head does."""

    PRETRAINING = "masked words and the next sentence"
    MASKED_LM = "masked words"
    REPLACED_TOKEN = "replaced tokens"
    NEXT_SENTENCE = "the next sentence"
    SEQUENCE = "classes of a text"
    TOKEN = "classes of a token"
    CHOICE = "one text of several"
    SPAN = "an answer in a text"


@dataclass(frozen=True)
class HeadClass:
    """A class of transformers that puts a head on the encoder.

    Attributes:
        kind: what the head does.
        prefixes: what the names of its tensors begin with; there is a tensor for each.
        build: an empty head from (configuration, number of labels, names of the head's tensors in the checkpoint);
            the names show which parts of a decoder are tied.
        has_pooler: whether the class has the encoder's pooler and its head reads it.
        labels: path of the Linear whose rows are the labels; None: the head has no labels.
        tied_bias: names of the decoder's bias and of what transformers ties it to; None: there are none.
        optional: what the names of those of its tensors begin with that some configurations do not have.
        one_of_optional: whether each configuration has a tensor for one of `optional`.
    """

    kind: HeadKind
    prefixes: tuple[str, ...]
    build: Callable[[Any, int, Iterable[str]], PretrainedHead]
    has_pooler: bool = False
    labels: str | None = None
    tied_bias: tuple[str, str] | None = None
    optional: tuple[str, ...] = ()
    one_of_optional: bool = False

    def is_whole(self, groups: Iterable[str]) -> bool:
        """Return whether these beginnings of tensor names have all that every configuration has."""
        present = set(groups)
        return present.issuperset(self.prefixes) and (
            not self.one_of_optional or not present.isdisjoint(self.optional)
        )

    @property
    def all_prefixes(self) -> tuple[str, ...]:
        """What the names of its tensors can begin with."""
        return (*self.prefixes, *self.optional)

    @property
    def fine_tuned(self) -> bool:
        """Whether the head comes from fine-tuning, not from pre-training."""
        return self.kind in (HeadKind.SEQUENCE, HeadKind.TOKEN, HeadKind.CHOICE, HeadKind.SPAN)


@dataclass(frozen=True)
class MappingLimits:
    """Limits for float32 MLX against float32 PyTorch; both are on `converter.parity.gates.Deviation.max_rel`.

    Attributes:
        cumulative: after any number of layers, pooler and logits included.
        local: one layer alone, fed the reference's own input to it.
    """

    cumulative: float
    local: float


@dataclass(frozen=True)
class PrecisionLimits:
    """Limits for the written checkpoint against its float32 core: every hidden state, the pooler and the logits.

    Attributes:
        max_rel: on `converter.parity.gates.Deviation.max_rel`.
        cosine: the smallest cosine that one token's hidden state may have with its float32 self; the pooler's
            vector likewise. Not for logits: near 0 they may have any direction.
    """

    max_rel: float
    cosine: float


@dataclass(frozen=True)
class Tolerances:
    """The limits of one architecture: the mapping gate's, the precision gate's for each written dtype."""

    mapping: MappingLimits
    precision: Mapping[str, PrecisionLimits]


@dataclass(frozen=True)
class Elsewhere:
    """What is special about a package's own model of one architecture.

    Attributes:
        differs: from the configuration, why its numbers are not transformers'; None: they are.
        refuses: from the configuration, why it does not load; None: it loads.
        accepts: traits, as `converter/card/loaders.py` names them, that it copes with unlike its other models.
        refused: trait -> why a directory with it does not load.
    """

    differs: Callable[[Any], str | None] = lambda config: None
    refuses: Callable[[Any], str | None] = lambda config: None
    accepts: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """All facts about one `model_type` that the rest of the project uses.

    Attributes:
        model_type: as in `config.json`.
        table: the file of its tensor names in `converter/mappings/`.
        config, encoder: its classes in this project.
        encoder_class: the encoder's class in transformers.
        prefix: what the encoder's names begin with inside a class with a head.
        heads: class of transformers -> its head; if only tensors determine the class, the first that fits.
        parts: what the names of the encoder's tensors begin with.
        tables: "word" and the other terms of a token's embedding ("position", "token_type") -> path; a configuration
            may have only some of them.
        tokenizer_class: transformers' class of its tokenizer, where the files name none.
        has_token_types: whether its tokenizer marks the two texts of a pair by token types.
        tolerances: of the parity gates.
        swift_names: path of a layer, with `{i}` -> path in mlx-swift-lm, if it differs.
        assumed: whether a configuration without a `model_type` may be taken for this one, if the tensors fit.
        known_to: packages whose own models load it, or single ways of loading, as `converter/card/loaders.py` names
            them: "mlx-vlm", or only "mlx-vlm (load_reranker)".
        elsewhere: a package, or a way of loading, as in `known_to` -> what is special about its model.
        variants: `model_type`s that are like this one and are not computed -> what they are.
        written_config: from the content of a source's `config.json`, the content to write.
        kept: path of a matrix that is never packed -> the reason.
        limits: sentences for users of it, about what to know before use.
        projections: "query", "key" and "value" -> end of the path of the linear layer that computes it; one layer may
            compute several.
        fields_of: from the names of a checkpoint's tensors, fields of `config.json` that they show, whatever it says.
        tiny: fields of a small configuration, for tests.
    """

    model_type: str
    table: str
    config: type[EncoderConfig]
    encoder: Callable[..., Encoder]
    encoder_class: str
    prefix: str
    parts: tuple[str, ...]
    heads: Mapping[str, HeadClass]
    tables: Mapping[str, str]
    tokenizer_class: str
    has_token_types: bool
    tolerances: Tolerances
    swift_names: Mapping[str, str] = field(default_factory=dict)
    assumed: Callable[[Mapping[str, Any]], bool] = lambda config: False
    known_to: frozenset[str] = frozenset()
    elsewhere: Mapping[str, Elsewhere] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)
    written_config: Callable[[dict[str, Any]], dict[str, Any]] = dict
    kept: Mapping[str, str] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    projections: Mapping[str, str] = field(default_factory=lambda: {name: name for name in ("query", "key", "value")})
    fields_of: Callable[[Iterable[str]], Mapping[str, Any]] = lambda names: {}
    tiny: Mapping[str, Any] = field(default_factory=dict)

    @property
    def word_embeddings(self) -> str:
        """The name of the tensor of the word embeddings."""
        return f"{self.tables['word']}.weight"

    @property
    def has_pooler(self) -> bool:
        """Whether its encoder can have a pooler; some architectures have one in their heads only, or none."""
        return POOLER in self.parts

    def is_pooler(self, name: str) -> bool:
        """Return whether a tensor of this name, with or without the prefix, belongs to the encoder's pooler."""
        return self.has_pooler and name.removeprefix(self.prefix).startswith(POOLER)

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of any head's tensors begin with."""
        return tuple(dict.fromkeys(prefix for head in self.heads.values() for prefix in head.all_prefixes))

    def is_head_tensor(self, name: str) -> bool:
        """Return whether a tensor of this name belongs to a head of a class of transformers."""
        return name.startswith(self.head_prefixes)

    def swift_path(self, path: str) -> str:
        """Return the path in mlx-swift-lm of the layer at `path`; mostly the same."""
        return _renamed(path, self.swift_names)

    def from_swift_path(self, path: str) -> str:
        """Return the path here of the layer at `path` in mlx-swift-lm; an unknown `path` stays as it is."""
        return _renamed(path, {theirs: ours for ours, theirs in self.swift_names.items()})

    def head_of(self, kind: HeadKind) -> str | None:
        """Return the class of transformers whose head is of this kind; None: there is none."""
        return next((name for name, head in self.heads.items() if head.kind is kind), None)


# A longer model_type is compared by its beginning.
_MAX_NAME = 40


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """Return the value in `names` for a path; `{i}` in a name stands for a layer's number."""
    if path in names:
        return names[path]
    match = re.fullmatch(r"(.*?)\.(0|[1-9][0-9]*)\.(.*)", path)
    name = names.get(f"{match[1]}.{{i}}.{match[3]}") if match else None
    return path if match is None or name is None else name.replace("{i}", match[2])


@cache
def _architectures() -> dict[str, Architecture]:
    """Return every `model_type` with its architecture; an error while a file is imported is raised."""
    architectures = {}
    package = importlib.import_module("mlxbert.models")
    for module in pkgutil.iter_modules(package.__path__):
        file = importlib.import_module(f"{package.__name__}.{module.name}")
        declared: tuple[Architecture, ...] = getattr(file, "ARCHITECTURES", ())  # `base` has none
        architectures.update({item.model_type: item for item in declared})
    return dict(sorted(architectures.items()))


def supported() -> tuple[str, ...]:
    """Return every supported `model_type`."""
    return tuple(_architectures())


def architecture(model_type: Any) -> Architecture:
    """Return the architecture of a `model_type`.

    Raises:
        ConfigError: it is not supported; lists those that are, and says which is nearest.
    """
    if not isinstance(model_type, str) or model_type not in _architectures():
        raise _unsupported(model_type)
    return _architectures()[model_type]


def _unsupported(model_type: Any, config: Mapping[str, Any] | None = None) -> ConfigError:
    """Return the error for a `model_type` that is not supported, with the nearest one.

    It is told by `variants` and by the name; without a name, by the classes in the configuration.
    """
    config = config or {}
    spelled = model_type[:_MAX_NAME].lower().replace("_", "-") if isinstance(model_type, str) else ""
    contained = sorted((name for name in supported() if name in spelled), key=len, reverse=True)
    # "deberta-v3" contains "bert", and is nearer to "deberta-v2".
    alike = get_close_matches(spelled, supported(), n=1, cutoff=0.85)
    near, what = alike or contained or get_close_matches(spelled, supported(), n=1), None
    nearest = next(iter(near), None)
    listed = config.get("architectures")
    classes = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    for name, declared in _architectures().items():
        if isinstance(model_type, str) and model_type in declared.variants:
            nearest, what = name, declared.variants[model_type]
        elif not model_type and not {declared.encoder_class, *declared.heads}.isdisjoint(classes):
            nearest = name
    return unsupported(model_type, supported(), nearest, what, bool(config.get("auto_map")))


def config_from_hf(config: Mapping[str, Any]) -> EncoderConfig:
    """Read a parsed Hugging Face `config.json` as the configuration of its architecture.

    Raises:
        ConfigError: as `architecture` and `EncoderConfig.from_hf`.
    """
    if config.get("model_type") not in supported():
        raise _unsupported(config.get("model_type"), config)
    return architecture(config.get("model_type")).config.from_hf(config)
