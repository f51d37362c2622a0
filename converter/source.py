"""Open the source of a conversion: a directory, a file, or a Hub id, as tensors that are read on demand.

Nothing here imports torch, and no code in a file is ever run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.mappings import mapping_for, supported
from converter.readers.encoder_fit import assumed_model_type, find_encoder, refuse_adapters
from converter.readers.safetensors import TensorEntry, Weights, dequantized
from converter.readers.source_files import SourceError, check_file, read_json_object
from converter.readers.weight_files import (
    CARD,
    WEIGHT_SUFFIXES,
    SourceModule,
    WeightChoice,
    choose_weights,
    collect_side_files,
    has_config,
    read_config,
    read_sharded,
    read_weights,
    refuse_lone_shard,
    refuse_quantized,
    select_files,
    select_first_files,
    source_modules,
    transformer_folder,
)
from mlxbert.adapters.files import is_adapter_directory, unmerged
from mlxbert.checkpoint import has_trained_head, is_license_file
from mlxbert.encode.sentence_modules import MODULES
from mlxbert.errors import MLXBertError, first_ten, printable
from mlxbert.files.reading import expand_home, reading_failed
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.models.config_fields import ConfigError, EncoderConfig
from mlxbert.pretrained import original_architectures
from mlxbert.tokenization.files import TOKENIZER_FILES, has_tokenizer
from mlxbert.with_head import HEADS_FILE

if TYPE_CHECKING:
    from mlxbert.hub import Snapshot

__all__ = ["Source", "SourceError", "TensorEntry", "open_source", "select_files"]

# Files that others read: our model card takes over the source's license, and transformers reads the rest.
_READ_BY_OTHERS = (CARD, "generation_config.json", "adapter_config.json")
# Names of a directory or file that do not identify a model.
_GENERIC = re.compile(
    r"(\d+_)?(model|models|pytorch_model|weights|checkpoints?([-_]?\d+)?|(last|best|final)([-_](model|checkpoint))?|output"
    rf"|outputs|snapshot|state_dict|transformer|{'|'.join(supported())}|encoder|epoch[-_=]?\d*|step[-_=]?\d*"
    r"|[0-9a-f]{40})",
    re.IGNORECASE,
)
_DECODER = re.compile(r"\w+(ForCausalLM|LMHeadModel)")
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FILE_SUFFIXES = (*WEIGHT_SUFFIXES, ".json", ".h5", ".msgpack", ".onnx", ".gguf", ".zip", ".tar", ".gz", ".txt")


@dataclass(frozen=True)
class Source:
    """An open checkpoint; its tensors are not read yet.

    Attributes:
        location: as the user named it.
        root: the given directory, the Hub snapshot, or the directory of the given file.
        directory: where configuration and weights lie: `root`, or its folder that `modules.json` names.
        revision: the 40-hex commit, if it came from the Hub.
        config: the parsed `config.json`.
        entries: its tensors by name, without wrapper prefixes, in file order.
        format: "safetensors", "pytorch" or "npz".
        weight_files: the files of the tensors.
        side_files: the other files of the model, by their names in the output (relative, POSIX).
        modules: the modules in `modules.json`.
        notes: notes for the user.
        own_head: tensors of a head that mlxbert trained, which transformers does not have.
        prefix: the beginning of the encoder's names, without torch's wrappers.
        dropped: tensors that `entries` leaves out, with the reason.
        choices: options of the user that a comparison needs, too.
        unmerged: tensors of the base as they are without the adapter that was merged into them, by name.
    """

    location: str
    root: Path
    directory: Path
    revision: str | None
    config: dict[str, Any]
    entries: dict[str, TensorEntry]
    format: str
    weight_files: tuple[Path, ...]
    side_files: dict[str, Path]
    modules: tuple[SourceModule, ...]
    notes: tuple[str, ...]
    own_head: dict[str, TensorEntry]
    prefix: str = ""
    dropped: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, Any] = field(default_factory=dict)
    unmerged: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The Hub id, or the last part of a local path: the whole path could reveal a user's name."""
        return self.location if self.revision else printable(local_name(Path(self.location)))


@dataclass(frozen=True)
class _Options:
    """The user's options for a source."""

    config: Path | None = None
    dequantize: bool = False
    prefix: str | None = None
    encoder_only: bool = False


def local_name(path: Path) -> str:
    """Return the name of a local source: a Hub id if it lies in the Hub's cache, else the last part of its path.

    A common last part ("model", "checkpoint-500") is returned with the part before it.
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
    """Find and parse a checkpoint without reading its tensors.

    Args:
        src: a directory, a weight file with its `config.json` beside it, or a Hub id.
        revision: a branch, tag or commit of a Hub id; only the needed files are downloaded.
        config: the file to use instead of `config.json`.
        dequantize: unpack the source, which is a quantized MLX checkpoint.
        prefix: the beginning of the encoder's names, if there are several encoders.
        encoder_only: leave out every tensor that is not part of the encoder.

    Raises:
        SourceError: a file cannot be read.
        ConfigError: the model is not supported; one from the Hub is refused before its weights are downloaded.
        MappingError, SentenceModuleError: the files can be read, but do not fit.
        HubError: the Hub refuses the download.
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
    from mlxbert.hub import snapshot as download  # a local source needs no Hub

    first = download(src, revision=revision, select=select_first_files)
    folder = transformer_folder(source_modules(first.path))
    if has_config(first.path / folder) or config is not None:
        # Refuse a model before its weights are downloaded.
        content, _ = read_config(first.path / folder, config, root=first.path, dequantize=dequantize)
        if content.get("model_type") is not None:
            _parsed_config(content, options)
    # The names may suggest another folder than modules.json says.
    snapshot = download(src, revision=first.revision, select=partial(select_files, folder=folder or None))
    notes = _fetch_card(snapshot)
    source = _open_local(src, snapshot.path, snapshot.revision, options)
    return replace(source, notes=(*source.notes, *notes))


def _fetch_card(snapshot: Snapshot) -> list[str]:
    """Download the source's model card and license files too; on failure return a note and go on."""
    from mlxbert.hub import HubError
    from mlxbert.hub import snapshot as download

    listed: list[str] = []

    def card(names: Sequence[str]) -> list[str]:
        listed.extend(name for name in names if name == CARD or is_license_file(name))
        return listed

    try:
        download(snapshot.repo_id, revision=snapshot.revision, select=card, progress=False)
    except HubError:  # also if no such file is listed
        if listed:
            missing = " and ".join(name for name in listed if not (snapshot.path / name).is_file())
            return [f"the source's {missing} could not be fetched: look there for its license before you publish"]
    return []


def looks_like_repo_id(src: str) -> bool:
    """Return whether `src`, not an existing path, can be a Hub id: NAME or OWNER/NAME, but not a file name."""
    return bool(_REPO_ID.fullmatch(src)) and not src.endswith(_FILE_SUFFIXES) and ".." not in src


def _open_local(location: str, path: Path, revision: str | None, options: _Options) -> Source:
    root = path if path.is_dir() else path.parent
    modules = source_modules(root)
    folder = transformer_folder(modules) if path.is_dir() else ""
    directory = root / folder
    if path.is_dir():
        if is_adapter_directory(path):
            raise SourceError(unmerged(path, read_json_object(path / "config.json")))
        choice = choose_weights(str(directory), _names(directory))
        check_file(directory / choice.name, root)
    else:
        refuse_lone_shard(str(path), path.name)
        choice = WeightChoice(path.name)
    chosen = directory / choice.name
    weights = read_sharded(chosen, root) if choice.is_index else read_weights(chosen)
    refuse_adapters(chosen, weights.entries)
    config, own_config = read_config(
        directory, options.config, root=root, lightning=weights.lightning, dequantize=options.dequantize
    )
    notes = [*choice.notes, *weights.notes, *_layout_notes(path, root, folder)]
    config, type_notes = _with_model_type(config, own_config, weights)
    own_head: dict[str, TensorEntry] = {}
    if path.is_dir() and "mlxbert" in config:
        weights, own_head = _with_heads(root, config, weights)
    parsed, mapping = _parsed_config(config, options), mapping_for(config)
    shapes = {key: entry.shape for key, entry in weights.entries.items()}
    encoder = find_encoder(chosen, shapes, mapping, parsed, prefix=options.prefix, encoder_only=options.encoder_only)
    entries = {name: replace(weights.entries[key], key=name) for name, key in encoder.names.items()}
    if options.dequantize:
        config, entries = dequantized(chosen, config, entries, prefix=mapping.base_prefix)
    else:
        refuse_quantized(chosen, entries)
    config, field_notes = _with_fields_of(config, parsed, entries)
    side_files, side_notes = _side_files(root, folder, modules, options.config)
    for name in _READ_BY_OTHERS:
        if os.path.lexists(directory / name):
            check_file(directory / name, root)
    choices: dict[str, Any] = {} if options.prefix is None else {"prefix": options.prefix}
    dropped = encoder.dropped
    if options.encoder_only:
        choices["encoder_only"] = True
        dropped = dropped | dict.fromkeys(own_head, "a trained head (--encoder-only)")
        own_head = {}
    if encoder.stripped:
        notes.append(f"wrapper prefixes taken off tensor names: {', '.join(map(printable, encoder.stripped))}")
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
        notes=(*notes, *type_notes, *field_notes, *encoder.notes, *side_notes),
        own_head=own_head,
        prefix=encoder.prefix,
        dropped=dropped,
        choices=choices,
    )


def _parsed_config(config: Mapping[str, Any], options: _Options) -> EncoderConfig:
    """Return the configuration of the encoder; raise ConfigError if the model is not supported or is a decoder."""
    parsed = config_from_hf(config)
    decoders = [name for name in original_architectures(config) if _DECODER.fullmatch(name)]
    if decoders and not options.encoder_only:
        raise ConfigError(
            f"config.json: {printable(decoders[0])} is a decoder, which predicts the next word; not computed here; "
            "fix: --encoder-only converts the encoder alone, without that head"
        )
    return parsed


def _with_model_type(config: dict[str, Any], file: Path, weights: Weights) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration, with a `model_type` from the tensors if it lacks one, and a note on that."""
    if config.get("model_type") is None:
        shapes = {key: entry.shape for key, entry in weights.entries.items()}
        if (model_type := assumed_model_type(config, file, shapes)) is not None:
            note = f"{file.name} has no model_type: taken for {model_type!r}, whose tensors these are"
            return {**config, "model_type": model_type}, [note]
    return config, []


def _with_fields_of(
    config: dict[str, Any], parsed: EncoderConfig, names: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration with the fields that the names of the tensors show, and a note on each that differs."""
    shown = architecture(parsed.model_type).fields_of(names)
    changed = {name: value for name, value in shown.items() if getattr(parsed, name) != value}
    notes = [
        f"{name} is {json.dumps(value)}, whatever config.json says: its tensors show it"
        for name, value in changed.items()
    ]
    return {**config, **changed}, notes


def _layout_notes(path: Path, root: Path, folder: str) -> list[str]:
    """Return notes on where the weights lie."""
    if folder:
        has_others = any(os.path.lexists(root / name) for name in ("model.safetensors", "pytorch_model.bin"))
        ignored = f", not the weights beside {MODULES}" if has_others else ""
        return [f"{MODULES} names {folder}: its configuration, weights and tokenizer are used{ignored}"]
    above = root.resolve().parent
    if path.is_dir() and not os.path.lexists(root / MODULES) and (above / MODULES).is_file():
        with suppress(MLXBertError):  # the file is outside the source, and only read for a hint
            if transformer_folder(source_modules(above)) == root.resolve().name:
                return [
                    f"{above / MODULES} says how {root.name} makes embeddings, which this conversion leaves out; "
                    f"give {above} as SRC to keep it"
                ]
    return []


def _names(directory: Path) -> list[str]:
    """Return the names of the files in the directory and, as FOLDER/NAME, in its folders."""
    names = []
    try:
        for item in sorted(directory.iterdir()):
            if not item.is_dir():
                names.append(item.name)
            elif not item.name.startswith("."):
                # Folders only help to explain a refusal: one that cannot be listed does not matter.
                with suppress(PermissionError):
                    names += [f"{item.name}/{inner.name}" for inner in sorted(item.iterdir())]
    except OSError as error:
        raise SourceError(reading_failed(directory, error)) from error
    return names


def _with_heads(
    directory: Path, config: Mapping[str, Any], weights: Weights
) -> tuple[Weights, dict[str, TensorEntry]]:
    """Return the weights of our own output with its heads, and separately a head that mlxbert trained.

    The heads lie in a file that the index does not list.
    """
    path = directory / HEADS_FILE
    if not os.path.lexists(path):
        return weights, {}
    check_file(path, directory)
    heads = read_weights(path)
    files = (*weights.files, path)
    if has_trained_head(config):
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
    """Return the other files of the model, and a note if the tokenizer lies elsewhere."""
    files = collect_side_files(root, folder, modules)
    if has_tokenizer(files, sentencepiece=True):
        return files, []
    elsewhere = [root] if folder else []
    if config is not None and config.parent.resolve() != (root / folder).resolve():
        elsewhere.append(config.parent)
    for place in elsewhere:
        tokenizer = {name: path for name, path in collect_side_files(place).items() if name in TOKENIZER_FILES}
        if has_tokenizer(tokenizer, sentencepiece=True):
            note = f"the tokenizer is taken from beside {config if place != root else MODULES}"
            return {**files, **tokenizer}, [note]
    return files, []
