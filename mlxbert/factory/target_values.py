"""A frame's targets as a head takes them, once `infer_task` has said what they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxbert.factory.infer_task import InferredTask, target_columns
from mlxbert.factory.target_cells import read_cells
from mlxbert.factory.target_rules import TaskError

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
