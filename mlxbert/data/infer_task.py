"""`infer_task`: the competition type of a target, and the reason; `target_values`: the targets for a head.

Text cells are first read as the values that they write (`mlxbert.data.target_cells`): 1,5 is a number. Missing values
are counted and left out, and a float without fraction is a whole number, because a missing value turns numbers into
floats. Then the first rule that fits decides:

1. several columns: all of 0, 1 (and −1 or missing: unknown) are multilabel; other numbers are a regression of several
   targets;
2. lists, strings that Python or JSON wrote as lists, or strings joined by "|", ";" or "," whose parts repeat beside
   other ones: multilabel;
3. two distinct values: binary (but not two fractions); an ordered categorical: ordinal;
4. strings and categoricals: multiclass; but if every row has another one, or most rows of 20 or more, they are ids or
   free text;
5. up to 11 whole numbers without a gap: ordinal if the column has a rating's name or they do not begin at 0;
   multiclass if it has a label's name or they begin at 0, as label encoders count; with gaps: multiclass if each has
   ten rows on average;
6. other numbers: regression; with one time a row: time series.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from heads.errors import HeadError, unknown_name
from heads.forward_chaining import as_times
from heads.head_registry import COMPETITION_TYPES
from heads.labels import Label
from mlxbert.data.frames import Column, Table, is_frame, plain, read_column, shown
from mlxbert.data.target_cells import (
    MOST_RATINGS,
    Cells,
    TaskError,
    described,
    find_cells,
    joined_by,
    read_cells,
    warn_of_alike,
)

_RATING_WORDS = frozenset(
    ("rating", "ratings", "star", "stars", "score", "grade", "level", "quality", "severity", "rank", "stage", "likert")
)
_LABEL_WORDS = frozenset(("label", "labels", "class", "category", "cat", "topic", "intent", "species", "type", "kind"))
_ID_WORDS = frozenset(("id", "uuid", "guid", "index"))
_UNKNOWN = -1

Choice = tuple[str, str, tuple[Label, ...] | None]
"""Competition type, reason, classes."""


@dataclass(frozen=True)
class InferredTask:
    """A target's competition type and classes.

    Attributes:
        task: of `heads.head_registry.COMPETITION_TYPES`.
        reason: in a sentence.
        target: the columns.
        classes: the labels, in the order of the head; of "binary" the last is the positive one.
        num_targets: columns of numbers, for "regression".
        rows: of the frame.
        missing: rows without a target; they must be dropped, except for "multilabel", which skips unknown entries.
        cells: how the cells are read; {}: as they are.
    """

    task: str
    reason: str
    target: tuple[str, ...]
    classes: tuple[Label, ...] | None
    num_targets: int
    rows: int
    missing: int
    cells: Cells = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.task}: {self.reason}"


def infer_task(
    target: Any,
    *,
    time: Any = None,
    task: str | None = None,
    classes: Sequence[Label] | None = None,
    decimal: str | None = None,
    label_separator: str | None = None,
) -> InferredTask:
    """Return the competition type of a target, and the reason.

    Args:
        target: a pandas or polars series, a list or array; or several columns as a frame, a dict, or a 2-D array.
        time: one time a row (dates, ISO strings, numbers); a datetime index of a pandas series counts, too.
        task: the competition type, if the caller knows it; then it is only checked.
        classes: the labels, if the caller knows them.
        decimal: the decimal mark of numbers that are written as text, "." or ","; None: inferred.
        label_separator: the mark between several labels of a cell; None: inferred.

    Raises:
        TaskError: there are no values, or only one; they are ids, free text, dates, or infinite numbers; or they are
            not of the given `task`.
        DataError: the target is not one value a row.

    Warns:
        TaskWarning: labels differ by stray spaces or a Unicode form (and are read as one), or only by case.
    """
    if task is not None and task not in COMPETITION_TYPES:
        raise TaskError(str(unknown_name("competition type", task, COMPETITION_TYPES)))
    raw_columns = _target_columns(target)
    cells = find_cells(raw_columns, task, classes, decimal, label_separator)
    columns = [read_cells(column, cells, task or "", classes) for column in raw_columns]
    names = tuple(column.name for column in columns)
    rows = len(columns[0].values)
    if not rows:
        raise TaskError(f"target {names[0]!r} has no rows; fix: is the file empty, or was everything filtered out?")
    missing = sum(
        all(value is None for value in row) for row in zip(*(column.values for column in columns), strict=True)
    )
    if missing == rows:
        raise TaskError(f"target {names[0]!r} has no value in any of its {rows} rows; fix: is it the test file?")
    labels = None if classes is None else tuple(classes)
    if len(columns) > 1:
        chosen, why, labels = _choose_for_several(columns, task, labels)
    elif task is not None:
        chosen, why, labels = _check_given_task(columns[0], time, task, labels)
    else:
        chosen, why, labels = _choose(columns[0], time, labels, cells)
    if reading := described(cells, raw_columns):
        why += f"; {reading}"
    if missing:
        why += f"; {missing} of {rows} rows have no target and must be dropped"
    if labels is not None and len(columns) == 1:
        warn_of_alike(raw_columns[0], columns[0], labels)
    return InferredTask(chosen, why, names, labels, len(columns), rows, missing, cells)


def target_values(target: Any, inferred: InferredTask) -> np.ndarray[Any, Any]:
    """Return the targets for `Head.from_targets`, `encode_targets` and `evaluate`.

    Labels (N,) in the user's own values; for "multilabel" (N, L) of 0, 1 and −1 for unknown, columns as `classes`; for
    "regression" (N,) or (N, T) numbers; for "time_series" the series (N,).

    Args:
        target: a series or columns, as `infer_task` takes them; of the same frame or of a similar one.
        inferred: the task of the target.

    Raises:
        TaskError: a target is missing (except for "multilabel"), or a label is not one of the classes.
    """
    columns = [
        read_cells(column, inferred.cells, inferred.task, inferred.classes) for column in _target_columns(target)
    ]
    names = ", ".join(column.name for column in columns)
    rows = list(zip(*(column.values for column in columns), strict=True))
    if inferred.task == "multilabel":
        if len(columns) > 1:
            return np.array([[_UNKNOWN if value is None else value for value in row] for row in rows], np.float32)
        return _indicators([row[0] for row in rows], inferred, names)
    missing = [number for number, row in enumerate(rows) if any(value is None for value in row)]
    if missing:
        called_na = (
            "; where a label is called NA, name every label (--class NA …; of a pandas frame keep_default_na=False)"
        )
        raise TaskError(
            f"target {names!r}: {len(missing)} of {len(rows)} rows have no value (first: row {missing[0]}); "
            f"fix: drop them before (--drop-missing){called_na if inferred.classes else ''}"
        )
    if inferred.task in ("regression", "time_series"):
        numbers = np.array(rows, np.float64)
        return numbers[:, 0] if len(columns) == 1 else numbers
    labels = [int(value) if isinstance(value, float) and value.is_integer() else value for (value,) in rows]
    kinds = {type(label) for label in labels}
    return np.array(labels) if len(kinds) == 1 else np.array(labels, object)


def _indicators(cells: list[Any], inferred: InferredTask, name: str) -> np.ndarray[Any, Any]:
    """Return lists of labels as (N, L) of 0 and 1; all labels of a missing cell are unknown."""
    classes = inferred.classes or ()
    position = {label: i for i, label in enumerate(classes)}
    indicators = np.zeros((len(cells), len(classes)), np.float32)
    for row, cell in enumerate(cells):
        if cell is None:
            indicators[row] = _UNKNOWN
            continue
        for label in cell:
            if label not in position:
                raise TaskError(
                    f"target {name!r}: row {row} has label {label!r}, which is not one of the {len(classes)} classes; "
                    "fix: give every label that can occur as classes=…"
                )
            indicators[row, position[label]] = 1
    return indicators


def _target_columns(target: Any) -> list[Column]:
    """Return the column, or columns, of a target in any form that `infer_task` takes."""
    if isinstance(target, list) and target and all(isinstance(column, Column) for column in target):
        return target
    if isinstance(target, np.ndarray) and target.ndim == 2:
        target = {str(i): target[:, i] for i in range(target.shape[1])}
    if is_frame(target):
        table = Table(target, "the target")
        return [table.column(name) for name in table.names]
    return [read_column(target)]


def _choose_for_several(columns: Sequence[Column], task: str | None, classes: tuple[Label, ...] | None) -> Choice:
    names = tuple(column.name for column in columns)
    for column in columns:
        wrong = next((value for value in column.present if not isinstance(value, int | float)), None)
        if wrong is not None:
            raise TaskError(
                f"target column {column.name!r} holds {wrong!r}: several target columns must be "
                "numbers, or 0 and 1 each; fix: give one column, or encode it"
            )
        _refuse_infinite(column)
    values = {float(value) for column in columns for value in column.present}
    are_labels = values <= {0.0, 1.0, -1.0} and 1.0 in values
    if task not in (None, "multilabel", "regression") or (task == "multilabel" and not are_labels):
        wrong_values = " of other values than 0, 1 and −1" if task == "multilabel" else ""
        raise TaskError(f"task={task!r} was asked for, but the target has {len(columns)} columns{wrong_values}")
    if not are_labels and len(values) == 1:
        raise TaskError(
            f"target columns {', '.join(names)} hold one value, {shown(values.pop())}: nothing can be learned"
        )
    if task is not None:
        return task, "as asked for", (classes or names) if task == "multilabel" else None
    if not are_labels:
        return "regression", f"{len(columns)} columns of numbers", None
    why = f"{len(columns)} columns of 0 and 1" + (" (−1: unknown)" if -1.0 in values else "")
    if all(sum(value == 1 for value in row) == 1 for row in zip(*(column.values for column in columns), strict=True)):
        why += "; every row has exactly one 1: if the labels exclude each other, make one column of them (multiclass)"
    return "multilabel", why, classes or names


def _check_given_task(column: Column, time: Any, task: str, classes: tuple[Label, ...] | None) -> Choice:
    """Return the caller's task, if the values fit it."""
    counts = _value_counts(column)
    first, what = column.present[0], f"task={task!r} was asked for, but target {column.name!r}"
    if task == "multilabel":
        if not isinstance(first, tuple):
            raise TaskError(f"{what} is one column of numbers; fix: give a column a label, lists, or 'a|b' strings")
        labels = _choose_multilabel(column, "")[2] or ()
        return task, "as asked for", _covering(column, classes, labels) if classes else labels
    if isinstance(first, tuple):
        raise TaskError(f"{what} holds lists; fix: task='multilabel'")
    if task in ("regression", "time_series"):
        if isinstance(first, str):
            raise TaskError(f"{what} holds text such as {first!r}; fix: make it numbers")
        if task == "time_series" and _times(column, time) is None:
            raise TaskError(f"{what} has no times; fix: give time=, one a row")
        return task, "as asked for", None
    if classes is None and isinstance(first, str):
        _refuse_ids(column, counts)
        if task == "ordinal" and column.order is None:
            raise TaskError(f"{what} holds words; fix: give classes=(…), lowest first")
    values = _sorted_labels(counts)
    labels = _covering(column, classes, values) if classes else (task == "ordinal" and column.order) or values
    if task == "binary" and len(labels) != 2:
        raise TaskError(f"{what} has {len(labels)} different values; fix: task='multiclass'")
    return task, "as asked for", labels


def _choose(column: Column, time: Any, classes: tuple[Label, ...] | None, cells: Cells) -> Choice:
    counts = _value_counts(column)
    task, why, labels = _choose_by_values(column, counts, joined_by(cells))
    if (cells.get("thousands") or cells.get("unit")) and classes is None:  # nobody numbers classes like this
        task, why, labels = "regression", f"amounts, {shown(min(counts))} … {shown(max(counts))}", None
    if classes is not None:
        if task != "multilabel":  # count the given classes that these rows lack, too
            whole = replace(column, values=(*column.values, *classes))
            task, why, _ = _choose_by_values(whole, counts + Counter(classes))
            if task == "regression":
                task, why = "multiclass", f"{len(classes)} classes, as given"
        labels = _covering(column, classes, labels or _sorted_labels(counts))
    times = _times(column, time)
    if times is None:
        if task == "regression":
            _refuse_row_numbers(column, counts)
    elif len(np.unique(times)) < len(times):
        why += "; the times repeat, so the rows are not one series"
    elif task == "regression":
        if time is not None or _are_regular(times):
            return "time_series", f"numbers with one time a row, {times.min()} … {times.max()}", None
        why += "; its datetime index is not regular, so the rows are not taken for one series (time= says they are)"
    elif time is not None:
        why += "; labels are no series, the times are for forward-chaining folds"
    return task, why, labels


def _choose_by_values(column: Column, counts: Counter[Any], sets: str = "lists of labels") -> Choice:
    """Return the choice by the values alone; `sets` says how a cell holds several labels."""
    first = column.present[0]
    if isinstance(first, tuple):
        return _choose_multilabel(column, sets)
    are_strings = isinstance(first, str)
    if are_strings:
        _refuse_ids(column, counts)
    if column.order is not None and len(counts) > 2:
        return "ordinal", f"an ordered categorical of {len(column.order)} values", column.order
    are_whole = not are_strings and all(float(value).is_integer() for value in counts)
    if len(counts) == 2 and (are_whole or are_strings):
        labels = _sorted_labels(counts)
        return "binary", f"two values, {labels[0]!r} and {labels[1]!r}; the positive one is {labels[1]!r}", labels
    if are_strings or column.categorical:
        kind = "different strings" if are_strings else "categories"
        return "multiclass", f"{len(counts)} {kind}", _sorted_labels(counts)
    return _choose_for_numbers(column, counts, are_whole)


def _choose_multilabel(column: Column, sets: str) -> Choice:
    rows = column.present
    widths = {len(row) for row in rows}
    labels = {label for row in rows for label in row}
    if len(widths) == 1 and widths != {1} and labels <= {0, 1}:
        raise TaskError(f"target {column.name!r} holds vectors of 0 and 1; fix: give a frame with one column a label")
    wrong = next((label for label in labels if not isinstance(label, str | int)), None)
    if wrong is not None:
        raise TaskError(f"target {column.name!r} has {wrong!r} in a list; fix: lists of strings or whole numbers")
    if not labels or 2 * len(labels) > sum(map(len, rows)) >= 20:
        raise TaskError(
            f"target {column.name!r}: {len(labels)} labels in {len(rows)} lists, so hardly one occurs twice"
        )
    return "multilabel", f"{sets}, {len(labels)} different ones", _sorted_labels(labels)


def _choose_for_numbers(column: Column, counts: Counter[Any], are_whole: bool) -> Choice:
    low, high, name, rows = min(counts), max(counts), column.name, len(column.present)
    span = f"{shown(low)} … {shown(high)}"
    if not are_whole:
        return "regression", f"numbers with fractions, {span}", None
    is_rating, is_label = bool(_words(name) & _RATING_WORDS), bool(_words(name) & _LABEL_WORDS)
    if is_label and not is_rating and rows >= 5 * len(counts):
        why = f"{len(counts)} whole numbers, {span}, in a column named {name!r}"
        return "multiclass", why, _sorted_labels(counts)
    if len(counts) > MOST_RATINGS:
        why = f"{len(counts)} different whole numbers, {span}, more than the {MOST_RATINGS} of a rating"
        return "regression", why, None
    labels = _sorted_labels(counts)
    if high - low + 1 == len(counts):
        steps = f"{len(counts)} whole numbers in steps of one, {span}"
        if is_rating:
            return "ordinal", f"{steps}, in a column named {name!r}", labels
        if low != 0:
            return "ordinal", f"{steps}: ratings (task='multiclass' if their order means nothing)", labels
        return "multiclass", f"{steps}, from 0 as label encoders count (task='ordinal' if they are ratings)", labels
    if rows >= 10 * len(counts):
        why = f"{len(counts)} whole numbers with gaps, {span} (task='regression' if they are amounts)"
        return "multiclass", why, labels
    return "regression", f"{len(counts)} whole numbers with gaps in {rows} rows, {span}", None


def _value_counts(column: Column) -> Counter[Any]:
    """Return how often each value occurs; refuse values that no target can have."""
    name, values = column.name, column.present
    for value in values:
        if not isinstance(value, str | int | float | tuple):
            kind = "dates; fix: give them as time=" if hasattr(value, "year") else f"{type(value).__name__} values"
            raise TaskError(f"target {name!r} holds {kind}, not labels or numbers")
    kinds = {"text" if isinstance(v, str) else "lists" if isinstance(v, tuple) else "numbers" for v in values}
    if len(kinds) > 1:
        raise TaskError(f"target {name!r} mixes {' and '.join(sorted(kinds))}; fix: make it one type")
    if "numbers" in kinds:
        _refuse_infinite(column)
    counts = Counter(values)
    if len(counts) == 1:
        raise TaskError(
            f"target {name!r} has one value, {values[0]!r}, in all {len(values)} rows: nothing can be learned"
        )
    return counts


def _sorted_labels(labels: Iterable[Any]) -> tuple[Label, ...]:
    """Return the labels in order, whole floats as ints."""
    values = [int(label) if isinstance(label, float) and label.is_integer() else label for label in labels]
    if len({isinstance(value, str) for value in values}) > 1:
        raise TaskError(f"the labels mix text and numbers, such as {values[0]!r}; fix: make them one type")
    return tuple(sorted(set(values)))


def _covering(column: Column, classes: tuple[Label, ...], labels: tuple[Label, ...]) -> tuple[Label, ...]:
    """Return `classes` if all labels of the column are among them."""
    lacking = [label for label in labels if label not in classes]
    if lacking:
        raise TaskError(
            f"target {column.name!r} has the value {lacking[0]!r}, which is not one of the {len(classes)} classes "
            "given; fix: add it, or drop its rows"
        )
    return classes


def _refuse_infinite(column: Column) -> None:
    for row, value in enumerate(column.values):
        if isinstance(value, float) and math.isinf(value):
            raise TaskError(f"target {column.name!r} is {value} in row {row}; fix: drop or replace it")
        if isinstance(value, int) and value.bit_length() > 1023:
            raise TaskError(
                f"target {column.name!r} has a number too large for a float in row {row}; fix: drop or replace it"
            )


def _refuse_ids(column: Column, counts: Counter[Any]) -> None:
    rows = len(column.present)
    if (len(counts) < rows or rows < 3) and not (rows >= 20 and 2 * len(counts) > rows):
        return
    example = column.present[0][:40]
    what = f"target {column.name!r} has {len(counts)} different strings in {rows} rows, such as {example!r}"
    try:
        numbers = [float(value) for value in counts]
    except ValueError:
        raise TaskError(f"{what}: ids or free text, not labels; fix: name the column to predict") from None
    raise TaskError(f"{what}: numbers stored as text ({numbers[0]:g}, …); fix: convert the column to numbers")


def _refuse_row_numbers(column: Column, counts: Counter[Any]) -> None:
    values = column.present
    if len(counts) < len(values) or len(values) < 10:
        return
    are_counted = all(after - before == 1 for before, after in pairwise(values))
    if are_counted or (_words(column.name) & _ID_WORDS and all(float(value).is_integer() for value in values)):
        raise TaskError(
            f"target {column.name!r} has another number in every row ({shown(values[0])}, {shown(values[1])}, …): "
            "an id, not something to predict; fix: name the column to predict (or task='regression')"
        )


def _words(name: str) -> set[str]:
    """Return the words of a column's name: {"passenger", "id"} for "PassengerId" and "passenger_id"."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def _times(column: Column, time: Any) -> np.ndarray[Any, Any] | None:
    """Return (N,) times of the rows, given or of the index; None: there are none."""
    if time is None and column.times is None:
        return None
    values = column.times if time is None else read_column(time, "time").values
    try:
        times = as_times([plain(value) for value in values or ()], "time")
    except HeadError as error:
        raise TaskError(str(error)) from error
    if len(times) != len(column.values):
        raise TaskError(
            f"time has {len(times)} rows, target {column.name!r} {len(column.values)}; fix: one time a row"
        )
    return times


def _are_regular(times: np.ndarray[Any, Any]) -> bool:
    """Return whether most steps have one length, as days, working days and months have."""
    steps = np.diff(np.sort(times)).astype(np.float64)
    if len(steps) < 2:
        return False
    middle = float(np.median(steps))
    return bool(((steps > 0.5 * middle) & (steps < 1.5 * middle)).mean() >= 0.75)
