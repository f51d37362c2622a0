"""What a killed run leaves beside its target, and how the next run mends it.

Beside the target NAME lie, while a run lasts, hidden siblings that only this module names:

``.NAME.mlxbert-lock``           held with flock by the live run; the kernel lets go when it dies, however it dies
``.NAME.mlxbert-tmp-xxxxxxxx``   the directory being written, or an old one being deleted
``.NAME.mlxbert-old-xxxxxxxx``   the model that was there, between being moved aside and being deleted; only where the
                                 system cannot exchange two directories in one step

Whoever holds the lock knows that every other sibling belongs to a dead run.

May a conversion write here? Every reason why not, before anything is read or downloaded.

The output directory, whole or not at all.

It is written as a hidden directory beside the target, config.json last (no config.json, no model), synced, and
renamed into place. What a kill leaves of that, :mod:`mlxbert.files.output_directory` mends.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
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
from mlxbert.files import output_file as manifest
from mlxbert.files.output_file import (
    NAME,
    FileRecord,
    WriteError,
    copy_file,
    fsync_directory,
    is_complete,
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


# Beside what the manifest lists: what this project's commands and macOS put into a converted directory later.
ADDED_LATER = frozenset({"parity.json", "README.md", ".DS_Store"})
# What Python keeps of an exported inference.py that was imported.
CACHE = "__pycache__"


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
    foreign = [
        name for name in unlisted(real, files) if name not in ADDED_LATER and CACHE not in PurePosixPath(name).parts
    ]
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


OnTensor = Callable[[PlannedTensor], None]


class OutputDirectory:
    """Write a model directory so that `target` is never seen half written.

    ::

        with OutputDirectory(target, overwrite=False, source=src) as out:
            out.write_model(tensors)
            out.copy("tokenizer.json", path)
            out.commit(config)

    Nothing is at `target` before :meth:`commit` returns; leaving without it (or by an exception, Ctrl-C
    included) removes what was written and the parents that were made. With `overwrite`, the new model and the one
    that was there exchange their names in one step, and the old one is deleted; where the system cannot do that, the
    old one is moved aside before, and the target is absent for a moment. First of all, what a killed run left at this
    target is mended.

    Raises :class:`~mlxbert.files.output_file.WriteError` on entering when the target is refused
    (`check_target`) or another run is writing it, and from every method when writing
    fails.
    """

    def __init__(self, target: Path, *, overwrite: bool = False, source: Path | None = None) -> None:
        self._given = target
        self._overwrite = overwrite
        self._source = source
        self._files: dict[str, FileRecord] = {}
        self._made_parents: list[Path] = []
        self._undo = ExitStack()

    def __enter__(self) -> OutputDirectory:
        recover(self._given)
        self.target = self._check()
        self.path = temporary_path(self.target)
        with ExitStack() as undo:
            undo.callback(self._remove_made_parents)
            self._make_parents()
            undo.enter_context(target_lock(self.target))
            repair(self.target)
            self._check()  # again: another run may have ended since the first look
            with write_errors(self.path, needed=0):
                self.path.mkdir()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # Whatever happened, and wherever: a kill's leftovers and ours are mended in the same way.
            repair(self.target)
        except WriteError as unmended:
            if error is None:
                raise
            error.add_note(str(unmended))
        finally:
            self._undo.close()

    @property
    def records(self) -> Mapping[str, FileRecord]:
        """Sizes and SHA-256 of the files written so far, by name."""
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

        Without `always_index`, only shards have an index (PyTorch's habit). `parameters` is what the index says of
        their number; None: the number of elements, which for packed weights would be that of their words.
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
        self.write_bytes(name, _json_bytes(value))

    def copy(self, name: str, source: Path) -> None:
        """Copy the bytes of `source` to `name`; of a link (the Hub's cache) what it points to."""
        self._files[name] = copy_file(source, self._new(name))

    def commit(self, config: Mapping[str, Any]) -> Path:
        """Write manifest.json, then config.json, sync, and rename into place; returns the real path of the target."""
        data = _json_bytes(config)
        # The manifest vouches for config.json too, though that is written after it: its hash is known before.
        listed = {**self._files, "config.json": FileRecord.of(data)}
        write_bytes(self.path / manifest.NAME, manifest.manifest_bytes(listed))
        with write_errors(self.path, needed=0):
            for directory in {parent for name in self._files for parent in PurePosixPath(name).parents}:
                fsync_directory(self.path / directory)
        write_bytes(self.path / "config.json", data)
        with write_errors(self.target, needed=0):
            fsync_directory(self.path)
            self._check()
            self._put_into_place()
            fsync_directory(self.target.parent)
        repair(self.target)  # deletes the model that was there
        return self.target

    def _put_into_place(self) -> None:
        """Rename the new directory to the target; the model that was there is then the temporary one, or aside."""
        if self.target.is_dir() and not is_empty_directory(self.target):
            if exchange(self.path, self.target):
                return
            self.target.rename(aside_path(self.target))
        self.path.rename(self.target)

    def _check(self) -> Path:
        return check_target(self._given, overwrite=self._overwrite, source=self._source)

    def _new(self, name: str) -> Path:
        """The path of a file that is still to be written, its directory made."""
        pure = PurePosixPath(name)
        inside = name == str(pure) and name != "." and not pure.is_absolute() and ".." not in pure.parts
        if not inside or set(name) & {"\\", "\0"}:
            raise WriteError(f"{name!r}: not a relative path inside the output; a model's files must be")
        if name in self._files or name in ("config.json", manifest.NAME):
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
                self._made_parents.append(place)
                fsync_directory(place.parent)

    def _remove_made_parents(self) -> None:
        for place in reversed(self._made_parents):
            with write_errors(place, needed=0):
                # Not when the model, or somebody else's file, is in it.
                if is_empty_directory(place):
                    place.rmdir()


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
