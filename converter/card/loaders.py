"""Which packages load a converted directory, and which of them compute something else: one table of facts.

The terminal, the model card and `tests/converter/test_loaders.py` read it. The test loads directories of every kind
with the real packages and compares the numbers; what it says of Swift is checked against rules read from its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mlxbert.activations import ACTIVATIONS
from mlxbert.checkpoint import is_full_layout
from mlxbert.encode.modules import UnsupportedModuleError
from mlxbert.encode.sentence_modules import read_pooling, read_sentence_plan
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import parse_json, read_json
from mlxbert.models.base import POOLER, HeadKind, architecture
from mlxbert.pretrained.labels import (
    HeadClassError,
    Labels,
    choose_head_class,
)

SEEN = (
    "transformers 5.23, sentence-transformers 6.2, mlx-embeddings 0.1.0 and mlx-vlm 0.7.10, which were run, and\n"
    "MLXEmbedders (mlx-swift-lm) of August 2026, whose source was read"
)
"""The versions that the table is true of."""

_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)
WORKS, DIFFERS, REFUSES = "works", "differs", "refuses"


class Trait(StrEnum):
    """Something of a directory that a package may not expect."""

    NO_POOLER = "no pooler"
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
        call: what is called.
        concerns: the trait that a directory must have, or this is nothing to load it with; None: any.
    """

    package: str
    call: str
    concerns: Trait | None = None

    @property
    def name(self) -> str:
        """Package and call."""
        return f"{self.package} ({self.call})" if self.call else self.package


OURS = Loader("mlxbert", "")
AUTO_MODEL = Loader("transformers", "AutoModel")
AUTO_HEAD = Loader("transformers", "AutoModelFor…", Trait.HEAD)
SENTENCE_TRANSFORMER = Loader("sentence-transformers", "", Trait.SENTENCE)
MLX_EMBEDDINGS = Loader("mlx-embeddings", "")
MLX_VLM = Loader("mlx-vlm", "load_embedding_model")
MLX_VLM_RERANKER = Loader("mlx-vlm", "load_reranker", Trait.RERANKER)
MLX_VLM_TAGGER = Loader("mlx-vlm", "load_token_classifier", Trait.TAGGER)
SWIFT = Loader("MLXEmbedders", "Swift")
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

_GELU = "it always computes exact GELU, and this model has another activation"
_MEAN = "its `text_embeds` are the mean of all tokens, whatever `1_Pooling` says; its hidden states are right"
_LENGTH = "its `text_embeds` have length 1, and this model's vectors have not"
_ENCODER = "it wants the encoder alone: convert with --layout encoder"
_HEAD = "it wants the head in model.safetensors: convert with --layout full"
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
    (MLX_EMBEDDINGS, Trait.NO_POOLER, REFUSES, "it wants a pooler, and the source has none"),
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
    (MLX_VLM_TAGGER, Trait.NO_TAGS, REFUSES, "it wants BIO or BIOES labels: O, B-PER, I-PER"),
    (MLX_VLM_TAGGER, Trait.ACTIVATION, DIFFERS, _GELU),
    (SWIFT, Trait.NO_POOLER, REFUSES, "it wants a pooler, and the source has none"),
    (
        SWIFT,
        Trait.FULL_NO_SEQUENCE,
        REFUSES,
        "it knows no head but a sequence classifier's: convert with --layout encoder",
    ),
    (SWIFT, Trait.NO_TOKENIZER_JSON, REFUSES, "it wants tokenizer.json and tokenizer_config.json"),
    (SWIFT, Trait.LABEL_TYPES, REFUSES, "it wants texts in id2label and whole numbers in label2id"),
    (SWIFT, Trait.ACTIVATION, DIFFERS, _GELU),
    (SWIFT, Trait.POOLING_ELSEWHERE, DIFFERS, "it does not find the pooling, and gives the pooler's output"),
    (SWIFT, Trait.POOLING_CLS, DIFFERS, "for the first token it gives the pooler's output"),
    (SWIFT, Trait.POOLING_MAX, DIFFERS, "it counts padding as 0 in the maximum"),
    (SWIFT, Trait.POOLING_MIX, DIFFERS, "it computes one pooling of cls, mean, max and lasttoken alone"),
    (SWIFT, Trait.UNKNOWN_MODULES, DIFFERS, _NO_MODULES),
    (SWIFT, Trait.OTHER_MODULES, DIFFERS, "it computes no module after pooling but the normalization"),
)
"""Loader, trait, what then becomes of loading, and why. Where no rule speaks, it works."""


@dataclass(frozen=True)
class Reading:
    """What becomes of a directory in one loader.

    Attributes:
        loader: which.
        effect: "works", "differs" (loads, and a number of it is another) or "refuses".
        reasons: why; none where it works.
    """

    loader: Loader
    effect: str
    reasons: tuple[str, ...] = ()


def readings(traits: Collection[Trait]) -> tuple[Reading, ...]:
    """Return what becomes of a directory with these traits in every loader that it concerns."""
    found = []
    for loader in LOADERS:
        if loader.concerns is not None and loader.concerns not in traits:
            continue
        rules = [(effect, why) for at, trait, effect, why in RULES if at is loader and trait in traits]
        worst = REFUSES if any(effect == REFUSES for effect, _ in rules) else DIFFERS if rules else WORKS
        found.append(Reading(loader, worst, tuple(dict.fromkeys(why for effect, why in rules if effect == worst))))
    return tuple(found)


def lines(found: Collection[Reading]) -> list[tuple[str, str]]:
    """Return label and text of each line for the terminal: where it loads, where numbers differ, where it does not."""
    rows = []
    for effect, label in ((WORKS, "Loads in"), (DIFFERS, "Differs"), (REFUSES, "Not in")):
        reasons: dict[tuple[str, ...], list[str]] = {}
        for reading in found:
            if reading.effect == effect:
                reasons.setdefault(reading.reasons, []).append(reading.loader.name)
        rows += [(label, ": ".join(filter(None, (", ".join(n), "; ".join(why))))) for why, n in reasons.items()]
    return rows


def traits_of(directory: Path, config: Mapping[str, Any], heads: Collection[str]) -> frozenset[Trait]:
    """Return the traits of a converted directory.

    Args:
        directory: with everything written but `config.json`.
        config: what that holds, or will hold.
        heads: names of the head's tensors, wherever they lie.
    """
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    prefix = architecture(config.get("model_type")).prefix
    names = [name.removeprefix(prefix) for name in index["weight_map"]]
    return frozenset(
        (
            *([] if any(name.startswith(POOLER) for name in names) else [Trait.NO_POOLER]),
            *([] if ACTIVATIONS.get(config.get("hidden_act", "gelu")) is ACTIVATIONS["gelu"] else [Trait.ACTIVATION]),
            *([Trait.QUANTIZED] if "quantization" in config else []),
            *_tokenizer_traits(directory),
            *_head_traits(config, heads, has_pooler=any(name.startswith(POOLER) for name in names)),
            *_sentence_traits(directory, config),
        )
    )


def _tokenizer_traits(directory: Path) -> Iterator[Trait]:
    there = {name for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt") if (directory / name).is_file()}
    if not there & {"tokenizer.json", "vocab.txt"}:
        yield Trait.NO_TOKENIZER
    if not there >= {"tokenizer.json", "tokenizer_config.json"}:
        yield Trait.NO_TOKENIZER_JSON


def _head_traits(config: Mapping[str, Any], heads: Collection[str], *, has_pooler: bool) -> Iterator[Trait]:
    full = is_full_layout(config)
    try:
        name = choose_head_class(config, heads, has_pooler=has_pooler, place="").name
        declared = architecture(config.get("model_type"))
        head = declared.heads[name]
        labels = Labels.from_hf(config)
    except (
        HeadClassError,
        MLXBertError,
    ):  # none, one that mlxbert trained, or one that nothing tells: no class for it
        return
    yield Trait.HEAD
    yield Trait.FULL if full else Trait.BESIDE
    if head.kind is HeadKind.SEQUENCE and labels.num_labels == 1:
        yield Trait.RERANKER
    if head.kind is HeadKind.TOKEN:
        yield Trait.TAGGER
        if not all(map(_TAG.fullmatch, labels.id2label.values())) or "O" not in labels.id2label.values():
            yield Trait.NO_TAGS
    tuned = {prefix for one in declared.heads.values() if one.fine_tuned for prefix in one.prefixes}
    if full and any(tensor.startswith(tuple(tuned)) for tensor in heads):
        yield Trait.FULL_UNKNOWN
    if full and head.kind is not HeadKind.SEQUENCE:
        yield Trait.FULL_NO_SEQUENCE
    texts, numbers = config.get("id2label") or {}, config.get("label2id") or {}
    if not all(isinstance(text, str) for text in texts.values()) or not all(type(n) is int for n in numbers.values()):
        yield Trait.LABEL_TYPES


def _sentence_traits(directory: Path, config: Mapping[str, Any]) -> Iterator[Trait]:
    """Where sentence-transformers files are damaged, no more than that there are some: others say what is wrong."""
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
