"""What a target's values alone say about its competition type; `mlxbert.factory.infer_task` has the rules in words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from heads.labels import Label
from mlxbert.errors import MLXBertError, MLXBertWarning
from mlxbert.factory.frames import Column, shown

MOST_RATINGS = 11  # 0 … 10
RATING_WORDS = frozenset(
    ("rating", "ratings", "star", "stars", "score", "grade", "level", "quality", "severity", "rank", "stage", "likert")
)
LABEL_WORDS = frozenset(("label", "labels", "class", "category", "cat", "topic", "intent", "species", "type", "kind"))
ID_WORDS = frozenset(("id", "uuid", "guid", "index"))

Choice = tuple[str, str, tuple[Label, ...] | None]
"""Competition type, why, classes."""


class TaskError(MLXBertError):
    """A target that nothing can be learned from, or not the task that was asked for."""


class TaskWarning(MLXBertWarning):
    """A target that was read, but not as it stands."""


def value_counts(column: Column) -> Counter[Any]:
    """How often each value occurs; a value that no target can hold is refused."""
    name, values = column.name, column.present
    for value in values:
        if not isinstance(value, str | int | float | tuple):
            kind = "dates; fix: give them as time=" if hasattr(value, "year") else f"{type(value).__name__} values"
            raise TaskError(f"target {name!r} holds {kind}, not labels or numbers")
    kinds = {"text" if isinstance(v, str) else "lists" if isinstance(v, tuple) else "numbers" for v in values}
    if len(kinds) > 1:
        raise TaskError(f"target {name!r} mixes {' and '.join(sorted(kinds))}; fix: make it one type")
    if "numbers" in kinds:
        refuse_infinite(column)
    counts = Counter(values)
    if len(counts) == 1:
        raise TaskError(
            f"target {name!r} has one value, {values[0]!r}, in all {len(values)} rows: nothing can be learned"
        )
    return counts


def choose_by_values(column: Column, counts: Counter[Any], sets: str = "lists of labels") -> Choice:
    """The choice from the values alone; `sets`: how several labels stand in a cell, where they do."""
    first = column.present[0]
    if isinstance(first, tuple):
        return multilabel_choice(column, column.present, sets)
    if isinstance(first, str):
        refuse_ids(column, counts)
    if column.order is not None and len(counts) > 2:
        return "ordinal", f"an ordered categorical of {len(column.order)} values", column.order
    whole = not isinstance(first, str) and all(float(value).is_integer() for value in counts)
    if len(counts) == 2 and (whole or isinstance(first, str)):
        labels = sorted_labels(counts)
        return "binary", f"two values, {labels[0]!r} and {labels[1]!r}; the positive one is {labels[1]!r}", labels
    if isinstance(first, str) or column.categorical:
        return (
            "multiclass",
            f"{len(counts)} {'different strings' if isinstance(first, str) else 'categories'}",
            sorted_labels(counts),
        )
    return _numbers(column, counts, whole)


def _numbers(column: Column, counts: Counter[Any], whole: bool) -> Choice:
    low, high, name, rows = min(counts), max(counts), column.name, len(column.present)
    span = f"{shown(low)} … {shown(high)}"
    if not whole:
        return "regression", f"numbers with fractions, {span}", None
    rating, label = bool(_words(name) & RATING_WORDS), bool(_words(name) & LABEL_WORDS)
    if label and not rating and rows >= 5 * len(counts):
        return "multiclass", f"{len(counts)} whole numbers, {span}, in a column named {name!r}", sorted_labels(counts)
    if len(counts) > MOST_RATINGS:
        return (
            "regression",
            f"{len(counts)} different whole numbers, {span}, more than the {MOST_RATINGS} of a rating",
            None,
        )
    labels = sorted_labels(counts)
    if high - low + 1 == len(counts):
        steps = f"{len(counts)} whole numbers in steps of one, {span}"
        if rating:
            return "ordinal", f"{steps}, in a column named {name!r}", labels
        if low != 0:
            return "ordinal", f"{steps}: ratings (task='multiclass' if their order means nothing)", labels
        return "multiclass", f"{steps}, from 0 as label encoders count (task='ordinal' if they are ratings)", labels
    if rows >= 10 * len(counts):
        return (
            "multiclass",
            f"{len(counts)} whole numbers with gaps, {span} (task='regression' if they are amounts)",
            labels,
        )
    return "regression", f"{len(counts)} whole numbers with gaps in {rows} rows, {span}", None


def multilabel_choice(column: Column, rows: Sequence[tuple[Any, ...]], how: str) -> Choice:
    widths = {len(row) for row in rows}
    if len(widths) == 1 and widths != {1} and {value for row in rows for value in row} <= {0, 1}:
        raise TaskError(f"target {column.name!r} holds vectors of 0 and 1; fix: give a frame with one column a label")
    labels = {label for row in rows for label in row}
    wrong = next((label for label in labels if not isinstance(label, str | int)), None)
    if wrong is not None:
        raise TaskError(f"target {column.name!r} has {wrong!r} in a list; fix: lists of strings or whole numbers")
    if not labels or 2 * len(labels) > sum(map(len, rows)) >= 20:
        raise TaskError(
            f"target {column.name!r}: {len(labels)} labels in {len(rows)} lists, so hardly one occurs twice"
        )
    return "multilabel", f"{how}, {len(labels)} different ones", sorted_labels(labels)


def sorted_labels(labels: Iterable[Any]) -> tuple[Label, ...]:
    """Sorted; whole floats become ints."""
    found = [int(one) if isinstance(one, float) and one.is_integer() else one for one in labels]
    if len({isinstance(one, str) for one in found}) > 1:
        raise TaskError(f"the labels mix text and numbers, such as {found[0]!r}; fix: make them one type")
    return tuple(sorted(set(found)))


def refuse_infinite(column: Column) -> None:
    for row, value in enumerate(column.values):
        if isinstance(value, float) and math.isinf(value):
            raise TaskError(f"target {column.name!r} is {value} in row {row}; fix: drop or replace it")
        if isinstance(value, int) and value.bit_length() > 1023:
            raise TaskError(
                f"target {column.name!r} has a number too large for a float in row {row}; fix: drop or replace it"
            )


def refuse_ids(column: Column, counts: Counter[Any]) -> None:
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


def refuse_row_numbers(column: Column, counts: Counter[Any]) -> None:
    values = column.present
    if len(counts) < len(values) or len(values) < 10:
        return
    counted = all(b - a == 1 for a, b in pairwise(values))
    if counted or (_words(column.name) & ID_WORDS and all(float(value).is_integer() for value in values)):
        raise TaskError(
            f"target {column.name!r} has another number in every row ({shown(values[0])}, {shown(values[1])}, …): "
            "an id, not something to predict; fix: name the column to predict (or task='regression')"
        )


def _words(name: str) -> set[str]:
    """A column's name in words: {"passenger", "id"} of "PassengerId" and "passenger_id"."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
