"""A run's submissions: the rules of their format, and the predictions in their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from heads.labels import decode_labels
from heads.metrics import get_metric
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.submission import Sample, Submission, SubmissionRules, default_submission, prediction_table
from mlxbert.errors import RunError
from mlxbert.runs.settings import RunSettings
from mlxbert.training.held_out import Predictions


def submission_rules(settings: RunSettings, task: InferredTask, metric: str, asked: str | None) -> SubmissionRules:
    """Return what decides the format of a run's submissions.

    Args:
        settings: of the run.
        task: what is predicted.
        metric: the metric that is optimized.
        asked: the metric that was asked for; None: `metric` is the task's default.

    Raises:
        RunError: the values that were asked for do not fit the task.
    """
    ready = settings.submission
    compares = None if asked is None else compared_values(asked)
    if ready is not None and settings.values in (None, ready.values):
        return SubmissionRules(task, ready, asked, True, settings.values, compares)
    # A row of a series is named by its time.
    id_column = settings.id or (settings.time if task.task == "time_series" else None)
    usual = default_submission(
        task, get_metric(metric).needs, ready.id_column if ready else id_column, settings.values
    )
    if ready is not None and len(ready.columns) == len(usual.columns):
        usual = replace(usual, columns=ready.columns)
    return SubmissionRules(task, usual, asked, False, settings.values, compares)


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
