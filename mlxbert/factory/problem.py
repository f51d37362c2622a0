"""`Problem`: what is to be learned from a frame: which target, as which task, from which text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.base import Head
from heads.errors import HeadError
from heads.forward_chaining import Windows, windows
from heads.head_registry import COMPETITION_TYPES
from heads.labels import Label
from mlxbert.factory.create import FactoryError, head_for
from mlxbert.factory.frames import Column, Table
from mlxbert.factory.id_columns import id_columns
from mlxbert.factory.infer_task import InferredTask, infer_task
from mlxbert.factory.target_values import target_values
from mlxbert.factory.text_columns import Rendered, RowText, every_column


@dataclass(frozen=True, kw_only=True)
class Problem:
    """How a frame is read.

    Attributes:
        head_class: of the head that learns it.
        task: what the target is, and why.
        text: how a row becomes a text.
        time: the column of times, of a time series.
    """

    head_class: type[Head]
    task: InferredTask
    text: RowText
    time: str | None = None

    def texts(self, frame: Any) -> Rendered:
        """The texts of a frame's rows; raises as `RowText.render` does."""
        return self.text.render(frame)

    def targets(self, frame: Any) -> np.ndarray[Any, Any]:
        """The targets of a frame as the head takes them (`encode_targets`, `evaluate`): see `target_values`."""
        return target_values(target_of(Table(frame), self.task.target), self.task)

    def cut_windows(self, frame: Any, *, window: int, horizon: int) -> Windows:
        """Of a time series: histories, targets and times of every row that the frame has.

        Args:
            frame: the series, oldest first.
            window: values of history a row; at least 1 is cut, because a forecast has a time at which it is made.
            horizon: values to forecast.

        Raises:
            FactoryError: the task is another, the series is too short, or its times do not increase.
        """
        if self.task.task != "time_series":
            raise FactoryError(f"windows are of time series; this model's task is {self.task.task!r}")
        table = Table(frame)
        (column,) = target_of(table, self.task.target)
        times = column.times if self.time is None else table.column(self.time, "time column").values
        series = target_values([column], self.task)
        try:
            stamps = None if times is None else list(times)
            return windows(series, window=max(window, 1), horizon=horizon, times=stamps)
        except HeadError as error:
            raise FactoryError(str(error)) from error


def make_problem(
    frame: Any,
    *,
    target: str | int | Sequence[str | int],
    text: str | int | Sequence[str | int] | RowText | None = None,
    pair: str | int | Sequence[str | int] | None = None,
    task: str | None = None,
    time: str | None = None,
    classes: Sequence[Label] | None = None,
    ignore: Sequence[str] = (),
    decimal: str | None = None,
    label_separator: str | None = None,
) -> Problem:
    """Find out what a frame's target is; arguments as for `from_dataframe`.

    Raises:
        FrameError: no rows, or a column is missing (with the nearest names).
        TaskError: nothing can be learned from the target, or it is not the `task` that was asked for.
        FactoryError: the text has the target in it, or the head is for another task.
    """
    table = Table(frame)
    targets = tuple(
        table.find(name, "target column") for name in ((target,) if isinstance(target, str | int) else target)
    )
    if not targets:
        raise FactoryError("no target is named; fix: target='column'")
    times = None if time is None else table.column(time, "time column")
    head_class = None if task is None else head_for(task)
    inferred = infer_task(
        target_of(table, targets),
        time=None if times is None else times.values,
        task=_task_of(head_class, task),
        classes=classes,
        decimal=decimal,
        label_separator=label_separator,
    )
    head_class = head_class or head_for(inferred.task)
    if inferred.task not in head_class.competition_types:
        raise FactoryError(
            f"head {head_class.head_name!r} is for {', '.join(head_class.competition_types)}; the target is {inferred}"
        )
    row_text = _row_text(table, text, pair, targets, inferred, (*ignore, *([time] if time else [])))
    return Problem(head_class=head_class, task=inferred, text=row_text, time=time)


def target_of(table: Table, names: Sequence[str]) -> list[Column]:
    """The target's columns."""
    return [table.column(name, "target column") for name in names]


def _task_of(head_class: type[Head] | None, task: str | None) -> str | None:
    """The competition type to hold the target to; None: whichever of the head's (or of all) it is."""
    if head_class is None or task in COMPETITION_TYPES:
        return task
    return head_class.competition_types[0] if len(head_class.competition_types) == 1 else None


def _row_text(
    table: Table,
    text: str | int | Sequence[str | int] | RowText | None,
    pair: str | int | Sequence[str | int] | None,
    targets: Sequence[str],
    inferred: InferredTask,
    ignore: Sequence[str],
) -> RowText:
    """The text of a row, every column of it there, and none of them the target."""
    if text is None:
        if pair is not None:
            raise FactoryError("pair= is given without text=; fix: give both sentences")
        left_out = {*targets, *(table.find(name, "ignored column") for name in ignore)}
        return every_column(table, {*left_out, *id_columns(table, left_out)})
    row_text = RowText.make(text, pair)
    for name in row_text.columns:
        if table.find(name, "text column") in targets and inferred.task != "time_series":
            raise FactoryError(
                f"the text has the target column {name!r}, which gives the answer away; fix: leave it out"
            )
    return row_text
