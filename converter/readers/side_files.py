"""The files that go with the weights: tokenizer, sentence-transformers modules, and the rights to all of it."""

from __future__ import annotations

from pathlib import Path

from converter.readers.json_file import read_json, require_inside
from converter.readers.regular_file import file_size, read_bytes
from converter.readers.sniff import refuse_stand_in
from converter.readers.source_error import SourceError
from converter.readers.weight_files import MODULE_FILES, SIDE_FILES, module_files
from mlxbert.checkpoint import is_license_file


def collect_side_files(directory: Path) -> dict[str, Path]:
    """Relative POSIX name -> file, for those that exist.

    Raises SourceError: a Git-LFS pointer or web page among them, or a modules.json that is malformed or names
    a folder outside the directory.
    """
    names = [name for name in SIDE_FILES if (directory / name).exists()]
    names += sorted(file.name for file in directory.iterdir() if is_license_file(file.name) and not file.is_dir())
    if "modules.json" in names:
        for folder in _module_folders(directory / "modules.json"):
            there = [f"{folder}/{name}" for name in MODULE_FILES if (directory / folder / name).exists()]
            names += module_files(folder, there)
    found = {}
    for name in dict.fromkeys(names):
        path = directory / name
        refuse_stand_in(path, read_bytes(path, 0, min(file_size(path), 512)))
        found[name] = path
    return found


def has_tokenizer(side_files: dict[str, Path]) -> bool:
    """Whether there is anything to tokenize with."""
    return any(name in side_files for name in ("tokenizer.json", "vocab.txt"))


def _module_folders(path: Path) -> list[str]:
    """The folders of every module but the transformer itself, whose files are the checkpoint's own."""
    modules = read_json(path)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("path"), str) and isinstance(m.get("type"), str) for m in modules
    ):
        raise SourceError(f"{path}: is not a list of modules with a path and a type; fix: repair it or get it again")
    folders = [m["path"].rstrip("/") for m in modules if m["path"] and not m["type"].endswith(".Transformer")]
    return [require_inside(path, folder) for folder in folders]
