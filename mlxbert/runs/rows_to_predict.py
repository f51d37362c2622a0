"""The rows of a file to predict: their ids, checked against the sample submission before anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heads.forward_chaining import as_times, times_ahead
from mlxbert.data.cells import Kind
from mlxbert.data.reading import Quoting, id_values, read_chunks, read_data
from mlxbert.factory.competition import Submission
from mlxbert.factory.frames import Table
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import Sample, check_sample, read_sample

# A piece is small beside the process, so that many rows take hardly more memory than few.
ROWS = 1024


def pieces(
    data: str | Path,
    kinds: Mapping[str, Kind],
    columns: Sequence[str],
    id_column: str | None,
    encoding: str | None,
    quoting: Quoting | None = None,
    like: Quoting | None = None,
) -> Iterator[Any]:
    """The file as frames of some thousand rows; `like`: the quoting of the training file.

    Raises:
        MLXBertError: it cannot be read, or a column is missing.
    """
    own = [id_column] if id_column else []
    required = [*columns, *own]
    # Of a run on a frame the kind may be "number": 0012 is to be written as it is read all the same.
    as_read: dict[str, Kind] = dict.fromkeys(own, "text")
    return read_chunks(
        data, {**kinds, **as_read}, rows=ROWS, required=required, encoding=encoding, quoting=quoting, like=like
    )


def row_ids(frames: Iterator[Any], id_column: str | None, what: str) -> list[str]:
    """The ids of all rows, or their numbers from 0.

    Raises:
        DataError: an id is missing, or comes twice.
    """
    if id_column is None:
        return [str(row) for row in range(sum(len(frame) for frame in frames))]
    import pandas

    return id_values(pandas.concat([frame[[id_column]] for frame in frames], ignore_index=True), id_column, what)


def sample_of(path: str | Path | None, form: Submission, ids: Sequence[str], what: str) -> Sample | None:
    """The sample submission, if there is one, which these ids and columns fit.

    Raises:
        RunError: they do not.
        MLXBertError: it cannot be read.
    """
    if path is None:
        return None
    sample = read_sample(path, form.id_column)
    check_sample(sample, form, ids, what)
    return sample


def check_rows_to_predict(
    settings: RunSettings,
    task: str,
    columns: Sequence[str],
    kinds: Mapping[str, Kind],
    form: Submission,
    like: Quoting | None = None,
) -> None:
    """Refuse before hours of training what could not be predicted after them: the test file, and its sample.

    Raises:
        MLXBertError: the file cannot be read, a column is missing, ids repeat, or it does not fit the sample.
    """
    if settings.test is None:
        return
    if task == "time_series":
        frame = read_data(
            settings.test,
            kinds=kinds,
            required=settings.target,
            encoding=settings.encoding,
            quoting=settings.quoting,
            like=like,
        ).frame
        ids = times_of(frame, settings.time, int(settings.head.get("horizon", 1)))
    else:
        frames = pieces(settings.test, kinds, columns, settings.id, settings.encoding, settings.quoting, like)
        ids = row_ids(frames, settings.id, settings.test)
    sample_of(settings.sample_submission, form, ids, settings.test)


def times_of(history: Any, time: str | None, horizon: int) -> list[str]:
    """What the next `horizon` steps of a series are called: dates as the data write them, 1961-01 after 1960-12."""
    table = Table(history, "the series")
    stamps = np.arange(table.rows) if time is None else list(table.column(time, "time column").values)
    return [str(one) for one in times_ahead(as_times(stamps, "time"), horizon)]
