"""`RowSource`: a table of many rows, read in pieces: one file, a directory of Parquet files, or a pattern of files."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heads.command_line import install_fix
from mlxbert.data.csv_dialect import DataFile, Quoting
from mlxbert.data.file_format import inspect_file
from mlxbert.data.file_rows import foreign_errors, raw_frames
from mlxbert.data.frames import DataError, Table, as_text
from mlxbert.data.reading import Kind, typed
from mlxbert.errors import printable
from mlxbert.files.reading import expand_home

# Rows that are read at once; more take more memory and are not faster.
_CHUNK = 4096
# Parquet's pages are read through a buffer of this many bytes. Otherwise a whole row group lies in memory.
_BUFFER = 1 << 20


@dataclass(frozen=True, eq=False)
class Piece:
    """Successive rows of a table.

    Attributes:
        start: the number of the first row, counted from 0 over the whole table.
        frame: a pandas frame of the columns that are read, numbered from `start`.
        ids: a pyarrow array that names the rows: a column, or their numbers as int64.
    """

    start: int
    frame: Any
    ids: Any

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class RowSource:
    """A table of many rows.

    Attributes:
        name: what the user gave, for messages.
        files: in order; the rows are numbered through all of them.
        counts: rows of each file.
        columns: those that are read, as the user names them.
        id: the column that names a row; None: rows are named by their numbers.
        kinds: of the columns of text files, as `mlxbert.data.reading` has them; a column without one is text.
        names: all columns of the first file.
    """

    name: str
    files: tuple[DataFile, ...]
    counts: tuple[int, ...]
    columns: tuple[str, ...]
    id: str | None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        data: str | Path,
        columns: Sequence[str],
        *,
        id: str | None = None,
        kinds: Mapping[str, Kind] | None = None,
        encoding: str | None = None,
        quoting: Quoting | None = None,
        like: Quoting | None = None,
    ) -> RowSource:
        """Find the files, and count and check their rows.

        Every file is read once from front to back: its SHA-256 tells whether a call that goes on reads the same data.

        Args:
            data: a file (CSV, TSV, JSON, Parquet, Excel), a directory of Parquet files, read in the order of their
                names, or a pattern such as "data/*.parquet".
            columns: that are read.
            id: the column that names a row; None: rows are named by their numbers.
            kinds: of the columns of a text file.
            encoding, quoting, like: as for `mlxbert.data.reading.read_data`.

        Raises:
            DataError: a file is missing or damaged, a column is missing (the message has the nearest names) or holds
                lists or other nested values, files differ in these columns, or there are no rows.
        """
        what = printable(data)
        files = tuple(
            inspect_file(path, encoding=encoding, quoting=quoting, like=like) for path in _paths(expand_home(data))
        )
        kinds = dict(kinds or {})
        if id is not None:
            kinds[id] = "text"
        first: list[tuple[str, str]] | None = None
        counts: list[int] = []
        names: tuple[str, ...] = ()
        for file in files:
            count, found, types = _look(file, columns, id)
            if first is not None and types != first:
                raise DataError(
                    f"{file.path}: its columns are {_described(types)}, and those of {files[0].path.name} "
                    f"{_described(first)}; fix: write all files alike"
                )
            names = names or found
            first = types if first is None else first
            counts.append(count)
        if not sum(counts):
            raise DataError(f"{what} has no rows; fix: is the file empty, or was everything filtered out?")
        return cls(what, files, tuple(counts), tuple(columns), id, kinds, names)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(self.counts)

    @property
    def sha256(self) -> str:
        """The digest of all files: their names, contents and numbers of rows."""
        record = [(file.path.name, file.sha256, count) for file, count in zip(self.files, self.counts, strict=True)]
        return hashlib.sha256(json.dumps(record).encode()).hexdigest()

    def id_type(self) -> Any:
        """Return the pyarrow type of the ids: int64 for numbers of rows, the column's in Parquet, else text."""
        import pyarrow

        if self.id is None:
            return pyarrow.int64()
        if self.files[0].format != "parquet":
            return pyarrow.string()
        with _parquet(self.files[0]) as reader:
            return _value_type(
                reader.schema_arrow.field(_found(reader.schema_arrow.names, self.id, "", self.name)).type
            )

    def pieces(self, ranges: Iterable[tuple[int, int]]) -> Iterator[Piece]:
        """Yield the rows of each range (first row, row after the last), which follow each other without overlap.

        A file is read once for all ranges that touch each other.

        Raises:
            DataError: a file is damaged, or has changed since `open`.
        """
        runs: list[list[tuple[int, int]]] = []
        for start, stop in ranges:
            if runs and runs[-1][-1][1] == start:
                runs[-1].append((start, stop))
            else:
                runs.append([(start, stop)])
        for run in runs:
            yield from self._cut(run)

    def _cut(self, ranges: list[tuple[int, int]]) -> Iterator[Piece]:
        """Yield the pieces of ranges that touch each other."""
        import pandas
        import pyarrow

        chunks = self._chunks(ranges[0][0], ranges[-1][1])
        held: list[tuple[Any, Any]] = []
        count = 0
        for start, stop in ranges:
            while count < stop - start:
                frame, ids = next(chunks, (None, None))
                if frame is None:
                    raise DataError(f"{self.name} has fewer rows than when it was opened; fix: leave it as it is")
                held.append((frame, ids))
                count += len(frame)
            joined = pandas.concat([frame for frame, _ in held], ignore_index=True)
            size = stop - start
            ids = None if self.id is None else pyarrow.concat_arrays([ids for _, ids in held])
            count -= size
            # Copies of the rest: a slice would keep the whole in memory.
            held = [(joined.iloc[size:].copy(), None if ids is None else pyarrow.concat_arrays([ids.slice(size)]))]
            held = held if count else []
            frame = joined.iloc[:size]
            frame.index = range(start, stop)
            names = pyarrow.array(range(start, stop), pyarrow.int64()) if ids is None else ids.slice(0, size)
            del joined, ids
            piece = [Piece(start, frame, names)]
            del frame, names
            yield piece.pop()  # this frame of the call keeps no reference while the caller works

    def _chunks(self, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield (frame of the columns, ids) of the rows from `start` to `stop`, some thousand at a time."""
        before = 0
        for file, count in zip(self.files, self.counts, strict=True):
            first, last = max(start - before, 0), min(stop - before, count)
            before += count
            if first < last:
                read = self._parquet_chunks if file.format == "parquet" else self._text_chunks
                yield from read(file, first, last)

    def _text_chunks(self, file: DataFile, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield the chunks of a text table, which is parsed from its beginning."""
        import pyarrow

        default: Kind = "text" if file.format == "csv" else "native"
        wanted = [*self.columns, *([self.id] if self.id is not None else [])]
        before = 0
        for whole in raw_frames(file, _CHUNK):
            first, last = max(start - before, 0), min(stop - before, len(whole))
            before += len(whole)
            if first < last:
                # A key that the first records of a JSONL file lack is a column as well.
                names = {name: next((n for n in whole.columns if n == name), None) for name in wanted}
                for name, found in names.items():
                    if found is None:
                        Table(whole, str(file.path)).find(name)
                frame = whole[list(dict.fromkeys(wanted))].iloc[first:last]
                if file.format in ("json", "jsonl"):
                    _refuse_nested(frame, file, before - len(whole) + first)
                frame = typed(frame, {name: self.kinds.get(name, default) for name in frame.columns}, file, {})
                ids = None if self.id is None else pyarrow.array(as_text(frame[self.id]), pyarrow.string())
                yield frame[list(self.columns)], ids
            if before >= stop:
                return

    def _parquet_chunks(self, file: DataFile, start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        """Yield the chunks of a Parquet file: only the needed columns, and only the row groups that have the rows."""
        with _parquet(file) as reader:
            all_names = reader.schema_arrow.names
            names = {name: _found(all_names, name, "text column", str(file.path)) for name in self.columns}
            id_name = None if self.id is None else _found(all_names, self.id, "id column", str(file.path))
            groups, offset, before = [], 0, 0
            for number in range(reader.metadata.num_row_groups):
                rows = reader.metadata.row_group(number).num_rows
                if before < stop and before + rows > start:
                    groups.append(number)
                elif before + rows <= start:
                    offset = before + rows
                before += rows
            if before < stop:
                raise DataError(f"{file.path} has fewer rows than when it was opened; fix: leave it as it is")
            columns = list(dict.fromkeys([*names.values(), *([id_name] if id_name is not None else [])]))
            with foreign_errors(file):
                # Threads would decode row groups ahead, each into memory of its own.
                batches = reader.iter_batches(batch_size=_CHUNK, row_groups=groups, columns=columns, use_threads=False)
                for batch in batches:
                    first, last = max(start - offset, 0), min(stop - offset, len(batch))
                    offset += len(batch)
                    if first < last:
                        yield self._converted(batch.slice(first, last - first), names, id_name, file)

    def _converted(self, batch: Any, names: Mapping[str, str], id_name: str | None, file: DataFile) -> tuple[Any, Any]:
        batch.validate(full=True)  # else text that is not UTF-8 fails cell by cell, much later
        ids = None
        if id_name is not None:
            column = batch.column(id_name)
            ids = column.dictionary_decode() if hasattr(column, "dictionary_decode") else column
        table = batch.select(list(dict.fromkeys(names.values()))).replace_schema_metadata(None)
        frame = table.to_pandas(integer_object_nulls=True)[list(names.values())]
        frame.columns = list(names)
        return typed(frame, {name: self.kinds.get(name, "native") for name in names}, file, {}), ids


def _paths(path: Path) -> list[Path]:
    """Return the files of what the user gives."""
    if path.is_dir():
        paths = sorted(file for file in path.glob("*.parquet") if not file.name.startswith((".", "_")))
        if not paths:
            raise DataError(
                f"{path} is a directory without *.parquet files; fix: name a file in it, or a pattern: "
                f"'{path}/*/*.parquet'"
            )
        return paths
    if not path.exists() and glob.has_magic(str(path)):
        paths = [Path(found) for found in sorted(glob.glob(str(path)))]  # noqa: PTH207 - the pattern may be absolute
        if not paths:
            raise DataError(f"no file has a name like {path}; fix: check the pattern, and quote it for the shell")
        return paths
    return [path]


def _look(
    file: DataFile, columns: Sequence[str], id: str | None
) -> tuple[int, tuple[str, ...], list[tuple[str, str]]]:
    """Return a file's number of rows, all columns, and name and type of those that are read."""
    if file.format == "parquet":
        return _look_parquet(file, columns, id)
    rows = 0
    names: tuple[str, ...] = ()
    for frame in raw_frames(file, _CHUNK):
        if not rows:
            names = tuple(map(str, frame.columns))
            if len(frame):
                _find_all(names, columns, id, str(file.path))
        rows += len(frame)
        if file.format == "jsonl":  # a line is a row: counting them is faster than parsing them
            with file.open_text() as lines:
                rows = sum(1 for line in lines if line.strip("\ufeff \t\r\n"))
            break
    return rows, names, [(name, "text") for name in columns]


def _look_parquet(
    file: DataFile, columns: Sequence[str], id: str | None
) -> tuple[int, tuple[str, ...], list[tuple[str, str]]]:
    import pyarrow

    with _parquet(file) as reader:
        schema, rows = reader.schema_arrow, reader.metadata.num_rows
    if rows > 1000 * file.size:
        raise DataError(f"{file.path} claims {rows} rows in {file.size} bytes; fix: write it again")
    _find_all(schema.names, columns, id, str(file.path))
    types = []
    for name in (*columns, *([id] if id is not None else [])):
        kind = _value_type(schema.field(_found(schema.names, name, "column", str(file.path))).type)
        if pyarrow.types.is_nested(kind) or "binary" in str(kind):
            holds = "bytes" if "binary" in str(kind) else "nested values"
            raise DataError(
                f"{file.path}: column {name!r} holds {holds} ({printable(kind, 60)}), not one value a row; "
                "fix: name a column of texts, or write it as text"
            )
        types.append((name, str(kind)))
    return rows, tuple(schema.names), types


def _parquet(file: DataFile) -> Any:
    """Open a Parquet file so that only a buffer of it is in memory."""
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"Parquet needs pyarrow; fix: {install_fix('kaggle')}") from error
    with foreign_errors(file):
        return parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=_BUFFER)


def _value_type(kind: Any) -> Any:
    """Return the type of a column's values; categories are stored as a dictionary."""
    return getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind


def _found(names: Sequence[str], name: str, role: str, what: str) -> str:
    """Return a file's own name for a column."""
    found = str(Table(dict.fromkeys(names, (None,)), what).find(name, role))
    if names.count(found) > 1:  # Parquet allows that
        raise DataError(f"{what} has {names.count(found)} columns named {found!r}; fix: rename them")
    return found


def _find_all(names: Sequence[str], columns: Sequence[str], id: str | None, what: str) -> None:
    for name in columns:
        _found(names, name, "text column", what)
    if id is not None:
        _found(names, id, "id column", what)


def _refuse_nested(frame: Any, file: DataFile, start: int) -> None:
    for name in frame.columns:
        for row, cell in enumerate(frame[name]):
            if isinstance(cell, list | dict):
                kind = "list" if isinstance(cell, list) else "object"
                raise DataError(
                    f"{file.path}: row {start + row} has a {kind} in column {name!r}, not one value; "
                    "fix: name a column of texts, or write it as text"
                )


def _described(types: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name!r} ({kind})" for name, kind in types)
