"""What a killed run leaves beside its target, and how the next run mends it.

Beside the target NAME lie, while a run lasts, hidden siblings that only this module names:

``.NAME.mlxbert-lock``           held with flock by the live run; the kernel lets go when it dies, however it dies
``.NAME.mlxbert-tmp-xxxxxxxx``   the directory being written, or an old one being deleted
``.NAME.mlxbert-old-xxxxxxxx``   the model that was there, between being moved aside and being deleted; only where the
                                 system cannot exchange two directories in one step

Whoever holds the lock knows that every other sibling belongs to a dead run.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlxbert.files.manifest import is_complete
from mlxbert.files.output_file import WriteError, fsync_directory, write_errors


def temporary_path(target: Path) -> Path:
    """A new name beside `target` for a directory that is not to be kept."""
    return target.with_name(f".{target.name}.mlxbert-tmp-{secrets.token_hex(4)}")


def aside_path(target: Path) -> Path:
    """A new name beside `target` for the model that was there."""
    return target.with_name(f".{target.name}.mlxbert-old-{secrets.token_hex(4)}")


def lock_path(target: Path) -> Path:
    """The lock file of `target`."""
    return target.with_name(f".{target.name}.mlxbert-lock")


def siblings(target: Path, kind: str) -> list[Path]:
    """The ``tmp`` or ``old`` directories beside `target`, the one renamed last at the end."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.mlxbert-{kind}-[0-9a-f]{{8}}")
    if not target.parent.is_dir():
        return []
    found = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    return sorted(
        (path for path in found if path.is_dir() and not path.is_symlink()),
        key=lambda path: path.stat().st_ctime_ns,
    )


def is_empty_directory(path: Path) -> bool:
    """A directory with nothing in it: as good as absent, ``rename`` replaces it in one step."""
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def target_lock(target: Path) -> Iterator[None]:
    """Be the only run that writes `target`; the lock file is gone afterwards.

    Raises :class:`WriteError` at once when another process (or thread) holds it.
    """
    path = lock_path(target)
    descriptor = None
    while descriptor is None:
        descriptor = _try_lock(path, target)
    try:
        yield
    finally:
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _try_lock(path: Path, target: Path) -> int | None:
    """A descriptor that holds the lock; None when the file was unlinked meanwhile, and is to be made anew."""
    with write_errors(path, needed=0):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before us unlinks the file as it leaves: a lock on an unlinked file excludes nobody.
        if _is_at(descriptor, path):
            return descriptor
    except BlockingIOError as error:
        os.close(descriptor)
        raise WriteError(
            f"{target}: another process is writing it right now; wait for that to end or give another output with -o"
        ) from error
    except OSError as error:
        os.close(descriptor)
        raise WriteError(
            f"{path}: cannot be locked: {error.strerror or error}; give an output on a local disk with -o"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def recover(target: Path) -> None:
    """Mend what a killed run left at `target`: a model moved aside is put back, temporary directories go.

    Does nothing, and creates nothing, where no run was killed. Call it before anything else can fail.
    Raises :class:`WriteError` when another run is writing `target` now, or when mending fails.
    """
    target = Path(os.path.realpath(target))
    if not target.name:  # "/" has nothing beside it
        return
    with write_errors(target, needed=0):
        left = lock_path(target).exists() or siblings(target, "tmp") or siblings(target, "old")
    if left:
        with target_lock(target):
            repair(target)


# <linux/fs.h>: RENAME_EXCHANGE; <sys/stdio.h> of macOS: RENAME_SWAP. <fcntl.h>: AT_FDCWD.
_EXCHANGE, _SWAP, _HERE = ctypes.c_uint(2), ctypes.c_uint(2), ctypes.c_int(-100)


def exchange(one: Path, other: Path) -> bool:
    """Let two directories swap their names in one step, so that neither is ever absent.

    Returns:
        Whether that was done: False where the system or its file system cannot (then nothing has changed).
    """
    library = ctypes.CDLL(None)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "darwin":
        return hasattr(library, "renamex_np") and library.renamex_np(first, second, _SWAP) == 0
    return hasattr(library, "renameat2") and library.renameat2(_HERE, first, _HERE, second, _EXCHANGE) == 0


def repair(target: Path) -> None:
    """:func:`recover`, for who holds the lock of `target` (an absolute path without links)."""
    try:
        asides = siblings(target, "old")
        if asides and (not os.path.lexists(target) or is_empty_directory(target)):
            asides.pop().rename(target)
            fsync_directory(target.parent)
        # An aside may be deleted only when a model stands in its place: anything else at `target` is somebody else's.
        if is_complete(target):
            for aside in asides:
                discard(aside, target)
        for temporary in siblings(target, "tmp"):
            delete(temporary)
    except OSError as error:
        raise WriteError(
            f"{target}: what a run left beside it cannot be mended: {error.filename}: {error.strerror}; "
            "mend that and run again"
        ) from error


def discard(aside: Path, target: Path) -> None:
    """Delete a model that was moved aside.

    It is renamed first, so that one half deleted is never taken for a model to put back.
    """
    doomed = temporary_path(target)
    aside.rename(doomed)
    delete(doomed)


def delete(directory: Path) -> None:
    """Delete a directory, config.json first: what a kill leaves of it does not look like a model."""
    (directory / "config.json").unlink(missing_ok=True)
    shutil.rmtree(directory)
