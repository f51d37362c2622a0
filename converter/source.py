"""Where a model comes from: a directory, a file, or a Hub id, as tensors that are read when needed.

Nothing here imports torch, and nothing that a file contains is ever run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.mappings import mapping_for
from converter.readers.encoder_fit import FoundEncoder, assumed_model_type, find_encoder, refuse_adapters
from converter.readers.safetensors import TensorEntry, dequantized
from converter.readers.source_files import SourceError, check_file
from converter.readers.weight_files import (
    CARD,
    TOKENIZER_SIDE_FILES,
    WEIGHT_SUFFIXES,
    SourceModule,
    WeightChoice,
    Weights,
    choose_weights,
    collect_side_files,
    has_tokenizer,
    read_config,
    read_sharded,
    read_weights,
    refuse_lone_shard,
    refuse_quantized,
    select_files,
    source_modules,
    transformer_folder,
)
from mlxbert.checkpoint import is_license_file
from mlxbert.encode.sentence_modules import MODULES
from mlxbert.errors import MLXBertError, first_ten, printable
from mlxbert.files.reading import expand_home, reading_failed
from mlxbert.models.base import config_from_hf
from mlxbert.models.config_fields import ConfigError

if TYPE_CHECKING:
    from mlxbert.hub.download import Snapshot

__all__ = ["Source", "SourceError", "TensorEntry", "open_source", "select_files"]

# Read with the source by others: our card takes over the source's license, transformers looks at the rest.
READ_BY_OTHERS = (CARD, "generation_config.json", "adapter_config.json")
# Names of a directory or file that say nothing of the model.
_GENERIC = re.compile(
    r"(\d+_)?(model|models|pytorch_model|weights|checkpoints?([-_]?\d+)?|(last|best|final)([-_](model|checkpoint))?|output"
    r"|outputs|snapshot|state_dict|transformer|bert|encoder|epoch[-_=]?\d*|step[-_=]?\d*|[0-9a-f]{40})",
    re.IGNORECASE,
)
# A head that mlxbert trained (its parameters in heads.safetensors): transformers has no class for it.
OWN_HEADS = ("head.", "pooling.")

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FILE_SUFFIXES = (
    *WEIGHT_SUFFIXES,
    ".json",
    ".h5",
    ".msgpack",
    ".onnx",
    ".gguf",
    ".zip",
    ".tar",
    ".gz",
    ".txt",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found and understood; its tensors are not read yet."""

    location: str  # what the user typed
    root: Path  # what was given: the directory, the Hub snapshot, or the single file's parent
    directory: Path  # where configuration and weights lie: `root`, or its folder that modules.json names
    revision: str | None  # 40-hex commit when it came from the Hub
    config: dict[str, Any]  # parsed config.json
    entries: dict[str, TensorEntry]  # by name without wrapper prefixes, in file order
    format: str  # "safetensors" | "pytorch" | "npz"
    weight_files: tuple[Path, ...]
    side_files: dict[str, Path]  # name in the output (relative, POSIX) -> file
    modules: tuple[SourceModule, ...]  # of modules.json
    notes: tuple[str, ...]  # what the user should be told
    own_head: dict[str, TensorEntry]  # of a head that mlxbert trained: no encoder's, and no tensor of transformers'
    prefix: str = ""  # what lay before the encoder's names, beside torch's wrappers
    dropped: Mapping[str, str] = field(default_factory=dict)  # what `entries` leaves out, and why
    choices: Mapping[str, Any] = field(default_factory=dict)  # the user's, that a comparison has to make, too

    @property
    def name(self) -> str:
        """The Hub id; of a local source no more than tells it apart: a path says who made it, and on what machine."""
        return self.location if self.revision else printable(local_name(Path(self.location)))


@dataclass(frozen=True)
class _Options:
    """What the user says about a source."""

    config: Path | None = None
    dequantize: bool = False
    prefix: str | None = None
    encoder_only: bool = False


def local_name(path: Path) -> str:
    """What a local source is called: a Hub id where it lies in the Hub's cache, else the last part of its path.

    A last part that many have ("model", "checkpoint-500") is told with the one above it.
    """
    path = path.resolve()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.removeprefix("models--").replace("--", "/")
    generic = _GENERIC.fullmatch(path.name if path.is_dir() else path.stem)
    return f"{path.parent.name}/{path.name}" if generic and path.parent.name else path.name


def open_source(
    src: str,
    *,
    revision: str | None = None,
    config: Path | None = None,
    dequantize: bool = False,
    prefix: str | None = None,
    encoder_only: bool = False,
) -> Source:
    """Find and parse a checkpoint, without reading its tensors.

    `src` is a directory, a weight file with its config.json beside it, or a Hub id, whose needed files are
    downloaded at `revision`; `config` is used in the place of config.json. With `dequantize` it is a quantized MLX
    checkpoint, and its entries are the numbers that its packed weights stand for. `prefix` chooses among several
    encoders in it, and `encoder_only` leaves out what is no encoder's. Raises SourceError, one line with the fix, for
    everything that cannot be read, MappingError and SentenceModuleError for what is read and does not fit, and
    mlxbert.hub.download's errors for what the Hub answers.
    """
    options = _Options(config, dequantize, prefix, encoder_only)
    path = expand_home(src)
    try:
        if not src:
            raise SourceError("SRC is empty; fix: give a directory, a file or a Hub id")
        exists = path.exists()
    except OSError as error:
        raise SourceError(reading_failed(path, error)) from error
    if exists and revision is not None:
        raise SourceError(f"{src}: is a local path, which has no --revision; fix: leave --revision out")
    if exists:
        return _open_local(src, path, None, options)
    if path.is_symlink():
        raise SourceError(f"{src}: is a link to nothing; fix: check where it leads")
    if not looks_like_repo_id(src):
        raise SourceError(f"{printable(src)}: no such file or directory; fix: check the path, or give a Hub id")
    from mlxbert.hub import download as hub  # the client takes a while to import, and a local source needs none

    snapshot = hub.snapshot(src, revision=revision, select=select_files)
    folder = transformer_folder(source_modules(snapshot.path))
    if folder:  # the names alone may have suggested another one
        select = partial(select_files, folder=folder)
        snapshot = hub.snapshot(src, revision=snapshot.revision, select=select)
    notes = _fetch_card(snapshot)
    source = _open_local(src, snapshot.path, snapshot.revision, options)
    return replace(source, notes=(*source.notes, *notes))


def _fetch_card(snapshot: Snapshot) -> list[str]:
    """Download the source's model card and license files too; on failure return a note and go on."""
    from mlxbert.hub import download as hub

    listed: list[str] = []

    def card(names: Sequence[str]) -> list[str]:
        listed.extend(name for name in names if name == CARD or is_license_file(name))
        return listed

    try:
        hub.snapshot(snapshot.repo_id, revision=snapshot.revision, select=card, progress=False)
    except hub.HubError:  # also where none is listed
        if listed:
            missing = " and ".join(name for name in listed if not (snapshot.path / name).is_file())
            return [f"the source's {missing} could not be fetched: look there for its license before you publish"]
    return []


def looks_like_repo_id(src: str) -> bool:
    """Whether `src`, which is no existing path, can be meant as a Hub id: NAME or OWNER/NAME, not a file."""
    return bool(_REPO_ID.fullmatch(src)) and not src.endswith(_FILE_SUFFIXES) and ".." not in src


def _open_local(location: str, path: Path, revision: str | None, options: _Options) -> Source:
    root = path if path.is_dir() else path.parent
    modules = source_modules(root)
    folder = transformer_folder(modules) if path.is_dir() else ""
    directory = root / folder
    choice = choose_weights(str(directory), _names(directory)) if path.is_dir() else _one_file(path)
    chosen = directory / choice.name
    if path.is_dir():
        check_file(chosen, root)
    weights = read_sharded(chosen, root) if choice.is_index else read_weights(chosen)
    refuse_adapters(chosen, weights.entries)
    config, own_config = read_config(
        directory, options.config, root=root, lightning=weights.lightning, dequantize=options.dequantize
    )
    notes = [*choice.notes, *weights.notes, *_layout_notes(path, root, folder)]
    config, type_notes = _with_model_type(config, own_config, weights)
    own_head: dict[str, TensorEntry] = {}
    if path.is_dir() and "mlxbert" in config:
        weights, own_head = _with_heads(root, config["mlxbert"], weights)
    found = _find_encoder(chosen, weights, config, options)
    entries = {name: replace(weights.entries[key], key=name) for name, key in found.names.items()}
    if options.dequantize:
        config, entries = dequantized(chosen, config, entries)
    else:
        refuse_quantized(chosen, entries)
    side_files, side_notes = _side_files(root, folder, modules, options.config)
    for name in READ_BY_OTHERS:
        if os.path.lexists(directory / name):
            check_file(directory / name, root)
    if found.stripped:
        notes.append(f"wrapper prefixes taken off tensor names: {', '.join(map(printable, found.stripped))}")
    return Source(
        location=location,
        root=root,
        directory=directory,
        revision=revision,
        config=config,
        entries=entries,
        format=weights.format,
        weight_files=weights.files,
        side_files=side_files,
        modules=modules,
        notes=(*notes, *type_notes, *found.notes, *side_notes),
        own_head={} if options.encoder_only else own_head,
        prefix=found.prefix,
        choices={
            name: value
            for name, value in (("prefix", options.prefix), ("encoder_only", options.encoder_only or None))
            if value is not None
        },
        dropped=found.dropped | (_dropped_head(own_head) if options.encoder_only else {}),
    )


def _with_model_type(config: dict[str, Any], file: Path, weights: Weights) -> tuple[dict[str, Any], list[str]]:
    """The configuration with its architecture's name, where it has none and the tensors tell; and a note on that."""
    if config.get("model_type") is not None:
        return config, []
    shapes = {key: entry.shape for key, entry in weights.entries.items()}
    model_type = assumed_model_type(config, file, shapes)
    if model_type is None:
        return config, []
    return {**config, "model_type": model_type}, [
        f"{file.name} has no model_type: taken for {model_type!r}, whose tensors these are"
    ]


def _find_encoder(where: Path, weights: Weights, config: dict[str, Any], options: _Options) -> FoundEncoder:
    """The tensors under the names of the architecture's table; as they are where there is no such table."""
    mapping, parsed = None, None
    with suppress(ConfigError):  # the plan refuses the same configuration, with the reason
        parsed = config_from_hf(config)
        mapping = mapping_for(config)
    shapes = {key: entry.shape for key, entry in weights.entries.items()}
    return find_encoder(where, shapes, mapping, parsed, prefix=options.prefix, encoder_only=options.encoder_only)


def _dropped_head(own_head: Mapping[str, TensorEntry]) -> dict[str, str]:
    return dict.fromkeys(own_head, "a trained head (--encoder-only)")


def _layout_notes(path: Path, root: Path, folder: str) -> list[str]:
    """What the user should know of where the weights are."""
    if folder:
        beside = any(os.path.lexists(root / name) for name in ("model.safetensors", "pytorch_model.bin"))
        ignored = f", not the weights beside {MODULES}" if beside else ""
        return [f"{MODULES} names {folder}: its configuration, weights and tokenizer are used{ignored}"]
    above = root.resolve().parent
    if path.is_dir() and not os.path.lexists(root / MODULES) and (above / MODULES).is_file():
        with suppress(MLXBertError):  # somebody else's file, which is only looked at for a hint
            if transformer_folder(source_modules(above)) == root.resolve().name:
                return [
                    f"{above / MODULES} says how {root.name} makes embeddings, which this conversion leaves out; "
                    f"give {above} as SRC to keep it"
                ]
    return []


def _one_file(path: Path) -> WeightChoice:
    refuse_lone_shard(str(path), path.name)
    return WeightChoice(path.name)


def _names(directory: Path) -> list[str]:
    """Files in the directory and, as FOLDER/NAME, in its folders."""
    names = []
    try:
        for item in sorted(directory.iterdir()):
            if not item.is_dir():
                names.append(item.name)
            elif not item.name.startswith("."):
                # folders only help to say where weights lie instead: one that cannot be listed says nothing
                with suppress(PermissionError):
                    names += [f"{item.name}/{inner.name}" for inner in sorted(item.iterdir())]
    except OSError as error:
        raise SourceError(reading_failed(directory, error)) from error
    return names


def _with_heads(directory: Path, block: Any, weights: Weights) -> tuple[Weights, dict[str, TensorEntry]]:
    """This project's own output as SRC: its heads lie in a file that the index does not list.

    Those of transformers' classes join the weights; a head that mlxbert trained stays by itself, its names being ours.
    """
    path = directory / "heads.safetensors"
    if not os.path.lexists(path):
        return weights, {}
    check_file(path, directory)
    heads = read_weights(path)
    files = (*weights.files, path)
    trained = isinstance(block, dict) and isinstance(block.get("head"), dict)
    if trained and all(key.startswith(OWN_HEADS) for key in heads.entries):
        return replace(weights, files=files), heads.entries
    twice = [printable(key) for key in heads.entries if key in weights.entries]
    if twice:
        raise SourceError(
            f"{path}: has tensors that the model's own files have too; "
            f"fix: convert the original again\n{first_ten(twice)}"
        )
    return replace(weights, entries={**weights.entries, **heads.entries}, files=files), {}


def _side_files(
    root: Path, folder: str, modules: tuple[SourceModule, ...], config: Path | None
) -> tuple[dict[str, Path], list[str]]:
    """The side files; a tokenizer from beside modules.json, or --config, where the weights have none beside them."""
    found = collect_side_files(root, folder, modules)
    if has_tokenizer(found):
        return found, []
    elsewhere = [root] if folder else []
    if config is not None and config.parent.resolve() != (root / folder).resolve():
        elsewhere.append(config.parent)
    for place in elsewhere:
        beside = {n: p for n, p in collect_side_files(place).items() if n in TOKENIZER_SIDE_FILES}
        if has_tokenizer(beside):
            return {**found, **beside}, [f"the tokenizer is taken from beside {config if place != root else MODULES}"]
    return found, []
