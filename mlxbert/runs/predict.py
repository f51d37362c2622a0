"""Predictions of a finished run for new rows: each member in turn on a piece of the rows, then their average."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heads.forward_chaining import as_times, times_ahead
from mlxbert.checkpoint import load_tokenizer, read_config
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.file_format import looking_once
from mlxbert.data.frames import Table
from mlxbert.data.infer_task import target_values
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import render_texts, warn_of_empty
from mlxbert.data.tokens import token_rows
from mlxbert.files.reading import expand_home
from mlxbert.models.base import config_from_hf
from mlxbert.runs.blend import Blend
from mlxbert.runs.files import RunError, write_csv
from mlxbert.runs.record import BLEND, INFO, is_run
from mlxbert.runs.rows import ROWS, RowsToPredict, pieces, read_history, rows_to_predict
from mlxbert.runs.run import Run
from mlxbert.runs.submission import columns_of, in_sample_order
from mlxbert.tokenization.encoding import TruncationWarning, warn_of_truncation
from mlxbert.tokenization.tokenizer import Tokenizer
from mlxbert.training.held_out import Predictions, average, concatenate, predict_logits, ranks
from mlxbert.with_head import BertWithHead

AVERAGES = ("probabilities", "ranks")
Progress = Callable[[int, int | None], None]


def predict_frame(
    run: Run, frame: Any, *, how: str = "probabilities", progress: Progress | None = None
) -> Predictions:
    """The average of the run's members for every row of a pandas frame; see `predict_pieces`."""
    frames = (frame.iloc[start : start + ROWS] for start in range(0, len(frame), ROWS))
    return predict_pieces(run, frames, how=how, progress=progress)


def predict_pieces(
    run: Run,
    frames: Iterator[Any],
    *,
    how: str = "probabilities",
    what: str = "the data",
    progress: Progress | None = None,
) -> Predictions:
    """The average of the run's members for the rows of several frames, one after the other in memory.

    Args:
        run: a finished one.
        frames: of some thousand rows each.
        how: "probabilities" (or numbers) are averaged, or each member's "ranks" among all rows (no labels then).
        what: the rows are called in messages.
        progress: called with rows done and None, as their number is not known.

    Raises:
        RunError: there are no rows, or the run is not finished.
        MLXBertError: a column is missing, a member is damaged.

    Warns:
        DataWarning, TruncationWarning: texts are empty or were cut; of all pieces together.
    """
    members = run.prediction_members
    made: list[list[Predictions]] = [[] for _ in members]
    together: list[Predictions] = []
    done, empty, cut, longest, uncounted = 0, 0, 0, 0, False
    tokenizer = _tokenizer(run, members[0])
    for frame in frames:
        rendered = run.text.render(frame, what)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # once, below, instead of for every piece
            tokens = token_rows(tokenizer, rendered.texts, rendered.pairs, max_length=run.max_length)
        empty, cut, longest = empty + rendered.empty, cut + tokens.cut, max(longest, tokens.longest)
        uncounted = uncounted or tokens.uncounted
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
    warn_of_empty(empty, done, what, stacklevel=2)
    if cut:
        warn_of_truncation(cut, done, longest, tokens.limit, stacklevel=2, at_least=uncounted)
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
        RunError: the history is too short or lacks a value, or times are no steps of one length.
    """
    table = Table(history, "the series")
    (column,) = [table.column(name, "target column") for name in run.task.target]
    if None in column.values:
        row = column.values.index(None)
        raise RunError(
            f"the series has no value of {column.name!r} in row {row}; fix: fill it in, or end the history before it"
        )
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
        tokenizer = _tokenizer(run, member)
        tokens = token_rows(tokenizer, texts.texts, texts.pairs, max_length=run.max_length)
        past = series[None, len(series) - head.window :] if head.window else None
        extra = head.inputs(history=past, made_at=times[-1:])
        logits = predict_logits(model, tokens, batch_size=1, extra=extra)
        values = np.asarray(head.predict(logits)).reshape(1, horizon)
        parts.append(Predictions(run.task.task, values))
    return _names(times_ahead(times, horizon)), average(parts)


def _tokenizer(run: Run, member: Path) -> Tokenizer:
    return load_tokenizer(member, config_from_hf(read_config(member)), max_length=run.max_length)


def open_predictor(path: str | Path) -> Run | Blend:
    """A run or a blend, whichever lies there.

    Raises:
        RunError: neither does.
    """
    root = expand_home(path)
    if (root / BLEND).exists():
        return Blend.open(root)
    if root.is_dir() and not is_run(root):
        run = root.resolve().parent.parent
        if root.resolve().parent.name == "members" and is_run(run):
            raise RunError(f"{root} is one model of a run; fix: mlxbert predict {shlex.quote(str(run))}")
        if (root / "config.json").is_file():
            raise RunError(f"{root} is a checkpoint, not a run; fix: fine-tune it first: mlxbert train --model {root}")
    if root.is_file() and root.name in (INFO, BLEND):
        raise RunError(f"{root} is a file of a run or blend; fix: give its directory, {root.parent}")
    return Run.open(root)


@dataclass(frozen=True)
class Written:
    """What a submission holds, for those who are told.

    Attributes:
        rows: how many.
        form: its format.
        id_column: the column of the data that names its rows; None: they are numbered from 0.
    """

    rows: int
    form: Submission
    id_column: str | None

    def __str__(self) -> str:
        ids = "rows numbered from 0" if self.id_column is None else f"ids from {self.id_column!r}"
        return f"{self.form.values} in {', '.join(map(repr, self.form.columns[:3]))}, {ids}"


@looking_once()
def predict_table(
    run: Run | Blend,
    data: Any,
    *,
    sample_submission: Any = None,
    values: str | None = None,
    id: str | None = None,
    how: str = "probabilities",
    encoding: str | None = None,
    quoting: Quoting | None = None,
    strict: bool = True,
    progress: Progress | None = None,
) -> tuple[Any, Written]:
    """Predict a file or frame: the submission as a pandas frame, and what it holds.

    Ids and columns are checked before any prediction. Arguments as for `write_submission`; not `strict`: ids may be
    missing or repeat, as in a notebook, where nobody hands the result in.

    Raises:
        RunError: ids or columns do not fit the sample, or ranks of labels or numbers are asked for.
        MLXBertError: the file cannot be read, a column is missing, ids repeat.
    """
    import pandas

    table, rules = replace(run.table_format, encoding=encoding, quoting=quoting), run.rules
    if sample_submission is None:
        _check_averages(run, how, rules.form(values))
    rows = rows_to_predict(
        data,
        table,
        rules,
        sample_submission=sample_submission,
        values=values,
        id=None if id is None else str(id),  # pandas numbers the columns of a file without a header
        strict=strict or sample_submission is not None,
    )
    form, names = rows.form, rows.names
    _check_averages(run, how, form)
    if table.horizon:
        names, predictions = _forecast(run, read_history(data, table))
        columns = {form.columns[0]: predictions.values[0]}
    else:
        predictions = _predicted(run, lambda: pieces(data, table), how, rows.what, _of(rows, progress))
        columns = columns_of(form, run.task, predictions)
    made = pandas.DataFrame({form.id_column: names, **columns})
    if rows.sample is not None:
        made = in_sample_order(made, rows.sample, form.id_column, rows.ids)
    return made, Written(len(made), form, rows.id_column)


def write_submission(
    run: Run | Blend,
    data: Any,
    *,
    out: str | Path,
    sample_submission: Any = None,
    values: str | None = None,
    id: str | None = None,
    how: str = "probabilities",
    encoding: str | None = None,
    quoting: Quoting | None = None,
    escape_formulas: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Predict a file or frame and write the submission.

    Args:
        run: a finished run, or a blend.
        data: a file or frame to predict; of a series its history.
        out: the CSV file.
        sample_submission: a file or frame whose ids, columns and order the submission has.
        values: "labels", "probabilities" or "values"; None: as the sample or the run's metric calls for.
        id: the column that names a row; None: found (`rows_to_predict`).
        how: what of the members is averaged, "probabilities" or "ranks".
        encoding: of the file's text; None: found out.
        quoting: of a text table; None: found out.
        escape_formulas: put a ' before cells that a spreadsheet would compute.
        progress: called with rows done and their number.

    Raises:
        MLXBertError: as `predict_table`; nothing is written then.
    """
    target = expand_home(out)
    if target.is_dir():
        raise RunError(f"{target} is a directory; fix: give the name of a file with -o")
    made, written = predict_table(
        run,
        data,
        sample_submission=sample_submission,
        values=values,
        id=id,
        how=how,
        encoding=encoding,
        quoting=quoting,
        progress=progress,
    )
    # A run may come from a stranger: a link in it must not lead the writing elsewhere.
    write_csv(target, made, escape_formulas=escape_formulas, follow_links=target.parent != run.path)
    return written


def check_average(how: str, form: Submission) -> None:
    """Refuse ranks where labels or numbers are wanted: a rank has neither threshold nor unit.

    Raises:
        RunError: it is so, or the average is unknown.
    """
    if how not in AVERAGES:
        raise RunError(f"average {how!r} is unknown; known: {', '.join(AVERAGES)}")
    if how == "ranks" and form.values != "probabilities":
        fix = "--values probabilities" if form.values == "labels" else "--average probabilities, numbers as they are"
        raise RunError(f"ranks are averaged, and the submission holds {form.values}; fix: {fix}")


def _check_averages(run: Run | Blend, how: str, form: Submission) -> None:
    check_average(how, form)
    if isinstance(run, Blend):
        check_average(run.record.average, form)


def _predicted(
    run: Run | Blend, frames: Callable[[], Iterator[Any]], how: str, what: str, progress: Progress | None
) -> Predictions:
    if isinstance(run, Run):
        return predict_pieces(run, frames(), how=how, what=what, progress=progress)
    return run.combine([predict_pieces(one, frames(), how=how, what=what, progress=progress) for one in run.runs])


def _forecast(run: Run | Blend, history: Any) -> tuple[list[Any], Predictions]:
    if isinstance(run, Run):
        return forecast(run, history)
    made = [forecast(one, history) for one in run.runs]
    return made[0][0], run.combine([predictions for _, predictions in made])


def _of(rows: RowsToPredict, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda done, _: progress(done, len(rows.ids))


def _names(times: np.ndarray) -> list[Any]:
    """Dates as the data write them (1961-01 after 1960-12), numbers as numbers."""
    return [str(time) if times.dtype.kind == "M" else time.item() for time in times]
