"""A data file's rows as they are written, in pandas frames: text cells of a CSV, typed ones of every other format."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any

from heads.install import install_fix
from mlxbert.data.data_file import DataError, DataFile, DataWarning, os_errors
from mlxbert.data.json_rows import document_records, line_records
from mlxbert.data.quoting import DIALECTS

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
