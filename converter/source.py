"""Where a model comes from: a directory, a file, or a Hub id, as tensors that are read when needed.

Nothing here imports torch, and nothing that a file contains is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.readers.packed import dequantized
from converter.readers.side_files import collect_side_files, has_tokenizer
from converter.readers.source_config import read_config, refuse_quantized
from converter.readers.source_error import SourceError, os_error
from converter.readers.tensor_entry import TensorEntry
from converter.readers.weight_files import (
    CARD,
    TOKENIZER_SIDE_FILES,
    WEIGHT_SUFFIXES,
    WeightChoice,
    choose_weights,
    refuse_lone_shard,
    select_files,
)
from converter.readers.weights import Weights, read_sharded, read_weights
from converter.readers.wrapper_prefixes import strip_prefixes
from mlxbert.checkpoint import is_license_file
from mlxbert.errors import first_ten, printable
from mlxbert.home import expand_home

if TYPE_CHECKING:
    from mlxbert.hub import Snapshot

__all__ = ["Source", "SourceError", "TensorEntry", "open_source", "select_files"]

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
    directory: Path  # where its files lie: the directory, the Hub snapshot, or the single file's parent
    revision: str | None  # 40-hex commit when it came from the Hub
    config: dict[str, Any]  # parsed config.json
    entries: dict[str, TensorEntry]  # by name without wrapper prefixes, in file order
    format: str  # "safetensors" | "pytorch" | "npz"
    weight_files: tuple[Path, ...]
    side_files: dict[str, Path]  # relative POSIX name -> file, copied to the output as they are
    notes: tuple[str, ...]  # what the user should be told
    own_head: dict[str, TensorEntry]  # of a head that mlxbert trained: no encoder's, and no tensor of transformers'

    @property
    def name(self) -> str:
        """The Hub id; of a local source the last part alone: a path tells who made it, and on what machine."""
        return self.location if self.revision else printable(Path(self.location).resolve().name)


def open_source(
    src: str, *, revision: str | None = None, config: Path | None = None, dequantize: bool = False
) -> Source:
    """Find and parse a checkpoint, without reading its tensors.

    `src` is a directory, a weight file with its config.json beside it, or a Hub id, whose needed files are
    downloaded at `revision`; `config` is used in the place of config.json. With `dequantize` it is a quantized MLX
    checkpoint, and its entries are the numbers that its packed weights stand for. Raises SourceError, one line with
    the fix, for everything that cannot be read, and mlxbert.hub's errors for what the Hub answers.
    """
    path = expand_home(src)
    try:
        if not src:
            raise SourceError("SRC is empty; fix: give a directory, a file or a Hub id")
        exists = path.exists()
    except OSError as error:
        raise os_error(path, error) from error
    if exists and revision is not None:
        raise SourceError(f"{src}: is a local path, which has no --revision; fix: leave --revision out")
    if exists:
        return _open_local(src, path, None, config, dequantize)
    if path.is_symlink():
        raise SourceError(f"{src}: is a link to nothing; fix: check where it leads")
    if not looks_like_repo_id(src):
        raise SourceError(f"{printable(src)}: no such file or directory; fix: check the path, or give a Hub id")
    from mlxbert import hub  # the client takes a while to import, and a local source needs none

    snapshot = hub.snapshot(src, revision=revision, select=select_files)
    notes = _fetch_card(snapshot)
    source = _open_local(src, snapshot.path, snapshot.revision, config, dequantize)
    return replace(source, notes=(*source.notes, *notes))


def _fetch_card(snapshot: Snapshot) -> list[str]:
    """Download the source's model card and license files too; on failure return a note and go on."""
    from mlxbert import hub

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


def _open_local(location: str, path: Path, revision: str | None, config: Path | None, dequantize: bool) -> Source:
    choice, directory = _choose(path)
    chosen = directory / choice.name
    weights = read_sharded(chosen) if choice.is_index else read_weights(chosen)
    parsed = read_config(directory, config, lightning=weights.lightning, dequantize=dequantize)
    own_head: dict[str, TensorEntry] = {}
    if path.is_dir() and "mlxbert" in parsed:
        weights, own_head = _with_heads(directory, parsed["mlxbert"], weights)
    names, prefixes = strip_prefixes(chosen, weights.entries)
    entries = {name: replace(weights.entries[key], key=name) for name, key in names.items()}
    if dequantize:
        parsed, entries = dequantized(chosen, parsed, entries)
    else:
        refuse_quantized(chosen, entries)
    side_files, side_notes = _side_files(directory, config)
    notes = [*choice.notes, *weights.notes, *side_notes]
    if prefixes:
        notes.append(f"wrapper prefixes taken off tensor names: {', '.join(prefixes)}")
    return Source(
        location=location,
        directory=directory,
        revision=revision,
        config=parsed,
        entries=entries,
        format=weights.format,
        weight_files=weights.files,
        side_files=side_files,
        notes=tuple(notes),
        own_head=own_head,
    )


def _choose(path: Path) -> tuple[WeightChoice, Path]:
    """The file to read and the directory of everything else."""
    if path.is_dir():
        return choose_weights(str(path), _names(path)), path
    refuse_lone_shard(str(path), path.name)
    return WeightChoice(path.name), path.parent


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
        raise os_error(directory, error) from error
    return names


def _with_heads(directory: Path, block: Any, weights: Weights) -> tuple[Weights, dict[str, TensorEntry]]:
    """This project's own output as SRC: its heads lie in a file that the index does not list.

    Those of transformers' classes join the weights; a head that mlxbert trained stays by itself, its names being ours.
    """
    path = directory / "heads.safetensors"
    if not path.exists():
        return weights, {}
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


def _side_files(directory: Path, config: Path | None) -> tuple[dict[str, Path], list[str]]:
    """The side files; the tokenizer from beside --config when the weights have none beside them."""
    found = collect_side_files(directory)
    if config is None or has_tokenizer(found) or config.parent.resolve() == directory.resolve():
        return found, []
    beside = {n: p for n, p in collect_side_files(config.parent).items() if n in TOKENIZER_SIDE_FILES}
    if not has_tokenizer(beside):
        return found, []
    return {**found, **beside}, [f"the tokenizer is taken from beside {config}"]
