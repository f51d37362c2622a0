"""The directory of a run: whether one may be begun there, and that one process at a time writes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlxbert.files.output_file import TEMPORARY, WriteError, write_errors
from mlxbert.files.recovery import target_lock
from mlxbert.home import expand_home
from mlxbert.runs.files import RunError, RunFiles, read_info


def new_directory(out: str | Path, overwrite: bool) -> Path:
    """The directory, if a run may be begun there.

    Raises:
        RunError: it is a file, has something else in it, or a run that is not to be overwritten.
    """
    root = expand_home(out)
    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is a file; fix: give another directory with -o")
    if not root.is_dir() or all(TEMPORARY.fullmatch(path.name) for path in root.iterdir()):
        return root
    if not (root / "run.json").is_file():
        raise RunError(f"{root} is not empty, and no run; fix: give another directory with -o")
    read_info(root)
    if not overwrite:
        raise RunError(f"{root} has a run in it; fix: --resume {root}, --overwrite, or another directory with -o")
    return root


@contextmanager
def run_lock(root: Path) -> Iterator[None]:
    """Be the only process that writes this run; what a killed one left half written is deleted.

    Raises:
        RunError: another process is at it.
        WriteError: there is no place for it.
    """
    # Beside the directory itself, whatever it is called here: two names must not be two locks.
    target = Path(os.path.realpath(root))
    with write_errors(target, 0):
        target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(target_lock(target))
        except WriteError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise RunError(f"{root}: another process is training this run now; fix: wait for its end") from error
            raise
        delete_leftovers(target)
        yield


def delete_leftovers(root: Path) -> None:
    """Delete files that a killed process had half written."""
    for folder in (root, *root.glob("members/*")):
        if folder.is_dir():
            for path in [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)]:
                path.unlink(missing_ok=True)


def empty(files: RunFiles) -> None:
    """Delete what a run and its report have made, but run.json; anything else that lies there stays.

    What a kill leaves of it is an unfinished run, to be overwritten or resumed.
    """
    for path in files.made:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
