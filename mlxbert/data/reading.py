"""`read_data`, `read_chunks`: CSV, TSV, JSON, Parquet and Excel as pandas frames, whole or in pieces.

Column names have no padding and no byte order mark, and ids and texts stay text. A column of a CSV becomes numbers or
truth values, or stays text, as a whole. pandas' own rule reads the review "None" as a missing value and the id 007 as
the number 7, and gives a column another type where a test file has only digits. Here a column's kind is inferred once,
from the training file, and holds for the other files.
"""

from __future__ import annotations

import re
import shlex
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxbert.data.csv_dialect import DataFile, Quoting
from mlxbert.data.file_format import inspect_file
from mlxbert.data.file_rows import raw_frames
from mlxbert.data.frames import MISSING, NO_NUMBERS, NUMBER, TRUTH, DataError, DataWarning, Table, as_text, plain
from mlxbert.errors import printable

Kind = Literal["text", "number", "boolean", "native"]
"""Of a column; "native": the file itself has types (Parquet, JSONL), which are kept."""

# 007 is a code, and a whole number of 16 digits or more is an id that a float would round.
_CODE = r"[+-]?0[0-9].*|[+-]?[0-9]{16,}"


@dataclass(frozen=True)
class Data:
    """A file's rows.

    Attributes:
        frame: a pandas frame.
        kinds: of each column; with these, `read_data` and `read_chunks` read a test file alike.
        file: that was read.
    """

    frame: Any
    kinds: dict[str, Kind]
    file: DataFile


def read_data(
    path: str | Path,
    *,
    text_columns: Iterable[str] = (),
    required: Iterable[str] = (),
    kinds: Mapping[str, Kind] | None = None,
    encoding: str | None = None,
    quoting: Quoting | None = None,
    like: Quoting | None = None,
    labels: Mapping[str, Collection[str]] | None = None,
) -> Data:
    """Read a whole file.

    Args:
        path: CSV, TSV, JSON (one object a line, or a document), Parquet or Excel; also compressed.
        text_columns: columns that stay text: ids and texts.
        required: columns that must be there (`text_columns` need not).
        kinds: of the training file's columns, for a file that is to be read alike.
        encoding: of the text; None: inferred.
        quoting: of a text table; None: inferred.
        like: the training file's quoting, which is preferred.
        labels: target columns, and the words in them that are values though they look missing, such as NA.

    Raises:
        DataError: the file cannot be read (the message has the line, if there is one), a required column is missing
            (the message has the nearest names), or there are no rows.

    Warns:
        DataWarning: the file is not UTF-8, or its quotes are unusual; the message says how it is read.
    """
    file = inspect_file(path, encoding=encoding, quoting=quoting, like=like)
    is_csv = file.format == "csv"
    frame = without_blank_columns(next(raw_frames(file, None)))
    _check_columns(frame, file, required)
    all_kinds = dict(kinds or {})
    text_columns = set(text_columns)
    for name in frame.columns:
        if name in text_columns or (is_csv and (labels or {}).get(name)):
            all_kinds[name] = "text"
        elif name not in all_kinds or (all_kinds[name] == "native") == is_csv:
            all_kinds[name] = infer_kind(frame[name]) if is_csv else "native"
    if is_csv:
        _warn_of_missing_words(frame, all_kinds, labels or {}, file)
    return Data(typed(frame, all_kinds, file, labels or {}), {name: all_kinds[name] for name in frame.columns}, file)


def read_chunks(
    path: str | Path,
    kinds: Mapping[str, Kind],
    *,
    rows: int = 2048,
    required: Iterable[str] = (),
    encoding: str | None = None,
    quoting: Quoting | None = None,
    like: Quoting | None = None,
) -> Iterator[Any]:
    """Yield the values that `read_data` has with these kinds, `rows` rows at a time, in little memory.

    A column without a kind is text.

    Raises:
        DataError: as `read_data`.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise DataError(f"rows must be a positive whole number, not {rows!r}")
    file = inspect_file(path, encoding=encoding, quoting=quoting, like=like)
    default: Kind = "text" if file.format == "csv" else "native"
    start = 0
    for frame in raw_frames(file, rows):
        if not start:
            _check_columns(frame, file, required)
        frame.index = range(start, start + len(frame))
        start += len(frame)
        yield typed(frame, {name: kinds.get(name, default) for name in frame.columns}, file, {})


def without_blank_columns(frame: Any) -> Any:
    """Return a file's frame without nameless, empty columns, which come from separators at the end of every line."""
    blank = [
        name
        for name in frame.columns
        if name.startswith("Unnamed: ") and frame[name].map(lambda cell: plain(cell) in (None, "")).all()
    ]
    return frame.drop(columns=blank) if blank and len(blank) < len(frame.columns) else frame


def infer_kind(cells: Any) -> Kind:
    """Return the kind of a column of text cells (a pandas series); "text" where all are missing."""
    # Plain Python: pandas takes milliseconds for a column, and so a minute for 10,000 columns of a few rows.
    present = {cell.strip() for cell in {*cells.to_list()}} - NO_NUMBERS
    if not present:
        return "text"
    if present <= TRUTH.keys():
        return "boolean"
    are_numbers = all(re.fullmatch(NUMBER, cell) and not re.fullmatch(_CODE, cell) for cell in present)
    return "number" if are_numbers else "text"


def convert(cells: Any, kind: Kind, labels: Collection[str] = ()) -> Any:
    """Return a column of text cells as values of its kind, with missing ones as pandas has them.

    A cell that does not fit the kind stays text: a test file may have a word where the training file has only numbers.
    `labels` are words of a text column that are values though they look missing: NA may be Namibia.
    """
    import pandas

    if kind == "text":
        missing_words = {word for word in MISSING if word not in labels}
        return cells if missing_words.isdisjoint(cells.to_list()) else cells.mask(cells.isin(missing_words))
    if kind == "number":
        stripped = [cell.strip() for cell in cells.to_list()]
        if all(re.fullmatch(NUMBER, cell) for cell in stripped):
            return pandas.to_numeric(pandas.Series(stripped, index=cells.index, name=cells.name, dtype=object))
    bare = cells.str.strip()
    missing = bare.isin(NO_NUMBERS)
    if kind == "boolean":
        fits = bare.isin(TRUTH)
        truths = bare.map(TRUTH).astype(object)
        values = truths.astype(bool) if fits.all() else truths
    else:
        fits = bare.str.fullmatch(NUMBER)
        values = pandas.to_numeric(bare.where(fits), errors="coerce")
    unfit = ~fits & ~missing
    if not unfit.any():
        return values if kind == "number" or fits.all() else values.where(fits, None)
    return values.astype(object).where(~unfit, cells.astype(object)).where(~missing, None)


def _check_columns(frame: Any, file: DataFile, required: Iterable[str]) -> None:
    table = Table(frame, str(file.path))
    for name in required:
        table.find(name)


def _warn_of_missing_words(
    frame: Any, kinds: Mapping[str, Kind], labels: Mapping[str, Collection[str]], file: DataFile
) -> None:
    """Warn of words in a target that are read as missing: a class may have such a name."""
    for name in labels:
        if kinds.get(name) != "text":
            continue
        words = frame[name][frame[name].isin([word for word in MISSING if word and word not in labels[name]])]
        if len(words):
            all_labels = sorted({*frame[name]} - {""})[:20]
            options = " ".join(f"--class {printable(shlex.quote(label), 60)}" for label in all_labels)
            warnings.warn(
                f"{file.path}: column {name!r}: {len(words)} cells such as {words.iloc[0]!r} are read as missing; if "
                f"that is a label, name every label: {options}{' …' if len(all_labels) == 20 else ''}",
                DataWarning,
                stacklevel=3,
            )


def typed(frame: Any, kinds: Mapping[str, Kind], file: DataFile, labels: Mapping[str, Collection[str]]) -> Any:
    import pandas

    columns: dict[str, Any] = {}
    for name in frame.columns:
        kind, column = kinds[name], frame[name]
        if file.format == "csv":
            columns[name] = convert(column, "text" if kind == "native" else kind, labels.get(name, ()))
        elif kind == "text":
            columns[name] = pandas.Series(as_text(column), index=frame.index, dtype=object)
        else:
            columns[name] = column.infer_objects()
    return pandas.DataFrame(columns, index=frame.index)
