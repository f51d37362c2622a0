"""Rows of JSON: one object a line, or a document: an array of objects, or what `DataFrame.to_json` writes.

A data file's rows as they are written, in pandas frames: text cells of a CSV, typed ones of every other format.
"""

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

from heads.install import install_fix
from mlxbert.data.csv_dialect import DIALECTS, DataError, DataFile, DataWarning, os_errors

# A document is in memory some ten times over while it is read; one object a line is not.
_MOST_BYTES = 128 << 20
# Cells nested deeper than this are no data, and would exhaust the stack when they are written out.
_DEEPEST = 32
_LAYOUTS = "one object a line, an array of objects, or pandas' to_json(orient='columns', 'index', 'split' or 'table')"

Record = dict[str, Any]


def line_records(file: DataFile, lines: Iterable[str]) -> Iterator[Record]:
    """Yield the object of each line that is not blank.

    Raises:
        DataError: a line is no object; it is named.

    Warns:
        DataWarning: halves of surrogate pairs, which no text can hold, are read as U+FFFD.
    """
    said = False
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
        record, halves = _checked(file, record, f"line {number}", "\\u" in line)
        if halves and not said:
            said = True
            _warn_of_halves(file, f"line {number}")
        yield record


def document_records(file: DataFile) -> list[Record]:
    """Return the rows of a document.

    Raises:
        DataError: it is larger than 128 MB, not JSON, or no table (the layouts that are read are named).

    Warns:
        DataWarning: as `line_records`; or it can be read by columns and by rows, and is read by columns.
    """
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
    made, halves = [], False
    for number, record in enumerate(_rows(file, value)):
        record, half = _checked(file, record, f"row {number}", escapes)
        if half and not halves:
            _warn_of_halves(file, f"row {number}")
        halves = halves or half
        made.append(record)
    return made


def _parse(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> Record:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return made


def _rows(file: DataFile, value: Any) -> list[Record]:
    """The records of a document, whichever layout it has."""
    path = file.path
    if isinstance(value, list):
        if value and all(isinstance(one, list) for one in value):
            raise DataError(f"{path} has rows without column names (orient='values'); fix: {_LAYOUTS}")
        wrong = next((i for i, one in enumerate(value) if not isinstance(one, dict)), None)
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
    if value and all(isinstance(one, list) for one in value.values()):
        lengths = {len(one) for one in value.values()}
        if len(lengths) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        raise DataError(
            f"{path} has columns of different lengths: {', '.join(map(str, sorted(lengths)))}; fix: mend it"
        )
    if value and all(isinstance(one, dict) for one in value.values()):
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
    """Of an object of objects: by columns, as pandas writes it, unless its own keys are row numbers alone, or cells of
    one type stand only then in one column.
    """
    labels = dict.fromkeys(label for column in value.values() for label in column)
    numbered = [all(name.lstrip("-").isdecimal() for name in names) for names in (value, labels)]
    if numbered == [True, False]:
        return list(value.values())
    if numbered == [False, False]:
        mixed = [sum(map(_is_mixed, columns)) for columns in (value.values(), _turned(value, labels).values())]
        if mixed[1] < mixed[0]:
            return list(value.values())
        warnings.warn(
            f"{file.path}: an object of objects is read by columns ({', '.join(map(repr, list(value)[:3]))}, …), as "
            "pandas' to_json writes it; for rows write to_json(orient='records')",
            DataWarning,
            stacklevel=5,
        )
    return list(_turned(value, labels).values())


def _turned(value: Mapping[str, Record], labels: Iterable[str]) -> dict[str, Record]:
    return {label: {name: column.get(label) for name, column in value.items()} for label in labels}


def _is_mixed(column: Record) -> bool:
    """Whether cells are text as well as something else."""
    return len({isinstance(cell, str) for cell in column.values() if cell is not None}) > 1


def _checked(file: DataFile, record: Record, where: str, escapes: bool) -> tuple[Record, bool]:
    """The record with bare names and whole characters, and whether it had halves of some."""
    for name, value in record.items():
        if isinstance(value, list | dict) and not _is_flat(value, _DEEPEST):
            raise DataError(f"{file.path}: {where} has {name!r:.60} nested deeper than {_DEEPEST}; fix: flatten it")
    made = {name.strip(): value for name, value in record.items()}
    if len(made) < len(record):
        raise DataError(f"{file.path}: {where} has names that differ by white space alone; fix: rename them")
    if not escapes:
        return made, False
    whole = _whole(made)
    return whole, whole != made


def _is_flat(value: Any, left: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left > 0 and all(_is_flat(one, left - 1) for one in inner if isinstance(one, list | dict))


def _whole(value: Any) -> Any:
    """The value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value


def _warn_of_halves(file: DataFile, where: str) -> None:
    warnings.warn(
        f"{file.path}: {where} has half of a surrogate pair, which is no character; it is read as U+FFFD",
        DataWarning,
        stacklevel=5,
    )


# Tables of genes have some 20,000; each column costs a millisecond.
_MOST_COLUMNS = 50_000
# What a spreadsheet can hold; a file that repeats a cell more often was made to fill a memory.
_MOST_REPEATS = {b"columns": 16384, b"rows": 1 << 20}


def raw_frames(file: DataFile, rows: int | None) -> Iterator[Any]:
    """Frames of at most `rows` rows, at least one (it may be empty); one frame for `rows=None`.

    A JSON document and a spreadsheet are read whole and then cut.

    Raises:
        DataError: no pandas, a broken row (its line is named), a column name that comes twice.
    """
    pandas = _pandas()
    if file.format == "csv":
        yield from _csv_frames(pandas, file, rows)
    elif file.format == "jsonl":
        with file.open_text() as lines:
            yield from _record_frames(pandas, file, line_records(file, lines), rows)
    elif file.format == "json":
        yield from _record_frames(pandas, file, iter(document_records(file)), rows)
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
    names = _names(file, ["" if cell is None else str(cell) for cell in header.iloc[0]])
    beyond = [f"beyond the header {i}" for i in range(file.extra)]
    # A blank line is a row without text where there is but one column, and nothing where there are more.
    common |= {"names": names + beyond, "header": 0, "index_col": False, "skip_blank_lines": len(names) > 1}
    with file.open_text() as stream:
        text: Any = _Escapes(stream, file.separator or ",") if file.quoting == "escaped" else stream
        if rows is None:
            with _parse_errors(pandas, file):
                frame = pandas.read_csv(text, **common)
            yield frame[names].fillna("")  # cells that a short row lacks
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
    """A text whose backslashes before anything but a quote, the separator or a line end are doubled.

    Writers that escape quotes alone leave C:\\new as it is, and a parser would take the backslash away.
    """

    def __init__(self, text: IO[str], separator: str):
        self._text = text
        self._pattern = re.compile(rf'\\(["\\\r\n{re.escape(separator)}])|\\')

    def __iter__(self) -> Iterator[str]:
        return map(self._doubled, self._text)

    def read(self, size: int = -1) -> str:
        """Return about `size` characters, never half of an escape."""
        piece = self._text.read(size)
        while piece.endswith("\\") and (more := self._text.read(1)):
            piece += more
        return self._doubled(piece)

    def _doubled(self, piece: str) -> str:
        return self._pattern.sub(lambda found: found[0] if found[1] else "\\\\", piece)


def _names(file: DataFile, cells: Sequence[str]) -> list[str]:
    if len(cells) > _MOST_COLUMNS:
        raise DataError(f"{file.path} has {len(cells)} columns, more than {_MOST_COLUMNS}; fix: is it turned around?")
    names = [cell.strip().strip("\ufeff").strip() for cell in cells]
    names = [name or f"Unnamed: {i}" for i, name in enumerate(names)]  # pandas' name for an index that was written
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"{file.path}: {len(twice)} column names come twice (first: {twice[0]!r}); fix: rename them")
    return names


@contextmanager
def _parse_errors(pandas: Any, file: DataFile) -> Iterator[None]:
    """What pandas says of a broken CSV as one line; a row with more cells than the header is broken, too."""
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


def _record_frames(pandas: Any, file: DataFile, records: Iterator[dict[str, Any]], rows: int | None) -> Iterator[Any]:
    # json, not pandas.read_json: that makes dates of columns by their name, floats of ids, and names no line.
    seen: dict[str, None] = {}
    first = True
    while (part := list(islice(records, rows))) or first:
        first = False
        # A key that only some records have is a column all the same.
        seen |= dict.fromkeys(name for record in part for name in record)
        yield pandas.DataFrame(part, columns=list(seen), dtype=object)


def _parquet_frames(file: DataFile, rows: int | None) -> Iterator[Any]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"Parquet needs pyarrow; fix: {install_fix('kaggle')}") from error
    with _foreign_errors(file), parquet.ParquetFile(file.path) as reader:
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
    table.validate(full=True)  # text that is not UTF-8 would be found out cell by cell, much later
    try:
        frame = table.to_pandas(integer_object_nulls=True)  # ids beside a missing one stay exact
    except Exception as error:  # what pandas left in the metadata is JSON that pyarrow trusts
        warnings.warn(
            f"{file.path}: what pandas wrote about its index is damaged ({type(error).__name__}); it is left aside",
            DataWarning,
            stacklevel=3,
        )
        frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    # An index that has a name was a column; one without is the row number.
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
    frame = frame[[name for name in frame.columns if not str(name).startswith("__index_level_")]]
    frame.columns = _names(file, [str(name) for name in frame.columns])
    return frame


def _excel_frame(pandas: Any, file: DataFile) -> Any:
    """The first sheet that holds anything, cells typed, blank rows left out."""
    with os_errors(file.path), zipfile.ZipFile(file.path) as archive:
        ods = "content.xml" in archive.namelist()
        if ods:
            _refuse_repeats(file, archive.read("content.xml"))
    try:
        with _foreign_errors(file), pandas.ExcelFile(file.path, engine="odf" if ods else "openpyxl") as book:
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
    frame.columns = _names(file, ["" if cell is None or cell != cell else str(cell) for cell in cells.iloc[0]])
    return frame.where(frame.notna(), None)


def _refuse_repeats(file: DataFile, content: bytes) -> None:
    for what, count in re.findall(rb'number-(columns|rows)-repeated="(\d{1,99})"', content):
        if int(count) > _MOST_REPEATS[what]:
            raise DataError(f"{file.path} repeats a cell {int(count)} times; fix: give it as CSV")


@contextmanager
def _foreign_errors(file: DataFile) -> Iterator[None]:
    """Whatever another package raises of a damaged file as one line."""
    try:
        yield
    except (DataError, ImportError, GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:  # readers of binary formats raise what they stumble over
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{file.path} is damaged ({lines[0]}); fix: download it again") from error
