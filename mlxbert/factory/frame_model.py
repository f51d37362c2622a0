"""`from_dataframe`: a model for a frame; the target says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from heads.errors import HeadError
from heads.forward_chaining import Windows, windows
from heads.head_registry import COMPETITION_TYPES
from heads.labels import Label
from mlxbert.factory.create import Choice, FactoryError, fitted_model, head_for
from mlxbert.factory.frames import Column, Table
from mlxbert.factory.infer_task import InferredTask, infer_task
from mlxbert.factory.target_values import target_values
from mlxbert.factory.text_columns import Rendered, RowText, every_column
from mlxbert.tokenization import Tokenizer
from mlxbert.with_head import BertWithHead


@dataclass(frozen=True)
class FrameModel:
    """A model, and how it reads a frame.

    Attributes:
        model: encoder, pooling and head; the head knows the frame's classes and has its scaler.
        tokenizer: the encoder's.
        task: what the target is, and why.
        text: how a row becomes a text.
        time: the column of times, of a time series.
    """

    model: BertWithHead
    tokenizer: Tokenizer
    task: InferredTask
    text: RowText
    time: str | None = None

    def texts(self, frame: Any) -> Rendered:
        """The texts of a frame's rows; raises as `RowText.render` does."""
        return self.text.render(frame)

    def targets(self, frame: Any) -> np.ndarray[Any, Any]:
        """The targets of a frame as the head takes them (`encode_targets`, `evaluate`): see `target_values`."""
        table = Table(frame)
        return target_values(_target_of(table, self.task.target), self.task)

    def windows(self, frame: Any) -> Windows:
        """Of a time series: histories, targets and times of every row that the frame has.

        Raises:
            FactoryError: the head is of another kind, or the times do not increase.
        """
        if self.task.task != "time_series":
            raise FactoryError(f"windows are of time series; this model's task is {self.task.task!r}")
        head: Any = self.model.head
        try:
            return _windows(Table(frame), self.task, self.time, head.window, head.horizon)
        except HeadError as error:
            raise FactoryError(str(error)) from error


def from_dataframe(
    frame: Any,
    *,
    target: str | Sequence[str],
    checkpoint: str | Path,
    text: str | Sequence[str] | RowText | None = None,
    pair: str | Sequence[str] | None = None,
    task: str | None = None,
    time: str | None = None,
    classes: Sequence[Label] | None = None,
    ignore: Sequence[str] = (),
    pooling: Choice = "mean",
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    **head_options: Any,
) -> FrameModel:
    """A model for a frame: its task inferred, its head fitted to the targets (classes, scaler, balanced weights).

    Cross-validation fits again in every fold, on its training rows alone: `model.head.fit_targets`.

    Args:
        frame: a pandas or polars DataFrame, or a dict of columns.
        target: the column to predict, or several.
        checkpoint: a converted directory, or the id of a converted repository on the Hub.
        text: a column, several, a template such as "{Sex}, age {Age}", or a `RowText`; None: every column but the
            target, `time` and those in `ignore`, as "column: value".
        pair: the second sentence, likewise.
        task: a competition type or a head's name; None: `infer_task` chooses.
        time: the column of times that makes it a time series.
        classes: the labels, where the frame may lack one, or they have an order that it does not tell.
        ignore: columns that `text=None` leaves out, such as ids.
        pooling: as for `create_model`; likewise `revision` and `dtype`.
        head_options: arguments of the head.

    Raises:
        FrameError: no rows, or a column is missing (with the nearest names).
        TaskError: nothing can be learned from the target, rows lack it, or it is not the `task` that was asked for.
        FactoryError: the text has the target in it, or the head refuses an option.
    """
    table = Table(frame)
    targets = tuple(table.find(name, "target column") for name in ((target,) if isinstance(target, str) else target))
    if not targets:
        raise FactoryError("no target is named; fix: target='column'")
    times = None if time is None else table.column(time, "time column")
    head_class = None if task is None else head_for(task)
    read = _target_of(table, targets)
    inferred = infer_task(
        read, time=None if times is None else times.values, task=_task_of(head_class, task), classes=classes
    )
    head_class = head_class or head_for(inferred.task)
    if inferred.task not in head_class.competition_types:
        raise FactoryError(
            f"head {head_class.head_name!r} is for {', '.join(head_class.competition_types)}; the target is {inferred}"
        )
    row_text = _row_text(table, text, pair, targets, inferred, (*ignore, *([time] if time else [])))
    arguments = dict(head_options)
    if inferred.classes is not None:
        arguments["classes"] = inferred.classes
    values = target_values(read, inferred)
    try:
        if inferred.task == "time_series":
            window, horizon = head_options.get("window", 0), head_options.get("horizon", 1)
            rows = _windows(table, inferred, time, window, horizon)
            values, arguments["known_at"] = rows.targets, rows.known_at
    except HeadError as error:
        raise FactoryError(str(error)) from error
    model, tokenizer = fitted_model(
        head_class, checkpoint, values, pooling=pooling, revision=revision, dtype=dtype, **arguments
    )
    return FrameModel(model, tokenizer, inferred, row_text, time)


def _target_of(table: Table, names: Sequence[str]) -> list[Column]:
    return [table.column(name, "target column") for name in names]


def _task_of(head_class: type[Head] | None, task: str | None) -> str | None:
    """The competition type to hold the target to; None: whichever of the head's (or of all) it is."""
    if head_class is None or task in COMPETITION_TYPES:
        return task
    return head_class.competition_types[0] if len(head_class.competition_types) == 1 else None


def _row_text(
    table: Table,
    text: str | Sequence[str] | RowText | None,
    pair: str | Sequence[str] | None,
    targets: Sequence[str],
    inferred: InferredTask,
    ignore: Sequence[str],
) -> RowText:
    """The text of a row, every column of it there, and none of them the target."""
    if text is None:
        if pair is not None:
            raise FactoryError("pair= is given without text=; fix: give both sentences")
        return every_column(table, {*targets, *(table.find(name, "ignored column") for name in ignore)})
    row_text = RowText.make(text, pair)
    for name in row_text.columns:
        if table.find(name, "text column") in targets and inferred.task != "time_series":
            raise FactoryError(
                f"the text has the target column {name!r}, which gives the answer away; fix: leave it out"
            )
    return row_text


def _windows(table: Table, inferred: InferredTask, time: str | None, window: int, horizon: int) -> Windows:
    (column,) = _target_of(table, inferred.target)
    times = column.times if time is None else table.column(time, "time column").values
    series = target_values([column], inferred)
    # A head without history still has a time at which its forecast is made: that of the value before.
    return windows(series, window=max(window, 1), horizon=horizon, times=None if times is None else list(times))
