"""Read a LoRA or DoRA adapter in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

The package peft is not needed. The names are those of `peft/utils/save_and_load.py` (0.21): after `base_model.model.`,
the path of the adapted module with `lora_A.weight` (rank, in), `lora_B.weight` (out, rank) and, for DoRA,
`lora_magnitude_vector` (out,). A module that was trained whole (`modules_to_save`) keeps its own names.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.readers.safetensors import TensorEntry
from converter.readers.source_files import SourceError, check_file, read_json_object
from converter.readers.weight_files import read_weights
from converter.source import looks_like_repo_id
from mlxbert.errors import first_ten, printable, shown
from mlxbert.files.reading import expand_home

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."

_MERGE = "fix: in PEFT, model.merge_and_unload().save_pretrained(DIR), and convert DIR"
# Values of `init_lora_weights` that leave the base's weights alone. The others change them when PEFT loads it.
_INITIAL = (True, False, "gaussian", "orthogonal", "eva", None)
_NUMBERS = {"r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "bias"}
# Fields that say nothing about the numbers of a trained adapter, or that the names of the tensors say as well.
_IGNORED = {
    *("peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type"),
    *("inference_mode", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save", "runtime_config"),
    *("layers_to_transform", "layers_pattern", "qalora_group_size", "megatron_core", "ensure_weight_tying"),
    # How the matrices were first filled; `init_lora_weights` says whether that changed the base.
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    # PEFT sets it to False for linear layers, which all of an encoder's are.
    "fan_in_fan_out",
}
_PART = re.compile(
    r"(?P<path>.+)\.(?:(?P<a>lora_A)\.weight|(?P<b>lora_B)\.weight|(?P<m>lora_magnitude_vector)(?:\.weight)?)"
)
_OTHER_PARTS = re.compile(
    r"(.*\.)?(lora_\w+|base_layer|token_adapter|trainable_tokens_\w+|ia3_\w+|original_module)(\..*)?"
)
_PATTERN = re.compile(r"\^?[\w.]+")
_MAX_NAME = 500
_MAX_RANK = 1 << 16


@dataclass(frozen=True)
class AdaptedLayer:
    """The adapter of one linear layer.

    Attributes:
        a: (rank, in).
        b: (out, rank).
        magnitude: DoRA's (out,); None: LoRA.
        scale: factor of `b @ a`.
    """

    a: TensorEntry
    b: TensorEntry
    magnitude: TensorEntry | None
    scale: float

    @property
    def rank(self) -> int:
        """The width of the two matrices."""
        return self.a.shape[0]


@dataclass(frozen=True)
class PeftAdapter:
    """An open adapter; its tensors are not read yet.

    Attributes:
        directory: where it lies.
        layers: path of a linear layer, as the adapted class of transformers names it -> its adapter.
        whole: tensors of the modules that were trained whole, by their names in that class.
        rank, alpha: the numbers of `adapter_config.json`.
        dropout: of the adapters' input, in training.
        is_dora: whether every layer has a magnitude.
        base: what `adapter_config.json` calls its base model; "" if nothing. It is shown, and never opened.
        class_name: the class of transformers that was adapted; None: not said.
        task: `task_type`; None: not said.
    """

    directory: Path
    layers: Mapping[str, AdaptedLayer]
    whole: Mapping[str, TensorEntry]
    rank: int
    alpha: float
    dropout: float
    is_dora: bool
    base: str = ""
    class_name: str | None = None
    task: str | None = None
    files: tuple[Path, ...] = field(default=())


def is_peft(path: Path) -> bool:
    """Return whether a path is a directory with an adapter in PEFT's format."""
    return path.is_dir() and os.path.lexists(path / CONFIG)


def open_peft(src: str | Path, revision: str | None = None) -> PeftAdapter:
    """Return the adapter in a directory, or in a repository on the Hub; its base model is not looked for.

    Args:
        src: a directory, or a Hub id.
        revision: a branch, tag or commit of a Hub id.

    Raises:
        SourceError: as `read_peft`.
        HubError: the Hub refuses the download.
    """
    path = expand_home(src)
    if path.exists():
        if revision is not None:
            raise SourceError(f"{src}: is a local path, which has no --revision; fix: leave --revision out")
        return read_peft(path)
    if not looks_like_repo_id(str(src)):
        raise SourceError(f"{printable(src)}: no such directory; fix: check the path, or give a Hub id")
    from mlxbert.hub import snapshot

    return read_peft(snapshot(str(src), revision=revision, select=_adapter_files).path)


def _adapter_files(names: Sequence[str]) -> list[str]:
    """Return the files of an adapter in a repository: one format of its weights."""
    weights = [name for name in WEIGHTS if name in names][:1]
    return [name for name in names if name in (CONFIG, "config.json", *weights)]


def read_peft(directory: Path) -> PeftAdapter:
    """Return the adapter in a directory that PEFT's `save_pretrained` wrote.

    Raises:
        SourceError: a file is missing, damaged or a link out of the directory, the adapter has a feature that is not
            read (the message names it), or its tensors do not belong together.
    """
    file = directory / CONFIG
    if not is_peft(directory):
        raise SourceError(f"{directory}: no {CONFIG}, so no PEFT adapter; fix: give the directory that PEFT saved")
    check_file(file, directory)
    config = read_json_object(file)
    _refuse_features(file, config)
    weights = next((directory / name for name in WEIGHTS if os.path.lexists(directory / name)), None)
    if weights is None:
        raise SourceError(f"{directory}: neither {' nor '.join(WEIGHTS)} beside {CONFIG}; fix: get the adapter again")
    check_file(weights, directory)
    parts, whole = _split(weights, read_weights(weights).entries)
    is_dora = config.get("use_dora") is True
    layers = {path: _layer(weights, path, entries, config, is_dora) for path, entries in parts.items()}
    mapped, base = config.get("auto_mapping"), config.get("base_model_name_or_path")
    name = mapped.get("base_model_class") if isinstance(mapped, dict) else None
    dropout, task = config.get("lora_dropout") or 0.0, config.get("task_type")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        raise SourceError(f"{file}: lora_dropout is {shown(dropout)}; fix: a number from 0 to below 1")
    return PeftAdapter(
        directory=directory,
        layers=layers,
        whole=whole,
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        dropout=float(dropout),
        is_dora=is_dora,
        base=printable(base, 200) if isinstance(base, str) else "",
        class_name=name if isinstance(name, str) else None,
        task=task if isinstance(task, str) else None,
        files=(file, weights),
    )


def _refuse_features(file: Path, config: Mapping[str, Any]) -> None:
    """Refuse what would make it another model than `weight + scale · B A`."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise SourceError(f"{file}: peft_type is {shown(kind)}; LORA alone is read (LoRA and DoRA); {_MERGE}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    is_rank = type(rank) is int and 0 < rank <= _MAX_RANK
    for name, value, fits in (("r", rank, is_rank), ("lora_alpha", alpha, _is_number(alpha))):
        if not fits:
            raise SourceError(f"{file}: {name} is {shown(value)}, not a rank or a scale; fix: get the adapter again")
    refused = [f"bias={shown(config['bias'])}"] if config.get("bias", "none") != "none" else []
    if (initial := config.get("init_lora_weights", True)) not in _INITIAL:
        refused.append(f"init_lora_weights={shown(initial)}, which changes the base's weights")
    known = _NUMBERS | _IGNORED
    refused += [
        f"{printable(name, 60)}={shown(value)}" for name, value in config.items() if value and name not in known
    ]
    if refused:
        raise SourceError(
            f"{file}: has {len(refused)} features that are not read here; {_MERGE}\n{first_ten(refused)}"
        )
    for name in ("use_rslora", "use_dora"):
        if not isinstance(config.get(name, False), bool):
            raise SourceError(
                f"{file}: {name} is {shown(config[name])}, not true or false; fix: get the adapter again"
            )
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict) or not all(_PATTERN.fullmatch(key[:_MAX_NAME]) for key in patterns):
            raise SourceError(
                f"{file}: {name} has patterns that are not names of modules: they are not read; {_MERGE}"
            )
        if not all(_is_number(value) for value in patterns.values()):
            raise SourceError(f"{file}: {name} has values that are no numbers; fix: get the adapter again")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _split(
    file: Path, entries: Mapping[str, TensorEntry]
) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, TensorEntry]]:
    """Return the parts of each adapted layer by its path, and the tensors of modules that were trained whole."""
    layers: dict[str, dict[str, TensorEntry]] = {}
    whole, unknown = {}, []
    for key, entry in entries.items():
        name = key.removeprefix(PREFIX)
        if name == key or len(key) > _MAX_NAME:
            unknown.append(key)
        elif match := _PART.fullmatch(name):
            layers.setdefault(match["path"], {})[str(match["a"] or match["b"] or match["m"])] = entry
        elif _OTHER_PARTS.fullmatch(name):
            unknown.append(key)
        else:
            whole[name] = entry
    if unknown:
        raise SourceError(
            f"{file}: {len(unknown)} tensors that are no part of a linear layer's LoRA, nor of a whole module after "
            f"{PREFIX!r}; {_MERGE}\n{first_ten(unknown)}"
        )
    if not layers:
        raise SourceError(f"{file}: has no lora_A and lora_B; fix: get the adapter again")
    return layers, whole


def _layer(
    file: Path, path: str, parts: Mapping[str, TensorEntry], config: Mapping[str, Any], is_dora: bool
) -> AdaptedLayer:
    """Return a layer's adapter, its shapes checked."""
    a, b, magnitude = (parts.get(name) for name in ("lora_A", "lora_B", "lora_magnitude_vector"))
    wanted = "lora_A (rank, in), lora_B (out, rank)" + (" and lora_magnitude_vector (out,)" if is_dora else "")
    rank, alpha = (_of_pattern(config, name, path) for name in ("r", "lora_alpha"))
    if a is None or b is None or (magnitude is None) == is_dora:
        raise SourceError(
            f"{file}: {printable(path)} has {', '.join(parts)}, not {wanted}; fix: get the adapter again"
        )
    shapes = [entry.shape for entry in (a, b, magnitude) if entry is not None]
    fits = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] == rank and min(*a.shape, *b.shape) > 0
    if not fits or (magnitude is not None and math.prod(magnitude.shape) != b.shape[0]):
        listed = ", ".join(map(str, shapes))
        raise SourceError(
            f"{file}: {printable(path)} has shapes {listed}, and {CONFIG} says rank {shown(rank)}: {wanted} are "
            "expected; fix: get both files again, from one version of the adapter"
        )
    return AdaptedLayer(a, b, magnitude, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_pattern(config: Mapping[str, Any], name: str, path: str) -> Any:
    """Return `r` or `lora_alpha` of a layer: that of the first pattern that fits its path, as PEFT chooses it."""
    patterns = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[name]) or {}
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):  # `_refuse_features` lets letters, digits and dots pass alone
            return value
    return config[name]
