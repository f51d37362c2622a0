"""What the sentence-transformers files of a directory ask for, in every form that its releases 0.x to 6.x write.

Source: https://github.com/huggingface/sentence-transformers `base/model.py`, `base/modules/transformer.py`,
`sentence_transformer/modules/pooling.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mlxbert.encode.dense import Dense, SentenceModuleError
from mlxbert.files.reading import parse_json, read_json

# sentence-transformers' name -> ours, in the order in which several are concatenated.
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
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Arguments of the transformer, its tokenizer and its config that leave the numbers as they are, or are read here.
_TRANSFORMER_KWARGS = {
    "model": {"attn_implementation", "dtype", "torch_dtype", "trust_remote_code", "use_safetensors"},
    "processor": {"model_max_length", "trust_remote_code", "use_fast"},
    "config": {"trust_remote_code"},
}
_OLD_KWARGS = {"model": "model_args", "processor": "tokenizer_args", "config": "config_args"}


class Normalize:
    """To length 1; a vector of zeros stays one."""


@dataclass(frozen=True)
class SentencePlan:
    """From token vectors to the sentence vector.

    Attributes:
        transformer: the encoder's directory, relative.
        max_length: `max_seq_length`, in tokens; None: the tokenizer's own limit.
        lower_case: put texts in lower case before the tokenizer's own pipeline.
        pooling: strategies of `mlxbert.pooling`, concatenated in this order.
        include_prompt: whether pooling sees the prompt's tokens.
        steps: what follows pooling.
        prompts: texts to put before each text, by name.
        default_prompt: the name of the one used when none is asked for.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        truncate_dim: keep this many leading dimensions; None: all.
    """

    transformer: str = ""
    max_length: int | None = None
    lower_case: bool = False
    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Dense | Normalize, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    similarity: str = "cosine"
    truncate_dim: int | None = None


def read_sentence_plan(directory: Path) -> SentencePlan | None:
    """The plan of `modules.json` and the files that it leads to; None without a `modules.json`.

    Raises:
        SentenceModuleError: a module, an activation or a setting that is not known (named), or a damaged file.
    """
    file = directory / "modules.json"
    entries = _read_modules(file)
    if entries is None:
        return None
    kinds = [_kind(entry, file) for entry in entries]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= {"Dense", "Normalize"}:
        raise SentenceModuleError(
            f"{file}: the modules are {', '.join(kinds)}; known is Transformer, Pooling, then Dense and Normalize"
        )
    folders = [directory / _relative(entry.get("path", ""), file) for entry in entries]
    steps: list[Dense | Normalize] = []
    for kind, folder in zip(kinds[2:], folders[2:], strict=True):
        config = read_json(folder / "config.json", SentenceModuleError) or {}
        if kind == "Dense":
            steps.append(Dense.from_directory(folder, config))
        elif any(value not in (None, "sentence_embedding") for value in config.values()):
            raise SentenceModuleError(f"{folder}: Normalize of {config} is not known; only of sentence_embedding is")
        else:
            steps.append(Normalize())
    pooling_config = read_json(folders[1] / "config.json", SentenceModuleError)
    if pooling_config is None:
        raise SentenceModuleError(f"{folders[1]}: config.json is not there; fix: convert or download again")
    return SentencePlan(
        transformer=str(_relative(entries[0].get("path", ""), file)),
        pooling=read_pooling(pooling_config, folders[1]),
        include_prompt=bool(pooling_config.get("include_prompt", True)),
        steps=tuple(steps),
        **_transformer_settings(folders[0]),
        **_model_settings(directory),
    )


def read_pooling(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """The strategies of a Pooling config: `pooling_mode` (one or a list), or the older flags, one a strategy.

    Raises:
        SentenceModuleError: a strategy that is not known.
    """
    modes = config.get("pooling_mode")
    if modes is None:
        unknown = [
            key for key in config if key.startswith("pooling_mode_") and key not in _LEGACY_FLAGS and config[key]
        ]
        if unknown:
            raise SentenceModuleError(f"{where}: {unknown[0]} is not known; known: {', '.join(_LEGACY_FLAGS)}")
        modes = [mode for flag, mode in _LEGACY_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes:
        raise SentenceModuleError(f"{where}: pooling_mode must be a name or a list of names, not {modes!r}")
    for mode in modes:
        if mode not in _MODES:
            raise SentenceModuleError(f"{where}: pooling_mode {mode!r} is not known; known: {', '.join(_MODES)}")
    return tuple(_MODES[mode] for mode in modes)


def _read_modules(file: Path) -> list[dict[str, Any]] | None:
    entries = parse_json(file, SentenceModuleError)
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise SentenceModuleError(f"{file}: expected a list of modules; fix: fetch the file again")
    return entries


def _kind(entry: dict[str, Any], file: Path) -> str:
    """The class name of `sentence_transformers.models.Pooling`, `sentence_transformers.…modules.pooling.Pooling`."""
    name = str(entry.get("type"))
    kind = name.rpartition(".")[2]
    if not name.startswith("sentence_transformers.") or kind not in ("Transformer", "Pooling", "Dense", "Normalize"):
        raise SentenceModuleError(
            f"{file}: module {name!r} is not known; known: Transformer, Pooling, Dense and Normalize of "
            "sentence_transformers"
        )
    return kind


def _relative(path: Any, file: Path) -> PurePosixPath:
    relative = PurePosixPath(str(path))
    if relative.is_absolute() or ".." in relative.parts:
        raise SentenceModuleError(f"{file} points outside its directory: {path!r}; fix: do not trust this model")
    return relative


def _transformer_settings(folder: Path) -> dict[str, Any]:
    file = next((folder / name for name in _TRANSFORMER_CONFIGS if (folder / name).is_file()), None)
    config = (read_json(file, SentenceModuleError) or {}) if file else {}
    text = (config.get("modality_config") or {}).get("text", {})
    expected = {
        "transformer_task": (config.get("transformer_task"), (None, "feature-extraction")),
        "module_output_name": (config.get("module_output_name"), (None, "token_embeddings")),
        "modality_config text method": (text.get("method"), (None, "forward")),
        "modality_config text output": (text.get("method_output_name"), (None, "last_hidden_state")),
        "processing_kwargs": (config.get("processing_kwargs") or None, (None,)),
    }
    for name, (value, known) in expected.items():
        if value not in known:
            raise SentenceModuleError(f"{file}: {name}={value!r} is not supported; fix: use sentence-transformers")
    kwargs: dict[str, dict[str, Any]] = {}
    for kind, known_names in _TRANSFORMER_KWARGS.items():
        kwargs[kind] = config.get(f"{kind}_kwargs") or config.get(_OLD_KWARGS[kind]) or {}
        for name, value in kwargs[kind].items():
            if name not in known_names and value is not None:
                raise SentenceModuleError(
                    f"{file}: {kind}_kwargs {name}={value!r} is not supported; fix: use sentence-transformers"
                )
    length = kwargs["processor"].get("model_max_length", config.get("max_seq_length"))
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise SentenceModuleError(f"{file}: max_seq_length must be a positive whole number, not {length!r}")
    return {"max_length": length, "lower_case": bool(config.get("do_lower_case", False))}


def _model_settings(directory: Path) -> dict[str, Any]:
    file = directory / "config_sentence_transformers.json"
    config = read_json(file, SentenceModuleError) or {}
    if (kind := config.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise SentenceModuleError(f"{file}: a {kind} gives no sentence embeddings; fix: use its own class")
    stored = config.get("prompts") or {}
    if not isinstance(stored, dict) or not all(isinstance(text, str | None) for text in stored.values()):
        raise SentenceModuleError(f"{file}: prompts must be texts by name, not {stored!r}")
    prompts = {"query": "", "document": ""} | {name: text or "" for name, text in stored.items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise SentenceModuleError(f"{file}: default_prompt_name {default!r} is not one of {', '.join(prompts)}")
    similarity = config.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise SentenceModuleError(f"{file}: similarity {similarity!r} is not known; known: {', '.join(SIMILARITIES)}")
    dimensions = config.get("truncate_dim")
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1):
        raise SentenceModuleError(f"{file}: truncate_dim must be a positive whole number, not {dimensions!r}")
    return {
        "prompts": prompts,
        "default_prompt": default,
        "similarity": similarity,
        "truncate_dim": dimensions,
    }
