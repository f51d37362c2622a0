"""The output directory, whole or not at all.

It is written as a hidden directory beside the target, config.json last (no config.json, no model), synced, and
renamed into place. What a kill leaves of that, :mod:`mlxbert.files.recovery` mends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from mlxbert.files import manifest, recovery
from mlxbert.files.output_file import FileRecord, WriteError, copy_file, fsync_directory, write_bytes, write_errors
from mlxbert.files.recovery import is_empty_directory, recover, repair, target_lock, temporary_path
from mlxbert.files.safetensors_writer import (
    MAX_SHARD_SIZE,
    MLX_METADATA,
    PlannedTensor,
    plan_shards,
    shard_index,
    write_safetensors,
)
from mlxbert.files.target import check_target

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
    (:func:`~mlxbert.files.target.check_target`) or another run is writing it, and from every method when writing
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
            if recovery.exchange(self.path, self.target):
                return
            self.target.rename(recovery.aside_path(self.target))
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
