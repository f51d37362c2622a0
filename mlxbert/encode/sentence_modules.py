"""Read the sentence-transformers files of a directory, in every form that its releases 0.x to 6.x write.

Source: https://github.com/huggingface/sentence-transformers `base/model.py`, `base/modules/transformer.py`,
`sentence_transformer/modules/pooling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mlxbert.encode.modules import (
    Dense,
    Fields,
    LayerMix,
    LayerNorm,
    Normalize,
    SentenceModuleError,
    Step,
    UnsupportedModuleError,
    module_tensors,
)
from mlxbert.errors import printable
from mlxbert.files.reading import parse_json, read_json

MODULES = "modules.json"
# sentence-transformers' name -> name here, in the order of concatenation.
_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
_LEGACY_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Arguments of the transformer, its tokenizer and its config that do not change the numbers, or are read here.
_TRANSFORMER_KWARGS = {
    "model": {"attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "use_safetensors"},
    "processor": {"model_max_length", "trust_remote_code", "use_fast"},
    "config": {"trust_remote_code", "output_hidden_states"},
}
_OLD_KWARGS = {"model": "model_args", "processor": "tokenizer_args", "config": "config_args"}
_AFTER_POOLING = ("Dense", "Normalize", "LayerNorm", "Dropout")
_KNOWN = ("Transformer", "WeightedLayerPooling", "Pooling", *_AFTER_POOLING)


@dataclass(frozen=True)
class ModuleEntry:
    """One entry of `modules.json`.

    Attributes:
        type: the class, with its package.
        folder: where its files are, relative to `modules.json`; "" for the directory itself.
    """

    type: str
    folder: str

    @property
    def kind(self) -> str:
        """The name of the class without its package, which differs between releases."""
        return self.type.rpartition(".")[2]


@dataclass(frozen=True)
class SentencePlan:
    """The steps from token vectors to the sentence vector.

    Attributes:
        transformer: the encoder's directory, relative.
        max_length: `max_seq_length`, in tokens; None: the tokenizer's own limit.
        lower_case: put texts in lower case before the tokenizer's own pipeline.
        mix: computes what is pooled instead of the last hidden state; None: no mix.
        pooling: strategies of `mlxbert.pooling`, concatenated in this order.
        include_prompt: whether pooling sees the prompt's tokens.
        steps: after pooling.
        prompts: texts to put before each text, by name.
        default_prompt: the name of the prompt for calls that name none.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        truncate_dim: keep this many leading dimensions; None: all.
    """

    transformer: str = ""
    max_length: int | None = None
    lower_case: bool = False
    mix: LayerMix | None = None
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Step, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None


def read_modules(directory: Path) -> tuple[ModuleEntry, ...] | None:
    """Return the entries of `modules.json`; None if the file does not exist.

    Raises:
        SentenceModuleError: it is no list of modules, or a folder lies outside of the directory.
    """
    file = directory / MODULES
    entries = parse_json(file, SentenceModuleError)
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise SentenceModuleError(f"{file}: expected a list of modules; fix: fetch the file again")
    return tuple(_entry(entry, file) for entry in entries)


def read_sentence_plan(directory: Path, config: Mapping[str, Any] | None = None) -> SentencePlan | None:
    """Return the plan of `modules.json` and the files that it names; None without a `modules.json`.

    Args:
        directory: that of `modules.json`.
        config: replaces the transformer's `config.json`.

    Raises:
        UnsupportedModuleError: a module, an activation or a setting that is not computed here (named).
        SentenceModuleError: a damaged file.
    """
    entries = read_modules(directory)
    if entries is None:
        return None
    mixed, after = _check_order(entries, directory / MODULES)
    transformer = directory / entries[0].folder
    pooling, include_prompt = _read_pooling_file(directory / entries[1 + mixed].folder)
    config = config or read_json(transformer / "config.json", SentenceModuleError) or {}
    settings, config_kwargs = _transformer_settings(transformer)
    mix = None
    # As in sentence-transformers, without all hidden states the mix is left out.
    if mixed and ({**config, **config_kwargs}).get("output_hidden_states") is True:
        folder = directory / entries[1].folder
        mix = LayerMix(_module_config(folder), module_tensors(folder), folder)
    return SentencePlan(
        transformer=entries[0].folder,
        mix=mix,
        pooling=pooling,
        include_prompt=include_prompt,
        steps=tuple(step for entry in after if (step := _step(entry.kind, directory / entry.folder)) is not None),
        **settings,
        **_model_settings(directory),
    )


def pooling_strategies(directory: Path) -> tuple[str, ...] | None:
    """Return the strategies of the Pooling module, ignoring other modules; None if `modules.json` has none.

    Raises:
        SentenceModuleError: as `read_sentence_plan`, of these two files.
    """
    entry = next((entry for entry in read_modules(directory) or () if entry.kind == "Pooling"), None)
    return None if entry is None else _read_pooling_file(directory / entry.folder)[0]


def read_pooling(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """Return the strategies of a Pooling config: `pooling_mode` (one or a list), or the older flags, one a strategy.

    Raises:
        SentenceModuleError: a strategy that is not known, or a field of the wrong type.
    """
    return tuple(_MODES[mode] for mode in _modes(Fields(config, where)))


def both_spellings(config: Mapping[str, Any], where: Path, hidden_size: int) -> dict[str, Any]:
    """Return a Pooling config that all releases of sentence-transformers and the Swift loader read alike.

    All read one flag a strategy and `word_embedding_dimension`; since 5.4, `pooling_mode` is written, too. Several
    strategies are written as flags only, which every release reads; in an order that flags cannot express, as
    `pooling_mode` only. `embedding_dimension` is left out: releases before 5.4 refuse it, later ones do not need it.

    Raises:
        SentenceModuleError: as `read_pooling`.
    """
    modes = _modes(Fields(config, where))
    spelled = {name: value for name, value in config.items() if name not in _LEGACY_FLAGS and name != "pooling_mode"}
    width = spelled.pop("embedding_dimension", hidden_size)
    spelled = {"word_embedding_dimension": width, **spelled}
    ordered = [mode for mode in _LEGACY_FLAGS.values() if mode in modes]
    if ordered != modes:
        return {**spelled, "pooling_mode": modes}
    flags = {flag: mode in modes for flag, mode in _LEGACY_FLAGS.items()}
    return {**spelled, **flags, **({"pooling_mode": modes[0]} if len(modes) == 1 else {})}


def _modes(fields: Fields) -> list[str]:
    """Return sentence-transformers' names of the strategies, in their order."""
    modes, where = fields["pooling_mode"], fields.where
    if modes is None:
        flags = [name for name in fields if name.startswith("pooling_mode_") and fields.flag(name, False)]
        if unknown := [name for name in flags if name not in _LEGACY_FLAGS]:
            raise UnsupportedModuleError(f"{where}: {unknown[0]} is not known; known: {', '.join(_LEGACY_FLAGS)}")
        return [mode for flag, mode in _LEGACY_FLAGS.items() if flag in flags] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(isinstance(mode, str) for mode in modes):
        raise SentenceModuleError(
            f"{where}: pooling_mode must be a name or a list of names, not {printable(repr(modes))}; "
            "fix: fetch the file again"
        )
    for mode in modes:
        if mode not in _MODES:
            raise UnsupportedModuleError(f"{where}: pooling_mode {mode!r} is not known; known: {', '.join(_MODES)}")
    return modes


def _read_pooling_file(folder: Path) -> tuple[tuple[str, ...], bool]:
    """Return the strategies, and whether a prompt is pooled with the text."""
    config = read_json(folder / "config.json", SentenceModuleError)
    if config is None:
        raise SentenceModuleError(f"{folder}: config.json is not there; fix: convert or download again")
    return read_pooling(config, folder), Fields(config, folder).flag("include_prompt", True)


def _entry(entry: Mapping[str, Any], file: Path) -> ModuleEntry:
    fields = Fields(entry, file)
    path = fields.text("path", "")
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts or set(path) & {"\\", "\0", ":"}:
        raise SentenceModuleError(f"{file} points outside its directory: {path!r}; fix: do not trust this model")
    if not isinstance(entry.get("type"), str):
        raise SentenceModuleError(
            f"{file}: type must be the name of a class, not {printable(repr(entry.get('type')))}; "
            "fix: fetch the file again"
        )
    return ModuleEntry(entry["type"], "" if str(relative) == "." else str(relative))


def _check_order(entries: Sequence[ModuleEntry], file: Path) -> tuple[bool, Sequence[ModuleEntry]]:
    """Return whether layers are mixed before pooling, and the modules after it."""
    for entry in entries:
        if not entry.type.startswith("sentence_transformers.") or entry.kind not in _KNOWN:
            raise UnsupportedModuleError(
                f"{file}: module {printable(repr(entry.type))} is not known; known: {', '.join(_KNOWN)} of "
                "sentence_transformers"
            )
    kinds = [entry.kind for entry in entries]
    mixed = kinds[1:2] == ["WeightedLayerPooling"]
    after = entries[2 + mixed :]
    if (
        kinds[0] != "Transformer"
        or kinds[1 + mixed : 2 + mixed] != ["Pooling"]
        or not ({entry.kind for entry in after} <= set(_AFTER_POOLING))
    ):
        raise UnsupportedModuleError(
            f"{file}: the modules are {', '.join(kinds)}; known is Transformer, perhaps WeightedLayerPooling, "
            f"Pooling, then {', '.join(_AFTER_POOLING)}"
        )
    return mixed, after


def _step(kind: str, folder: Path) -> Step | None:
    """Return the module as a step; None for Dropout, which does nothing outside of training."""
    config = _module_config(folder)
    if kind == "Dropout":
        return None
    if kind == "Normalize":
        if any(value not in (None, "sentence_embedding") for value in config.values()):
            raise UnsupportedModuleError(
                f"{folder}: Normalize of {printable(config)} is not known; only of sentence_embedding is"
            )
        return Normalize()
    return (Dense if kind == "Dense" else LayerNorm)(config, module_tensors(folder), folder)


def _module_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", SentenceModuleError) or {}


def _transformer_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the length limit, whether texts are lowercased, and settings of the transformer's configuration."""
    file = next((folder / name for name in TRANSFORMER_CONFIGS if (folder / name).is_file()), None)
    where = file or folder
    fields = Fields((read_json(file, SentenceModuleError) or {}) if file else {}, where)
    text = Fields(Fields(fields.mapping("modality_config"), where).mapping("text"), where)
    expected = {
        "transformer_task": (fields["transformer_task"], (None, "feature-extraction")),
        "module_output_name": (fields["module_output_name"], (None, "token_embeddings")),
        "modality_config text method": (text["method"], (None, "forward")),
        "modality_config text output": (text["method_output_name"], (None, "last_hidden_state")),
        "processing_kwargs": (fields["processing_kwargs"] or None, (None,)),
    }
    for name, (value, known) in expected.items():
        if value not in known:
            raise UnsupportedModuleError(
                f"{where}: {name}={printable(repr(value))} is not supported; fix: use sentence-transformers"
            )
    kwargs: dict[str, dict[str, Any]] = {}
    for kind, known_names in _TRANSFORMER_KWARGS.items():
        kwargs[kind] = fields.mapping(f"{kind}_kwargs") or fields.mapping(_OLD_KWARGS[kind])
        for name, value in kwargs[kind].items():
            if name not in known_names and value is not None:
                raise UnsupportedModuleError(
                    f"{where}: {kind}_kwargs {printable(name)}={printable(repr(value))} is not supported; "
                    "fix: use sentence-transformers"
                )
    lengths = {"max_seq_length": kwargs["processor"].get("model_max_length", fields["max_seq_length"])}
    settings = {
        "max_length": Fields(lengths, where).size("max_seq_length"),
        "lower_case": fields.flag("do_lower_case", False),
    }
    return settings, kwargs["config"]


def _model_settings(directory: Path) -> dict[str, Any]:
    file = directory / "config_sentence_transformers.json"
    fields = Fields(read_json(file, SentenceModuleError) or {}, file)
    if (kind := fields.text("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise UnsupportedModuleError(f"{file}: a {kind} gives no sentence embeddings; fix: use its own class")
    stored = fields.mapping("prompts")
    if not all(isinstance(text, str | None) for text in stored.values()):
        raise SentenceModuleError(
            f"{file}: prompts must be texts by name, not {printable(repr(stored))}; fix: fetch the file again"
        )
    prompts = {"query": "", "document": ""} | {name: text or "" for name, text in stored.items()}
    default = fields.text("default_prompt_name", "") or None
    if default is not None and default not in prompts:
        raise SentenceModuleError(f"{file}: default_prompt_name {default!r} is not one of {', '.join(prompts)}")
    similarity = fields.text("similarity_fn_name", "cosine") or "cosine"
    if similarity not in SIMILARITIES:
        raise UnsupportedModuleError(
            f"{file}: similarity {similarity!r} is not known; known: {', '.join(SIMILARITIES)}"
        )
    return {
        "prompts": prompts,
        "default_prompt": default,
        "similarity": similarity,
        "truncate_dim": fields.size("truncate_dim"),
    }
