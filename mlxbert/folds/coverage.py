"""Whether both sides of each fold have every class, to be learned and to be judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlxbert.errors import first_ten
from mlxbert.factory.frames import plain, shown
from mlxbert.factory.infer_task import InferredTask
from mlxbert.folds import Fold
from mlxbert.folds.strata import FoldError, FoldWarning

_CLASSES = ("binary", "multiclass", "ordinal")
_SHOWN = 5


def check_labels(folds: Sequence[Fold], targets: np.ndarray[Any, Any], task: InferredTask, kind: str) -> None:
    """Look for classes, or labels, that a side of a fold lacks.

    Plain folds can be dealt otherwise, so that one label is an error there; groups, times and a validation file are
    the user's own, and many labels are seldom all in each fold: these are warned of.

    Args:
        folds: of all rows.
        targets: of all rows, as `target_values` gives them.
        task: what they are.
        kind: how the folds were dealt; the stratified ones have looked already.

    Raises:
        FoldError: plain folds lack a class; any fold has one class to learn from.

    Warns:
        FoldWarning: other folds lack a class, or a label.
    """
    if kind in ("stratified", "multilabel_stratified"):
        return
    if task.task in _CLASSES:
        found = list(_without_class(folds, targets))
        if found and kind == "plain":
            raise FoldError(
                "plain folds leave a side without a class; fix: fold_kind='stratified', or fewer folds\n"
                + first_ten(found)
            )
    elif task.task == "multilabel":
        found = list(_without_label(folds, targets, task.classes or ()))
    else:
        return
    if found:
        more = f", … and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        warnings.warn(f"not every metric is defined: {', '.join(found[:_SHOWN])}{more}", FoldWarning, stacklevel=2)


def _sides(folds: Sequence[Fold]) -> Iterator[tuple[int, str, np.ndarray[Any, Any]]]:
    for number, fold in enumerate(folds):
        yield number, "to learn from", fold.train
        yield number, "held out", fold.valid


def _without_class(folds: Sequence[Fold], targets: np.ndarray[Any, Any]) -> Iterator[str]:
    values = [plain(value) for value in targets]
    classes = dict.fromkeys(values)
    for number, side, rows in _sides(folds):
        here = {values[row] for row in rows}
        if side == "to learn from" and len(here) == 1:
            raise FoldError(
                f"fold {number} has one class only to learn from ({shown(*here)}); fix: fewer folds, or other groups"
            )
        yield from (f"fold {number} has no {shown(one)!r} {side}" for one in classes if one not in here)


def _without_label(folds: Sequence[Fold], targets: np.ndarray[Any, Any], names: Sequence[Any]) -> Iterator[str]:
    for number, side, rows in _sides(folds):
        for column, name in enumerate(names):
            for value, what in ((1, "positive"), (0, "negative")):
                if (targets[:, column] == value).any() and not (targets[rows, column] == value).any():
                    yield f"fold {number} has no {what} of {str(name)!r} {side}"
