"""The rows of a file or frame to predict: which column names them, and whether they are those of the sample."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.forward_chaining import as_times, times_ahead
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.frames import DataWarning, Table
from mlxbert.data.reading import Kind, read_chunks, read_data
from mlxbert.data.submission import IdRules, Sample, Submission, SubmissionRules, check_ids, warn, warn_of_fractions
from mlxbert.data.text_columns import id_columns, id_values, is_called_id, names_rows
from mlxbert.runs.inputs import as_pandas, is_path, source_name
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import read_sample

# A piece is small beside the process, so that many rows take hardly more memory than few.
ROWS = 1024


@dataclass(frozen=True)
class TableFormat:
    """How a run reads a table.

    Attributes:
        kinds: what the training file's columns hold.
        columns: those that texts are made of.
        id: the column that names a row of the training data; None: there is none.
        id_found: whether that was found by its name, not told: another file may lack it.
        target: of a series.
        time: the column of times.
        horizon: steps that a series is forecast; 0: it is none.
        like: the quoting of the training file.
        encoding: of this table's text, and `quoting`, as they were told; None: found out.
    """

    kinds: Mapping[str, Kind]
    columns: tuple[str, ...]
    id: str | None
    id_found: bool
    target: tuple[str, ...]
    time: str | None
    horizon: int
    like: Quoting | None = None
    encoding: str | None = None
    quoting: Quoting | None = None


@dataclass(frozen=True, eq=False)
class RowsToPredict:
    """Rows that are checked and can be predicted.

    Attributes:
        what: they are called in messages.
        id_column: the column that names them; None: they are numbered from 0.
        ids: of all rows (or steps ahead), as text.
        names: what is written of them: the same, or the values of a frame as they are.
        sample: the sample submission that they fit; None: there is none.
        form: the format of their submission.
    """

    what: str
    id_column: str | None
    ids: list[str]
    names: list[Any]
    sample: Sample | None
    form: Submission


def pieces(
    data: Any,
    table: TableFormat,
    words: Sequence[str] = (),
) -> Iterator[Any]:
    """The rows of a file or frame as frames of some thousand rows.

    Args:
        data: the path of a file, or a frame.
        table: how it is read.
        words: columns of a file that are read as they are written; those that are called an id are, too.

    Raises:
        MLXBertError: it cannot be read, or a column is missing.
    """
    if not is_path(data):
        frame = as_pandas(data)
        for name in table.columns:
            Table(frame).find(name)
        return (frame.iloc[start : start + ROWS] for start in range(0, len(frame), ROWS))
    # The kind of an id may be "number": 0012 is to be written as it is read all the same.
    kinds = dict(table.kinds)
    for name in (*kinds, *words):
        if name in words or (is_called_id(name) and name not in table.columns):
            kinds[name] = "text"
    return read_chunks(
        data,
        kinds,
        rows=ROWS,
        required=table.columns,
        encoding=table.encoding,
        quoting=table.quoting,
        like=table.like,
    )


def rows_to_predict(
    data: Any,
    table: TableFormat,
    rules: SubmissionRules,
    *,
    sample_submission: Any = None,
    values: str | None = None,
    id: str | None = None,
    strict: bool = True,
) -> RowsToPredict:
    """Find out which column names the rows, and check rows and format against the sample submission.

    Args:
        data: a file or frame; of a series its history.
        table: how it is read.
        rules: of its submission.
        sample_submission: a file or frame; None: there is none.
        values: what the submission holds; None: what the sample or the run's metric calls for.
        id: the column that names a row; None: the sample's first one, the training data's, or one that is called so.
        strict: False: ids may be missing or repeat.

    Raises:
        MLXBertError: the file cannot be read, a column is missing, ids repeat or are not the sample's.

    Warns:
        SubmissionWarning: as `SubmissionRules.fitted`.
    """
    what = source_name(data, "the data")
    sample = None if sample_submission is None else read_sample(sample_submission)
    form = rules.form(values)
    ids = IdRules(id, table.id, table.id_found, table.time, strict)
    others: tuple[str, ...] = ()
    if sample is not None:
        others = tuple(name for name in sample.columns if name not in form.columns) or sample.columns
    if table.horizon:
        times = times_of(read_history(data, table), table.time, table.horizon)
        found = _Ids((), table.time, times, times)
    else:
        found = _ids(data, what, table, others, ids)
    if sample is None:
        form = ids.named(form, found.columns, what, found.column)
        return RowsToPredict(what, found.column, found.ids, found.names, None, form)
    column = ids.sample_column(sample, found.columns, others, found.column)
    check_ids(sample, column, found.ids, what, found.column)
    if found.column is not None and column not in (found.column, form.id_column):
        warn(f"{sample.what} calls the ids {column!r}, {what} {found.column!r}: they are written as {column!r}")
    form = rules.fitted(sample, column, values)
    return RowsToPredict(what, found.column, found.ids, found.names, sample, form)


def training_id(frame: Any, settings: RunSettings, sample_submission: Any, what: str) -> str | None:
    """Return the column that names the rows of the training data; None: it was told, or there is none.

    It is the sample submission's first column, if the data have it, or one that is called an id; none of its values
    repeats. Times name the rows of a series.

    Warns:
        DataWarning: says which, and what becomes of it.
    """
    if settings.id is not None or settings.time is not None:
        return None
    table = Table(frame, what)
    taken = {*settings.target, *([settings.group] if settings.group else [])}
    found, why = id_columns(table, taken), "it is called so"
    if sample_submission is not None:
        first = read_sample(sample_submission).columns[0]
        if first in table.names and first not in taken and names_rows(table.column(first).values):
            found, why = (first, *(name for name in found if name != first)), "the sample begins with it"
    if not found:
        return None
    kept = f"; not read as text: {', '.join(map(repr, found))}" if settings.text is None else ""
    warnings.warn(
        f"{what}: column {found[0]!r} names the rows ({why}, and no value repeats){kept}; another one: --id COLUMN",
        DataWarning,
        stacklevel=2,
    )
    return found[0]


def read_history(data: Any, table: TableFormat) -> Any:
    """Return the history of a series to forecast, a pandas frame."""
    if not is_path(data):
        return as_pandas(data)
    return read_data(
        data,
        kinds=table.kinds,
        required=table.target,
        encoding=table.encoding,
        quoting=table.quoting,
        like=table.like,
    ).frame


def times_of(history: Any, time: str | None, horizon: int) -> list[str]:
    """What the next `horizon` steps of a series are called: dates as the data write them, 1961-01 after 1960-12."""
    table = Table(history, "the series")
    stamps = np.arange(table.rows) if time is None else list(table.column(time, "time column").values)
    return [str(one) for one in times_ahead(as_times(stamps, "time"), horizon)]


@dataclass(frozen=True)
class _Ids:
    """A table's columns, the one that names its rows (None: they are numbered), ids as text and as they are."""

    columns: tuple[str, ...]
    column: str | None
    ids: list[str]
    names: list[Any]


def _ids(
    data: Any,
    what: str,
    table: TableFormat,
    others: Sequence[str],
    rules: IdRules,
) -> _Ids:
    import pandas

    words = [name for name in (rules.asked, table.id, *others[:1]) if name]
    columns: tuple[str, ...] = ()
    kept, rows = [], 0
    for frame in pieces(data, table, words):
        columns = tuple(str(name) for name in frame.columns)
        kept.append(frame[[name for name in frame.columns if name in words or is_called_id(name)]])
        rows += len(frame)
    candidates = pandas.concat(kept, ignore_index=True)
    column = rules.column(columns, what, others)
    if column is None and len(candidates.columns):
        column = next(iter(id_columns(Table(candidates, what), table.columns)), None)
    if column is None:
        numbers = [*range(rows)]
        return _Ids(columns, None, [str(row) for row in numbers], numbers)
    names = list(candidates[column])
    if not rules.is_strict:
        return _Ids(columns, column, [str(name) for name in names], names)
    ids = id_values(candidates, column, what)
    if not others and is_path(data):
        warn_of_fractions(ids, column, what)
    return _Ids(columns, column, ids, ids if is_path(data) else names)
