"""`PartFiles`: the Parquet files of a shard, in order, each written whole or not at all.

A directory of results holds::

    _mlxbert.json                         what was computed: model, settings, data; the same for all shards
    part-00003-of-00016-00000.parquet     the first rows of shard 3, with the same record in its metadata

Readers of Parquet (pyarrow, pandas, polars, DuckDB, Spark) leave names that begin with "_" or "." aside. The order of
the names is the order of the rows. A file also stores the SHA-256 of its bytes up to the footer. So a call that goes
on after a kill knows which files are complete and of the same model, settings and data.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from heads.command_line import install_fix
from mlxbert.data.frames import DataWarning
from mlxbert.errors import Interrupted, MLXBertError, printable, shown
from mlxbert.files.output_directory import target_lock
from mlxbert.files.output_file import TEMPORARY, WriteError, json_text, replace_file, replacing, write_errors
from mlxbert.files.reading import expand_home, open_regular, read_json
from mlxbert.rows.source import Piece, RowSource

RECORD = "_mlxbert.json"
FORMAT, VERSION = "mlxbert-rows", 1
METADATA, DIGEST = b"mlxbert", b"mlxbert.sha256"
ROWS_PER_FILE = 8192
"""Rows of a file. A kill loses at most so many; a file of 384 float32 numbers a row has 13 MB."""

_PART = re.compile(r"part-(\d{5,})-of-(\d{5,})-(\d{5,})\.parquet")
_MOST_SHARDS = 99_999
_MAGIC = b"PAR1"
# Seconds to wait for another shard, which writes the record in some milliseconds.
_WAIT = 30
Advance = Callable[[int], None]


class RowsError(MLXBertError):
    """A wrong shard, or a directory of results that belongs to another call."""


@dataclass(frozen=True)
class Shard:
    """One of `count` shares of a table's rows; `index` counts from 0."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard "K/N": the share K, counted from 0, of N.

        Raises:
            RowsError: it is not K/N, or K is not from 0 to N - 1.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(text).strip(), re.ASCII)
        if match is None:
            raise RowsError(
                f"the shard {text!r} is not K/N; fix: --shard 0/16 is the first of 16, --shard 15/16 the last"
            )
        index, count = int(match[1]), int(match[2])
        if not 1 <= count <= _MOST_SHARDS:
            raise RowsError(f"the shard {text!r}: N must be from 1 to {_MOST_SHARDS}; fix: --shard 0/16")
        if index >= count == 1:
            raise RowsError(f"the shard {text!r} does not exist: the only one of 1 is 0/1; fix: leave --shard out")
        if index >= count:
            raise RowsError(
                f"the shard {text!r} does not exist: {count} shards are counted from 0 to {count - 1}; "
                f"fix: --shard {count - 1}/{count} is the last"
            )
        return cls(index, count)

    def rows(self, total: int) -> tuple[int, int]:
        """Return the first row and the row after the last; shares differ by one row at most."""
        return self.index * total // self.count, (self.index + 1) * total // self.count

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True)
class Part:
    """One file: its path, and the rows from `start` to `stop` of the whole table."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class WrittenParts:
    """Summary of a call.

    Attributes:
        out: the directory.
        rows: written by this call.
        kept: rows in files that an earlier call had finished.
        files: of this shard.
        present: files of all shards that are there now.
        expected: files of all shards together.
    """

    out: Path
    rows: int
    kept: int
    files: int
    present: int
    expected: int


class PartFiles:
    """The files of one shard in a directory of results.

    Attributes:
        out: the directory.
        parts: this shard's files, in order.
        record: what `_mlxbert.json` says.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        job: Mapping[str, Any],
        source: RowSource,
        shard: Shard,
        rows_per_file: int = ROWS_PER_FILE,
        resume: bool = False,
    ) -> None:
        """Check the directory; nothing is written yet.

        Args:
            out: the directory; it is created.
            job: what is computed, as JSON: "command", "model" (its "sha256") and "settings".
            source: the table.
            shard: the share that this call writes.
            rows_per_file: rows of a file.
            resume: keep finished files of this shard.

        Raises:
            RowsError: the directory has other files, this shard's without `resume`, or results of another model, other
                settings or other data (named).
        """
        if isinstance(rows_per_file, bool) or not isinstance(rows_per_file, int) or rows_per_file < 1:
            raise RowsError(f"rows per file must be a positive whole number, not {rows_per_file!r}")
        self.out, self.shard, self._source = expand_home(out), shard, source
        self._rows_per_file = rows_per_file
        self.record: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            **job,
            "data": {"rows": source.rows, "files": len(source.files), "sha256": source.sha256},
            "layout": {"shards": shard.count, "rows_per_file": rows_per_file},
        }
        self.parts = list(self._parts_of(shard))
        self._resume = resume
        self._check_directory()

    def _parts_of(self, shard: Shard) -> Iterator[Part]:
        start, end = shard.rows(self._source.rows)
        for number, first in enumerate(range(start, end, self._rows_per_file)):
            name = f"part-{shard.index:05d}-of-{shard.count:05d}-{number:05d}.parquet"
            yield Part(self.out / name, first, min(first + self._rows_per_file, end))

    def _check_directory(self) -> None:
        if not self.out.exists():
            return
        if not self.out.is_dir():
            raise RowsError(f"{self.out} is a file, not a directory; fix: name a directory with -o")
        names = sorted(path.name for path in self.out.iterdir() if not TEMPORARY.fullmatch(path.name))
        parts = [name for name in names if _PART.fullmatch(name)]
        foreign = [name for name in names if name != RECORD and name not in parts]
        if foreign:
            raise RowsError(
                f"{self.out} has other files, such as {printable(foreign[0])!r}; fix: give an empty directory with -o"
            )
        if parts and self._found() is None:
            raise RowsError(f"{self.out} has results without {RECORD}; fix: give an empty directory with -o")
        if not self._resume and any(name.startswith(f"part-{self.shard.index:05d}-of-") for name in parts):
            raise RowsError(
                f"{self.out} has results of shard {self.shard} already; fix: --resume keeps the finished files "
                "and goes on, or give another directory with -o"
            )

    def _found(self) -> dict[str, Any] | None:
        """Return the record in the directory; None if there is none, or no file of the call that wrote it.

        Raises:
            RowsError: files of another call are there.
        """
        found = read_json(self.out / RECORD, RowsError)
        if found is None:
            return None
        try:
            self._compare(found, self.out)
        except RowsError:
            if any(_PART.fullmatch(path.name) for path in self.out.iterdir()):
                raise
            return None  # that call ended before its first file
        return found

    def _compare(self, found: Mapping[str, Any], where: Path) -> None:
        """Refuse results of another call: the message names what differs."""
        problems = []
        for name in ("format", "version", "command", "model", "settings", "data", "layout"):
            ours, theirs = self.record.get(name), found.get(name)
            if name == "model" and isinstance(theirs, Mapping) and isinstance(ours, Mapping):
                ours, theirs = ours.get("sha256"), theirs.get("sha256")  # a copy elsewhere is the same model
            if ours != theirs:
                problems.append(_difference(name, theirs, ours))
        if problems:
            raise RowsError(
                f"{where} has results of another call: {'; '.join(problems)}; fix: give another directory with -o, or "
                "the same model, settings and data as before"
            )

    def agree(self, ranges: Callable[[], Sequence[Sequence[float]]] | None = None) -> None:
        """Write the record, or read it where another shard or an earlier call has written it.

        Args:
            ranges: computes the ranges of int8; all shards take those that the first of them has written.

        Raises:
            RowsError: another call wrote a record meanwhile that differs.
            WriteError: the directory cannot be written.
        """
        found = self._found()
        if found is None:
            computed = None if ranges is None else ranges()
            with _record_lock(self.out):
                found = self._found()
                if found is None:
                    found = {**self.record, "ranges": computed}
                    replace_file(self.out / RECORD, json_text(found).encode(), follow_links=False)
        # The first call's path of the model: all files say the same.
        self.record = dict(found)

    def _check_record(self) -> None:
        """Refuse to go on if another call has replaced the record, as it may while no file of this call is there."""
        found = read_json(self.out / RECORD, RowsError)
        if found is None:
            raise RowsError(f"{self.out / RECORD} is gone; fix: the same command again, into an empty directory")
        self._compare(found, self.out)

    def write(
        self,
        schema: Any,
        compute: Callable[[Piece, Advance], Any],
        progress: Callable[[int, int, int], None] | None = None,
    ) -> WrittenParts:
        """Compute and write the files that are not there.

        Args:
            schema: pyarrow's, of the files.
            compute: returns a piece's table; its second argument is called with numbers of rows that are done.
            progress: called with the rows that are done, all rows of the shard, and those of the kept files.

        Raises:
            RowsError: a file of another call, or another call has begun in the directory since `agree`.
            WriteError: a file cannot be written.
            Interrupted: Ctrl-C; finished files stay.
        """
        todo = [part for part in self.parts if not (self._resume and self._is_done(part, schema))]
        total, left = (sum(part.stop - part.start for part in parts) for parts in (self.parts, todo))
        kept = done = total - left

        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            if progress is not None:
                progress(done, total, kept)

        advance(0)
        pieces = self._source.pieces((part.start, part.stop) for part in todo)
        written = 0
        try:
            for part in todo:
                piece = next(pieces)
                table = compute(piece, advance)
                del piece
                self._check_record()
                self._write_part(part, table, schema)
                written += part.stop - part.start
                del table  # before the next rows are read: else both are in memory
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; {kept + written} rows of shard {self.shard} are in {self.out}; "
                "fix: the same command with --resume goes on"
            ) from None
        names = {path.name for path in self.out.iterdir()} if self.out.is_dir() else set()
        everything = [
            part.path.name
            for index in range(self.shard.count)
            for part in self._parts_of(Shard(index, self.shard.count))
        ]
        present = sum(name in names for name in everything)
        return WrittenParts(self.out, written, kept, len(self.parts), present, len(everything))

    def _metadata(self, part: Part) -> str:
        return json.dumps({**self.record, "shard": str(self.shard), "rows": [part.start, part.stop]}, sort_keys=True)

    def _write_part(self, part: Part, table: Any, schema: Any) -> None:
        from pyarrow import parquet

        metadata = {METADATA: self._metadata(part).encode()}
        ids = schema.names[0]
        with replacing(part.path, needed=table.nbytes, fix="free some space", follow_links=False) as file:
            hashed = _Hashed(file)
            with parquet.ParquetWriter(
                hashed,
                schema.with_metadata(metadata),
                compression="zstd",
                use_dictionary=False,
                write_statistics=[ids],  # nobody searches for the smallest number of an embedding
            ) as writer:
                writer.write_table(table.cast(schema).replace_schema_metadata(metadata))
                writer.add_key_value_metadata({DIGEST: hashed.hexdigest()})

    def _is_done(self, part: Part, schema: Any) -> bool:
        """Return whether a file is there, complete and unchanged.

        Raises:
            RowsError: it is a file of another call.

        Warns:
            DataWarning: it is damaged, and is written again.
        """
        file = open_regular(part.path, RowsError)
        if file is None:
            return False
        with file:
            try:
                record, is_whole = _read_part(file, part, schema)
            except Exception as error:  # a damaged file makes pyarrow raise errors of many kinds
                record, is_whole = None, False
                why = printable(str(error).partition("\n")[0], 100)
            else:
                why = "its bytes have changed"
        if record is not None:
            self._compare(record, part.path)
            if json.dumps(record, sort_keys=True) != self._metadata(part):
                raise RowsError(
                    f"{part.path} has other rows, another version or other ranges than {RECORD} says; "
                    "fix: delete it, or give another directory with -o"
                )
        if not is_whole:
            warnings.warn(
                f"{part.path} is damaged ({why}); it is written again",
                DataWarning,
                stacklevel=4,
            )
        return is_whole


def _read_part(file: IO[bytes], part: Part, schema: Any) -> tuple[dict[str, Any] | None, bool]:
    """Return the record in a file's metadata, and whether its rows, columns and bytes are as they were written."""
    from pyarrow import parquet

    size = file.seek(0, 2)
    file.seek(max(size - 8, 0))
    tail = file.read(8)
    footer = size - 8 - int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or footer < 4:
        raise ValueError("it has no footer")
    metadata = parquet.read_metadata(part.path)
    values = metadata.metadata or {}
    record = json.loads(values[METADATA]) if METADATA in values else None
    if not isinstance(record, dict):
        raise ValueError("it has no record of its call")
    digest = hashlib.sha256()
    file.seek(0)
    left = footer
    while left and (data := file.read(min(left, 1 << 20))):
        digest.update(data)
        left -= len(data)
    same_form = metadata.num_rows == part.stop - part.start and metadata.schema.to_arrow_schema().equals(schema)
    return record, same_form and values.get(DIGEST) == digest.hexdigest().encode()


class _Hashed:
    """A file for pyarrow to write that hashes what is written."""

    def __init__(self, file: IO[bytes]):
        self._file, self._sha256, self._size = file, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._sha256.update(view)
        self._file.write(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True  # the file itself is synced and closed by whoever opened it

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


@contextmanager
def _record_lock(out: Path) -> Iterator[None]:
    """Hold the lock of a directory of results; wait while another shard has it."""
    until = time.monotonic() + _WAIT
    with write_errors(out, 0):
        out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(target_lock(out))
                break
            except WriteError as error:
                if not isinstance(error.__cause__, BlockingIOError) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """Return in words how two records differ."""
    if name == "model":
        return f"another model (sha256 {printable(theirs, 12)}, now {printable(ours, 12)})"
    if not isinstance(theirs, Mapping) or not isinstance(ours, Mapping):
        return f"{name} {shown(theirs)}, now {shown(ours)}"
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if name == "data" and keys == ["sha256"]:
        return "other data of as many rows (another sha256)"
    differing: Iterable[str] = (
        f"{printable(key)} {shown(theirs.get(key))}, now {shown(ours.get(key))}" for key in keys if key != "sha256"
    )
    prefix = "other data: " if name == "data" else ""
    return prefix + ", ".join(differing)


def require_pyarrow() -> Any:
    """Return pyarrow.

    Raises:
        RowsError: it is not installed.
    """
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise RowsError(f"Parquet files need pyarrow; fix: {install_fix('kaggle')}") from error
    return pyarrow
