"""Write a model directory whole or not at all, and repair what a killed run left beside it.

The directory is written as a hidden directory beside the target, config.json last (no config.json, no model), synced,
and renamed into place. While a run lasts, these hidden files and directories lie beside the target NAME:

``.NAME.mlxbert-lock``           the lock of the live run; the kernel releases it when the run ends, however it ends
``.NAME.mlxbert-tmp-xxxxxxxx``   the directory that is being written, or an old one that is being deleted
``.NAME.mlxbert-old-xxxxxxxx``   the old model, after it was moved aside and before it is deleted; only where the
                                 system cannot exchange two directories in one step

Whoever holds the lock knows that all the others belong to dead runs.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from mlxbert.errors import first_ten
from mlxbert.files.output_file import (
    NAME,
    FileRecord,
    WriteError,
    copy_file,
    fsync_directory,
    is_complete,
    json_text,
    manifest_bytes,
    read_manifest,
    unlisted,
    write_bytes,
    write_errors,
)
from mlxbert.files.safetensors import (
    MAX_SHARD_SIZE,
    MLX_METADATA,
    PlannedTensor,
    plan_shards,
    shard_index,
    write_safetensors,
)

# Files that this project's commands and macOS add to a converted directory later; no manifest lists them.
ADDED_LATER = frozenset({"parity.json", "README.md", ".DS_Store"})
# Python writes it when an exported inference.py is imported.
CACHE = "__pycache__"
# <linux/fs.h>: RENAME_EXCHANGE; <sys/stdio.h> of macOS: RENAME_SWAP. <fcntl.h>: AT_FDCWD.
_EXCHANGE, _SWAP, _HERE = ctypes.c_uint(2), ctypes.c_uint(2), ctypes.c_int(-100)

OnTensor = Callable[[PlannedTensor], None]


def check_target(target: Path, *, overwrite: bool, source: Path | None = None) -> Path:
    """Return the real path of the directory to write (links followed), or refuse it before anything is read.

    An absent or empty directory is accepted; its parents need not exist. With `overwrite`, so is a directory that
    this project wrote and that holds no file of the user.

    Args:
        target: the output.
        overwrite: whether a model may be replaced.
        source: the directory that is read (it must neither hold the output nor lie in it), or the file (it must not
            lie in the output); None for a source that is not local.

    Raises:
        WriteError: one line with the fix; nothing was written.
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
        if real.is_dir() and not _is_empty(real):
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
    foreign = [
        name for name in unlisted(real, files) if name not in ADDED_LATER and CACHE not in PurePosixPath(name).parts
    ]
    if foreign:
        raise WriteError(
            f"{target}: --overwrite would delete {len(foreign)} file(s) that mlxbert-convert did not write; "
            f"move them away or give another output with -o\n{first_ten(foreign)}"
        )


def _lies_in(inner: Path, outer: Path) -> bool:
    """Return whether `inner` (absolute; it may not exist yet) is `outer` or below it, by identity, not by spelling."""
    if not outer.exists():
        return False
    return any(place.exists() and place.samefile(outer) for place in (inner, *inner.parents))


def _is_empty(path: Path) -> bool:
    """Return whether this is a directory with nothing in it, which ``rename`` replaces in one step."""
    return path.is_dir() and not any(path.iterdir())


def lock_path(target: Path) -> Path:
    """Return the lock file of `target`."""
    return target.with_name(f".{target.name}.mlxbert-lock")


@contextmanager
def target_lock(target: Path) -> Iterator[None]:
    """Be the only run that writes `target`; the lock file is gone afterwards.

    Not with `filelock`: it keeps the lock file, which here means that a run was killed; and on a file system without
    flock, it uses a lock that a killed run keeps for ever.

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
    """Return a descriptor that holds the lock; None when the lock file was deleted meanwhile: try again then."""
    with write_errors(path, needed=0):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run before us deletes the file when it ends, and a lock on a deleted file excludes nobody.
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


def temporary_path(target: Path) -> Path:
    """Return a new name beside `target` for a directory that is not kept."""
    return target.with_name(f".{target.name}.mlxbert-tmp-{secrets.token_hex(4)}")


def aside_path(target: Path) -> Path:
    """Return a new name beside `target` for the model that was there."""
    return target.with_name(f".{target.name}.mlxbert-old-{secrets.token_hex(4)}")


def siblings(target: Path, kind: str) -> list[Path]:
    """Return the ``tmp`` or ``old`` directories beside `target`; the last one is the one that was renamed last."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.mlxbert-{kind}-[0-9a-f]{{8}}")
    if not target.parent.is_dir():
        return []
    paths = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    return sorted(
        (path for path in paths if path.is_dir() and not path.is_symlink()),
        key=lambda path: path.stat().st_ctime_ns,
    )


def recover(target: Path) -> None:
    """Repair what a killed run left at `target`: put a model that was moved aside back, delete temporary directories.

    Does nothing, and creates nothing, where no run was killed. Call it before anything else can fail.

    Raises:
        WriteError: another run is writing `target` now, or the repair fails.
    """
    target = Path(os.path.realpath(target))
    if not target.name:  # "/" has nothing beside it
        return
    with write_errors(target, needed=0):
        was_killed = lock_path(target).exists() or siblings(target, "tmp") or siblings(target, "old")
    if was_killed:
        with target_lock(target):
            _repair(target)


def _repair(target: Path) -> None:
    """Do the work of `recover`; the caller holds the lock of `target`, an absolute path without links."""
    try:
        asides = siblings(target, "old")
        if asides and (not os.path.lexists(target) or _is_empty(target)):
            asides.pop().rename(target)
            fsync_directory(target.parent)
        # An old model is deleted only where a complete one is in its place; anything else there is not ours.
        if is_complete(target):
            for aside in asides:
                # Renamed first, so that a half deleted model is never put back.
                doomed = temporary_path(target)
                aside.rename(doomed)
                _delete(doomed)
        for temporary in siblings(target, "tmp"):
            _delete(temporary)
    except OSError as error:
        raise WriteError(
            f"{target}: what a run left beside it cannot be mended: {error.filename}: {error.strerror}; "
            "mend that and run again"
        ) from error


def _delete(directory: Path) -> None:
    """Delete a directory, config.json first: what a kill leaves of it does not look like a model."""
    (directory / "config.json").unlink(missing_ok=True)
    shutil.rmtree(directory)


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two directories in one step, so that neither is ever absent.

    Returns False, and changes nothing, where the system or its file system cannot do that.
    """
    library = ctypes.CDLL(None)
    paths = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        return hasattr(library, "renamex_np") and library.renamex_np(*paths, _SWAP) == 0
    return hasattr(library, "renameat2") and library.renameat2(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


class OutputDirectory:
    """Write a model directory so that `target` is never seen half written.

    ::

        with OutputDirectory(target, overwrite=False, source=src) as out:
            out.write_model(tensors)
            out.copy("tokenizer.json", path)
            out.commit(config)

    Nothing is at `target` before :meth:`commit` returns. Leaving without it, or by an exception (Ctrl-C too), deletes
    what was written and the parents that were created. With `overwrite`, the new model and the old one exchange their
    names in one step, and the old one is deleted; where the system cannot do that, the old one is moved aside before,
    and the target is absent for a moment. First of all, what a killed run left at this target is repaired.

    Raises :class:`~mlxbert.files.output_file.WriteError` on entering when the target is refused (`check_target`) or
    another run is writing it, and from every method when writing fails.
    """

    def __init__(self, target: Path, *, overwrite: bool = False, source: Path | None = None) -> None:
        self._given = target
        self._overwrite = overwrite
        self._source = source
        self._files: dict[str, FileRecord] = {}
        self._new_parents: list[Path] = []
        self._undo = ExitStack()

    def __enter__(self) -> OutputDirectory:
        recover(self._given)
        self.target = self._check()
        self.path = temporary_path(self.target)
        with ExitStack() as undo:
            undo.callback(self._remove_new_parents)
            self._make_parents()
            undo.enter_context(target_lock(self.target))
            _repair(self.target)
            self._check()  # again: another run may have ended since the first look
            with write_errors(self.path, needed=0):
                self.path.mkdir()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # In every case, leftovers are repaired as after a kill.
            _repair(self.target)
        except WriteError as failure:
            if error is None:
                raise
            error.add_note(str(failure))
        finally:
            self._undo.close()

    @property
    def records(self) -> Mapping[str, FileRecord]:
        """The sizes and SHA-256 of the files written so far, by name."""
        return dict(self._files)

    def write_model(
        self,
        tensors: Iterable[PlannedTensor],
        *,
        metadata: Mapping[str, str] = MLX_METADATA,
        max_shard_size: int = MAX_SHARD_SIZE,
        always_index: bool = True,
        parameters: int | None = None,
        on_tensor: OnTensor | None = None,
    ) -> None:
        """Write ``model.safetensors``, or its shards of `max_shard_size` bytes, and the index.

        Args:
            tensors: of the model.
            metadata: of each file.
            max_shard_size: the bytes of one file.
            always_index: False: only shards have an index, as PyTorch does it.
            parameters: the number of parameters that the index gives; None: the number of elements, which is wrong
                for packed weights, whose elements are words.
            on_tensor: called after each tensor.
        """
        shards = plan_shards(tensors, max_shard_size=max_shard_size)
        needed = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
        for name, shard in shards.items():
            path = self._new(name)
            self._files[name] = write_safetensors(path, shard, metadata=metadata, needed=needed, on_tensor=on_tensor)
        if always_index or len(shards) > 1:
            self.write_json("model.safetensors.index.json", shard_index(shards, parameters))

    def write_safetensors(
        self,
        name: str,
        tensors: Iterable[PlannedTensor],
        *,
        metadata: Mapping[str, str] = MLX_METADATA,
        on_tensor: OnTensor | None = None,
    ) -> None:
        """Write one safetensors file that the index does not list."""
        self._files[name] = write_safetensors(self._new(name), tensors, metadata=metadata, on_tensor=on_tensor)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the file `name` (relative, POSIX)."""
        self._files[name] = write_bytes(self._new(name), data)

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as indented JSON."""
        self.write_bytes(name, json_text(value).encode())

    def copy(self, name: str, source: Path) -> None:
        """Copy the bytes of `source` to `name`; of a link (as in the Hub's cache), the file that it leads to."""
        self._files[name] = copy_file(source, self._new(name))

    def commit(self, config: Mapping[str, Any]) -> Path:
        """Write manifest.json, then config.json, sync, and rename into place; return the real path of the target."""
        data = json_text(config).encode()
        # The manifest lists config.json too, which is written after it: its hash is known before.
        records = {**self._files, "config.json": FileRecord.of(data)}
        write_bytes(self.path / NAME, manifest_bytes(records))
        with write_errors(self.path, needed=0):
            for directory in {parent for name in self._files for parent in PurePosixPath(name).parents}:
                fsync_directory(self.path / directory)
        write_bytes(self.path / "config.json", data)
        with write_errors(self.target, needed=0):
            fsync_directory(self.path)
            self._check()
            self._put_into_place()
            fsync_directory(self.target.parent)
        _repair(self.target)  # deletes the model that was there
        return self.target

    def _put_into_place(self) -> None:
        """Rename the new directory to the target; an old model then has the temporary name, or is aside."""
        if self.target.is_dir() and not _is_empty(self.target):
            if exchange(self.path, self.target):
                return
            self.target.rename(aside_path(self.target))
        self.path.rename(self.target)

    def _check(self) -> Path:
        return check_target(self._given, overwrite=self._overwrite, source=self._source)

    def _new(self, name: str) -> Path:
        """Return the path of a file that is not written yet, and create its directory."""
        pure = PurePosixPath(name)
        inside = name == str(pure) and name != "." and not pure.is_absolute() and ".." not in pure.parts
        if not inside or set(name) & {"\\", "\0"}:
            raise WriteError(f"{name!r}: not a relative path inside the output; a model's files must be")
        if name in self._files or name in ("config.json", NAME):
            raise WriteError(f"{name}: would be written twice")
        path = self.path / pure
        with write_errors(path, needed=0):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _make_parents(self) -> None:
        parent = self.target.parent
        missing = [place for place in (parent, *parent.parents) if not os.path.lexists(place)]
        with write_errors(parent, needed=0):
            for place in reversed(missing):
                place.mkdir(exist_ok=True)
                self._new_parents.append(place)
                fsync_directory(place.parent)

    def _remove_new_parents(self) -> None:
        for place in reversed(self._new_parents):
            with write_errors(place, needed=0):
                # It stays when the model, or another file, is in it.
                if _is_empty(place):
                    place.rmdir()
