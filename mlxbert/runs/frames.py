"""The data that a run is given, file or frame, as a pandas frame and what must be known to read another alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from heads.install import install_fix
from mlxbert.data.cells import Kind
from mlxbert.data.reading import Quoting, read_data
from mlxbert.factory.frames import Table
from mlxbert.factory.text_columns import RowText
from mlxbert.runs.files import RunError
from mlxbert.runs.prepare import frame_sha256


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

    Raises:
        DataError, FrameError: it cannot be read.
    """
    if isinstance(data, str | Path):
        columns = [*words, *([id_column] if id_column is not None else [])]
        if text is not None:
            columns += [part for part in (text.first, text.second) if isinstance(part, str) and "{" not in part]
        read = read_data(data, text_columns=columns, kinds=kinds, encoding=encoding, quoting=quoting, labels=labels)
        file = read.file
        record = {"path": str(data), "sha256": file.sha256, "size": file.size, "rows": len(read.frame)}
        record["quoting"] = file.quoting
        return read.frame, read.kinds, record
    frame = as_pandas(data)
    return frame, _kinds(frame), {"path": None, "sha256": frame_sha256(frame), "size": None, "rows": len(frame)}


def as_pandas(data: Any) -> Any:
    """A pandas or polars frame, or a dict of columns, as a pandas frame with its rows numbered from 0.

    Raises:
        FrameError: it is none of these, or has no rows.
        RunError: there is no pandas.
    """
    table = Table(data)
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise RunError(f"training on data needs pandas; fix: {install_fix('kaggle')}") from error
    if isinstance(data, pandas.DataFrame):
        # An index that has a name was a column, such as the months of a series.
        frame = data.reset_index(drop=all(name is None or name in data.columns for name in data.index.names))
        # pandas numbers the columns of a file without a header.
        return (
            frame
            if all(isinstance(one, str) for one in frame.columns)
            else frame.set_axis(map(str, frame.columns), axis=1)
        )
    return pandas.DataFrame({str(name): list(table.column(name).values) for name in table.names})


def _kinds(frame: Any) -> dict[str, Kind]:
    """What a frame's columns hold, in the words of `mlxbert.data.cells`, for the files that will be predicted."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    def kind(column: Any) -> Kind:
        if is_bool_dtype(column):
            return "boolean"
        return "number" if is_numeric_dtype(column) else "text"

    return {str(name): kind(frame[name]) for name in frame.columns}
