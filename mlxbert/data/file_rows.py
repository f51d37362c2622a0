"""A data file's rows as they are written, in pandas frames: text cells of a CSV, typed ones of JSONL and Parquet."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from heads.install import install_fix
from mlxbert.data.file_format import DataError, DataFile, os_errors


def raw_frames(file: DataFile, rows: int | None) -> Iterator[Any]:
    """Frames of at most `rows` rows, at least one (it may be empty); one frame for `rows=None`.

    Raises:
        DataError: no pandas, a broken row (its line is named), a column name that comes twice.
    """
    pandas = _pandas()
    if file.format == "csv":
        yield from _csv_frames(pandas, file, rows)
    elif file.format == "jsonl":
        yield from _jsonl_frames(pandas, file, rows)
    else:
        yield from _parquet_frames(pandas, file, rows)


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise DataError(f"reading data needs pandas; fix: {install_fix('kaggle')}") from error
    return pandas


def _csv_frames(pandas: Any, file: DataFile, rows: int | None) -> Iterator[Any]:
    common: dict[str, Any] = {"sep": file.separator, "encoding": file.encoding, "dtype": str, "na_filter": False}
    with _parse_errors(pandas, file):
        header = pandas.read_csv(file.path, header=None, nrows=1, **common)
    names = _names(file, ["" if cell is None else str(cell) for cell in header.iloc[0]])
    # A blank line is a row without text where there is but one column, and nothing where there are more.
    common |= {"names": names, "header": 0, "index_col": False, "skip_blank_lines": len(names) > 1}
    if rows is None:
        with _parse_errors(pandas, file):
            frame = pandas.read_csv(file.path, **common)
        yield frame.fillna("")  # cells that a short row lacks
    else:
        with _parse_errors(pandas, file):
            reader = pandas.read_csv(file.path, chunksize=rows, **common)
        with reader:
            while True:
                with _parse_errors(pandas, file):
                    frame = next(reader, None)
                if frame is None:
                    break
                yield frame.fillna("")


def _names(file: DataFile, cells: Sequence[str]) -> list[str]:
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
            f"{file.path} cannot be read with the separator {file.separator!r}: {reason}; fix: mend quotes or commas"
        ) from None


def _jsonl_frames(pandas: Any, file: DataFile, rows: int | None) -> Iterator[Any]:
    # json, not pandas.read_json: that makes dates of columns by their name, floats of ids, and names no line.
    with os_errors(file.path), file.path.open(encoding=file.encoding) as lines:
        records = _records(file, lines)
        seen: dict[str, None] = {}
        first = True
        while (part := list(islice(records, rows))) or first:
            first = False
            # A key that only some lines have is a column all the same.
            seen |= dict.fromkeys(name for record in part for name in record)
            yield pandas.DataFrame(part, columns=list(seen), dtype=object)


def _records(file: DataFile, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file.path}: line {number} is not JSON ({error}); fix: one object a line") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{file.path}: line {number} is a {type(record).__name__}, not an object; fix: one object a line"
            )
        yield {name.strip(): value for name, value in record.items()}


def _parquet_frames(pandas: Any, file: DataFile, rows: int | None) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DataError(f"Parquet needs pyarrow; fix: {install_fix('kaggle')}") from error
    try:
        with parquet.ParquetFile(file.path) as reader:
            empty = True
            for table in [reader.read()] if rows is None else reader.iter_batches(batch_size=rows):
                empty = False
                yield _parquet_frame(table, file)
            if empty:
                yield _parquet_frame(reader.schema_arrow.empty_table(), file)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file.path} is damaged ({reason}); fix: download it again") from error


def _parquet_frame(table: Any, file: DataFile) -> Any:
    frame = table.to_pandas(integer_object_nulls=True)  # ids beside a missing one stay exact
    # An index that has a name was a column; one without is the row number.
    frame = frame.reset_index(drop=all(name is None for name in frame.index.names))
    frame.columns = _names(file, [str(name) for name in frame.columns])
    return frame
