"""`raw_frames`: a data file's rows as pandas frames: text cells of a CSV, typed cells of every other format."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any

from heads.command_line import install_fix
from mlxbert.data.csv_dialect import DIALECTS, DataFile, os_errors
from mlxbert.data.frames import DataError, DataWarning

Record = dict[str, Any]

# Tables of genes have some 20,000; each column costs a millisecond.
_MOST_COLUMNS = 50_000


def raw_frames(file: DataFile, rows: int | None) -> Iterator[Any]:
    """Yield frames of at most `rows` rows; at least one, which may be empty; only one for `rows=None`.

    A JSON document and a spreadsheet are read whole and then cut.

    Raises:
        DataError: pandas is missing, a row is broken (the message has its line), or a column name repeats.
    """
    pandas = _pandas()
    if file.format == "csv":
        yield from _csv_frames(pandas, file, rows)
    elif file.format == "jsonl":
        with file.open_text() as lines:
            yield from _record_frames(pandas, _line_records(file, lines), rows)
    elif file.format == "json":
        yield from _record_frames(pandas, iter(_document_records(file)), rows)
    elif file.format == "parquet":
        yield from _parquet_frames(file, rows)
    else:
        frame = _excel_frame(pandas, file)
        yield from (frame.iloc[i : i + (rows or len(frame))] for i in range(0, max(len(frame), 1), rows or len(frame)))


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise DataError(f"reading data needs pandas; fix: {install_fix('kaggle')}") from error
    return pandas


def _csv_frames(pandas: Any, file: DataFile, rows: int | None) -> Iterator[Any]:
    common: dict[str, Any] = {"sep": file.separator, "dtype": str, "na_filter": False}
    common |= DIALECTS[file.quoting or "minimal"]
    with _parse_errors(pandas, file), file.open_text() as stream:
        header = pandas.read_csv(stream, header=None, nrows=1, **common)
    names = _column_names(file, ["" if cell is None else str(cell) for cell in header.iloc[0]])
    extra = [f"beyond the header {i}" for i in range(file.extra)]
    # In a file of one column a blank line is a row without text; in others it is no row.
    common |= {"names": names + extra, "header": 0, "index_col": False, "skip_blank_lines": len(names) > 1}
    with file.open_text() as stream:
        text: Any = _Escapes(stream, file.separator or ",") if file.quoting == "escaped" else stream
        if rows is None:
            with _parse_errors(pandas, file):
                frame = pandas.read_csv(text, **common)
            yield frame[names].fillna("")  # a short row lacks cells
            return
        with _parse_errors(pandas, file):
            reader = pandas.read_csv(text, chunksize=rows, **common)
        with reader:
            while True:
                with _parse_errors(pandas, file):
                    frame = next(reader, None)
                if frame is None:
                    break
                yield frame[names].fillna("")


class _Escapes:
    """A text in which every backslash is doubled that is not before a quote, the separator or a line end.

    A writer that escapes only quotes leaves C:\\new as it is, and a parser would drop its backslash.
    """

    def __init__(self, text: IO[str], separator: str):
        self._text = text
        self._pattern = re.compile(rf'\\(["\\\r\n{re.escape(separator)}])|\\')

    def __iter__(self) -> Iterator[str]:
        return map(self._doubled, self._text)

    def read(self, size: int = -1) -> str:
        """Return about `size` characters, and never half of an escape."""
        piece = self._text.read(size)
        while piece.endswith("\\") and (more := self._text.read(1)):
            piece += more
        return self._doubled(piece)

    def _doubled(self, piece: str) -> str:
        return self._pattern.sub(lambda found: found[0] if found[1] else "\\\\", piece)


def _column_names(file: DataFile, cells: Sequence[str]) -> list[str]:
    """Return the header's names without padding; refuse too many, and those that repeat."""
    if len(cells) > _MOST_COLUMNS:
        raise DataError(f"{file.path} has {len(cells)} columns, more than {_MOST_COLUMNS}; fix: is it turned around?")
    names = [cell.strip().strip("\ufeff").strip() for cell in cells]
    names = [name or f"Unnamed: {i}" for i, name in enumerate(names)]  # pandas' name for an index that was written
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(
            f"{file.path}: {len(repeated)} column names come twice (first: {repeated[0]!r}); fix: rename them"
        )
    return names


@contextmanager
def _parse_errors(pandas: Any, file: DataFile) -> Iterator[None]:
    """Turn pandas' error for a broken CSV into one line; a row with more cells than the header is broken, too."""
    try:
        with warnings.catch_warnings(), os_errors(file.path):
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            yield
    except pandas.errors.EmptyDataError:
        raise DataError(f"{file.path} has no header; fix: is the file empty?") from None
    except (pandas.errors.ParserError, pandas.errors.ParserWarning) as error:
        reason = "rows have more cells than the header"
        if isinstance(error, pandas.errors.ParserError):
            reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise DataError(
            f"{file.path} cannot be read with the separator {file.separator!r}: {reason}; fix: quote cells that hold "
            "the separator, take out lines before the header, or name each column in it (R leaves out the first)"
        ) from None


def _record_frames(pandas: Any, records: Iterator[Record], rows: int | None) -> Iterator[Any]:
    # json, not pandas.read_json: that turns columns into dates by their name and ids into floats, and names no line.
    names: dict[str, None] = {}
    first = True
    while (part := list(islice(records, rows))) or first:
        first = False
        # A key that only some records have is a column, too.
        names |= dict.fromkeys(name for record in part for name in record)
        yield pandas.DataFrame(part, columns=list(names), dtype=object)


# Reading a document takes some ten times its size in memory; reading one object a line does not.
_MOST_BYTES = 128 << 20
# Cells nested deeper than this are no data, and would exhaust the stack when they are written.
_DEEPEST = 32
_LAYOUTS = "one object a line, an array of objects, or pandas' to_json(orient='columns', 'index', 'split' or 'table')"


def _line_records(file: DataFile, lines: Iterable[str]) -> Iterator[Record]:
    """Yield the object of each line that is not blank; warn of broken surrogate pairs once."""
    warned = False
    for number, line in enumerate(lines, 1):
        if not line.strip("\ufeff \t\r\n"):
            continue
        try:
            record = _parse(line.lstrip("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.path}: line {number} is not JSON ({error}); fix: one object a line") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{file.path}: line {number} is a {type(record).__name__}, not an object; fix: one object a line"
            )
        record, is_broken = _checked(file, record, f"line {number}", "\\u" in line)
        if is_broken and not warned:
            warned = True
            _warn_of_halves(file, f"line {number}")
        yield record


def _document_records(file: DataFile) -> list[Record]:
    """Return the rows of a document; warn of broken surrogate pairs once."""
    with file.open_text() as stream:
        text = stream.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise DataError(f"{file.path}: a JSON document of more than {_MOST_BYTES >> 20} MB; fix: one object a line")
    try:
        value = _parse(text.lstrip("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.path} is not JSON ({error}); fix: {_LAYOUTS}") from None
    escapes = "\\u" in text
    del text
    records, warned = [], False
    for number, record in enumerate(_rows(file, value)):
        record, is_broken = _checked(file, record, f"row {number}", escapes)
        if is_broken and not warned:
            warned = True
            _warn_of_halves(file, f"row {number}")
        records.append(record)
    return records


def _parse(text: str) -> Any:
    """Parse JSON; a key that repeats in an object is an error."""

    def record(pairs: list[tuple[str, Any]]) -> Record:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
        return values

    return json.loads(text, object_pairs_hook=record)


def _rows(file: DataFile, value: Any) -> list[Record]:
    """Return the records of a document in any of the `_LAYOUTS`."""
    path = file.path
    if isinstance(value, list):
        if value and all(isinstance(row, list) for row in value):
            raise DataError(f"{path} has rows without column names (orient='values'); fix: {_LAYOUTS}")
        wrong = next((i for i, row in enumerate(value) if not isinstance(row, dict)), None)
        if wrong is not None:
            raise DataError(
                f"{path}: element {wrong} is a {type(value[wrong]).__name__}, not an object; fix: {_LAYOUTS}"
            )
        return value
    if not isinstance(value, dict):
        raise DataError(f"{path} is a JSON {type(value).__name__}, not a table; fix: {_LAYOUTS}")
    data, columns = value.get("data"), value.get("columns")
    if isinstance(data, list) and isinstance(columns, list) and set(value) <= {"columns", "index", "data"}:
        return _split_rows(file, columns, data)
    if isinstance(data, list) and isinstance(value.get("schema"), dict):
        rows = _rows(file, data)
        numbered = value["schema"].get("primaryKey") == ["index"]
        return [{name: cell for name, cell in row.items() if not (numbered and name == "index")} for row in rows]
    if len(value) == 1 and isinstance(only := next(iter(value.values())), list) and only and isinstance(only[0], dict):
        return _rows(file, only)
    if value and all(isinstance(column, list) for column in value.values()):
        lengths = {len(column) for column in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        raise DataError(
            f"{path} has columns of different lengths: {', '.join(map(str, sorted(lengths)))}; fix: mend it"
        )
    if value and all(isinstance(column, dict) for column in value.values()):
        return _labelled_rows(file, value)
    raise DataError(f"{path} is a JSON object that is no table; fix: {_LAYOUTS}")


def _split_rows(file: DataFile, columns: Sequence[Any], data: Sequence[Any]) -> list[Record]:
    names = [str(name) for name in columns]
    if len(set(names)) < len(names):
        raise DataError(f"{file.path} has a column name twice; fix: rename it")
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            raise DataError(
                f"{file.path}: row {number} has not one cell for each of the {len(names)} columns; fix: mend it"
            )
    return [dict(zip(names, row, strict=True)) for row in data]


def _labelled_rows(file: DataFile, value: Mapping[str, Record]) -> list[Record]:
    """Return the rows of an object of objects.

    Its keys are columns, as pandas writes it; but they are rows if only they are numbers, or if fewer columns then mix
    text with other cells.
    """
    labels = dict.fromkeys(label for column in value.values() for label in column)
    by_label = {label: {name: column.get(label) for name, column in value.items()} for label in labels}
    keys_are_numbers, labels_are_numbers = (
        all(name.lstrip("-").isdecimal() for name in names) for names in (value, labels)
    )
    if keys_are_numbers and not labels_are_numbers:
        return list(value.values())
    if not keys_are_numbers and not labels_are_numbers:
        if sum(map(_is_mixed, by_label.values())) < sum(map(_is_mixed, value.values())):
            return list(value.values())
        warnings.warn(
            f"{file.path}: an object of objects is read by columns ({', '.join(map(repr, list(value)[:3]))}, …), as "
            "pandas' to_json writes it; for rows write to_json(orient='records')",
            DataWarning,
            stacklevel=5,
        )
    return list(by_label.values())


def _is_mixed(column: Record) -> bool:
    """Return whether some cells are text and others are not."""
    return len({isinstance(cell, str) for cell in column.values() if cell is not None}) > 1


def _checked(file: DataFile, record: Record, where: str, escapes: bool) -> tuple[Record, bool]:
    """Return the record with bare names and without broken surrogate pairs, and whether it had any."""
    for name, value in record.items():
        if isinstance(value, list | dict) and not _is_flat(value, _DEEPEST):
            raise DataError(f"{file.path}: {where} has {name!r:.60} nested deeper than {_DEEPEST}; fix: flatten it")
    bare = {name.strip(): value for name, value in record.items()}
    if len(bare) < len(record):
        raise DataError(f"{file.path}: {where} has names that differ by white space alone; fix: rename them")
    if not escapes:
        return bare, False
    whole = _whole(bare)
    return whole, whole != bare


def _is_flat(value: Any, levels: int) -> bool:
    """Return whether a value is nested at most so many levels deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(item, levels - 1) for item in inner if isinstance(item, list | dict))


def _whole(value: Any) -> Any:
    """Return the value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list) else value


def _warn_of_halves(file: DataFile, where: str) -> None:
    warnings.warn(
        f"{file.path}: {where} has half of a surrogate pair, which is no character; it is read as U+FFFD",
        DataWarning,
        stacklevel=5,
    )


def _parquet_frames(file: DataFile, rows: int | None) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"Parquet needs pyarrow; fix: {install_fix('kaggle')}") from error
    with foreign_errors(file), parquet.ParquetFile(file.path) as reader:
        if reader.metadata.num_rows > 1000 * file.size:
            raise DataError(
                f"{file.path} claims {reader.metadata.num_rows} rows in {file.size} bytes; fix: write it again"
            )
        empty = True
        for table in [reader.read()] if rows is None else reader.iter_batches(batch_size=rows):
            empty = False
            yield _parquet_frame(table, file)
        if empty:
            yield _parquet_frame(reader.schema_arrow.empty_table(), file)


def _parquet_frame(table: Any, file: DataFile) -> Any:
    table.validate(full=True)  # else text that is not UTF-8 fails cell by cell, much later
    try:
        frame = table.to_pandas(integer_object_nulls=True)  # ids beside a missing one stay exact
    except Exception as error:  # pyarrow trusts the JSON that pandas left in the metadata
        warnings.warn(
            f"{file.path}: what pandas wrote about its index is damaged ({type(error).__name__}); it is left aside",
            DataWarning,
            stacklevel=3,
        )
        frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    # An index with a name was a column; one without is the row number.
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
    frame = frame[[name for name in frame.columns if not str(name).startswith("__index_level_")]]
    frame.columns = _column_names(file, [str(name) for name in frame.columns])
    return frame


# The size of a spreadsheet; a file that repeats a cell more often is an attack on the memory.
_MOST_REPEATS = {b"columns": 16384, b"rows": 1 << 20}


def _excel_frame(pandas: Any, file: DataFile) -> Any:
    """Return the first sheet that is not empty, with typed cells, without blank rows."""
    with os_errors(file.path), zipfile.ZipFile(file.path) as archive:
        ods = "content.xml" in archive.namelist()
        if ods:
            _refuse_repeats(file, archive.read("content.xml"))
    try:
        with foreign_errors(file), pandas.ExcelFile(file.path, engine="odf" if ods else "openpyxl") as book:
            names, cells, chosen = book.sheet_names, None, None
            for chosen in names:
                options: dict[str, Any] = {
                    "header": None,
                    "dtype": object,
                    "keep_default_na": False,
                    "na_values": [""],
                }
                cells = pandas.read_excel(book, sheet_name=chosen, **options).dropna(how="all")
                if len(cells):
                    break
    except ImportError as error:
        package = "odfpy" if ods else "openpyxl"
        raise DataError(f"{file.path} needs {package}; fix: {install_fix('excel')}, or save it as CSV") from error
    if cells is None or not len(cells):
        raise DataError(f"{file.path} has no header; fix: is the file empty?")
    if len(names) > 1:
        warnings.warn(
            f"{file.path} has {len(names)} sheets; {chosen!r} is read: save another as a file of its own",
            DataWarning,
            stacklevel=4,
        )
    frame = cells.iloc[1:].reset_index(drop=True)
    frame.columns = _column_names(file, ["" if cell is None or cell != cell else str(cell) for cell in cells.iloc[0]])
    return frame.where(frame.notna(), None)


def _refuse_repeats(file: DataFile, content: bytes) -> None:
    for what, count in re.findall(rb'number-(columns|rows)-repeated="(\d{1,99})"', content):
        if int(count) > _MOST_REPEATS[what]:
            raise DataError(f"{file.path} repeats a cell {int(count)} times; fix: give it as CSV")


@contextmanager
def foreign_errors(file: DataFile) -> Iterator[None]:
    """Turn any error of another package into one line: for a damaged file they raise errors of all kinds."""
    try:
        yield
    except (DataError, ImportError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{file.path} is damaged ({lines[0]}); fix: download it again") from error
