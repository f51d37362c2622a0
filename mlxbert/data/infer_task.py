"""`infer_task`: which of the six competition types a target is, and why.

The rules, first match first; numbers that are whole count as whole whatever their dtype is (a missing value makes
floats of them), and missing values are counted and left out.

1. several columns: all of 0, 1 (and −1, missing: unknown) is multilabel, other numbers are a regression of several
   targets;
2. lists, strings that Python or JSON wrote as lists, or strings joined by "|", ";" or "," whose parts come again in
   other company: multilabel;
3. two distinct values: binary (not two fractions); an ordered categorical: ordinal;
4. strings, categoricals: multiclass, unless every row, or most of 20 and more, has its own: ids or free text;
5. up to 11 whole numbers without a gap: ordinal where the column's name says rating or they do not begin at 0,
   multiclass where it says label or they begin at 0 (label encoders do, ratings seldom); with gaps: multiclass if
   each stands for ten rows on average;
6. other numbers: regression, and a time series where one time a row is given with them.

Before that, cells that are text are read as what they write (`mlxbert.data.targets`): 1,5 is a number.

A frame's targets as a head takes them, once `infer_task` has said what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from heads.errors import HeadError, unknown_name
from heads.forward_chaining import as_times
from heads.head_registry import COMPETITION_TYPES
from heads.labels import Label
from mlxbert.data.frames import Column, Table, is_frame, plain, read_column, shown
from mlxbert.data.targets import (
    Cells,
    Choice,
    TaskError,
    choose_by_values,
    described,
    find_cells,
    joined_by,
    multilabel_choice,
    read_cells,
    refuse_ids,
    refuse_infinite,
    refuse_row_numbers,
    sorted_labels,
    value_counts,
    warn_of_alike,
)


@dataclass(frozen=True)
class InferredTask:
    """What a target is.

    Attributes:
        task: of `heads.head_registry.COMPETITION_TYPES`.
        reason: why, in a sentence.
        target: the columns.
        classes: the labels, in the order that the head is given them; of "binary" the last is the positive one.
        num_targets: columns of numbers, for "regression".
        rows: of the frame.
        missing: rows without a target; they must be dropped, but for "multilabel", where unknown entries are left out.
        cells: how the cells are read; {}: as they stand.
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
    """Say which competition type a target is, and why.

    Args:
        target: a pandas or polars series, a list or array; or several columns as a frame, a dict, or a 2-D array.
        time: one time a row (dates, ISO strings, numbers); a datetime index of a pandas series counts too.
        task: what it is, where the caller knows; then it is only checked.
        classes: the labels, where the caller knows them.
        decimal: the decimal mark of numbers that are written as text, "." or ","; None: found out.
        label_separator: what stands between several labels of a cell; None: found out.

    Raises:
        TaskError: no values, one value, ids, free text, dates, infinite numbers, or not the `task` that was asked for.
        FrameError: not columns of one value a row.

    Warns:
        TaskWarning: labels differ by stray spaces or a Unicode form (and are read as one), or by case alone.
    """
    if task is not None and task not in COMPETITION_TYPES:
        raise TaskError(str(unknown_name("competition type", task, COMPETITION_TYPES)))
    given = target_columns(target)
    labels = None if classes is None else tuple(classes)
    cells = find_cells(given, task, classes, decimal, label_separator)
    columns = [read_cells(column, cells, task or "", classes) for column in given]
    names = tuple(column.name for column in columns)
    rows = len(columns[0].values)
    if not rows:
        raise TaskError(f"target {names[0]!r} has no rows; fix: is the file empty, or was everything filtered out?")
    missing = sum(all(value is None for value in row) for row in zip(*(one.values for one in columns), strict=True))
    if missing == rows:
        raise TaskError(f"target {names[0]!r} has no value in any of its {rows} rows; fix: is it the test file?")
    if len(columns) > 1:
        found, why, labels = _several(columns, task, labels)
    else:
        found, why, labels = _single(columns[0], time, task, labels, cells)
    if how := described(cells, given):
        why += f"; {how}"
    if missing:
        why += f"; {missing} of {rows} rows have no target and must be dropped"
    if labels is not None and len(columns) == 1:
        warn_of_alike(given[0], columns[0], labels)
    return InferredTask(found, why, names, labels, len(columns), rows, missing, cells)


def target_columns(target: Any) -> list[Column]:
    """The column, or columns, of what `infer_task` is given."""
    if isinstance(target, list) and target and all(isinstance(one, Column) for one in target):
        return target
    if isinstance(target, np.ndarray) and target.ndim == 2:
        target = {str(i): target[:, i] for i in range(target.shape[1])}
    if is_frame(target):
        table = Table(target, "the target")
        return [table.column(name) for name in table.names]
    return [read_column(target)]


def _several(columns: Sequence[Column], task: str | None, classes: tuple[Label, ...] | None) -> Choice:
    names = tuple(column.name for column in columns)
    for column in columns:
        wrong = next((value for value in column.present if not isinstance(value, int | float)), None)
        if wrong is not None:
            raise TaskError(
                f"target column {column.name!r} holds {wrong!r}: several target columns must be "
                "numbers, or 0 and 1 each; fix: give one column, or encode it"
            )
        refuse_infinite(column)
    values = {float(value) for column in columns for value in column.present}
    binary = values <= {0.0, 1.0, -1.0} and 1.0 in values
    if task not in (None, "multilabel", "regression") or (task == "multilabel" and not binary):
        raise TaskError(
            f"task={task!r} was asked for, but the target has {len(columns)} columns{_and_not(binary, task)}"
        )
    if not binary and len(values) == 1:
        raise TaskError(
            f"target columns {', '.join(names)} hold one value, {shown(values.pop())}: nothing can be learned"
        )
    if task is not None:
        return task, "as asked for", (classes or names) if task == "multilabel" else None
    if not binary:
        return "regression", f"{len(columns)} columns of numbers", None
    why = f"{len(columns)} columns of 0 and 1" + (" (−1: unknown)" if -1.0 in values else "")
    if all(sum(value == 1 for value in row) == 1 for row in zip(*(one.values for one in columns), strict=True)):
        why += "; every row has exactly one 1: if the labels exclude each other, make one column of them (multiclass)"
    return "multilabel", why, classes or names


def _and_not(binary: bool, task: str | None) -> str:
    return " of other values than 0, 1 and −1" if task == "multilabel" and not binary else ""


def _single(column: Column, time: Any, task: str | None, classes: tuple[Label, ...] | None, cells: Cells) -> Choice:
    counts = value_counts(column)
    if task is not None:
        return _asked_for(column, counts, time, task, classes)
    found, why, labels = choose_by_values(column, counts, joined_by(cells))
    if (cells.get("thousands") or cells.get("unit")) and classes is None:  # nobody counts classes so
        found, why, labels = "regression", f"amounts, {shown(min(counts))} … {shown(max(counts))}", None
    if classes is not None:
        if found != "multilabel":  # classes that these rows lack count too
            known = replace(column, values=(*column.values, *classes))
            found, why, _ = choose_by_values(known, counts + Counter(classes))
            if found == "regression":
                found, why = "multiclass", f"{len(classes)} classes, as given"
        labels = _covering(column, classes, labels or sorted_labels(counts))
    times = _times(column, time)
    if times is None:
        if found == "regression":
            refuse_row_numbers(column, counts)
    elif len(np.unique(times)) < len(times):
        why += "; the times repeat, so the rows are not one series"
    elif found == "regression":
        if time is not None or _regular(times):
            return "time_series", f"numbers with one time a row, {times.min()} … {times.max()}", None
        why += "; its datetime index is not regular, so the rows are not taken for one series (time= says they are)"
    elif time is not None:
        why += "; labels are no series, the times are for forward-chaining folds"
    return found, why, labels


def _covering(column: Column, classes: tuple[Label, ...], found: tuple[Label, ...]) -> tuple[Label, ...]:
    """`classes`, if they have all that was found."""
    lacking = [label for label in found if label not in classes]
    if lacking:
        raise TaskError(
            f"target {column.name!r} has the value {lacking[0]!r}, which is not one of the {len(classes)} classes "
            "given; fix: add it, or drop its rows"
        )
    return classes


def _asked_for(
    column: Column, counts: Counter[Any], time: Any, task: str, classes: tuple[Label, ...] | None
) -> Choice:
    """The caller's task, if the values can be that."""
    first, what = column.present[0], f"task={task!r} was asked for, but target {column.name!r}"
    if task == "multilabel":
        if not isinstance(first, tuple):
            raise TaskError(f"{what} is one column of numbers; fix: give a column a label, lists, or 'a|b' strings")
        found = multilabel_choice(column, column.present, "")[2] or ()
        return task, "as asked for", _covering(column, classes, found) if classes else found
    if isinstance(first, tuple):
        raise TaskError(f"{what} holds lists; fix: task='multilabel'")
    if task in ("regression", "time_series"):
        if isinstance(first, str):
            raise TaskError(f"{what} holds text such as {first!r}; fix: make it numbers")
        if task == "time_series" and _times(column, time) is None:
            raise TaskError(f"{what} has no times; fix: give time=, one a row")
        return task, "as asked for", None
    if classes is None and isinstance(first, str):
        refuse_ids(column, counts)
        if task == "ordinal" and column.order is None:
            raise TaskError(f"{what} holds words; fix: give classes=(…), lowest first")
    values = sorted_labels(counts)
    labels = _covering(column, classes, values) if classes else (task == "ordinal" and column.order) or values
    if task == "binary" and len(labels) != 2:
        raise TaskError(f"{what} has {len(labels)} different values; fix: task='multiclass'")
    return task, "as asked for", labels


def _times(column: Column, time: Any) -> np.ndarray[Any, Any] | None:
    """(N,) times of the rows, given or of the index; None: there are none."""
    if time is None and column.times is None:
        return None
    given = column.times if time is None else read_column(time, "time").values
    try:
        times = as_times([plain(one) for one in given or ()], "time")
    except HeadError as error:
        raise TaskError(str(error)) from error
    if len(times) != len(column.values):
        raise TaskError(
            f"time has {len(times)} rows, target {column.name!r} {len(column.values)}; fix: one time a row"
        )
    return times


def _regular(times: np.ndarray[Any, Any]) -> bool:
    """Whether most steps are of one length, as days, working days and months are."""
    steps = np.diff(np.sort(times)).astype(np.float64)
    if len(steps) < 2:
        return False
    middle = float(np.median(steps))
    return bool(((steps > 0.5 * middle) & (steps < 1.5 * middle)).mean() >= 0.75)


UNKNOWN = -1


def target_values(target: Any, inferred: InferredTask) -> np.ndarray[Any, Any]:
    """The targets for `Head.from_targets`, `encode_targets` and `evaluate`.

    Labels (N,) in the user's own values; for "multilabel" (N, L) of 0, 1 and −1 for unknown, columns as `classes`; for
    "regression" (N,) or (N, T) numbers; for "time_series" the series (N,).

    Args:
        target: a series or columns, as `infer_task` takes them; of the same frame or of another one like it.
        inferred: what the target is.

    Raises:
        TaskError: a missing target (but for "multilabel"), or a label that is not one of the classes.
    """
    columns = [read_cells(one, inferred.cells, inferred.task, inferred.classes) for one in target_columns(target)]
    names = ", ".join(column.name for column in columns)
    rows = list(zip(*(column.values for column in columns), strict=True))
    if inferred.task == "multilabel":
        if len(columns) > 1:
            return np.array([[UNKNOWN if value is None else value for value in row] for row in rows], np.float32)
        return _indicators([row[0] for row in rows], inferred, names)
    missing = [row for row, values in enumerate(rows) if any(value is None for value in values)]
    if missing:
        called = (
            "; where a label is called NA, name every label (--class NA …; of a pandas frame keep_default_na=False)"
        )
        raise TaskError(
            f"target {names!r}: {len(missing)} of {len(rows)} rows have no value (first: row {missing[0]}); "
            f"fix: drop them before (--drop-missing){called if inferred.classes else ''}"
        )
    if inferred.task in ("regression", "time_series"):
        numbers = np.array(rows, np.float64)
        return numbers[:, 0] if len(columns) == 1 else numbers
    labels = [int(value) if isinstance(value, float) and value.is_integer() else value for (value,) in rows]
    kinds = {type(label) for label in labels}
    return np.array(labels) if len(kinds) == 1 else np.array(labels, object)


def _indicators(cells: list[Any], inferred: InferredTask, name: str) -> np.ndarray[Any, Any]:
    """Lists of labels as (N, L) of 0 and 1; a missing cell is unknown throughout."""
    classes = inferred.classes or ()
    position = {label: i for i, label in enumerate(classes)}
    made = np.zeros((len(cells), len(classes)), np.float32)
    for row, cell in enumerate(cells):
        if cell is None:
            made[row] = UNKNOWN
            continue
        for label in cell:
            if label not in position:
                raise TaskError(
                    f"target {name!r}: row {row} has label {label!r}, which is not one of the {len(classes)} classes; "
                    "fix: give every label that can occur as classes=…"
                )
            made[row, position[label]] = 1
    return made
