"""The format of a submission: its columns, what they hold, and the order of its rows.

A sample submission decides the format where there is one. Everything is checked before anything is predicted. This
file needs nothing but NumPy: `mlxbert-export` copies it beside the weights, so that a notebook writes what
`mlxbert predict` writes.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlxbert.data.frames import NO_NUMBERS, DataError, Table, as_text, plain, shown
from mlxbert.errors import MLXBertWarning, RunError, first_ten

if TYPE_CHECKING:
    from mlxbert.data.infer_task import InferredTask

VALUES = ("labels", "probabilities", "values")
NUMBERS = ("regression", "time_series")
"""The tasks whose predictions are numbers."""


@dataclass(frozen=True)
class Submission:
    """The file to hand in.

    Attributes:
        id_column: the name of its first column; its values are the test file's id column, or the row number from 0
            where the data have none.
        columns: the prediction columns.
        values: "labels" (decided ones), "probabilities" (of the positive class, or of each label), or "values" in
            the target's units.
    """

    id_column: str
    columns: tuple[str, ...]
    values: Literal["labels", "probabilities", "values"]


class SubmissionWarning(MLXBertWarning):
    """The data or the sample leave a choice open; the message names the choice and the option that changes it."""


def warn(message: str) -> None:
    """Warn of a choice that could be another one."""
    warnings.warn(message, SubmissionWarning, stacklevel=2)


@dataclass(frozen=True, eq=False)
class Sample:
    """A competition's sample submission.

    Attributes:
        what: its name in messages.
        frame: its rows: a pandas frame, or a dict of columns.
    """

    what: str
    frame: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns, in its order."""
        return tuple(map(str, self.frame))

    def ids(self, column: str) -> list[str]:
        """Return the ids in a column as text, each there once.

        Raises:
            RunError: an id comes twice or is missing.
        """
        ids = [value or "" for value in as_text(self.frame[column])]
        repeated = [value for value, count in Counter(ids).items() if count > 1]
        if repeated or "" in ids:
            raise RunError(
                f"{self.what}: id {(repeated or [''])[0]!r} comes twice or is missing in column {column!r}; "
                "fix: download the sample again"
            )
        return ids

    def cells(self, columns: Sequence[str]) -> set[str]:
        """Return the different values in some columns as they are written; empty cells are left out."""
        values = {plain(value) for name in columns for value in self.frame[name]}
        return {str(value).strip() for value in values if value is not None}


@dataclass(frozen=True)
class SubmissionRules:
    """What decides the format of a model's submissions.

    Attributes:
        task: what is predicted.
        usual: the format without a sample.
        metric: the metric that the user or a ready configuration asked for; None: the task's default, which does not
            say how the competition scores.
        ready: whether `usual` is a ready configuration's.
        values: what the user asked for when the run began; a sample does not change it.
        compares: "labels" or "probabilities": what `metric` compares; None where there is no metric.
        is_named: whether the columns' names are known; False for a model without its run, whose columns take the
            names of the sample's, one for one.
    """

    task: InferredTask
    usual: Submission
    metric: str | None
    ready: bool
    values: str | None = None
    compares: str | None = None
    is_named: bool = True

    def form(self, values: str | None) -> Submission:
        """Return the usual format, or that of other `values`.

        Raises:
            RunError: they do not fit the task.
        """
        if values in (None, self.usual.values):
            return self.usual
        form = default_submission(self.task, "scores", self.usual.id_column, values)
        return replace(form, columns=self.usual.columns) if len(form.columns) == len(self.usual.columns) else form

    def fitted(self, sample: Sample, id_column: str, values: str | None = None) -> Submission:
        """Return the format of the sample: its names, in the order of the predictions.

        Args:
            sample: the sample submission.
            id_column: its column of ids.
            values: what the user asks for; None: the sample's cells decide.

        Raises:
            RunError: its columns are not those of the predictions.

        Warns:
            SubmissionWarning: a column has another name, or labels and probabilities both fit.
        """
        names = tuple(name for name in sample.columns if name != id_column)
        chosen, warning = self.values_of(sample, names, values or self.values)
        form = self.form(chosen)
        columns = self._columns(form, names, sample.what)
        if warning:
            warn(warning)
        return Submission(id_column, columns, form.values)

    def values_of(self, sample: Sample, names: tuple[str, ...], asked: str | None) -> tuple[str | None, str]:
        """Return "labels" or "probabilities", and a warning ("": none).

        The user's choice (`asked`) counts first, then the sample's cells; None where neither says it.
        """
        task = self.task.task
        if task in NUMBERS:
            return asked, ""
        own = (0, 1) if task == "multilabel" else self.task.classes or ()
        labels = {_same(shown(label)) for label in own}
        cells = {cell for cell in sample.cells(names) if _same(cell) in labels or cell not in NO_NUMBERS}
        strange = sorted(cell for cell in cells if _same(cell) not in labels)
        are_numbers = all(_number(cell) is not None for cell in cells)
        are_fractions = are_numbers and any(not (_number(cell) or 0.0).is_integer() for cell in strange)
        others = ""
        if strange:
            others = (
                f"{sample.what} holds {strange[0]!r}, which is none of the model's labels: its own are written, such "
                f"as {' and '.join(repr(shown(label)) for label in own[:2])}"
            )
        if asked is not None:
            return asked, others if asked == "labels" and not are_fractions else ""
        if task in ("multiclass", "ordinal"):
            if len(names) > 1:
                return "probabilities", ""
            is_rank = self.usual.values == "probabilities" and len(self.usual.columns) == 1  # a ready configuration's
            if is_rank:
                return "probabilities", ""
            return "labels", others if len(cells) > 1 or not are_numbers else ""
        if not cells:
            return None, ""
        if not are_numbers:
            return "labels", others or self._contradiction("labels", f"{sample.what} holds words")
        if are_fractions:
            why = f"{sample.what} holds fractions such as {strange[0]}"
            return "probabilities", self._contradiction("probabilities", why)
        if not strange and len({_same(cell) for cell in cells}) > 1:
            return "labels", self._contradiction("labels", f"{sample.what} holds {' and '.join(sorted(cells)[:2])}")
        return self._open(sample.what, sorted(cells), bool(strange))

    def _columns(self, form: Submission, names: tuple[str, ...], what: str) -> tuple[str, ...]:
        """Return the sample's name of each prediction column, in the order of the predictions."""
        classes = [str(name) for name in self.task.classes or self.task.target]
        columns = tuple(classes) if set(classes) == set(form.columns) else form.columns
        if set(columns) == set(names):
            return columns
        if len(columns) == len(names) and not self.is_named:
            return names
        folded = {name.strip().casefold(): name for name in names}
        if len(columns) == len(names) == len(folded) and {name.casefold() for name in columns} == set(folded):
            return tuple(folded[name.casefold()] for name in columns)
        if len(columns) == len(names) == 1:
            warn(f"{what} calls the predictions {names[0]!r}, not {columns[0]!r}: they are written under that name")
            return names
        missing, extra = _without(columns, names), _without(names, columns)
        fix = "take the other columns out of it" if extra and not missing else "the sample of this competition"
        raise RunError(
            f"{what} has the columns {', '.join(names)}, and the model predicts {', '.join(columns)}; "
            f"fix: {fix}, or --values labels|probabilities"
            + _listed("the sample has no", missing)
            + _listed("the model predicts no", extra)
        )

    def _contradiction(self, values: str, why: str) -> str:
        """Return a warning where the metric that was asked for compares something else; "" where it does not."""
        if self.compares is None or self.compares == values:
            return ""
        return f"{why}: {values} are written, though {self.metric} compares {self.compares}; {_option(self.compares)}"

    def _open(self, what: str, cells: Sequence[str], is_strange: bool) -> tuple[str, str]:
        """Return the values and a warning for a sample with one whole number, or with numbers that are no labels."""
        if self.ready:
            return self.usual.values, ""
        holds = f"{what} holds {', '.join(cells[:3])} alone, which could stand for labels and for probabilities"
        if is_strange:
            labels = ", ".join(repr(shown(label)) for label in self.task.classes or ())
            holds = f"{what} holds {', '.join(cells[:3])}, and the labels are {labels}"
        are_whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
        chosen = self.compares or ("labels" if are_whole and not is_strange else "probabilities")
        if self.compares == "labels" and not is_strange:
            return chosen, ""
        other = "probabilities" if chosen == "labels" else "labels"
        return chosen, f"{holds}: {chosen} are written; {_option(other)}"


def default_submission(task: InferredTask, metric_needs: str, id_column: str | None, values: str | None) -> Submission:
    """Return the format where nothing fixes one: labels where the metric compares labels, else probabilities.

    Raises:
        RunError: `values` does not fit the task.
    """
    if task.task in NUMBERS:
        chosen = values or "values"
    else:
        chosen = values or ("labels" if metric_needs == "labels" else "probabilities")
    if chosen not in VALUES or (chosen == "values") != (task.task in NUMBERS):
        fitting = "values" if task.task in NUMBERS else "labels or probabilities"
        raise RunError(f"a submission of {chosen!r} does not fit {task.task}; fix: {fitting}")
    columns = task.target
    if task.task == "multilabel" or (task.task in ("multiclass", "ordinal") and chosen == "probabilities"):
        columns = tuple(str(label) for label in task.classes or ())
    return Submission(id_column or "id", columns, chosen)  # type: ignore[arg-type]


def prediction_table(form: Submission, task: InferredTask, values: np.ndarray) -> np.ndarray:
    """Return predictions (N,) or (N, outputs) as (N, columns), in the form's order.

    Raises:
        RunError: the form has another number of columns.
    """
    if task.task == "ordinal" and form.values == "probabilities" and len(form.columns) == 1:
        values = values @ np.arange(values.shape[1])  # the expected rank
    table = values.reshape(len(values), -1)
    if table.shape[1] != len(form.columns):
        raise RunError(
            f"a submission of {len(form.columns)} columns ({', '.join(form.columns)}), and predictions of "
            f"{table.shape[1]}; fix: --values labels, or another sample"
        )
    names = [str(name) for name in task.classes or task.target]
    if set(form.columns) != set(names):
        return table
    return table[:, [names.index(name) for name in form.columns]]


# Which column names the rows.


@dataclass(frozen=True)
class IdRules:
    """How the column that names the rows of a file is found.

    Attributes:
        asked: the column that the user names.
        trained: the training data's; None: there is none.
        was_found: whether the training data's was found by its name, so that another file may lack it.
        time: the column of times, which names the rows of a series.
        is_strict: False: the ids may repeat or be missing.
    """

    asked: str | None
    trained: str | None
    was_found: bool
    time: str | None
    is_strict: bool = True

    def column(self, columns: Sequence[str], what: str, others: Sequence[str]) -> str | None:
        """Return the column that the user names, or the sample's first, or the training data's; None: none of these.

        Args:
            columns: of the file.
            what: the file's name in messages.
            others: the sample's columns that are no predictions.

        Raises:
            DataError: the file has no such column.
        """
        if self.asked is None and others and others[0] in columns and self.trained not in others:
            return others[0]
        must = self.is_strict and not self.was_found
        wanted = self.asked or (self.trained if self.trained in columns or must else None)
        if wanted is None:
            return None
        try:
            return str(Table(dict.fromkeys(columns, (None,)), what).find(wanted, "id column"))
        except DataError as error:
            raise DataError(f"{error} (fix: --id COLUMN)") from None

    def sample_column(self, sample: Sample, columns: Sequence[str], others: Sequence[str], column: str | None) -> str:
        """Return the sample's column of ids; `column` is the file's (None: its rows are numbered)."""
        shared = [name for name in others if name in columns]
        candidates = (column, self.asked, self.trained, *shared, *others)
        return next(name for name in candidates if name is not None and name in sample.columns)

    def named(self, form: Submission, columns: Sequence[str], what: str, column: str | None) -> Submission:
        """Return the form with the name of the column of ids, where no sample gives one.

        Warns:
            SubmissionWarning: the rows are numbered, though the file or the training data have a column of that name.
        """
        if column is None and form.id_column in columns:
            warn(f"{what}: column {form.id_column!r} has a value twice or none; the rows are numbered as 'row'")
            column = "row"
        elif column is None and self.trained is not None and self.trained == form.id_column:
            if self.is_strict:
                warn(f"{what} has no column {self.trained!r}: the rows are numbered as 'row'; fix: --id COLUMN")
            column = "row"
        # The run's own form may have another name for its ids: that of a sample.
        is_usual = column is None or column == (self.trained or self.time)
        return form if is_usual else replace(form, id_column=str(column))


def warn_of_fractions(ids: Sequence[str], column: str, what: str) -> None:
    """Warn of ids that are whole numbers written as fractions, 892.0: pandas writes them beside a missing one."""
    if all(re.fullmatch(r"-?[0-9]+\.0", value) for value in ids):
        warn(
            f"{what}: the ids of column {column!r} are written as they stand there, {ids[0]} and not {ids[0][:-2]}; "
            "fix: --sample-submission, or write whole numbers in the file"
        )


def check_ids(sample: Sample, column: str, ids: Sequence[str], what: str, id_column: str | None) -> None:
    """Refuse rows whose ids are not those of the sample.

    Args:
        sample: the sample submission.
        column: its column of ids.
        ids: of the rows that are predicted.
        what: the name of these rows in messages.
        id_column: their column of ids; None: the rows are numbered.

    Raises:
        RunError: `what` lacks ids of the sample, or has others; the message lists both.
    """
    wanted = sample.ids(column)
    missing, extra = _without(wanted, ids), _without(ids, wanted)
    if not missing and not extra:
        return
    if id_column is None:
        raise RunError(
            f"{what} has no column that names its rows, so they are numbered from 0, and {sample.what} has other ids; "
            f"fix: --id COLUMN{_listed(f'in {sample.what}', wanted)}"
        )
    alike = dict(zip(map(_same, wanted), wanted, strict=True))
    pairs = [(value, alike[_same(value)]) for value in extra if _same(value) in alike]
    if pairs and len(pairs) == len(extra) == len(missing):
        raise RunError(
            f"the same ids are written in two ways, {pairs[0][0]!r} in {what} and {pairs[0][1]!r} in {sample.what} "
            f"({len(pairs)} of {len(ids)}); fix: write them alike; in pandas read_csv(…, dtype={{{id_column!r}: str}})"
        )
    lacks = f"{len(missing)} of the {len(wanted)} ids of {sample.what} are missing" if missing else ""
    has = f"{len(extra)} of its ids are not in {sample.what}" if extra else ""
    raise RunError(
        f"{what}: {' and '.join(part for part in (lacks, has) if part)} (column {id_column!r}); "
        "fix: give the files that belong together, or --id COLUMN"
        + _listed("missing", missing)
        + _listed(f"not in {sample.what}", extra)
    )


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in names if name not in known]


def _listed(title: str, names: Sequence[str]) -> str:
    """Return a title and the first ten names, each on its own line; "" without names."""
    return f"\n  {title}:\n{first_ten(names)}" if names else ""


def _number(cell: str) -> float | None:
    try:
        # A comma may be the decimal mark.
        value = float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _same(cell: str) -> str:
    """Return one text for all spellings of a cell: 1, 1.0, 001 and " 1" are the same."""
    text = cell.strip()
    if text.lstrip("+-").isdecimal():
        return str(int(text)) if len(text) < 400 else text
    value = _number(text)
    return text if value is None else shown(value)


def _option(values: str) -> str:
    scored = "labels are scored (accuracy, F1)" if values == "labels" else "probabilities are scored (AUC, log loss)"
    return f"fix: --values {values} if {scored}"
