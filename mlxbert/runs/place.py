"""The directory of a run: whether one may be begun there, and that one process at a time writes it."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlxbert.files.output_file import TEMPORARY, WriteError, write_errors
from mlxbert.files.recovery import target_lock
from mlxbert.home import expand_home
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.record import INFO, read_values
from mlxbert.runs.trackers import TRACKERS


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
    if not os.path.lexists(root / INFO):
        raise RunError(f"{root} is not empty, and no run; fix: give another directory with -o")
    check_own(root / INFO)
    read_values(root)
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


def check_paths(files: RunFiles) -> None:
    """Refuse links, pipes, sockets and devices where a run writes and deletes; its directory itself may be a link.

    Raises:
        RunError: names the first one.
        WriteError: a folder cannot be looked at.
    """
    for path in (files.info, *files.made):
        # Trackers keep links of their own in their folders (wandb/latest-run).
        check_own(path, inside=path.name not in TRACKERS)


def check_own(path: Path, *, inside: bool = True) -> None:
    """Refuse a path of a run that is a link or a special file; with `inside` also what lies in a folder.

    Raises:
        RunError: it is one.
        WriteError: it cannot be looked at.
    """
    with write_errors(path, 0, fix="make it readable (chmod -R u+rwX)"):
        if not os.path.lexists(path):
            return
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            for inner in sorted(path.iterdir()) if inside else ():
                check_own(inner)
        elif not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise RunError(
                f"{path} is {what}, and a run writes only to files and folders of its own; fix: delete it, or put "
                "there what it leads to"
            )


def delete_leftovers(root: Path) -> None:
    """Delete files that a killed process had half written."""
    for folder in (root, *(path for part in ("members", "resume", "logits") for path in root.glob(f"{part}/**/"))):
        for path in [path for path in folder.iterdir() if TEMPORARY.fullmatch(path.name)] if folder.is_dir() else ():
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
