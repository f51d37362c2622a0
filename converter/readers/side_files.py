"""The files that go with the weights: tokenizer, sentence-transformers modules, and the rights to all of it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from converter.readers.json_file import check_file
from converter.readers.weight_files import MODULE_FILES, SIDE_FILES, TOKENIZER_SIDE_FILES, module_files
from mlxbert.checkpoint import is_license_file
from mlxbert.encode.sentence_modules import MODULES, TRANSFORMER_CONFIGS, ModuleEntry, read_modules

# The transformer's class in sentence-transformers; before 0.3 it was called after the architecture.
_TRANSFORMERS = ("Transformer", "BERT")
_STANDARD_FOLDER = re.compile(r"\d+_\w+", re.ASCII)


@dataclass(frozen=True)
class SourceModule:
    """A sentence-transformers module of a source.

    Attributes:
        entry: as the source's `modules.json` has it.
        folder: where its files go; "" for the transformer, whose files are the checkpoint's own.
    """

    entry: ModuleEntry
    folder: str


def source_modules(root: Path) -> tuple[SourceModule, ...]:
    """The modules of a directory's `modules.json`; none where it has no such file.

    Raises:
        SourceError: a link that leads out, or what is no regular file.
        SentenceModuleError: it is malformed.
    """
    path = root / MODULES
    if not os.path.lexists(path):
        return ()
    check_file(path, root)
    entries = read_modules(root) or ()
    transformer = next((entry for entry in entries if entry.kind in _TRANSFORMERS), None)
    return tuple(
        SourceModule(
            entry,
            ""
            if entry is transformer
            else entry.folder
            if _STANDARD_FOLDER.fullmatch(entry.folder)
            else f"{index}_{entry.kind}",
        )
        for index, entry in enumerate(entries)
    )


def transformer_folder(modules: Sequence[SourceModule]) -> str:
    """Where the transformer's files are: "0_Transformer" in old releases; "": beside modules.json."""
    return next((module.entry.folder for module in modules if not module.folder), "")


def collect_side_files(root: Path, folder: str = "", modules: Sequence[SourceModule] = ()) -> dict[str, Path]:
    """Name in the output -> file, for those that exist.

    Args:
        root: the directory that is converted.
        folder: of the transformer in it.
        modules: what its `modules.json` lists.

    Raises:
        SourceError: a link that leads out of `root`, a pipe or device, a Git-LFS pointer or a web page among them.
    """
    model = root / folder
    found = {name: model / name for name in (*SIDE_FILES, *TRANSFORMER_CONFIGS)}
    if folder:
        found |= {
            name: root / name for name in SIDE_FILES if name not in (*TOKENIZER_SIDE_FILES, *TRANSFORMER_CONFIGS)
        }
    for module in modules:
        if module.folder:
            beside = root / module.entry.folder
            there = [f"{module.folder}/{name}" for name in MODULE_FILES if os.path.lexists(beside / name)]
            found |= {name: beside / name.rpartition("/")[2] for name in module_files(module.folder, there)}
    found |= {file.name: file for file in sorted(root.iterdir()) if is_license_file(file.name) and not file.is_dir()}
    found = {name: path for name, path in found.items() if os.path.lexists(path)}
    for path in found.values():
        check_file(path, root)
    return found


def has_tokenizer(side_files: dict[str, Path]) -> bool:
    """Whether there is anything to tokenize with."""
    return any(name in side_files for name in ("tokenizer.json", "vocab.txt"))
