"""Predictions of a finished run for new rows: each member in turn on a piece of the rows, then their average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heads.forward_chaining import as_times
from mlxbert.data.reading import DataError, id_values, read_chunks, read_data, render_texts
from mlxbert.data.token_rows import token_rows
from mlxbert.factory.competition import Submission
from mlxbert.factory.frames import Table
from mlxbert.factory.target_values import target_values
from mlxbert.runs.files import RunError
from mlxbert.runs.run import Run
from mlxbert.runs.submission import check_sample, columns_of, in_sample_order, read_sample
from mlxbert.tokenization import Tokenizer
from mlxbert.training.forward import predict_logits
from mlxbert.training.predictions import Predictions, average, concatenate, ranks
from mlxbert.with_head import BertWithHead

AVERAGES = ("probabilities", "ranks")
# A piece is small beside the process, so that many rows take hardly more memory than few.
_ROWS = 1024
Progress = Callable[[int, int | None], None]


def predict_frame(
    run: Run, frame: Any, *, how: str = "probabilities", progress: Progress | None = None
) -> Predictions:
    """The average of the run's members for every row of a pandas frame; see `predict_pieces`."""
    pieces = (frame.iloc[start : start + _ROWS] for start in range(0, len(frame), _ROWS))
    return predict_pieces(run, pieces, how=how, progress=progress)


def predict_pieces(
    run: Run, frames: Iterator[Any], *, how: str = "probabilities", progress: Progress | None = None
) -> Predictions:
    """The average of the run's members for the rows of several frames, one after the other in memory.

    Args:
        run: a finished one.
        frames: of some thousand rows each.
        how: "probabilities" (or numbers) are averaged, or each member's "ranks" among all rows (no labels then).
        progress: called with rows done and None, as their number is not known.

    Raises:
        RunError: an unknown average, or no rows.
        MLXBertError: a column is missing, a member is damaged.
    """
    if how not in AVERAGES:
        raise RunError(f"average {how!r} is unknown; known: {', '.join(AVERAGES)}")
    members = run.prediction_members
    made: list[list[Predictions]] = [[] for _ in members]
    together: list[Predictions] = []
    done = 0
    tokenizer = Tokenizer.from_directory(members[0], max_length=run.max_length)
    for frame in frames:
        rendered = render_texts(frame, run.text)
        tokens = token_rows(tokenizer, rendered.texts, rendered.pairs, max_length=run.max_length)
        parts = []
        for member in members:
            # One model in memory at a time: reading it again costs less than a batch.
            model = BertWithHead.load(member)
            logits = predict_logits(model, tokens, batch_size=run.batch_size)
            parts.append(Predictions.of(run.task.task, model.head, logits))
            del model
        if how == "ranks":
            for several, part in zip(made, parts, strict=True):
                several.append(part)
        else:
            together.append(average(parts))
        done += len(frame)
        if progress is not None:
            progress(done, None)
    if not done:
        raise RunError("there are no rows to predict; fix: is the file empty?")
    if how == "ranks":
        return average([ranks(concatenate(several)) for several in made])
    return concatenate(together)


def forecast(run: Run, history: Any) -> tuple[list[Any], Predictions]:
    """The next `horizon` values of a series: their times, and the forecast (1, horizon) made at its end.

    Made by the models of the last fold, which have seen most of the series.

    Args:
        run: of a time series.
        history: a pandas frame, oldest first; at least the head's window of rows.

    Raises:
        RunError: the history is too short, or times are no steps of one length.
    """
    table = Table(history, "the series")
    (column,) = [table.column(name, "target column") for name in run.task.target]
    series = np.asarray(target_values([column], run.task), np.float64)
    stamps = np.arange(len(series)) if run.time is None else list(table.column(run.time, "time column").values)
    times = as_times(stamps, "time")
    texts = render_texts(history.iloc[-1:], run.text)
    parts = []
    horizon = 1
    for member in run.prediction_members:
        model = BertWithHead.load(member)
        head: Any = model.head
        horizon = head.horizon
        if len(series) < head.window:
            raise RunError(f"a forecast needs {head.window} values of history, not {len(series)}; fix: give more rows")
        tokenizer = Tokenizer.from_directory(member, max_length=run.max_length)
        tokens = token_rows(tokenizer, texts.texts, texts.pairs, max_length=run.max_length)
        past = series[None, len(series) - head.window :] if head.window else None
        extra = head.inputs(history=past, made_at=times[-1:])
        logits = predict_logits(model, tokens, batch_size=1, extra=extra)
        values = np.asarray(head.predict(logits)).reshape(1, horizon)
        parts.append(Predictions(run.task.task, values))
    return _times_ahead(times, horizon), average(parts)


def write_submission(
    run: Run,
    data: str | Path,
    *,
    out: str | Path,
    sample_submission: str | Path | None = None,
    values: str | None = None,
    how: str = "probabilities",
    encoding: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Predict a file and write the submission; returns its rows. Ids and columns are checked before any prediction.

    Raises:
        RunError: ids or columns do not fit the sample.
        MLXBertError: the file cannot be read, a column is missing, ids repeat.
    """
    from mlxbert.runs.tables import write_csv

    form = run.submission(values)
    sample = None if sample_submission is None else read_sample(sample_submission, form.id_column)
    if run.task.task == "time_series":
        frame = read_data(data, kinds=run.kinds, required=[*run.task.target], encoding=encoding).frame
        times, predictions = forecast(run, frame)
        made = _table(form, [str(time) for time in times], {form.columns[0]: predictions.values[0]})
        if sample is not None:
            check_sample(sample, form, list(made[form.id_column]), str(data))
    else:
        required = [*run.text.columns, *([run.id] if run.id else [])]

        def pieces() -> Iterator[Any]:
            return read_chunks(data, run.kinds, rows=_ROWS, required=required, encoding=encoding)

        ids = _ids(run, pieces(), str(data))
        if sample is not None:
            check_sample(sample, form, ids, str(data))
        predictions = predict_pieces(run, pieces(), how=how, progress=_of(len(ids), progress))
        made = _table(form, ids, columns_of(form, run.task, predictions))
    write_csv(Path(out), in_sample_order(made, sample, form))
    return len(made)


def _of(total: int, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda done, _: progress(done, total)


def _ids(run: Run, pieces: Iterator[Any], what: str) -> list[str]:
    """The ids of all rows, or their numbers from 0; the first look at the file."""
    if run.id is None:
        return [str(row) for row in range(sum(len(frame) for frame in pieces))]
    import pandas

    return id_values(pandas.concat([frame[[run.id]] for frame in pieces], ignore_index=True), run.id, what)


def _table(form: Submission, ids: Sequence[str], columns: dict[str, np.ndarray]) -> Any:
    import pandas

    return pandas.DataFrame({form.id_column: list(ids), **columns})


def _times_ahead(times: np.ndarray, horizon: int) -> list[Any]:
    """The next times, as far apart as the last two are; dates as the data write them: 1961-01 after 1960-12."""
    if len(times) < 2:
        raise DataError("the series has one row, which tells no step from one time to the next; fix: give more rows")
    step = times[-1] - times[-2]
    ahead = [times[-1] + step * (i + 1) for i in range(horizon)]
    return [str(time) if times.dtype.kind == "M" else time.item() for time in ahead]
