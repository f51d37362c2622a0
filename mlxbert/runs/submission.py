"""A submission: which columns, what is in them, in which order of rows; checked before anything is predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from heads.labels import Label, decode_labels
from mlxbert.data.reading import read_data
from mlxbert.errors import first_ten
from mlxbert.factory.competition import Submission
from mlxbert.factory.infer_task import InferredTask
from mlxbert.runs.files import RunError
from mlxbert.runs.settings import RunSettings
from mlxbert.training.predictions import NUMBERS, Predictions

VALUES = ("labels", "probabilities", "values")


@dataclass(frozen=True)
class Sample:
    """A competition's sample submission.

    Attributes:
        path: of the file.
        columns: all of them, the id's first.
        ids: of its rows, in its order.
    """

    path: Path
    columns: tuple[str, ...]
    ids: tuple[str, ...]


def read_sample(path: str | Path, id_column: str) -> Sample:
    """Read a sample submission.

    Raises:
        DataError: the file cannot be read.
        FrameError: it has no column of that name.
        RunError: an id comes twice or is missing.
    """
    data = read_data(path, text_columns=[id_column], required=[id_column])
    frame = data.frame
    ids = ["" if one is None or one != one else str(one) for one in frame[id_column]]
    twice = [one for one, count in Counter(ids).items() if count > 1]
    if twice or "" in ids:
        raise RunError(f"{path}: id {(twice or [''])[0]!r} comes twice or is missing; fix: download the sample again")
    columns = (id_column, *(str(name) for name in frame.columns if name != id_column))
    return Sample(data.file.path, columns, tuple(ids))


def default_submission(task: InferredTask, metric_needs: str, id_column: str | None, values: str | None) -> Submission:
    """The format where no competition fixes one: labels where the metric reads labels, else probabilities.

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


def submission_form(settings: RunSettings, task: InferredTask, metric_needs: str, values: str | None) -> Submission:
    """The competition's format, or the default one; `values` asks for another kind of values in it.

    Raises:
        RunError: as `default_submission` raises.
    """
    form, values = settings.submission, values or settings.values
    if form is not None and values in (None, form.values):
        return form
    # A row of a series is named by its time.
    id_column = settings.id or (settings.time if task.task == "time_series" else None)
    made = default_submission(task, metric_needs, form.id_column if form else id_column, values)
    return made if form is None or len(made.columns) != len(form.columns) else replace(made, columns=form.columns)


def check_sample(sample: Sample, form: Submission, ids: Sequence[str], what: str) -> None:
    """Refuse a sample whose columns or ids are not those that will be written.

    Raises:
        RunError: the columns differ, or ids are missing from `what`, or are there beyond the sample.
    """
    expected, found = set(form.columns), set(sample.columns[1:])
    if expected != found:
        raise RunError(
            f"{sample.path} has the columns {', '.join(sample.columns[1:]) or 'none'}, and this run predicts "
            f"{', '.join(form.columns)}; fix: the sample of this competition, or --values labels|probabilities"
        )
    given, wanted = set(ids), set(sample.ids)
    missing = [one for one in sample.ids if one not in given]
    extra = [one for one in ids if one not in wanted]
    if missing or extra:
        told = [f"{len(group)} {which}" for group, which in ((missing, "missing"), (extra, "beyond it")) if group]
        raise RunError(
            f"{what}: of the {len(sample.ids)} ids of {sample.path}, {' and '.join(told)}; fix: the files belong "
            f"together?\n{first_ten([*missing, *extra])}"
        )


def columns_of(form: Submission, task: InferredTask, predictions: Predictions) -> dict[str, np.ndarray]:
    """The prediction columns of rows, by name, in the form's order.

    Raises:
        RunError: as many columns are asked for as the predictions do not have.
    """
    if form.values == "labels":
        return _labels(form, task.classes or (), predictions)
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


def _labels(form: Submission, classes: Sequence[Label], predictions: Predictions) -> dict[str, np.ndarray]:
    labels = predictions.labels()
    if predictions.task == "multilabel":
        order = [[str(one) for one in classes].index(name) for name in form.columns]
        return {name: labels[:, place] for name, place in zip(form.columns, order, strict=True)}
    return {form.columns[0]: decode_labels(labels, classes)}


def _order(columns: Sequence[str], task: InferredTask, count: int) -> list[int]:
    """Where each column is among the predictions: by its class's name, where the columns are the classes."""
    names = [str(one) for one in (task.classes or task.target)]
    if set(columns) == set(names):
        return [names.index(name) for name in columns]
    return list(range(count))


def in_sample_order(frame: Any, sample: Sample | None, form: Submission) -> Any:
    """The submission's rows and columns as the sample has them."""
    if sample is None:
        return frame
    indexed = frame.set_index(form.id_column)
    return indexed.loc[list(sample.ids)].reset_index()[list(sample.columns)]
