"""Reading a competition's data: CSV, TSV, JSON, Parquet and Excel into pandas frames, whole or in pieces.

Column names come without padding and byte order marks, ids and texts as text, and only what is written as missing is
missing (`mlxbert.data.frames`).
"""

from __future__ import annotations

import shlex
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxbert.data.csv_dialect import DataError, DataFile, DataWarning, Quoting
from mlxbert.data.file_format import inspect_file
from mlxbert.data.file_rows import raw_frames
from mlxbert.data.frames import MISSING, Kind, Table, as_text, convert, infer_kind, plain
from mlxbert.data.text_columns import Rendered, RowText
from mlxbert.errors import first_ten, printable

__all__ = [
    "Data",
    "DataError",
    "DataFile",
    "DataWarning",
    "Quoting",
    "id_values",
    "read_chunks",
    "read_data",
    "render_texts",
]


@dataclass(frozen=True)
class Data:
    """A file's rows.

    Attributes:
        frame: a pandas frame.
        kinds: what each column holds; given to `read_data` and `read_chunks`, a test file is read alike.
        file: what was read.
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
        text_columns: those to keep as text whatever they hold: ids and texts.
        required: columns that must be there (`text_columns` need not).
        kinds: those of the training file, for a file that is to be read alike.
        encoding: of the text; None: found out.
        quoting: of a text table; None: found out.
        like: the training file's, which is preferred.
        labels: target columns, and words in them that are values though they look missing, such as NA.

    Raises:
        DataError: the file cannot be read; the line is named where there is one.
        FrameError: a required column is missing (the nearest names are given), or there are no rows.

    Warns:
        DataWarning: the file is not UTF-8, or its quotes are not as usual, and what it is read as.
    """
    file = inspect_file(path, encoding=encoding, quoting=quoting, like=like)
    frame = without_blank_columns(next(raw_frames(file, None)))
    found = dict(kinds or {})
    _check(frame, file, required)
    text = set(text_columns)
    for name in frame.columns:
        if name in text or (file.format == "csv" and (labels or {}).get(name)):
            found[name] = "text"
        elif name not in found or (found[name] == "native") != (file.format != "csv"):
            found[name] = infer_kind(frame[name]) if file.format == "csv" else "native"
    if file.format == "csv":
        _warn_of_missing_words(frame, found, labels or {}, file)
    return Data(_typed(frame, found, file, labels or {}), {name: found[name] for name in frame.columns}, file)


def _warn_of_missing_words(
    frame: Any, kinds: Mapping[str, Kind], labels: Mapping[str, Collection[str]], file: DataFile
) -> None:
    """Say which words of a target are taken for missing ones: a class may be called so."""
    for name in labels:
        if kinds.get(name) != "text":
            continue
        words = frame[name][frame[name].isin([word for word in MISSING if word and word not in labels[name]])]
        if len(words):
            others = sorted({*frame[name]} - {""})[:20]
            options = " ".join(f"--class {printable(shlex.quote(one), 60)}" for one in others)
            warnings.warn(
                f"{file.path}: column {name!r}: {len(words)} cells such as {words.iloc[0]!r} are read as missing; if "
                f"that is a label, name every label: {options}{' …' if len(others) == 20 else ''}",
                DataWarning,
                stacklevel=3,
            )


def without_blank_columns(frame: Any) -> Any:
    """Return a file's frame without the nameless, empty columns that separators at the end of every line make."""
    blank = [
        name
        for name in frame.columns
        if name.startswith("Unnamed: ") and frame[name].map(lambda cell: plain(cell) in (None, "")).all()
    ]
    return frame.drop(columns=blank) if blank and len(blank) < len(frame.columns) else frame


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
    """The same values as `read_data` with these kinds, `rows` rows at a time: memory does not grow with the file.

    A column that the kinds lack is text.

    Raises:
        DataError, FrameError: as `read_data`.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise DataError(f"rows must be a positive whole number, not {rows!r}")
    file = inspect_file(path, encoding=encoding, quoting=quoting, like=like)
    start = 0
    for frame in raw_frames(file, rows):
        if not start:
            _check(frame, file, required)
        frame.index = range(start, start + len(frame))
        start += len(frame)
        native: Kind = "text" if file.format == "csv" else "native"
        yield _typed(frame, {name: kinds.get(name, native) for name in frame.columns}, file)


def render_texts(frame: Any, text: RowText, what: str = "the data") -> Rendered:
    """`text.render`, with a warning that counts the rows without any text.

    Raises:
        FrameError, TextError: as `RowText.render`.

    Warns:
        DataWarning: there are rows without text; they are encoded as an empty one.
    """
    made = text.render(frame, what)
    warn_of_empty(made.empty, len(made.texts), what, stacklevel=2)
    return made


def warn_of_empty(empty: int, rows: int, what: str, *, stacklevel: int) -> None:
    """Say how many rows have no text, if any; `stacklevel` 1 is the function that calls this one."""
    if empty:
        warnings.warn(
            f"{what}: {empty} of {rows} rows have no text; they are encoded as an empty one",
            DataWarning,
            stacklevel=stacklevel + 1,
        )


def id_values(frame: Any, column: str, what: str = "the data") -> list[str]:
    """A column of ids as text, each there once.

    Raises:
        DataError: an id is missing, or comes twice (the first ten are named).
        FrameError: there is no such column; the nearest names are given.
    """
    values = as_text(Table(frame, what).column(column, "id column").values)
    for row, value in enumerate(values):
        if value is None:
            raise DataError(f"{what}: row {row} has no id in column {column!r}; fix: fill it, or leave the id out")
    ids = [value for value in values if value is not None]
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{what}: {len(repeated)} ids of column {column!r} come more than once; fix: drop the repeated rows, or "
            "name another column: --id COLUMN\n" + first_ten(repeated)
        )
    return ids


def _check(frame: Any, file: DataFile, required: Iterable[str]) -> None:
    table = Table(frame, str(file.path))
    for name in required:
        table.find(name)


def _typed(
    frame: Any, kinds: Mapping[str, Kind], file: DataFile, labels: Mapping[str, Collection[str]] | None = None
) -> Any:
    import pandas

    columns: dict[str, Any] = {}
    for name in frame.columns:
        kind, column = kinds[name], frame[name]
        if file.format == "csv":
            columns[name] = convert(column, "text" if kind == "native" else kind, (labels or {}).get(name, ()))
        elif kind == "text":
            columns[name] = pandas.Series(as_text(column), index=frame.index, dtype=object)
        else:
            columns[name] = column.infer_objects()
    return pandas.DataFrame(columns, index=frame.index)
