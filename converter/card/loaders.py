"""Which packages load a converted directory, and which compute other numbers: one table of rules.

The terminal, the model card and `tests/converter/test_loaders.py` read it. The test loads directories of every kind
with the real packages and compares the numbers; the rules for Swift are checked against those of its source.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlxbert.activations import ACTIVATIONS
from mlxbert.checkpoint import INDEX, CheckpointError, is_full_layout
from mlxbert.encode.modules import UnsupportedModuleError
from mlxbert.encode.sentence_modules import read_pooling, read_sentence_plan
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import parse_json, read_json
from mlxbert.models.architecture import Architecture, Elsewhere, HeadClass, HeadKind, architecture, config_from_hf
from mlxbert.models.config_fields import EncoderConfig
from mlxbert.pretrained import Labels, choose_head_class
from mlxbert.tokenization.files import has_tokenizer

SEEN = (
    "transformers 5.23, sentence-transformers 6.2, mlx-embeddings 0.1.0 and mlx-vlm 0.7.10, which were run, and\n"
    "MLXEmbedders (mlx-swift-lm) of August 2026, whose source was read"
)
"""The versions that the table describes."""

_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)
WORKS, DIFFERS, REFUSES = "works", "differs", "refuses"


class Trait(StrEnum):
    """A property of a directory that a package may not expect."""

    NO_POOLER = "no pooler"
    POOLER_MISSED = "no pooler, and no classifier that needs none"
    NO_TOKENIZER = "no tokenizer"
    NO_TOKENIZER_JSON = "no tokenizer.json"
    ACTIVATION = "not exact GELU"
    QUANTIZED = "quantized"
    SENTENCE = "sentence-transformers files"
    POOLING = "not the mean of the tokens"
    POOLING_CLS = "the first token"
    POOLING_MAX = "the maximum"
    POOLING_MIX = "several poolings, or a weighted one"
    POOLING_ELSEWHERE = "pooling where Swift does not look"
    NOT_NORMALIZED = "vectors of any length"
    MODULE_WEIGHTS = "a module with weights"
    OTHER_MODULES = "a module beside pooling and normalization"
    UNKNOWN_MODULES = "modules that mlxbert does not compute"
    HEAD = "a head of transformers"
    RERANKER = "a sequence classifier with one output"
    TAGGER = "a token classifier"
    FULL = "head in model.safetensors"
    BESIDE = "head in heads.safetensors"
    FULL_UNKNOWN = "a head that encoders' loaders do not leave out"
    FULL_NO_SEQUENCE = "full, and no sequence classifier"
    NO_TAGS = "labels that are no BIO tags"
    LABEL_TYPES = "labels that are no text or no numbers"


@dataclass(frozen=True)
class Loader:
    """One way to load a directory.

    Attributes:
        package: its name.
        call: the function or class that is called.
        concerns: it is only for directories with this trait; None: for all.
        has_own_models: whether it has its own models, and so only some architectures.
    """

    package: str
    call: str
    concerns: Trait | None = None
    has_own_models: bool = False

    @property
    def name(self) -> str:
        """Return package and call."""
        return f"{self.package} ({self.call})" if self.call else self.package


OURS = Loader("mlxbert", "")
AUTO_MODEL = Loader("transformers", "AutoModel")
AUTO_HEAD = Loader("transformers", "AutoModelFor…", Trait.HEAD)
SENTENCE_TRANSFORMER = Loader("sentence-transformers", "", Trait.SENTENCE)
MLX_EMBEDDINGS = Loader("mlx-embeddings", "", has_own_models=True)
MLX_VLM = Loader("mlx-vlm", "load_embedding_model", has_own_models=True)
MLX_VLM_RERANKER = Loader("mlx-vlm", "load_reranker", Trait.RERANKER, has_own_models=True)
MLX_VLM_TAGGER = Loader("mlx-vlm", "load_token_classifier", Trait.TAGGER, has_own_models=True)
SWIFT = Loader("MLXEmbedders", "Swift", has_own_models=True)
LOADERS = (
    OURS,
    AUTO_MODEL,
    AUTO_HEAD,
    SENTENCE_TRANSFORMER,
    MLX_EMBEDDINGS,
    MLX_VLM,
    MLX_VLM_RERANKER,
    MLX_VLM_TAGGER,
    SWIFT,
)

_UNKNOWN_MODEL = "it does not have this architecture"
_GELU = "it always computes exact GELU, and this model has another activation"
_MEAN = "its `text_embeds` are the mean of all tokens, whatever `1_Pooling` says; its hidden states are right"
_LENGTH = "its `text_embeds` have length 1, and this model's vectors have not"
_ENCODER = "it needs the encoder alone: convert with --layout encoder"
_HEAD = "it needs the head in model.safetensors: convert with --layout full"
_FOLDERS = "it takes the weights in a module's folder for the encoder's"
_EMPTY = "without tokenizer files it makes an empty tokenizer, for which every word is unknown"
_UNKNOWN = "modules.json asks for what mlxbert does not compute, so nothing was compared"
_NO_MODULES = "its `text_embeds` leave out what modules.json asks for; its hidden states are right"
_PACKED = "it does not read MLX's quantization"

RULES: tuple[tuple[Loader, Trait, str, str], ...] = (
    (AUTO_MODEL, Trait.QUANTIZED, REFUSES, _PACKED),
    (
        AUTO_MODEL,
        Trait.NO_POOLER,
        DIFFERS,
        "its `pooler_output` is random, as the source has no pooler; the rest is right",
    ),
    (AUTO_MODEL, Trait.NO_TOKENIZER, DIFFERS, _EMPTY),
    (AUTO_HEAD, Trait.QUANTIZED, REFUSES, _PACKED),
    (AUTO_HEAD, Trait.NO_TOKENIZER, DIFFERS, _EMPTY),
    (AUTO_HEAD, Trait.BESIDE, DIFFERS, "it makes a random head; for the checkpoint's own, convert with --layout full"),
    (SENTENCE_TRANSFORMER, Trait.QUANTIZED, REFUSES, _PACKED),
    (SENTENCE_TRANSFORMER, Trait.NO_TOKENIZER, DIFFERS, _EMPTY),
    (SENTENCE_TRANSFORMER, Trait.UNKNOWN_MODULES, DIFFERS, _UNKNOWN),
    (MLX_EMBEDDINGS, Trait.NO_POOLER, REFUSES, "it needs a pooler, and the source has none"),
    (MLX_EMBEDDINGS, Trait.FULL, REFUSES, _ENCODER),
    (MLX_EMBEDDINGS, Trait.MODULE_WEIGHTS, REFUSES, _FOLDERS),
    (MLX_EMBEDDINGS, Trait.NO_TOKENIZER, DIFFERS, _EMPTY),
    (MLX_EMBEDDINGS, Trait.ACTIVATION, DIFFERS, _GELU),
    (MLX_EMBEDDINGS, Trait.POOLING, DIFFERS, _MEAN),
    (MLX_EMBEDDINGS, Trait.NOT_NORMALIZED, DIFFERS, _LENGTH),
    (MLX_EMBEDDINGS, Trait.UNKNOWN_MODULES, DIFFERS, _NO_MODULES),
    (MLX_VLM, Trait.FULL_UNKNOWN, REFUSES, _ENCODER),
    (MLX_VLM, Trait.MODULE_WEIGHTS, REFUSES, _FOLDERS),
    (MLX_VLM, Trait.ACTIVATION, DIFFERS, _GELU),
    (MLX_VLM, Trait.POOLING, DIFFERS, _MEAN),
    (MLX_VLM, Trait.NOT_NORMALIZED, DIFFERS, _LENGTH),
    (MLX_VLM, Trait.UNKNOWN_MODULES, DIFFERS, _NO_MODULES),
    (MLX_VLM_RERANKER, Trait.BESIDE, REFUSES, _HEAD),
    (MLX_VLM_RERANKER, Trait.ACTIVATION, DIFFERS, _GELU),
    (MLX_VLM_TAGGER, Trait.BESIDE, REFUSES, _HEAD),
    (MLX_VLM_TAGGER, Trait.NO_TAGS, REFUSES, "it needs BIO or BIOES labels: O, B-PER, I-PER"),
    (MLX_VLM_TAGGER, Trait.ACTIVATION, DIFFERS, _GELU),
    (SWIFT, Trait.POOLER_MISSED, REFUSES, "it needs a pooler, and the source has none"),
    (
        SWIFT,
        Trait.FULL_NO_SEQUENCE,
        REFUSES,
        "it has no head but a sequence classifier's: convert with --layout encoder",
    ),
    (SWIFT, Trait.NO_TOKENIZER_JSON, REFUSES, "it needs tokenizer.json and tokenizer_config.json"),
    (SWIFT, Trait.LABEL_TYPES, REFUSES, "it needs texts in id2label and whole numbers in label2id"),
    (SWIFT, Trait.ACTIVATION, DIFFERS, _GELU),
    (SWIFT, Trait.POOLING_ELSEWHERE, DIFFERS, "it does not find the pooling, and gives the pooler's output"),
    (SWIFT, Trait.POOLING_CLS, DIFFERS, "for the first token it gives the pooler's output"),
    (SWIFT, Trait.POOLING_MAX, DIFFERS, "it counts padding as 0 in the maximum"),
    (SWIFT, Trait.POOLING_MIX, DIFFERS, "it computes only one pooling: cls, mean, max or lasttoken"),
    (SWIFT, Trait.UNKNOWN_MODULES, DIFFERS, _NO_MODULES),
    (SWIFT, Trait.OTHER_MODULES, DIFFERS, "it computes no module after pooling but the normalization"),
)
"""Loader, trait, the effect of the trait there, and why. Without a rule, the directory works."""


@dataclass(frozen=True)
class Reading:
    """The result of one loader for a directory.

    Attributes:
        loader: which one.
        effect: "works", "differs" (it loads, but computes other numbers) or "refuses".
        reasons: why; empty where it works.
    """

    loader: Loader
    effect: str
    reasons: tuple[str, ...] = ()


def readings(traits: Collection[Trait], model_type: str, config: EncoderConfig | None = None) -> tuple[Reading, ...]:
    """Return the results of all relevant loaders for a directory.

    Args:
        traits: of the directory.
        model_type: its architecture.
        config: its configuration; None: nothing is special about it.
    """
    declared = architecture(model_type)
    return tuple(
        _reading(loader, traits, declared, config)
        for loader in LOADERS
        if loader.concerns is None or loader.concerns in traits
    )


def _reading(
    loader: Loader, traits: Collection[Trait], declared: Architecture, config: EncoderConfig | None
) -> Reading:
    if loader.has_own_models and not declared.known_to & {loader.package, loader.name}:
        return Reading(loader, REFUSES, (_UNKNOWN_MODEL,))
    own = declared.elsewhere.get(loader.name) or declared.elsewhere.get(loader.package) or Elsewhere()
    present = set(traits) - own.accepts
    rules = [(effect, why) for at, trait, effect, why in RULES if at is loader and trait in present]
    rules += [(REFUSES, why) for trait, why in own.refused.items() if trait in traits]
    if config is not None:
        special = ((REFUSES, own.refuses(config)), (DIFFERS, own.differs(config)))
        rules += [(effect, why) for effect, why in special if why is not None]
    worst = REFUSES if any(effect == REFUSES for effect, _ in rules) else DIFFERS if rules else WORKS
    return Reading(loader, worst, tuple(dict.fromkeys(why for effect, why in rules if effect == worst)))


def lines(results: Collection[Reading]) -> list[tuple[str, str]]:
    """Return label and text of each line for the terminal: where it loads, where numbers differ, where it does not."""
    rows = []
    for effect, label in ((WORKS, "Loads in"), (DIFFERS, "Differs"), (REFUSES, "Not in")):
        names: dict[tuple[str, ...], list[str]] = {}
        for reading in results:
            if reading.effect == effect:
                names.setdefault(reading.reasons, []).append(reading.loader.name)
        rows += [(label, ": ".join(filter(None, (", ".join(n), "; ".join(why))))) for why, n in names.items()]
    return rows


def traits_of(directory: Path, config: Mapping[str, Any], heads: Collection[str]) -> frozenset[Trait]:
    """Return the traits of a converted directory.

    Args:
        directory: with every file but `config.json`, which may be missing.
        config: the content of `config.json`.
        heads: names of the head's tensors, in any file.
    """
    declared = architecture(config.get("model_type"))
    index = read_json(directory / INDEX, CheckpointError) or {}
    has_pooler = any(map(declared.is_pooler, index["weight_map"]))
    head = _head_class(declared, config, heads, has_pooler=has_pooler)
    return frozenset(
        (
            *([] if has_pooler or not declared.has_pooler else _pooler_traits(config, head)),
            *([] if ACTIVATIONS[config_from_hf(config).hidden_act] is ACTIVATIONS["gelu"] else [Trait.ACTIVATION]),
            *([Trait.QUANTIZED] if "quantization" in config else []),
            *_tokenizer_traits(directory),
            *([] if head is None else _head_traits(declared, head, config, heads)),
            *_sentence_traits(directory, config),
        )
    )


def _head_class(
    declared: Architecture, config: Mapping[str, Any], heads: Collection[str], *, has_pooler: bool
) -> HeadClass | None:
    """Return the class of the head; None without one, or if mlxbert trained it, or if its class is unknown."""
    try:
        Labels.from_hf(config)
        return declared.heads[choose_head_class(config, heads, has_pooler=has_pooler, place="").name]
    except MLXBertError:
        return None


def _pooler_traits(config: Mapping[str, Any], head: HeadClass | None) -> Iterator[Trait]:
    yield Trait.NO_POOLER
    is_classifier = head is not None and head.kind is HeadKind.SEQUENCE and is_full_layout(config)
    if not is_classifier or (head is not None and head.has_pooler):
        yield Trait.POOLER_MISSED


def _tokenizer_traits(directory: Path) -> Iterator[Trait]:
    names = {file.name for file in directory.iterdir() if file.is_file()}
    if not has_tokenizer(names):
        yield Trait.NO_TOKENIZER
    if not names >= {"tokenizer.json", "tokenizer_config.json"}:
        yield Trait.NO_TOKENIZER_JSON


def _head_traits(
    declared: Architecture, head: HeadClass, config: Mapping[str, Any], heads: Collection[str]
) -> Iterator[Trait]:
    full, labels = is_full_layout(config), Labels.from_hf(config)
    yield Trait.HEAD
    yield Trait.FULL if full else Trait.BESIDE
    if head.kind is HeadKind.SEQUENCE and labels.num_labels == 1:
        yield Trait.RERANKER
    if head.kind is HeadKind.TOKEN:
        yield Trait.TAGGER
        if not all(map(_TAG.fullmatch, labels.id2label.values())) or "O" not in labels.id2label.values():
            yield Trait.NO_TAGS
    fine_tuned = tuple(prefix for each in declared.heads.values() if each.fine_tuned for prefix in each.all_prefixes)
    if full and any(tensor.startswith(fine_tuned) for tensor in heads):
        yield Trait.FULL_UNKNOWN
    if full and head.kind is not HeadKind.SEQUENCE:
        yield Trait.FULL_NO_SEQUENCE
    texts, numbers = config.get("id2label") or {}, config.get("label2id") or {}
    if not all(isinstance(text, str) for text in texts.values()) or not all(type(n) is int for n in numbers.values()):
        yield Trait.LABEL_TYPES


def _sentence_traits(directory: Path, config: Mapping[str, Any]) -> Iterator[Trait]:
    """Yield the traits of sentence-transformers' files; of damaged ones only that they are there."""
    if not (directory / "modules.json").is_file():
        return
    yield Trait.SENTENCE
    if any(directory.glob("*/*.safetensors")):
        yield Trait.MODULE_WEIGHTS
    try:
        read_sentence_plan(directory, config)
    except UnsupportedModuleError:
        yield Trait.UNKNOWN_MODULES
    except MLXBertError:
        return
    try:
        modules = parse_json(directory / "modules.json", MLXBertError)
        entries = [(str(entry["type"]).rpartition(".")[2], str(entry.get("path", ""))) for entry in modules]
        folder = next(directory / path for kind, path in entries if kind == "Pooling")
        pooling = read_json(folder / "config.json", MLXBertError) or {}
        strategies = read_pooling(pooling, folder)
    except (MLXBertError, TypeError, KeyError, AttributeError, StopIteration):
        return
    kinds = {kind for kind, _ in entries}
    if "Normalize" not in kinds:
        yield Trait.NOT_NORMALIZED
    if kinds - {"Transformer", "Pooling", "Normalize", "Dropout"}:
        yield Trait.OTHER_MODULES
    if strategies != ("mean",) or not pooling.get("include_prompt", True):
        yield Trait.POOLING
    if folder.name != "1_Pooling" or not _in_the_older_spelling(pooling):
        yield Trait.POOLING_ELSEWHERE
    elif strategies == ("cls",):
        yield Trait.POOLING_CLS
    elif strategies == ("max",):
        yield Trait.POOLING_MAX
    elif strategies not in (("mean",), ("last_token",)) or not pooling.get("include_prompt", True):
        yield Trait.POOLING_MIX


def _in_the_older_spelling(pooling: Mapping[str, Any]) -> bool:
    flags = any(value is True for name, value in pooling.items() if name.startswith("pooling_mode_"))
    return flags and type(pooling.get("word_embedding_dimension")) is int
