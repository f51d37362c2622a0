"""May a conversion write here? Every reason why not, before anything is read or downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from mlxbert.errors import first_ten
from mlxbert.files.manifest import NAME, read_manifest, unlisted
from mlxbert.files.output_file import WriteError, write_errors
from mlxbert.files.recovery import is_empty_directory

# Beside what the manifest lists: what this project's commands and macOS put into a converted directory later.
ADDED_LATER = frozenset({"parity.json", "README.md", ".DS_Store"})
# What Python keeps of an exported inference.py that was imported.
CACHE = "__pycache__/"


def check_target(target: Path, *, overwrite: bool, source: Path | None = None) -> Path:
    """Return the real path of the directory to write (links followed), or refuse.

    An absent or empty directory is fine, its parents need not exist. With `overwrite` so is a directory that
    this converter wrote and nobody put files into. `source` is the directory that is read (it must neither hold
    the output nor lie in it) or the file (it must not lie in the output); None for one that is not local.

    Raises :class:`WriteError`: one line with the fix. Writes nothing.
    """
    real = Path(os.path.realpath(target))
    with write_errors(target, needed=0):
        if target.is_symlink() and not real.exists():
            raise WriteError(
                f"{target}: a link to {real}, which does not exist; remove the link or give another output with -o"
            )
        if os.path.lexists(real) and not real.is_dir():
            raise WriteError(f"{target}: is a file; give a directory as output with -o")
        if os.path.ismount(real):
            raise WriteError(
                f"{target}: is a mount point, which cannot be replaced; give a directory in it, "
                f"such as -o {target / 'model'}"
            )
        if _lies_in(Path.cwd(), real):
            raise WriteError(
                f"{target}: is or holds the current directory; give another output with -o, such as -o mlx"
            )
        if source is not None:
            _check_source(target, real, source)
        if real.is_dir() and not is_empty_directory(real):
            if not overwrite:
                raise WriteError(f"{target}: exists; replace it with --overwrite or give another output with -o")
            _check_is_ours(target, real)
    return real


def _check_source(target: Path, real: Path, source: Path) -> None:
    if source.is_dir() and _lies_in(real, source):
        place = "is" if real.exists() and real.samefile(source) else "lies inside"
        raise WriteError(f"{target}: {place} the source {source}; give an output outside it with -o")
    if _lies_in(source.resolve(), real):
        raise WriteError(f"{target}: holds the source {source}; give another output with -o")


def _check_is_ours(target: Path, real: Path) -> None:
    files = read_manifest(real)
    if files is None or "config.json" not in files:
        raise WriteError(
            f"{target}: not a directory that mlxbert-convert wrote ({NAME} is not there or not its own), "
            "so --overwrite leaves it alone; remove it yourself or give another output with -o"
        )
    foreign = [name for name in unlisted(real, files) if name not in ADDED_LATER and not name.startswith(CACHE)]
    if foreign:
        raise WriteError(
            f"{target}: --overwrite would delete {len(foreign)} file(s) that mlxbert-convert did not write; "
            f"move them away or give another output with -o\n{first_ten(foreign)}"
        )


def _lies_in(inner: Path, outer: Path) -> bool:
    """Is `inner` (absolute; it may not exist yet) `outer` or somewhere below it? By identity, not by spelling."""
    if not outer.exists():
        return False
    return any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))
