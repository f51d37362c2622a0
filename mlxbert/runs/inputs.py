"""The tables that a run is given, files or frames, as pandas frames and what must be known to read another alike."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from heads.command_line import install_fix
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.frames import DataError, Table, is_frame
from mlxbert.data.reading import Kind, read_data
from mlxbert.data.text_columns import RowText
from mlxbert.files.reading import expand_home, sha256_hex
from mlxbert.runs.files import RunError
from mlxbert.runs.prepare import frame_sha256

FRAME = "<frame>"
"""Stands for a table that was given as a frame, where a path is written down otherwise."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tables that a run reads; each a path, a pandas or polars frame, or a dict of columns.

    Attributes:
        data: to learn from.
        valid: to be judged on.
        test: to predict at the end.
        sample_submission: that these predictions must fit.
    """

    data: Any
    valid: Any = None
    test: Any = None
    sample_submission: Any = None

    def record(self, name: str) -> str | None:
        """Return what run.json says of a table: its path, `FRAME`, or None."""
        source = getattr(self, name)
        return None if source is None else os.fspath(source) if is_path(source) else FRAME


def is_path(source: Any) -> bool:
    """Return whether a table is given as the path of a file."""
    return isinstance(source, str | os.PathLike)


def source_name(source: Any, what: str) -> str:
    """Return what a table is called in messages: its path, or `what`."""
    return str(os.fspath(source)) if is_path(source) else what


def read_frame(
    data: Any,
    *,
    text: RowText | None,
    id_column: str | None,
    encoding: str | None,
    kinds: Mapping[str, Kind] | None,
    quoting: Quoting | None = None,
    labels: Mapping[str, Collection[str]] | None = None,
    words: Collection[str] = (),
    what: str = "the frame",
) -> tuple[Any, dict[str, Kind], dict[str, Any]]:
    """A pandas frame, what its columns hold, and the record of it for run.json.

    Args:
        data: a path; or a pandas or polars frame, or a dict of columns.
        text: how rows become texts, where that is known: a column that is a text by itself is not made numbers of.
        id_column: kept as text.
        encoding: of a file's text.
        kinds: of the training file, for another one that is to be read alike.
        quoting: of a text table; None: found out.
        labels: target columns of a file, and words in them that are labels though they look missing.
        words: further columns to keep as text.
        what: a frame is called in messages.

    Raises:
        DataError: it cannot be read.
    """
    if is_path(data):
        columns = [*words, *([id_column] if id_column is not None else [])]
        if text is not None:
            columns += [part for part in (text.first, text.second) if isinstance(part, str) and "{" not in part]
        read = read_data(data, text_columns=columns, kinds=kinds, encoding=encoding, quoting=quoting, labels=labels)
        file = read.file
        record = {"path": str(data), "sha256": file.sha256, "size": file.size, "rows": len(read.frame)}
        record["quoting"] = file.quoting
        return read.frame, read.kinds, record
    frame = as_pandas(data, what)
    return frame, _kinds(frame), {"path": None, "sha256": frame_sha256(frame), "size": None, "rows": len(frame)}


def table_record(source: Any, what: str) -> dict[str, Any]:
    """Return what run.json says of a table that is read later: its path and SHA-256, which are to stay the same.

    Raises:
        DataError: no regular file, or no frame.
    """
    if not is_path(source):
        return {"path": None, "sha256": frame_sha256(as_pandas(source, what))}
    path = expand_home(source)
    return {"path": str(path), "sha256": sha256_hex(path, DataError)}


def as_pandas(data: Any, what: str = "the frame") -> Any:
    """A pandas or polars frame, or a dict of columns, as a pandas frame with its rows numbered from 0.

    Raises:
        DataError: it is none of these, or has no rows; `what` it is called in the message.
        RunError: there is no pandas.
    """
    if isinstance(data, Mapping):
        scalar = next(
            (name for name, cells in data.items() if isinstance(cells, str) or not hasattr(cells, "__len__")), None
        )
        if scalar is not None:
            raise DataError(
                f"{what}: column {scalar!r} is a {type(data[scalar]).__name__}; fix: a list, one value a row"
            )
    elif not is_frame(data) and not hasattr(data, "collect"):
        fix = "give a path, a pandas or polars DataFrame, or a dict of columns"
        if hasattr(data, "to_frame"):
            fix = "call .to_frame() on it, or give a DataFrame"
        raise DataError(f"{what} is a {type(data).__name__}, not a data frame; fix: {fix}")
    table = Table(data, what)
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise RunError(f"training on data needs pandas; fix: {install_fix('kaggle')}") from error
    if isinstance(data, pandas.DataFrame):
        # An index that has a name was a column, such as the months of a series.
        frame = data.reset_index(drop=all(name is None or name in data.columns for name in data.index.names))
        # pandas numbers the columns of a file without a header.
        named = all(isinstance(one, str) for one in frame.columns)
        return frame if named else frame.set_axis(map(str, frame.columns), axis=1)
    # Column by column: whole numbers beside a missing one stay exact.
    columns = {str(name): list(table.column(name).values) for name in table.names}
    return pandas.DataFrame({name: pandas.Series(cells, dtype=_dtype(cells)) for name, cells in columns.items()})


def _dtype(cells: list[Any]) -> Any:
    """object for large whole numbers beside missing ones, of which pandas makes floats; None: as pandas has it."""
    large = any(isinstance(cell, int) and abs(cell) > 2**53 for cell in cells)
    return object if large and None in cells else None


def _kinds(frame: Any) -> dict[str, Kind]:
    """What a frame's columns hold, in the words of `mlxbert.data.frames`, for the files that will be predicted."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    def kind(column: Any) -> Kind:
        if is_bool_dtype(column):
            return "boolean"
        return "number" if is_numeric_dtype(column) else "text"

    return {str(name): kind(frame[name]) for name in frame.columns}
