"""The tables of a run: training data as pandas frames, rows to predict, and the columns of a submission."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from heads.command_line import install_fix
from heads.forward_chaining import as_times, times_ahead
from heads.labels import decode_labels
from heads.metrics import get_metric
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.frames import DataError, DataWarning, Table, is_frame, plain
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.reading import Kind, read_chunks, read_data, without_blank_columns
from mlxbert.data.submission import (
    IdRules,
    Sample,
    Submission,
    SubmissionRules,
    check_ids,
    default_submission,
    prediction_table,
    warn,
    warn_of_fractions,
)
from mlxbert.data.text_columns import RowText, id_columns, id_values, is_called_id, names_rows
from mlxbert.errors import RunError
from mlxbert.files.reading import expand_home, sha256_hex
from mlxbert.runs.settings import RunSettings
from mlxbert.training.held_out import Predictions


def submission_rules(settings: RunSettings, task: InferredTask, metric: str, requested: str | None) -> SubmissionRules:
    """Return the rules for the format of a run's submissions.

    Args:
        settings: of the run.
        task: what is predicted.
        metric: the metric that is optimized.
        requested: the metric that the user named; None: `metric` is the task's default.

    Raises:
        RunError: the requested values do not fit the task.
    """
    ready = settings.submission
    compares = None if requested is None else compared_values(requested)
    if ready is not None and settings.values in (None, ready.values):
        return SubmissionRules(task, ready, requested, True, settings.values, compares)
    # A row of a series is named by its time.
    id_column = settings.id or (settings.time if task.task == "time_series" else None)
    usual = default_submission(
        task, get_metric(metric).needs, ready.id_column if ready else id_column, settings.values
    )
    if ready is not None and len(ready.columns) == len(usual.columns):
        usual = replace(usual, columns=ready.columns)
    return SubmissionRules(task, usual, requested, False, settings.values, compares)


def compared_values(metric: str) -> str:
    """Return what a metric compares: "labels" or "probabilities"."""
    return "labels" if get_metric(metric).needs == "labels" else "probabilities"


def columns_of(form: Submission, task: InferredTask, predictions: Predictions) -> dict[str, np.ndarray]:
    """Return the prediction columns of rows, by name, in the form's order.

    Raises:
        RunError: the form has another number of columns than the predictions.
    """
    if form.values == "labels" and task.task != "multilabel":
        if not form.columns:
            raise RunError("the run names no column for its predictions; fix: --sample-submission FILE")
        return {form.columns[0]: decode_labels(predictions.labels(), task.classes or ())}
    table = prediction_table(form, task, predictions.labels() if form.values == "labels" else predictions.values)
    return {name: table[:, place] for place, name in enumerate(form.columns)}


def in_sample_order(frame: Any, sample: Sample, id_column: str, ids: Sequence[str]) -> Any:
    """Return a submission's rows and columns in the order of the sample; `ids` are those of its rows, as text."""
    places = {value: place for place, value in enumerate(ids)}
    order = [places[value] for value in sample.ids(id_column)]
    return frame.iloc[order].reset_index(drop=True)[list(sample.columns)]


FRAME = "<frame>"
"""Replaces the path in run.json if a table was given as a frame."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """The tables that a run reads; each a path, a pandas or polars frame, or a dict of columns.

    Attributes:
        data: the table to learn from.
        valid: to evaluate on.
        test: to predict at the end.
        sample_submission: ids, columns and order that these predictions must match.
    """

    data: Any
    valid: Any = None
    test: Any = None
    sample_submission: Any = None

    def record(self, name: str) -> str | None:
        """Return how run.json names a table: its path, `FRAME`, or None."""
        source = getattr(self, name)
        return None if source is None else os.fspath(source) if is_path(source) else FRAME


def is_path(source: Any) -> bool:
    """Return whether a table is given as the path of a file."""
    return isinstance(source, str | os.PathLike)


def source_name(source: Any, what: str) -> str:
    """Return the name of a table in messages: its path, or `what`."""
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
    """Read a table: a pandas frame, what its columns hold, and its record for run.json.

    Args:
        data: a path; or a pandas or polars frame, or a dict of columns.
        text: how rows become texts; their columns are not read as numbers. None: unknown.
        id_column: column to keep as text.
        encoding: text encoding of a file.
        kinds: of the training file, so that another file is read in the same way.
        quoting: of a text table; None: detected.
        labels: target columns of a file, and words in them that are labels although they look missing.
        words: further columns to keep as text.
        what: name of a frame in messages.

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
    """Return the record for run.json of a table that is read later: its path and SHA-256, which must not change.

    Raises:
        DataError: it is neither a regular file nor a frame.
    """
    if not is_path(source):
        return {"path": None, "sha256": frame_sha256(as_pandas(source, what))}
    path = expand_home(source)
    return {"path": str(path), "sha256": sha256_hex(path, DataError)}


def as_pandas(data: Any, what: str = "the frame") -> Any:
    """Return a pandas or polars frame, or a dict of columns, as a pandas frame with rows numbered from 0.

    Raises:
        DataError: it is none of these, or has no rows; `what` names it in the message.
        RunError: pandas is not installed.
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
        # An index with a name counts as a column, such as the months of a series.
        frame = data.reset_index(drop=all(name is None or name in data.columns for name in data.index.names))
        # pandas numbers the columns of a file without a header.
        named = all(isinstance(name, str) for name in frame.columns)
        return frame if named else frame.set_axis(map(str, frame.columns), axis=1)
    # Column by column: whole numbers beside a missing one stay exact.
    columns = {str(name): list(table.column(name).values) for name in table.names}
    return pandas.DataFrame({name: pandas.Series(cells, dtype=_dtype(cells)) for name, cells in columns.items()})


def _dtype(cells: list[Any]) -> Any:
    """Return the type object for large whole numbers beside missing ones, which pandas reads as floats; else None."""
    large = any(isinstance(cell, int) and abs(cell) > 2**53 for cell in cells)
    return object if large and None in cells else None


def _kinds(frame: Any) -> dict[str, Kind]:
    """Return the kinds of a frame's columns (`mlxbert.data.frames`), for the files to predict."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    def kind(column: Any) -> Kind:
        if is_bool_dtype(column):
            return "boolean"
        return "number" if is_numeric_dtype(column) else "text"

    return {str(name): kind(frame[name]) for name in frame.columns}


def frame_sha256(frame: Any) -> str:
    """Return the SHA-256 of a pandas frame's columns and cells, as there is no file to hash."""
    digest = hashlib.sha256()
    for name in frame.columns:
        digest.update(repr((str(name), [plain(cell) for cell in frame[name]])).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_sample(source: Any) -> Sample:
    """Read a sample submission: a file, or a frame.

    Raises:
        DataError: it cannot be read, or has no rows.
        RunError: it has only one column.
    """
    import pandas

    what = source_name(source, "the sample submission")
    # Without kinds every cell of a file stays as it is written.
    if is_path(source):
        frame = without_blank_columns(pandas.concat(read_chunks(source, {}), ignore_index=True))
    else:
        frame = as_pandas(source, what)
    sample = Sample(what, frame)
    if len(sample.columns) < 2:
        raise RunError(f"{what} has the column {sample.columns[0]!r} alone; fix: the ids and the predictions' columns")
    return sample


# Rows of a piece: few, so that a large file needs hardly more memory than a small one.
ROWS = 1024


@dataclass(frozen=True)
class TableFormat:
    """How a table to predict is read.

    Attributes:
        kinds: what the columns of the training file hold.
        columns: the columns that texts are made of.
        id: column that names a row of the training data; None: there is none.
        id_found: whether that column was found by its name: another file may lack it.
        target: target of a series.
        time: column of times.
        horizon: steps of a forecast; 0: the task is no series.
        like: quoting of the training file.
        encoding: text encoding of this table; likewise `quoting`; None: detected.
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
        what: name of the data in messages.
        id_column: the column that names the rows; None: they are numbered from 0.
        ids: of all rows (or steps ahead), as text.
        names: the ids as they are written: the same, or the values of a frame.
        sample: the sample submission that they match; None: there is none.
        form: format of the submission.
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
    """Read a file or frame as frames of some thousand rows.

    Args:
        data: the path of a file, or a frame.
        table: how it is read.
        words: columns of a file that are read as they are written; columns that are called an id are, too.

    Raises:
        MLXBertError: it cannot be read, or a column is missing.
    """
    if not is_path(data):
        frame = as_pandas(data)
        for name in table.columns:
            Table(frame).find(name)
        return (frame.iloc[start : start + ROWS] for start in range(0, len(frame), ROWS))
    # The kind of an id may be "number", but 0012 must keep its zeros.
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
    """Find the column that names the rows, and compare rows and format with the sample submission.

    Args:
        data: a file or frame; for a series its history.
        table: how it is read.
        rules: rules of its submission.
        sample_submission: a file or frame; None: there is none.
        values: content of the submission; None: that of the sample, or what the metric of the run compares.
        id: column that names a row; None: the first one of the sample, that of the training data, or one that is
            called an id.
        strict: False: ids may be missing or repeat.

    Raises:
        MLXBertError: the file cannot be read, a column is missing, ids repeat or are not the sample's.

    Warns:
        SubmissionWarning: as `SubmissionRules.fitted`.
    """
    what = source_name(data, "the data")
    sample = None if sample_submission is None else read_sample(sample_submission)
    form = rules.form(values)
    id_rules = IdRules(id, table.id, table.id_found, table.time, strict)
    others: tuple[str, ...] = ()
    if sample is not None:
        others = tuple(name for name in sample.columns if name not in form.columns) or sample.columns
    if table.horizon:
        steps = next_times(read_history(data, table), table.time, table.horizon)
        ids = _Ids((), table.time, [str(step) for step in steps], steps)
    else:
        ids = _ids(data, what, table, others, id_rules)
    if sample is None:
        form = id_rules.named(form, ids.columns, what, ids.column)
        return RowsToPredict(what, ids.column, ids.ids, ids.names, None, form)
    column = id_rules.sample_column(sample, ids.columns, others, ids.column)
    check_ids(sample, column, ids.ids, what, ids.column)
    if ids.column is not None and column not in (ids.column, form.id_column):
        warn(f"{sample.what} calls the ids {column!r}, {what} {ids.column!r}: they are written as {column!r}")
    form = rules.fitted(sample, column, values)
    return RowsToPredict(what, ids.column, ids.ids, ids.names, sample, form)


def training_id(frame: Any, settings: RunSettings, sample_submission: Any, what: str) -> str | None:
    """Find the column that names the rows of the training data; None if the user named one, or there is none.

    It is the first column of the sample submission, if the data have it, or one that is called an id; no value
    repeats. Times name the rows of a series.

    Warns:
        DataWarning: names the column, and says that it is not read as text.
    """
    if settings.id is not None or settings.time is not None:
        return None
    table = Table(frame, what)
    taken = {*settings.target, *([settings.group] if settings.group else [])}
    columns, why = id_columns(table, taken), "it is called so"
    if sample_submission is not None:
        first = read_sample(sample_submission).columns[0]
        if first in table.names and first not in taken and names_rows(table.column(first).values):
            columns, why = (first, *(name for name in columns if name != first)), "the sample begins with it"
    if not columns:
        return None
    note = f"; not read as text: {', '.join(map(repr, columns))}" if settings.text is None else ""
    warnings.warn(
        f"{what}: column {columns[0]!r} names the rows ({why}, and no value repeats){note}; another one: --id COLUMN",
        DataWarning,
        stacklevel=2,
    )
    return columns[0]


def read_history(data: Any, table: TableFormat) -> Any:
    """Read the history of a series to forecast as a pandas frame."""
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


def next_times(history: Any, time: str | None, horizon: int) -> list[Any]:
    """Return the next times of a series: dates as the data write them (1961-01 after 1960-12), or numbers."""
    table = Table(history, "the series")
    stamps = np.arange(table.rows) if time is None else list(table.column(time, "time column").values)
    times = times_ahead(as_times(stamps, "time"), horizon)
    return [str(step) if times.dtype.kind == "M" else step.item() for step in times]


@dataclass(frozen=True)
class _Ids:
    """The columns of a table, the one that names its rows (None: they are numbered), its ids as text and as read."""

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
    parts, rows = [], 0
    for frame in pieces(data, table, words):
        columns = tuple(str(name) for name in frame.columns)
        parts.append(frame[[name for name in frame.columns if name in words or is_called_id(name)]])
        rows += len(frame)
    candidates = pandas.concat(parts, ignore_index=True)
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
