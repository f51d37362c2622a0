"""The format of a submission: columns, their content, order of rows; it is checked before anything is predicted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from heads.labels import Label, decode_labels
from heads.metrics import get_metric
from mlxbert.data.competitions import Submission
from mlxbert.data.frames import as_text, plain, shown
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.reading import NO_NUMBERS
from mlxbert.errors import MLXBertWarning, first_ten
from mlxbert.runs.files import RunError
from mlxbert.runs.settings import VALUES, RunSettings
from mlxbert.training.held_out import NUMBERS, Predictions


class SubmissionWarning(MLXBertWarning):
    """Data and sample allow several formats of a submission; the message says which one is written."""


@dataclass(frozen=True, eq=False)
class Sample:
    """A competition's sample submission.

    Attributes:
        what: its name in messages.
        frame: its rows, a pandas frame.
    """

    what: str
    frame: Any

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns, in its order."""
        return tuple(str(name) for name in self.frame.columns)

    def ids(self, column: str) -> list[str]:
        """Return the ids in a column as text.

        Raises:
            RunError: an id comes twice or is missing.
        """
        ids = [value or "" for value in as_text(self.frame[column])]
        twice = [name for name, count in Counter(ids).items() if count > 1]
        if twice or "" in ids:
            raise RunError(
                f"{self.what}: id {(twice or [''])[0]!r} comes twice or is missing in column {column!r}; "
                "fix: download the sample again"
            )
        return ids

    def cells(self, columns: Sequence[str]) -> set[str]:
        """Return the distinct values in some columns as they are written, without empty cells."""
        values = {plain(value) for name in columns for value in self.frame[name]}
        return {str(value).strip() for value in values if value is not None}


@dataclass(frozen=True)
class SubmissionRules:
    """What determines the format of the submissions of a run.

    Attributes:
        task: what is predicted.
        usual: the format, if no sample has another one.
        metric: the metric that the user or a ready configuration asked for; None: the default of the task, so that the
            metric of the competition is unknown.
        ready: whether `usual` comes from a ready configuration.
        values: what the user asked for when the run began; a sample does not change it.
    """

    task: InferredTask
    usual: Submission
    metric: str | None
    ready: bool
    values: str | None = None

    def form(self, values: str | None) -> Submission:
        """Return the usual format, or that of other `values`.

        Raises:
            RunError: the values do not fit the task.
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
            values: what was asked for; None: as in the cells of the sample.

        Raises:
            RunError: its columns are not those of the predictions.

        Warns:
            SubmissionWarning: a column has another name, or both labels and probabilities would fit.
        """
        names = tuple(name for name in sample.columns if name != id_column)
        chosen, doubt = self._values_of(sample, names, values or self.values)
        form = self.form(chosen)
        columns = self._columns(form, names, sample.what)
        if doubt:
            warn(doubt)
        return Submission(id_column, columns, form.values)

    def _columns(self, form: Submission, names: tuple[str, ...], what: str) -> tuple[str, ...]:
        """The name in the sample of each prediction column, in the order of the predictions."""
        classes = [str(name) for name in self.task.classes or self.task.target]
        columns = tuple(classes) if set(classes) == set(form.columns) else form.columns
        if set(columns) == set(names):
            return columns
        folded = {name.strip().casefold(): name for name in names}
        if len(columns) == len(names) == len(folded) and {one.casefold() for one in columns} == set(folded):
            return tuple(folded[one.casefold()] for one in columns)
        if len(columns) == len(names) == 1:
            warn(f"{what} calls the predictions {names[0]!r}, not {columns[0]!r}: they are written under that name")
            return names
        missing, extra = [one for one in columns if one not in names], [one for one in names if one not in columns]
        fix = "take the other columns out of it" if extra and not missing else "the sample of this competition"
        raise RunError(
            f"{what} has the columns {', '.join(names)}, and this run predicts {', '.join(columns)}; "
            f"fix: {fix}, or --values labels|probabilities"
            + _listed("the sample has no", missing)
            + _listed("the run predicts no", extra)
        )

    def _values_of(self, sample: Sample, names: tuple[str, ...], asked: str | None) -> tuple[str | None, str]:
        """ "labels" or "probabilities", as asked for or as in the cells of the sample (None: unclear), and the text
        of a warning ("": none).
        """
        task = self.task.task
        if task in NUMBERS:
            return asked, ""
        cells = sample.cells(names)
        labels = {_same(shown(one)) for one in ((0, 1) if task == "multilabel" else self.task.classes or ())}
        cells = {cell for cell in cells if _same(cell) in labels or cell not in NO_NUMBERS}
        strange = sorted(cell for cell in cells if _same(cell) not in labels)
        numbers = all(_number(cell) is not None for cell in cells)
        fractions = numbers and any(not _number(cell).is_integer() for cell in strange)  # type: ignore[union-attr]
        others = f"{sample.what} holds {strange[0]!r}, which is none of this run's labels: " if strange else ""
        if strange:
            known = (0, 1) if task == "multilabel" else self.task.classes or ()
            others += f"its own are written, such as {' and '.join(repr(shown(label)) for label in known[:2])}"
        if asked is not None:
            return asked, others if asked == "labels" and not fractions else ""
        if task in ("multiclass", "ordinal"):
            if len(names) > 1:
                return "probabilities", ""
            rank = self.usual.values == "probabilities" and len(self.usual.columns) == 1  # of a ready configuration
            return ("probabilities", "") if rank else ("labels", others if len(cells) > 1 or not numbers else "")
        if not cells:
            return None, ""
        if not numbers:
            return "labels", others or self._contradiction("labels", f"{sample.what} holds words")
        if fractions:
            return "probabilities", self._contradiction(
                "probabilities", f"{sample.what} holds fractions such as {strange[0]}"
            )
        if not strange and len({_same(cell) for cell in cells}) > 1:
            return "labels", self._contradiction("labels", f"{sample.what} holds {' and '.join(sorted(cells)[:2])}")
        return self._open(sample.what, sorted(cells), bool(strange))

    def _contradiction(self, values: str, why: str) -> str:
        """The warning if the metric that was asked for compares something else; "": none."""
        wanted = self._wanted
        if wanted is None or wanted == values:
            return ""
        return f"{why}: {values} are written, though {self.metric} compares {wanted}; {_option(wanted)}"

    def _open(self, what: str, cells: Sequence[str], strange: bool) -> tuple[str, str]:
        """The values and the warning for a sample that holds a single number, or numbers that are no labels."""
        if self.ready:
            return self.usual.values, ""
        holds = f"{what} holds {', '.join(cells[:3])} alone, which could stand for labels and for probabilities"
        if strange:
            labels = ", ".join(repr(shown(one)) for one in self.task.classes or ())
            holds = f"{what} holds {', '.join(cells[:3])}, and the labels are {labels}"
        whole = all(cell.lstrip("+-").isdecimal() for cell in cells)
        chosen = self._wanted or ("labels" if whole and not strange else "probabilities")
        if self._wanted == "labels" and not strange:
            return chosen, ""
        other = "probabilities" if chosen == "labels" else "labels"
        return chosen, f"{holds}: {chosen} are written; {_option(other)}"

    @property
    def _wanted(self) -> str | None:
        """What the metric that was asked for compares: labels or probabilities."""
        if self.metric is None:
            return None
        return "labels" if get_metric(self.metric).needs == "labels" else "probabilities"


def submission_rules(settings: RunSettings, task: InferredTask, metric: str, asked: str | None) -> SubmissionRules:
    """Return the rules for the submissions of a run.

    Args:
        settings: of the run.
        task: what is predicted.
        metric: the metric to optimize.
        asked: the metric that was asked for; None: `metric` is the default of the task.

    Raises:
        RunError: the values that were asked for do not fit the task.
    """
    ready = settings.submission
    if ready is not None and settings.values in (None, ready.values):
        return SubmissionRules(task, ready, asked, True, settings.values)
    # A row of a series is named by its time.
    id_column = settings.id or (settings.time if task.task == "time_series" else None)
    usual = default_submission(
        task, get_metric(metric).needs, ready.id_column if ready else id_column, settings.values
    )
    if ready is not None and len(ready.columns) == len(usual.columns):
        usual = replace(usual, columns=ready.columns)
    return SubmissionRules(task, usual, asked, False, settings.values)


def default_submission(task: InferredTask, metric_needs: str, id_column: str | None, values: str | None) -> Submission:
    """Return the default format: labels if the metric reads labels, else probabilities; for numbers: values.

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
        columns = tuple(str(one) for one in task.classes or ())
    return Submission(id_column or "id", columns, chosen)  # type: ignore[arg-type]


def check_ids(sample: Sample, wanted: Sequence[str], ids: Sequence[str], what: str, id_column: str | None) -> None:
    """Refuse rows whose ids are not those of the sample.

    Args:
        sample: the sample submission.
        wanted: its ids.
        ids: of the rows to predict.
        what: name of these rows in messages.
        id_column: the column of their ids; None: they are numbered.

    Raises:
        RunError: ids are missing from `what`, or are not in the sample; both are listed.
    """
    missing, extra = _without(wanted, ids), _without(ids, wanted)
    if not missing and not extra:
        return
    if id_column is None:
        raise RunError(
            f"{what} has no column that names its rows, so they are numbered from 0, and {sample.what} has other ids; "
            f"fix: --id COLUMN{_listed(f'in {sample.what}', wanted)}"
        )
    alike = dict(zip(map(_same, wanted), wanted, strict=True))
    pairs = [(one, alike[_same(one)]) for one in extra if _same(one) in alike]
    if pairs and len(pairs) == len(extra) == len(missing):
        raise RunError(
            f"the same ids are written in two ways, {pairs[0][0]!r} in {what} and {pairs[0][1]!r} in {sample.what} "
            f"({len(pairs)} of {len(ids)}); fix: write them alike; in pandas read_csv(…, dtype={{{id_column!r}: str}})"
        )
    counted = f"{len(missing)} of the {len(wanted)} ids of {sample.what} are missing" if missing else ""
    beyond = f"{len(extra)} of its ids are not in {sample.what}" if extra else ""
    raise RunError(
        f"{what}: {' and '.join(one for one in (counted, beyond) if one)} (column {id_column!r}); "
        "fix: give the files that belong together, or --id COLUMN"
        + _listed("missing", missing)
        + _listed(f"not in {sample.what}", extra)
    )


def columns_of(form: Submission, task: InferredTask, predictions: Predictions) -> dict[str, np.ndarray]:
    """Return the prediction columns by name, in the order of the form.

    Raises:
        RunError: the form has another number of columns than the predictions.
    """
    if form.values == "labels":
        return _labels(form, task, predictions)
    values = predictions.values
    if predictions.task == "ordinal" and len(form.columns) == 1:
        values = predictions.values @ np.arange(predictions.values.shape[1])  # the expected rank
    table = values.reshape(len(values), -1)
    if table.shape[1] != len(form.columns):
        raise RunError(
            f"a submission of {len(form.columns)} columns ({', '.join(form.columns)}), and predictions of "
            f"{table.shape[1]}; fix: --values labels, or another sample"
        )
    order = _order(form.columns, task, table.shape[1])
    return {name: table[:, place] for name, place in zip(form.columns, order, strict=True)}


def _labels(form: Submission, task: InferredTask, predictions: Predictions) -> dict[str, np.ndarray]:
    labels = predictions.labels()
    if predictions.task == "multilabel":
        order = _order(form.columns, task, labels.shape[1])
        return {name: labels[:, place] for name, place in zip(form.columns, order, strict=True)}
    classes: Sequence[Label] = task.classes or ()
    if not form.columns:
        raise RunError("the run names no column for its predictions; fix: --sample-submission FILE")
    return {form.columns[0]: decode_labels(labels, classes)}


def _order(columns: Sequence[str], task: InferredTask, count: int) -> list[int]:
    """The place of each column among the predictions: by the name of its class, if the columns are the classes."""
    names = [str(one) for one in (task.classes or task.target)]
    if set(columns) == set(names):
        return [names.index(name) for name in columns]
    return list(range(count))


def _without(ids: Sequence[str], others: Sequence[str]) -> list[str]:
    known = set(others)
    return [name for name in ids if name not in known]


def _listed(title: str, names: Sequence[str]) -> str:
    """A title and the first ten names, each on its own line; nothing if there are none."""
    return f"\n  {title}:\n{first_ten(names)}" if names else ""


def _number(cell: str) -> float | None:
    try:
        # A comma may be the decimal mark.
        value = float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _same(cell: str) -> str:
    """One spelling for all spellings of a cell: 1, 1.0, 001 and " 1" are the same."""
    text = cell.strip()
    if text.lstrip("+-").isdecimal():
        return str(int(text)) if len(text) < 400 else text
    value = _number(text)
    return text if value is None else shown(value)


def _option(values: str) -> str:
    scored = "labels are scored (accuracy, F1)" if values == "labels" else "probabilities are scored (AUC, log loss)"
    return f"fix: --values {values} if {scored}"


def warn(message: str) -> None:
    """Warn how a submission is written, if other formats are possible."""
    warnings.warn(message, SubmissionWarning, stacklevel=2)


def in_sample_order(frame: Any, sample: Sample, id_column: str, ids: Sequence[str]) -> Any:
    """Return the rows and columns of a submission in the order of the sample; `ids`: those of its rows, as text."""
    places = {name: place for place, name in enumerate(ids)}
    order = [places[name] for name in sample.ids(id_column)]
    return frame.iloc[order].reset_index(drop=True)[list(sample.columns)]
