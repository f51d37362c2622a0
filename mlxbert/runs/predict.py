"""Check the rows of a table, predict them with a run or a blend, and write a submission, also with intervals.

Intervals of numbers: widths by Monte-Carlo dropout, levels calibrated on rows that no model saw.

The width for a row follows from passes with dropout (`BertWithHead.sample`, `RegressionHead.mc_interval`): their
variance, plus the noise that they do not explain (`calibrate_mc`, fitted on held-out rows and saved with the head).

That assumes a normal distribution, which errors seldom have. So every model also stores the share of its held-out
rows inside the interval at each nominal level. A prediction then uses the nominal level at which the requested share
of all models' held-out rows was inside (Kuleshov et al. 2018, https://arxiv.org/abs/1807.00263).

The interval of several models lies around their mean and has the mean of their widths. The mean of the models
has smaller errors than one model, so the interval may cover more rows than requested.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.calibration import normal_quantile
from heads.errors import HeadError
from heads.regression import RegressionHead
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.file_format import looking_once
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.submission import Submission, SubmissionRules
from mlxbert.data.tokens import PredictionBatches, TokenRows
from mlxbert.files.reading import expand_home
from mlxbert.files.safetensors import read_array_file
from mlxbert.runs.files import RunError, RunFiles, write_csv
from mlxbert.runs.inputs import (
    RowsToPredict,
    TableFormat,
    columns_of,
    in_sample_order,
    pieces,
    read_history,
    rows_to_predict,
)
from mlxbert.training.gradients import seed_of
from mlxbert.training.held_out import NUMBERS, HeldOut, Predictions
from mlxbert.with_head import BertWithHead

# Passes with dropout over the rows that are predicted.
PASSES = 30
# Only a few numbers are fitted: few rows and passes suffice, and take little time.
CALIBRATION_PASSES, CALIBRATION_ROWS = 8, 256
# Half widths at which the share of rows inside is stored, in standard deviations of a normal distribution.
_WIDTHS = np.linspace(0.05, 6, 120)
COVERAGE = "coverage"


def calibrate_intervals(
    model: BertWithHead, held_out: HeldOut, logits: np.ndarray, seed: int
) -> dict[str, np.ndarray]:
    """Fit the noise of the head's intervals on some of the held-out rows; `logits` are those without dropout.

    Returns:
        "coverage": the share of these rows inside, at each nominal level; nothing for a head without intervals.
    """
    head = model.head
    if not isinstance(head, RegressionHead):
        return {}
    count = min(CALIBRATION_ROWS, len(held_out.rows))
    places = np.unique(np.linspace(0, len(held_out.rows) - 1, count).astype(np.int64))
    rows, examples = held_out.rows[places], held_out.examples
    targets = examples.targets[rows]
    with _random_stream(seed):
        sampled = _sampled_logits(
            model,
            examples.tokens,
            rows,
            passes=CALIBRATION_PASSES,
            batch_size=held_out.batch_size,
            extra=held_out.extra,
        )
    try:
        head.calibrate_mc(sampled, targets, **examples.calibrating(rows))
    except HeadError:  # intervals cannot be fitted to such rows, but the training is still valid
        return {}
    predictions, truth = np.asarray(head.predict(logits[places])), head.metric_targets(targets)
    ends = [_ends(head, predictions, sampled, level) for level in _levels()]
    return {COVERAGE: np.array([((lower <= truth) & (truth <= upper)).mean() for lower, upper in ends])}


def nominal_level(files: RunFiles, members: Sequence[str], level: float) -> float:
    """Return the nominal level at which a share of `level` of the held-out rows of all models was inside.

    Raises:
        RunError: a model was not calibrated for intervals.
    """
    coverages = []
    for member in members:
        coverage = (read_array_file(files.logits(member), RunError, fix="fix: train again") or {}).get(COVERAGE)
        if coverage is None or coverage.shape != _WIDTHS.shape or not np.isfinite(coverage).all():
            raise RunError(
                f"{files.member(member)} has no calibrated intervals (it was trained by an older mlxbert, or with "
                "--no-calibrate); fix: train the run again"
            )
        coverages.append(coverage)
    return float(np.interp(level, np.maximum.accumulate(np.mean(coverages, axis=0)), _levels()))


def interval_ends(
    model: BertWithHead,
    predictions: Predictions,
    tokens: TokenRows,
    level: float,
    *,
    batch_size: int,
    extra: Mapping[str, mx.array] | None = None,
) -> tuple[Predictions, Predictions]:
    """Return the lower and the upper ends of one model's intervals at a nominal level.

    Args:
        model: of a regression or a time series.
        predictions: of the rows, without dropout.
        tokens: the rows.
        level: as `nominal_level` gives it.
        batch_size: rows of a batch.
        extra: inputs of the head beside the text.
    """
    head: Any = model.head
    with _random_stream(0):
        sampled = _sampled_logits(model, tokens, None, passes=PASSES, batch_size=batch_size, extra=extra)
    lower, upper = _ends(head, predictions.values, sampled, level)
    return Predictions(predictions.task, lower), Predictions(predictions.task, upper)


def _levels() -> np.ndarray:
    """Return the nominal level of each of `_WIDTHS`."""
    from scipy.special import erf

    levels: np.ndarray = erf(_WIDTHS / np.sqrt(2))
    return levels


def _ends(head: RegressionHead, predictions: np.ndarray, sampled: np.ndarray, level: float) -> tuple[Any, Any]:
    """Return the ends of the intervals around the predictions, which differ from the mean of the passes."""
    interval = head.mc_interval(sampled, float(level))
    below, above = interval.value - interval.lower, interval.upper - interval.value
    return predictions - below.reshape(predictions.shape), predictions + above.reshape(predictions.shape)


def _sampled_logits(
    model: BertWithHead,
    tokens: TokenRows,
    rows: np.ndarray | None,
    *,
    passes: int,
    batch_size: int,
    extra: Mapping[str, mx.array] | None,
) -> np.ndarray:
    """Return logits (passes, n, outputs) with dropout on, in the order of the rows."""
    batches = PredictionBatches(tokens, rows, batch_size=batch_size)
    outputs = []
    for batch in batches:
        chosen = {name: array[mx.array(batch.rows)] for name, array in (extra or {}).items()}
        sampled = model.sample(**batch.inputs(), samples=passes, **chosen)  # (S, B, outputs)
        outputs.append(np.array(sampled).transpose(1, 0, 2))
    return batches.restore(outputs).transpose(1, 0, 2)


@contextmanager
def _random_stream(seed: int) -> Iterator[None]:
    """Start MLX's random numbers at `seed` inside; restore their earlier state afterwards."""
    state: Any = mx.random.state
    before = seed_of(state[0].tolist())
    mx.random.seed(seed)
    try:
        yield
    finally:
        mx.random.seed(before)


AVERAGES = ("probabilities", "ranks")
Progress = Callable[[int, int | None], None]
# (predictions,); with intervals (predictions, lower ends, upper ends).
Parts = tuple[Predictions, ...]


@dataclass(frozen=True)
class Written:
    """Summary of a written submission.

    Attributes:
        rows: their number.
        form: its format.
        id_column: the column of the data that names its rows; None: they are numbered from 0.
    """

    rows: int
    form: Submission
    id_column: str | None

    def __str__(self) -> str:
        ids = "rows numbered from 0" if self.id_column is None else f"ids from {self.id_column!r}"
        return f"{self.form.values} in {', '.join(map(repr, self.form.columns[:3]))}, {ids}"


class Predictor(ABC):
    """Base class that predicts the rows of a table: a `Run` or a `Blend`."""

    path: Path

    @property
    @abstractmethod
    def task(self) -> InferredTask:
        """The inferred task."""

    @property
    @abstractmethod
    def table_format(self) -> TableFormat:
        """The format of a table to predict."""

    @property
    @abstractmethod
    def rules(self) -> SubmissionRules:
        """The rules that give the format of the submissions."""

    @property
    def averages_ranks(self) -> bool:
        """Whether predicting needs the ranks among all rows."""
        return False

    @property
    @abstractmethod
    def sources(self) -> tuple[Path, ...]:
        """The files and the directories of models that the predictions depend on."""

    @abstractmethod
    def predict_pieces(
        self,
        frames: Callable[[], Iterator[Any]],
        *,
        average: str = "probabilities",
        intervals: float | None = None,
        what: str = "the data",
        progress: Progress | None = None,
        load: Callable[[Path], BertWithHead] = BertWithHead.load,
    ) -> Parts:
        """Predict the rows of several frames; only one frame is in memory at a time.

        Args:
            frames: makes the frames, of some thousand rows each.
            average: as for `predict`; likewise `intervals`.
            what: name of the data in messages.
            progress: called with the number of rows that are done, and None.
            load: returns the model in a member's directory.
        """

    @abstractmethod
    def forecast(self, history: Any, intervals: float | None = None) -> Parts:
        """Forecast a series at the end of its history: values (1, steps)."""

    def check_average(self, average: str, form: Submission) -> None:
        """Refuse ranks if labels or numbers are wanted: a rank has neither threshold nor unit.

        Raises:
            RunError: ranks cannot be averaged here, or the average is unknown.
        """
        if average not in AVERAGES:
            raise RunError(f"average {average!r} is unknown; known: {', '.join(AVERAGES)}")
        if average == "ranks" and form.values != "probabilities":
            fix = (
                "--values probabilities" if form.values == "labels" else "--average probabilities, numbers as they are"
            )
            raise RunError(f"ranks are averaged, and the submission holds {form.values}; fix: {fix}")

    def submission(self, values: str | None = None) -> Submission:
        """Return the format of the submissions; `values` asks for labels or probabilities instead of the usual ones.

        Raises:
            RunError: the values do not fit the task.
        """
        return self.rules.form(values)

    def predict(
        self,
        data: Any,
        *,
        values: str | None = None,
        average: str = "probabilities",
        sample_submission: Any = None,
        id: str | None = None,
        intervals: float | None = None,
    ) -> Any:
        """Predict the rows of a frame or file: a pandas frame of the ids and the prediction columns.

        Args:
            data: pandas, polars, a dict or the path of a file, with the columns that the texts are made of; for a time
                series its history (the steps after it are forecast).
            values: "labels", "probabilities" or "values"; None: those of the sample or of the run's submissions.
            average: what is averaged over the models: "probabilities" or "ranks".
            sample_submission: a frame or file whose ids, columns and order the result has; None: the order of `data`.
            id: the column that names a row; None: that of the sample or of the training data, or one that is called an
                id; rows without any are numbered from 0.
            intervals: level of prediction intervals for numbers, such as 0.9: columns NAME_lower and NAME_upper are
                added, and about this share of the true values lies between them (`mlxbert.runs.predict`).

        Raises:
            RunError: the run is not finished, ids and columns are not the sample's, or there are no intervals.
            DataError: a column is missing; the nearest names are given.
        """
        table, _ = predict_table(
            self,
            data,
            values=values,
            average=average,
            sample_submission=sample_submission,
            id=id,
            intervals=intervals,
            strict=False,
        )
        return table


@looking_once()
def predict_table(
    predictor: Predictor,
    data: Any,
    *,
    sample_submission: Any = None,
    values: str | None = None,
    id: str | None = None,
    average: str = "probabilities",
    intervals: float | None = None,
    encoding: str | None = None,
    quoting: Quoting | None = None,
    strict: bool = True,
    progress: Progress | None = None,
) -> tuple[Any, Written]:
    """Predict a file or frame; return the submission as a pandas frame, and its summary.

    Ids and columns are checked before any prediction. Arguments as for `write_submission`; with `strict` False ids may
    be missing or repeat, for results that are not submitted, as in a notebook.

    Raises:
        RunError: ids or columns do not fit the sample, or ranks of labels or numbers are asked for.
        MLXBertError: the file cannot be read, a column is missing, ids repeat.
    """
    import pandas

    check_intervals(predictor.task, intervals, sample_submission)
    table, rules = replace(predictor.table_format, encoding=encoding, quoting=quoting), predictor.rules
    if sample_submission is None:
        predictor.check_average(average, rules.form(values))
    rows = rows_to_predict(
        data,
        table,
        rules,
        sample_submission=sample_submission,
        values=values,
        id=None if id is None else str(id),  # pandas numbers the columns of a file without a header
        strict=strict or sample_submission is not None,
    )
    form = rows.form
    predictor.check_average(average, form)
    if table.horizon:
        parts = predictor.forecast(read_history(data, table), intervals)
        columns = [{form.columns[0]: part.values[0]} for part in parts]
    else:
        parts = predictor.predict_pieces(
            lambda: pieces(data, table),
            average=average,
            intervals=intervals,
            what=rows.what,
            progress=_with_total(rows, progress),
        )
        columns = [columns_of(form, predictor.task, part) for part in parts]
    submission = pandas.DataFrame({form.id_column: rows.names, **beside(columns)})
    if rows.sample is not None:
        submission = in_sample_order(submission, rows.sample, form.id_column, rows.ids)
    return submission, Written(len(submission), form, rows.id_column)


def write_submission(
    predictor: Predictor,
    data: Any,
    *,
    out: str | Path,
    escape_formulas: bool = False,
    **options: Any,
) -> Written:
    """Predict a file or frame and write the submission.

    Args:
        predictor: a finished run, or a blend.
        data: a file or frame to predict; for a series its history.
        out: the CSV file.
        escape_formulas: put a ' before cells that a spreadsheet would compute.
        options: of `predict_table`: `sample_submission`, `values`, `id`, `average` and `intervals` as for
            `Predictor.predict`; `encoding` and `quoting` of a text file (None: detected); `progress`, which is called
            with the number of rows that are done, and of all rows.

    Raises:
        MLXBertError: as `predict_table`; nothing is written then.
    """
    target = expand_home(out)
    if target.is_dir():
        raise RunError(f"{target} is a directory; fix: give the name of a file with -o")
    submission, written = predict_table(predictor, data, **options)
    # A run may come from a stranger: a link in it must not redirect the output.
    follow_links = target.parent != predictor.path
    write_csv(target, submission, escape_formulas=escape_formulas, follow_links=follow_links)
    return written


def check_intervals(task: InferredTask, level: float | None, sample_submission: Any) -> None:
    """Refuse intervals of labels, with the fixed columns of a sample, or of an invalid level."""
    if level is None:
        return
    if task.task not in NUMBERS:
        raise RunError(
            f"prediction intervals are for numbers, and the task is {task.task}; fix: leave out --intervals, "
            "--values probabilities says how sure the run is"
        )
    if sample_submission is not None:
        raise RunError(
            "--intervals adds columns, and the sample submission fixes the columns; fix: leave out one of the two"
        )
    normal_quantile(level, "intervals")


def beside(columns: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the prediction columns; with intervals, lower and upper end follow each column."""
    endings = ("", "_lower", "_upper")
    return {
        f"{name}{ending}": part[name] for name in columns[0] for ending, part in zip(endings, columns, strict=False)
    }


def _with_total(rows: RowsToPredict, progress: Progress | None) -> Progress | None:
    return None if progress is None else lambda done, _: progress(done, len(rows.ids))
