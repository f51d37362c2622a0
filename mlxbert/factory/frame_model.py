"""`from_dataframe`: a model for a frame; the target says which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from heads.forward_chaining import Windows
from heads.labels import Label
from mlxbert.factory.create import Choice, fitted_model
from mlxbert.factory.problem import Problem, make_problem
from mlxbert.factory.text_columns import RowText
from mlxbert.tokenization import Tokenizer
from mlxbert.with_head import BertWithHead


@dataclass(frozen=True, kw_only=True)
class FrameModel(Problem):
    """A model, and how it reads a frame.

    Attributes:
        model: encoder, pooling and head; the head knows the frame's classes and has its scaler.
        tokenizer: the encoder's.
    """

    model: BertWithHead
    tokenizer: Tokenizer

    def windows(self, frame: Any) -> Windows:
        """Of a time series: histories, targets and times of every row, as long as the head's; see `cut_windows`."""
        head: Any = self.model.head
        return self.cut_windows(frame, window=getattr(head, "window", 0), horizon=getattr(head, "horizon", 1))


def from_dataframe(
    frame: Any,
    *,
    target: str | int | Sequence[str | int],
    checkpoint: str | Path,
    text: str | int | Sequence[str | int] | RowText | None = None,
    pair: str | int | Sequence[str | int] | None = None,
    task: str | None = None,
    time: str | None = None,
    classes: Sequence[Label] | None = None,
    ignore: Sequence[str] = (),
    decimal: str | None = None,
    label_separator: str | None = None,
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
        decimal: the decimal mark of a target that is written as text; likewise `label_separator`, between labels of
            one cell: see `infer_task`.
        pooling: as for `create_model`; likewise `revision` and `dtype`.
        head_options: arguments of the head.

    Raises:
        FrameError: no rows, or a column is missing (with the nearest names).
        TaskError: nothing can be learned from the target, rows lack it, or it is not the `task` that was asked for.
        FactoryError: the text has the target in it, or the head refuses an option.
    """
    problem = make_problem(
        frame,
        target=target,
        text=text,
        pair=pair,
        task=task,
        time=time,
        classes=classes,
        ignore=ignore,
        decimal=decimal,
        label_separator=label_separator,
    )
    arguments = dict(head_options)
    if problem.task.classes is not None:
        arguments["classes"] = problem.task.classes
    if problem.task.task == "time_series":
        rows = problem.cut_windows(frame, window=head_options.get("window", 0), horizon=head_options.get("horizon", 1))
        values, arguments["known_at"] = rows.targets, rows.known_at
    else:
        values = problem.targets(frame)
    model, tokenizer = fitted_model(
        problem.head_class, checkpoint, values, pooling=pooling, revision=revision, dtype=dtype, **arguments
    )
    return FrameModel(**vars(problem), model=model, tokenizer=tokenizer)
