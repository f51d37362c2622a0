"""Make a model from a task, a competition's name or a data frame.

model, tokenizer = create_model("multiclass", "mlx_models/minilm", classes=("bird", "cat", "dog"))
model, tokenizer = create_for_competition("titanic")
print(infer_task(train["Survived"]))        # binary: two values, 0 and 1; the positive one is 1
titanic = from_dataframe(train, target="Survived", text="{Sex}, age {Age}", checkpoint="mlx_models/minilm")
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from heads.errors import HeadError, unknown_name
from heads.forward_chaining import Windows, windows
from heads.head_registry import COMPETITION_TYPES, best_head, get_head, registered_heads
from heads.labels import Label, label_list
from mlxbert.checkpoint import load, resolve
from mlxbert.data.competitions import (
    Competition,
    CompetitionError,
    get_competition,
    register_competition,
    registered_competitions,
    unregister_competition,
)
from mlxbert.data.frames import Column, DataError, Table
from mlxbert.data.infer_task import InferredTask, infer_task, target_values
from mlxbert.data.submission import Submission
from mlxbert.data.target_cells import TaskError
from mlxbert.data.text_columns import Rendered, RowText, every_column, id_columns
from mlxbert.errors import MLXBertError
from mlxbert.pooling import PoolingModule
from mlxbert.tokenization.tokenizer import Tokenizer
from mlxbert.with_head import BertWithHead

__all__ = [
    "Competition",
    "CompetitionError",
    "FactoryError",
    "FrameError",
    "FrameModel",
    "InferredTask",
    "RowText",
    "Submission",
    "TaskError",
    "TextError",
    "create_for_competition",
    "create_model",
    "default_checkpoint",
    "from_dataframe",
    "get_competition",
    "head_for",
    "infer_task",
    "register_competition",
    "registered_competitions",
    "unregister_competition",
]

Choice = str | Mapping[str, Any] | PoolingModule


# Earlier names, for code that catches them.
FrameError = TextError = DataError


class FactoryError(MLXBertError):
    """An unknown task, or options that no model can have."""


def create_model(
    task: str | type[Head],
    checkpoint: str | Path,
    *,
    num_labels: int | None = None,
    classes: Sequence[Label] | None = None,
    horizon: int | None = None,
    pooling: Choice = "mean",
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    **head_options: Any,
) -> tuple[BertWithHead, Tokenizer]:
    """Return a converted encoder with a new head for a task, in evaluation mode, and the encoder's tokenizer.

    Args:
        task: a competition type (its registered head of highest priority), the name of a head, or a head class.
        checkpoint: a converted directory, or the id of a converted repository on the Hub.
        num_labels: number of classes, labels or target columns; classes are then 0, 1, ….
        classes: the labels, in the order of the logits: ratings from the lowest, of two labels the positive one last.
        horizon: steps ahead, of a time series.
        pooling: of `mlxbert.pooling.CHOICES`, or a module of `mlxbert.pooling`.
        revision: a branch, tag or commit of the Hub repository.
        dtype: dtype of the encoder's computation, as for `mlxbert.load`.
        head_options: arguments of the head, such as `objective="focal"` or `dropout=0.2`; the objective may be a
            registered loss (`heads.losses.register_loss`).

    Raises:
        FactoryError: a task or option is unknown (the message has the nearest names), or options contradict another.
        MLXBertError: the checkpoint cannot be loaded, or cannot be pooled like this.
    """
    head_class = head_for(task)
    options = _options(head_class, num_labels, classes, horizon, head_options)
    return _assemble(checkpoint, pooling, revision, dtype, lambda hidden_size: head_class(hidden_size, **options))


def create_for_competition(
    name: str | Competition,
    checkpoint: str | Path | None = None,
    *,
    pooling: Choice | None = None,
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    **head_options: Any,
) -> tuple[BertWithHead, Tokenizer]:
    """Return the model for a ready configuration (its other settings: `mlxbert.data.competitions.get_competition`).

    Args:
        name: of a registered configuration; or the configuration itself.
        checkpoint: None: the configuration's, in the default directory of `mlxbert-convert`.
        pooling: None: the configuration's.
        revision: as for `create_model`; likewise `dtype`.
        head_options: replace the configuration's.

    Raises:
        CompetitionError: the name is unknown (the message has the nearest ones).
        FactoryError: the default checkpoint is not converted yet (the message has the command).
        MLXBertError: as `create_model` raises.
    """
    competition = get_competition(name) if isinstance(name, str) else name
    options = dict(competition.head)
    if competition.task == "multilabel":
        options.setdefault("classes", competition.target)
    elif competition.task == "regression":
        options.setdefault("num_labels", len(competition.target))
    return create_model(
        competition.task,
        default_checkpoint(competition) if checkpoint is None else checkpoint,
        pooling=competition.pooling if pooling is None else pooling,
        revision=revision,
        dtype=dtype,
        **{**options, **head_options},
    )


def default_checkpoint(competition: Competition) -> Path:
    """Return the converted default checkpoint of a configuration, relative to the working directory.

    Raises:
        FactoryError: it is not there yet.
    """
    places = [Path(place) for place in competition.converted_places]
    for place in places:
        if place.is_dir():
            return place
    better = competition.encoder if competition.encoder != competition.checkpoint else ""
    raise FactoryError(
        f"competition {competition.name!r}: its default checkpoint is not at {' or '.join(map(str, places))}; "
        f"run: mlxbert-convert {competition.checkpoint} -o {places[0]}, or name a converted directory: "
        "--model DIRECTORY (Python: model=, create_for_competition: checkpoint=)"
        + (f"; {better} suits these data better, and trains longer" if better else "")
    )


def head_for(task: str | type[Head]) -> type[Head]:
    """Return the head class of a competition type (the one of highest priority), or of a head's name.

    Raises:
        FactoryError: neither a type nor a name (the message has the nearest of both), or no registered head.
    """
    if isinstance(task, type) and issubclass(task, Head):
        if "head_name" not in vars(task):
            raise FactoryError(f"{task.__qualname__} is not registered; fix: @register_head(…) above the class")
        return task
    if not isinstance(task, str):
        raise FactoryError(f"the task must be a competition type, a head's name or a head class, not {task!r}")
    try:
        if task in COMPETITION_TYPES:
            return best_head(task)
        if task not in registered_heads():
            raise unknown_name("task", task, {*COMPETITION_TYPES, *registered_heads()})
        return get_head(task)
    except HeadError as error:
        raise FactoryError(str(error)) from error


def check_options(head_class: type[Head], options: Mapping[str, Any]) -> None:
    """Refuse options that the head's constructor does not have.

    Raises:
        FactoryError: the message has the option, and the nearest one or all.
    """
    known = sorted(set(inspect.signature(head_class.__init__).parameters) - {"self", "hidden_size"})
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=2, cutoff=0.6)
            fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"its options: {', '.join(known)}"
            raise FactoryError(f"head {head_class.head_name!r} has no option {option!r}; {fix}")


def _options(
    head_class: type[Head],
    num_labels: int | None,
    classes: Sequence[Label] | None,
    horizon: int | None,
    head_options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the arguments of the head's constructor."""
    name = head_class.head_name
    parameters = inspect.signature(head_class.__init__).parameters
    options = dict(head_options)
    if classes is not None:
        try:
            classes = options["classes"] = label_list(classes, name)
        except HeadError as error:
            raise FactoryError(str(error)) from error
    if horizon is not None:
        options["horizon"] = horizon
    if num_labels is not None:
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
            raise FactoryError(f"num_labels must be a positive whole number, not {num_labels!r}")
        if "num_targets" in parameters:
            options["num_targets"] = num_labels
        elif "classes" not in parameters:
            raise FactoryError(f"head {name!r} has no classes to number; fix: leave num_labels out")
        elif classes is None:
            # One logit means two classes: transformers' num_labels=1 for a binary head.
            options["classes"] = tuple(range(2 if name == "binary" and num_labels == 1 else num_labels))
        elif len(classes) != num_labels:
            raise FactoryError(f"num_labels={num_labels}, but {len(classes)} classes are given; fix: leave it out")
    if (
        "classes" in parameters
        and "classes" not in options
        and parameters["classes"].default is inspect.Parameter.empty
    ):
        raise FactoryError(f"head {name!r} needs its labels; fix: classes=(…), or num_labels=…")
    check_options(head_class, options)
    return options


def _assemble(
    checkpoint: str | Path, pooling: Choice, revision: str | None, dtype: mx.Dtype | None, make_head: Any
) -> tuple[BertWithHead, Tokenizer]:
    """Return a checkpoint's encoder with the head that `make_head` makes for its hidden size, and its tokenizer."""
    directory = resolve(checkpoint, revision)
    core, tokenizer = load(directory, dtype=dtype)
    try:
        head = make_head(core.config.hidden_size)
    except HeadError as error:
        raise FactoryError(str(error)) from error
    model = BertWithHead(core, head, pooling, source=directory)
    model.eval()
    return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class Problem:
    """How a frame is read.

    Attributes:
        head_class: of the head that learns it.
        task: the target's competition type, and why.
        text: how a row becomes a text.
        time: the column of times, of a time series.
    """

    head_class: type[Head]
    task: InferredTask
    text: RowText
    time: str | None = None

    def texts(self, frame: Any) -> Rendered:
        """Return the texts of a frame's rows; raises as `RowText.render` does."""
        return self.text.render(frame)

    def targets(self, frame: Any) -> np.ndarray[Any, Any]:
        """Return the targets of a frame for the head (`encode_targets`, `evaluate`): see `target_values`."""
        return target_values(target_of(Table(frame), self.task.target), self.task)

    def cut_windows(self, frame: Any, *, window: int, horizon: int) -> Windows:
        """Return the histories, targets and times of every row of a time series.

        Args:
            frame: the series, oldest first.
            window: values of history a row; at least 1 is used, because a forecast has a time at which it is made.
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
    """Return how a frame is read: its task, head and text; arguments as for `from_dataframe`.

    Raises:
        DataError: there are no rows, or a column is missing (the message has the nearest names).
        TaskError: nothing can be learned from the target, or it is not of the given `task`.
        FactoryError: the text contains the target, or the head is for another task.
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
    """Return the target's columns."""
    return [table.column(name, "target column") for name in names]


def _task_of(head_class: type[Head] | None, task: str | None) -> str | None:
    """Return the competition type that the target must be; None: any of the head's, or of all."""
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
    """Return the text of a row; all of its columns exist, and none is the target."""
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


@dataclass(frozen=True, kw_only=True)
class FrameModel(Problem):
    """A model, and how it reads a frame.

    Attributes:
        model: encoder, pooling and head; the head has the frame's classes and scaler.
        tokenizer: the encoder's.
    """

    model: BertWithHead
    tokenizer: Tokenizer

    def windows(self, frame: Any) -> Windows:
        """Return the histories, targets and times of a time series, with the head's lengths; see `cut_windows`."""
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
    """Return a model for a frame, with an inferred task and a head that is fitted to the targets.

    Cross-validation fits the head again in every fold, to its training rows alone: `model.head.fit_targets`.

    Args:
        frame: a pandas or polars DataFrame, or a dict of columns.
        target: the column to predict, or several.
        checkpoint: a converted directory, or the id of a converted repository on the Hub.
        text: a column, several, a template such as "{Sex}, age {Age}", or a `RowText`; None: every column but the
            target, `time` and those in `ignore`, as "column: value".
        pair: the second sentence, likewise.
        task: a competition type or a head's name; None: `infer_task` chooses.
        time: the column of times that makes it a time series.
        classes: the labels, if the frame may lack one, or if they have an order.
        ignore: columns that `text=None` leaves out, such as ids.
        decimal: the decimal mark of a target that is written as text; see `infer_task`.
        label_separator: between several labels in one cell; see `infer_task`.
        pooling: as for `create_model`; likewise `revision` and `dtype`.
        head_options: arguments of the head.

    Raises:
        DataError: there are no rows, or a column is missing (the message has the nearest names).
        TaskError: nothing can be learned from the target, rows lack it, or it is not of the given `task`.
        FactoryError: the text contains the target, or the head refuses an option.
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
    options = dict(head_options)
    if problem.task.classes is not None:
        options["classes"] = problem.task.classes
    if problem.task.task == "time_series":
        rows = problem.cut_windows(frame, window=head_options.get("window", 0), horizon=head_options.get("horizon", 1))
        targets, options["known_at"] = rows.targets, rows.known_at
    else:
        targets = problem.targets(frame)
    head_class = problem.head_class
    of_fitting = set(inspect.signature(head_class.from_targets).parameters)
    check_options(head_class, {name: value for name, value in options.items() if name not in of_fitting})
    model, tokenizer = _assemble(
        checkpoint,
        pooling,
        revision,
        dtype,
        lambda hidden_size: head_class.from_targets(hidden_size, targets, **options),
    )
    return FrameModel(**vars(problem), model=model, tokenizer=tokenizer)
