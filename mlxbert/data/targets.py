"""What a target's values alone say about its competition type; `mlxbert.data.infer_task` has the rules in words.

What a target's cells say: numbers as a country writes them, several labels in one string, labels with stray spaces.

A German Excel writes 1,5, a bank $1,234.50, pandas ['x', 'z']: each of them would be a class of its own. How the cells
are read is found once, on the training rows, said with the task, and kept with it (`InferredTask.cells`).
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from heads.labels import Label, label_text
from mlxbert.data.frames import Column, shown
from mlxbert.errors import MLXBertError, MLXBertWarning

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


Cells = dict[str, str]
"""How cells are read. {}: as they stand; {"as": "numbers"} with "decimal", "thousands" and "unit"; {"as": "sets"} with
"separator", where "[]" is a list as Python or JSON writes it."""

_UNITS = "%‰$€£¥₹"
_BODY = r"[0-9][0-9.,' ]*|[.,][0-9]+"
_AMOUNT = re.compile(rf"([+-]?)([{_UNITS}]?) ?([+-]?)({_BODY})((?:[eE][+-]?[0-9]+)?) ?([{_UNITS}]?)")
_CODE = re.compile(r"0[0-9].*|[0-9]{16,}")
_LIST = re.compile(r"\s*[\[({].*[\])}]\s*", re.DOTALL)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
# In a column of numbers these are no words (`mlxbert.data.cells` has them for plain numbers).
_NO_NUMBER = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null"))
SEPARATORS = ("|", ";", ",")
# These stand in names, too: they separate labels only where a part comes again in other company.
_DOUBTFUL = (" ", "/", "+", "&", "\t")
LIST = "[]"


def find_cells(
    columns: Sequence[Column],
    task: str | None,
    classes: Sequence[Label] | None,
    decimal: str | None,
    separator: str | None,
) -> Cells:
    """Return how the cells of the target's columns are read.

    Args:
        columns: the target's.
        task: what was asked for; None: nothing.
        classes: the labels, where they are given.
        decimal: the decimal mark, "." or ",", where it is given.
        separator: what stands between several labels of a cell, where it is given.

    Raises:
        TaskError: numbers whose marks can be read in two ways, or with different units.
    """
    if decimal not in (None, ".", ","):
        raise TaskError(f"decimal is {decimal!r}; fix: '.' or ','")
    values = [value for column in columns for value in column.present if value != ""]
    if not values or not all(isinstance(value, str) for value in values):
        return {}
    if len(columns) == 1 and (task == "multilabel" or separator is not None):
        return {"as": "sets", "separator": separator or _set_separator(values)}
    if task not in (None, "regression", "time_series", "ordinal") or any(column.categorical for column in columns):
        return {}
    named = ", ".join(column.name for column in columns)
    texts = [text for value in values if (text := label_text(value)).lower() not in _NO_NUMBER]
    words = not texts or any(isinstance(one, str) for one in classes or ())
    numbers = None if words else _number_cells(texts, named, decimal)
    if numbers is None and not words:
        _look_for_numbers(texts, named, decimal)
    if numbers is not None or task is not None or len(columns) > 1:
        return numbers or {}
    return _inferred_sets(values)


def read_cells(column: Column, cells: Mapping[str, str], task: str, classes: Sequence[Label] | None = None) -> Column:
    """Return the column with the values that its cells stand for; a blank label is a missing one.

    Raises:
        TaskError: a cell that is no number where the others are.
    """
    if cells.get("as") == "numbers":
        return replace(column, values=tuple(_number(v, cells, column.name, i) for i, v in enumerate(column.values)))
    if cells.get("as") == "sets":
        known = {str(one): one for one in classes or ()}
        split = [split_labels(v, cells["separator"]) if isinstance(v, str) else v for v in column.values]
        return replace(
            column,
            values=tuple(tuple(known.get(one, one) for one in v) if isinstance(v, tuple) else v for v in split),
        )
    if task in ("regression", "time_series", "multilabel"):
        return column
    given = set(classes or ())
    return replace(
        column,
        values=tuple(
            (label_text(value) or None) if isinstance(value, str) and value not in given else value
            for value in column.values
        ),
    )


def joined_by(cells: Mapping[str, str]) -> str:
    """How several labels stand in a cell."""
    return f"labels joined by {cells['separator']!r}" if cells.get("separator", LIST) != LIST else "lists of labels"


def described(cells: Mapping[str, str], columns: Sequence[Column]) -> str:
    """How cells are read, with an example and the option that reads them otherwise; empty: as they stand."""
    values = [value for column in columns for value in column.present if isinstance(value, str) and value]
    if cells.get("as") == "numbers":
        marked = [
            value
            for value in values
            if not (text := label_text(value)).lstrip("+-").isdecimal() and text.lower() not in _NO_NUMBER
        ]
        if not marked:
            return "text cells are read as numbers (--task multiclass keeps them as labels)"
        example = next((v for v in marked if cells["thousands"] and cells["thousands"] in v), marked[0])
        what = [f"{cells['decimal']!r} is the decimal mark"] if cells["decimal"] == "," else []
        what += [f"{cells['thousands']!r} groups thousands"] if cells["thousands"] else []
        what += [f"{cells['unit']!r} is left out"] if cells["unit"] else []
        because = f": {', '.join(what)}" if what else ""
        other = "," if cells["decimal"] == "." else "."
        bodies = [found[4].strip() for v in marked if (found := _AMOUNT.fullmatch(_plain_marks(label_text(v))))]
        option = (
            f"--decimal '{other}' reads the marks otherwise, "
            if set("".join(bodies)) & set(".,") and _marks(bodies, "", other)
            else ""
        )
        return (
            f"{label_text(example)!r} is read as {shown(_number(example, cells, '', 0))}{because} "
            f"({option}--task multiclass keeps the cells as labels)"
        )
    if cells.get("as") == "sets":
        several = [value for value in values if len(split_labels(value, cells["separator"])) > 1]
        if not several:
            return "no cell holds several labels (--label-separator names the mark between them, if one does)"
        parts = ", ".join(map(repr, split_labels(several[0], cells["separator"])))
        return (
            f"{several[0]!r} is read as the labels {parts} (--label-separator splits otherwise, "
            "--task multiclass keeps the cell as one label)"
        )
    return ""


def warn_of_alike(column: Column, read: Column, classes: Iterable[Label]) -> None:
    """Warn of labels that are read as one, though stray spaces, invisible marks or Unicode forms told them apart, and
    of those that differ by case alone and stay two.
    """
    forms: dict[str, Counter[str]] = {}
    for before, after in zip(column.values, read.values, strict=True):
        if isinstance(before, str) and isinstance(after, str):
            forms.setdefault(after, Counter())[before] += 1
    joined = {label: found for label, found in forms.items() if len(found) > 1}
    if joined:
        first, found = next(iter(joined.items()))
        rows = sum(sum(several.values()) - several[label] for label, several in joined.items())
        others = ", ".join(repr(one) for one in list(found)[:3] if one != first)
        _warn(
            f"target {column.name!r}: {rows} labels with stray spaces, invisible marks or another Unicode form are "
            f"read without them: {others} as {first!r}"
        )
    alike: dict[str, list[str]] = {}
    for label in classes:
        if isinstance(label, str):
            alike.setdefault(unicodedata.normalize("NFKC", label).casefold(), []).append(label)
    twins = [labels for labels in alike.values() if len(labels) > 1]
    if twins:
        named = " and ".join(map(repr, twins[0][:3])) + (f" and {len(twins) - 1} more" if len(twins) > 1 else "")
        _warn(
            f"target {column.name!r}: the labels {named} differ by case or width alone and are different classes; "
            "fix: write them alike if they are one"
        )


def split_labels(cell: str, separator: str) -> tuple[str, ...]:
    """The labels of one cell, each once; of an empty one none."""
    if separator == LIST:
        inner = cell.strip()[1:-1] if _LIST.fullmatch(cell) else cell
        quoted = [one or two for one, two in _QUOTED.findall(inner)]
        parts = quoted or (inner.split(",") if "," in inner else inner.split())
    else:
        parts = cell.split() if separator == " " else cell.split(separator)
    return tuple(dict.fromkeys(label for part in parts if (label := label_text(part))))


def _set_separator(values: Sequence[str]) -> str:
    """What stands between labels where several are asked for: the first mark that a cell holds."""
    if all(_LIST.fullmatch(value) for value in values):
        return LIST
    certain = (mark for mark in SEPARATORS if any(mark in value for value in values))
    # New York is one label, unless New or York come in other cells, too.
    doubtful = (mark for mark in _DOUBTFUL if _come_again(values, mark))
    return next(certain, None) or next(doubtful, SEPARATORS[0])


def _inferred_sets(values: Sequence[str]) -> Cells:
    """Of a target of which nothing was said: sets where labels come again in other company."""
    if all(_LIST.fullmatch(value) for value in values):
        return {"as": "sets", "separator": LIST}
    for mark in SEPARATORS:
        parts = [part for value in values for part in split_labels(value, mark)]
        if (
            len(parts) > len(values)
            and 2 * len(set(parts)) <= len(parts)
            and (mark == "|" or _come_again(values, mark))
        ):
            return {"as": "sets", "separator": mark}
    return {}


def _come_again(values: Sequence[str], mark: str) -> bool:
    """Whether there are fewer labels than different sets of them."""
    sets = {split_labels(value, mark) for value in values}
    return any(len(one) > 1 for one in sets) and len({label for one in sets for label in one}) < len(sets)


def _number_cells(values: Sequence[str], name: str, decimal: str | None) -> Cells | None:
    """How these cells write numbers; None: they are none."""
    found = [_AMOUNT.fullmatch(_plain_marks(value)) for value in values]
    amounts = [one for one in found if one is not None]
    if len(amounts) < len(values) or any(one[2] and one[6] for one in amounts):
        return None
    bodies = [one[4].strip() for one in amounts]
    if any(_CODE.fullmatch(body) for body in bodies):
        return None
    units = {one[2] or one[6] for one in amounts}
    marks = _marks(bodies, name, decimal)
    if marks is None:
        return None
    if len(units) > 1:
        with_units = [values[[one[2] or one[6] for one in amounts].index(unit)] for unit in sorted(units)]
        raise TaskError(
            f"target {name!r} mixes units: {' and '.join(map(repr, with_units[:3]))}; fix: give one unit, or numbers"
        )
    return {"as": "numbers", "decimal": marks[0], "thousands": marks[1], "unit": units.pop()}


def _look_for_numbers(values: Sequence[str], name: str, decimal: str | None) -> None:
    """Refuse a decimal mark that the numbers do not have; warn where most cells are numbers and some are not."""
    if decimal is not None and _number_cells(values, name, None) is not None:
        raise TaskError(
            f"target {name!r} holds {values[0]!r}, and {decimal!r} is not its decimal mark; fix: leave --decimal out"
        )
    distinct = list(dict.fromkeys(values))[:1000]
    numbers = [value for value in distinct if _number_cells([value], name, decimal) is not None]
    marked = any(set(value) & set(".,") for value in numbers)
    if 2 * len(numbers) > len(distinct) and (marked or len(numbers) > MOST_RATINGS):
        other = next(value for value in distinct if value not in set(numbers))
        _warn(
            f"target {name!r}: most cells are numbers such as {numbers[0]!r}, and {other!r:.60} is none: all are read "
            "as labels; fix: drop or mend the others, if numbers are to be predicted"
        )


def _marks(bodies: Sequence[str], name: str, decimal: str | None) -> tuple[str, str] | None:
    """The decimal mark and the one that groups thousands ("" for none); None: no numbers."""
    choices = [
        (point, group)
        for point in (".", ",")
        for group in ("", ",", ".", " ", "'")
        if group != point and decimal in (None, point)
    ]
    fitting = [one for one in choices if all(_pattern(*one).fullmatch(body) for body in bodies)]
    if not fitting:
        return None
    used = "".join(bodies)
    # The plainest that fits: without thousands, and with a decimal point where there is no mark at all.
    fitting = [one for one in fitting if not one[1] or one[1] in used]
    plain = [one for one in fitting if not one[1] and (one[0] in used or not set(used) & set(".,"))]
    grouped = [one for one in fitting if one[1]]
    if plain and plain[0] == (".", ""):
        return plain[0]
    if {(".", ","), (",", ".")} <= set(grouped):
        one, two = (next(body for body in bodies if mark in body) for mark in ",.")
        raise TaskError(
            f"target {name!r} has {one!r} and {two!r}: which mark is the decimal one? fix: --decimal . or --decimal ,"
        )
    # 1,234 with three digits behind every comma: English thousands.
    return (grouped or plain or fitting)[0]


def _pattern(point: str, group: str) -> re.Pattern[str]:
    whole = r"[0-9]+" if not group else rf"(?:[0-9]+|[1-9][0-9]{{0,2}}(?:{re.escape(group)}[0-9]{{3}})+)"
    return re.compile(rf"{whole}(?:{re.escape(point)}[0-9]*)?|{re.escape(point)}[0-9]+")


def _plain_marks(cell: str) -> str:
    """The cell with the usual minus, apostrophe and space."""
    return re.sub(r"\s", " ", cell.strip().replace("−", "-").replace("’", "'"))


def _number(cell: Any, cells: Mapping[str, str], name: str, row: int) -> Any:
    if not isinstance(cell, str):
        return cell
    bare = label_text(cell)
    if bare.lower() in _NO_NUMBER:
        return None
    found = _AMOUNT.fullmatch(_plain_marks(bare))
    if found is None or not _pattern(cells["decimal"], cells["thousands"]).fullmatch(found[4].strip()):
        raise TaskError(f"target {name!r}: row {row} is {cell!r:.60}, no number like the others; fix: mend or drop it")
    body = found[4].strip()
    if cells["thousands"]:
        body = body.replace(cells["thousands"], "")
    text = f"{found[1] or found[3]}{body.replace(cells['decimal'], '.')}{found[5]}"
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else float(text)


def _warn(message: str) -> None:
    warnings.warn(message, TaskWarning, stacklevel=4)
