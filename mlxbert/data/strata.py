"""Targets as what folds are balanced by: classes, labels, or bins of a number; and what is too rare to be balanced."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlxbert.data.frames import plain, shown
from mlxbert.errors import MLXBertError, MLXBertWarning, first_ten

MAX_BINS = 10


class FoldError(MLXBertError):
    """Folds that cannot be made, or would be of no use."""


class FoldWarning(MLXBertWarning):
    """Folds that are made, but leave something out."""


def class_strata(targets: Iterable[Any], row_groups: np.ndarray, folds: int) -> np.ndarray:
    """The class of each row, (N,) int64.

    Raises:
        FoldError: a missing target, one class only, or a class in fewer groups of rows than there are folds.
    """
    values = [plain(value) for value in targets]
    _refuse_missing(values)
    numbers: dict[Any, int] = {}
    strata = np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
    if len(numbers) < 2:
        raise FoldError(f"the target has one class only ({shown(values[0])}); fix: is it the right column?")
    # Counted once for all classes: one by one, 100,000 classes take hours.
    rows = np.bincount(strata)
    groups = np.bincount(np.unique(np.stack([strata, np.asarray(row_groups)]), axis=1)[0], minlength=len(numbers))
    rare = [
        f"{shown(value)}: {_counted(rows[number], 'row')}, {_counted(groups[number], 'different text or group')}"
        for value, number in numbers.items()
        if groups[number] < folds
    ]
    if rare:
        raise FoldError(
            f"{len(rare)} of {len(numbers)} classes: too rare for {folds} folds, equal texts and groups being kept "
            "together; fix: fewer folds, --text with columns that differ from row to row, or merge or drop the class\n"
            + first_ten(rare)
        )
    return strata


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s".replace("text or", "texts or")


def label_strata(targets: Any, row_groups: np.ndarray, folds: int, names: Sequence[str] | None = None) -> np.ndarray:
    """Which labels each row has, (N, L) bool; an unknown one (−1, None) counts as absent.

    Raises:
        FoldError: not (N, L), or other values than 0, 1 and unknown.

    Warns:
        FoldWarning: a label with positives or negatives in fewer groups of rows than there are folds: no metric of it
            can be taken in some fold.
    """
    table = np.asarray(targets)
    if table.ndim != 2 or len(table) != len(row_groups):
        raise FoldError(
            f"multilabel targets have shape {table.shape}; expected ({len(row_groups)}, labels) of 0 and 1"
        )
    values = np.array([[-1 if (cell := plain(one)) is None else cell for one in row] for row in table], np.float64)
    strange = ~np.isin(values, (-1, 0, 1))
    if strange.any():
        row, column = np.argwhere(strange)[0]
        raise FoldError(f"multilabel targets: row {row}, label {column} is {table[row, column]}; expected 0, 1 or −1")
    names = [str(i) for i in range(values.shape[1])] if names is None else names
    rare = []
    for column, name in enumerate(names):
        counts = [len(np.unique(row_groups[values[:, column] == value])) for value in (1, 0)]
        if min(counts) < folds:
            rare.append(f"{name} ({(values[:, column] == 1).sum()} positives)")
    if rare:
        warnings.warn(
            f"{len(rare)} of {len(names)} labels are too rare to be in each of {folds} folds: {', '.join(rare[:10])}"
            + (f" … and {len(rare) - 10} more" if len(rare) > 10 else ""),
            FoldWarning,
            stacklevel=3,
        )
    return values == 1


def bin_strata(targets: Any, folds: int) -> np.ndarray:
    """The bin of each row's number by rank, (N,) int64: at most ten bins, none with fewer rows than folds.

    Several targets, (N, T), are binned by the mean of their ranks.

    Raises:
        FoldError: a missing or infinite target.
    """
    table = np.asarray(targets)
    rows = [plain(value) for value in table.reshape(-1)]
    _refuse_missing(rows, table.shape[1] if table.ndim == 2 else 1)
    try:
        values = np.array(rows, np.float64).reshape(len(table), -1)
    except (TypeError, ValueError):
        raise FoldError("binned folds need numbers for targets; fix: fold_kind='plain'") from None
    if not np.isfinite(values).all():
        raise FoldError(f"the target of row {np.argwhere(~np.isfinite(values))[0][0]} is infinite; fix: drop the row")
    ranks = np.mean([_ranks(column) for column in values.T], axis=0)
    bins = max(1, min(MAX_BINS, len(ranks) // (2 * folds)))
    strata = np.minimum((_ranks(ranks) * bins / len(ranks)).astype(np.int64), bins - 1)
    # Where many rows share one value, the bins beside it can be nearly empty: each joins the next one below.
    kept: list[int] = []
    made = np.zeros(len(strata), np.int64)
    for number in np.unique(strata):
        if not kept or min(kept[-1], (strata == number).sum()) >= folds:
            kept.append(0)
        made[strata == number] = len(kept) - 1
        kept[-1] += int((strata == number).sum())
    return made


def _ranks(values: np.ndarray) -> np.ndarray:
    """The mean position of each value among all, from 0; equal values have one."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts) + (ends - 1))[inverse.reshape(-1)] / 2


def _refuse_missing(values: Sequence[Any], columns: int = 1) -> None:
    missing = [i // columns for i, value in enumerate(values) if value is None]
    if missing:
        raise FoldError(
            f"{len(missing)} targets are missing (first: row {missing[0]}); fix: drop these rows, or fill them"
        )
