"""What a conversion writes beside the weights, and the look at the whole before it is put in place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from converter.output_config import without_places
from converter.readers.json_file import read_json, read_json_object
from converter.readers.side_files import SourceModule
from converter.readers.source_error import SourceError
from converter.readers.tensor_entry import TensorEntry
from converter.readers.weights import read_weights
from converter.source import Source
from mlxbert.checkpoint import load_core, load_tokenizer
from mlxbert.encode import SentenceEncoder
from mlxbert.encode.modules import UnsupportedModuleError
from mlxbert.encode.sentence_modules import MODULES, both_spellings, read_sentence_plan
from mlxbert.errors import MLXBertError
from mlxbert.files.output_directory import OutputDirectory
from mlxbert.files.safetensors_writer import NUMPY_DTYPES, PlannedTensor

_TRANSFORMER = "sentence_transformers.models.Transformer"
_MODULE_WEIGHTS = re.compile(r"[^/]+/(model\.safetensors|pytorch_model\.bin)")


class StagedModelError(MLXBertError):
    """What was converted could not be loaded by its user, so it was not put in place."""


def write_side_files(output: OutputDirectory, source: Source, hidden_size: int) -> None:
    """Write the tokenizer's and sentence-transformers' files, changed only where they would be wrong in the output.

    `modules.json` names the folders that the output has; a Pooling module is spelled for old and new releases; weights
    of modules become safetensors; paths of the machine that wrote the tokenizer's configuration are cut.

    Raises:
        SourceError, SentenceModuleError, WriteError: a file is damaged, or cannot be written.
    """
    poolings = {module.folder: module for module in source.modules if module.entry.kind == "Pooling"}
    for name, file in source.side_files.items():
        folder, _, last = name.rpartition("/")
        changed: Any = None
        if _MODULE_WEIGHTS.fullmatch(name):
            _write_module_weights(output, name, file)
            continue
        if name == MODULES:
            changed = _moved_modules(file, source.modules)
        elif folder in poolings and last == "config.json":
            changed = _respelled_pooling(file, hidden_size)
        elif name == "tokenizer_config.json":
            changed = _without_places(file)
        if changed is None:
            output.copy(name, file)
        else:
            output.write_json(name, changed)


def check_staged(directory: Path, config: Mapping[str, Any], source: Source) -> None:
    """Load what was written as its user will, weights aside: headers, tokenizer and sentence-transformers' files.

    A module that is not computed here is no fault of the files, and is told elsewhere (the card shows what runs).

    Args:
        directory: the whole output but for its `config.json`.
        config: what that file will hold.
        source: where it came from, for messages.

    Raises:
        StagedModelError: something cannot be loaded.
    """
    core = load_core(directory, config=dict(config), lazy=True)
    try:
        part = "tokenizer.json and vocab.txt"
        there = any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
        tokenizer = load_tokenizer(directory, core.config) if there else None
        part = MODULES
        plan = read_sentence_plan(directory, config)
        if plan is not None and tokenizer is not None:
            SentenceEncoder(core, tokenizer, plan)
    except UnsupportedModuleError:
        return
    except MLXBertError as error:
        message = str(error).replace(str(directory), str(source.directory))
        raise StagedModelError(
            f"{message}; nothing was written; without {part}, {source.name} converts to an encoder alone"
        ) from error


def _moved_modules(file: Path, modules: tuple[SourceModule, ...]) -> list[dict[str, Any]] | None:
    """`modules.json` with the output's folders; None where they are the source's."""
    if all(module.entry.folder == module.folder for module in modules):
        return None
    entries = [dict(entry) for entry in read_json(file)]
    for entry, module in zip(entries, modules, strict=True):
        entry["path"] = module.folder
        if not module.folder:
            entry["type"] = _TRANSFORMER
    return entries


def _respelled_pooling(file: Path, hidden_size: int) -> dict[str, Any] | None:
    try:
        return both_spellings(read_json_object(file), file.parent, hidden_size)
    except UnsupportedModuleError:  # said of the whole output, by `check_staged`
        return None


def _without_places(file: Path) -> dict[str, Any] | None:
    """The tokenizer's configuration without paths of the machine that wrote it; None: there are none in it."""
    try:
        values = read_json_object(file)
    except SourceError:  # the tokenizer's own reader says so, in `check_staged`
        return None
    cleaned = without_places(values)
    return None if cleaned == values else cleaned


def _write_module_weights(output: OutputDirectory, name: str, file: Path) -> None:
    """Copy a module's safetensors; pickles, and float64, which MLX does not read, are written as safetensors anew."""
    entries = read_weights(file).entries
    if file.suffix == ".safetensors" and all(entry.dtype != "F64" for entry in entries.values()):
        output.copy(name, file)
        return
    target = str(PurePosixPath(name).with_name("model.safetensors"))
    output.write_safetensors(target, [_planned(key, entry) for key, entry in entries.items()])


def _planned(name: str, entry: TensorEntry) -> PlannedTensor:
    dtype = "F32" if entry.dtype == "F64" else entry.dtype
    return PlannedTensor(
        name, entry.shape, dtype, lambda: np.asarray(entry.read()).astype(NUMPY_DTYPES[dtype], copy=False)
    )
