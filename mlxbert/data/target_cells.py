"""Text cells of a target: numbers as a country writes them, several labels in one string, labels with stray spaces.

A German Excel writes 1,5, a bank $1,234.50, pandas ['x', 'z']: as plain text each of them would be a class. The way to
read the cells is inferred once, from the training rows, reported with the task, and kept in `InferredTask.cells`.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from heads.labels import Label, label_text
from mlxbert.data.frames import Column, shown
from mlxbert.errors import MLXBertError, MLXBertWarning


class TaskError(MLXBertError):
    """Nothing can be learned from the target, or it is not of the given task."""


class TaskWarning(MLXBertWarning):
    """The target can be read, but not as it is written."""


MOST_RATINGS = 11
"""The most values of a rating: 0 … 10."""

Cells = dict[str, str]
"""How cells are read. {}: as they are; {"as": "numbers"} with "decimal", "thousands" and "unit"; {"as": "sets"} with
"separator", where "[]" is a list as Python or JSON writes it."""

_UNITS = "%‰$€£¥₹"
_BODY = r"[0-9][0-9.,' ]*|[.,][0-9]+"
_AMOUNT = re.compile(rf"([+-]?)([{_UNITS}]?) ?([+-]?)({_BODY})((?:[eE][+-]?[0-9]+)?) ?([{_UNITS}]?)")
_CODE = re.compile(r"0[0-9].*|[0-9]{16,}")
_LIST = re.compile(r"\s*[\[({].*[\])}]\s*", re.DOTALL)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
# Missing values in a column of numbers, in lower case (`mlxbert.data.reading.NO_NUMBERS` as files have them).
_NO_NUMBER = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null"))
_SEPARATORS = ("|", ";", ",")
# Marks that names have, too: they separate labels only where a label repeats beside other ones.
_DOUBTFUL = (" ", "/", "+", "&", "\t")
_LISTS = "[]"


def find_cells(
    columns: Sequence[Column],
    task: str | None,
    classes: Sequence[Label] | None,
    decimal: str | None,
    separator: str | None,
) -> Cells:
    """Return how the cells of the target's columns are read.

    Args:
        columns: of the target.
        task: the given competition type, if any.
        classes: the given labels, if any.
        decimal: the given decimal mark, "." or ",", if any.
        separator: the given mark between several labels of a cell, if any.

    Raises:
        TaskError: the marks of the numbers can be read in two ways, or their units differ.
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
    names = ", ".join(column.name for column in columns)
    texts = [text for value in values if (text := label_text(value)).lower() not in _NO_NUMBER]
    are_words = not texts or any(isinstance(label, str) for label in classes or ())
    numbers = None if are_words else _number_cells(texts, names, decimal)
    if numbers is None and not are_words:
        _report_numbers(texts, names, decimal)
    if numbers is not None or task is not None or len(columns) > 1:
        return numbers or {}
    return _inferred_sets(values)


def read_cells(column: Column, cells: Mapping[str, str], task: str, classes: Sequence[Label] | None = None) -> Column:
    """Return the column with the values of its cells; a blank label is a missing one.

    Raises:
        TaskError: a cell is no number where the others are.
    """
    if cells.get("as") == "numbers":
        numbers = (_number(cell, cells, column.name, row) for row, cell in enumerate(column.values))
        return replace(column, values=tuple(numbers))
    if cells.get("as") == "sets":
        by_text = {str(label): label for label in classes or ()}
        sets = (_split_labels(cell, cells["separator"]) if isinstance(cell, str) else cell for cell in column.values)
        labels = (tuple(by_text.get(label, label) for label in s) if isinstance(s, tuple) else s for s in sets)
        return replace(column, values=tuple(labels))
    if task in ("regression", "time_series", "multilabel"):
        return column
    given = set(classes or ())
    stripped = (
        (label_text(cell) or None) if isinstance(cell, str) and cell not in given else cell for cell in column.values
    )
    return replace(column, values=tuple(stripped))


def joined_by(cells: Mapping[str, str]) -> str:
    """Return how a cell holds several labels, in words."""
    return (
        f"labels joined by {cells['separator']!r}" if cells.get("separator", _LISTS) != _LISTS else "lists of labels"
    )


def described(cells: Mapping[str, str], columns: Sequence[Column]) -> str:
    """Return how cells are read, with an example and the option that changes it; "" if as they are."""
    values = [value for column in columns for value in column.present if isinstance(value, str) and value]
    if cells.get("as") == "numbers":
        return _described_numbers(cells, values)
    if cells.get("as") != "sets":
        return ""
    several = [value for value in values if len(_split_labels(value, cells["separator"])) > 1]
    if not several:
        return "no cell holds several labels (--label-separator names the mark between them, if one does)"
    labels = ", ".join(map(repr, _split_labels(several[0], cells["separator"])))
    return (
        f"{several[0]!r} is read as the labels {labels} (--label-separator splits otherwise, "
        "--task multiclass keeps the cell as one label)"
    )


def _described_numbers(cells: Mapping[str, str], values: Sequence[str]) -> str:
    marked = [
        value
        for value in values
        if not (text := label_text(value)).lstrip("+-").isdecimal() and text.lower() not in _NO_NUMBER
    ]
    if not marked:
        return "text cells are read as numbers (--task multiclass keeps them as labels)"
    decimal, thousands, unit = cells["decimal"], cells["thousands"], cells["unit"]
    example = next((cell for cell in marked if thousands and thousands in cell), marked[0])
    rules = [f"{decimal!r} is the decimal mark"] if decimal == "," else []
    rules += [f"{thousands!r} groups thousands"] if thousands else []
    rules += [f"{unit!r} is left out"] if unit else []
    because = f": {', '.join(rules)}" if rules else ""
    other = "," if decimal == "." else "."
    amounts = [_AMOUNT.fullmatch(_plain_marks(label_text(cell))) for cell in marked]
    bodies = [amount[4].strip() for amount in amounts if amount]
    has_other_reading = set("".join(bodies)) & set(".,") and _marks(bodies, "", other)
    option = f"--decimal '{other}' reads the marks otherwise, " if has_other_reading else ""
    return (
        f"{label_text(example)!r} is read as {shown(_number(example, cells, '', 0))}{because} "
        f"({option}--task multiclass keeps the cells as labels)"
    )


def warn_of_alike(column: Column, read: Column, classes: Iterable[Label]) -> None:
    """Warn of labels that differ only by stray spaces, invisible marks or Unicode forms, which are read as one, and of
    labels that differ only by case or width, which stay two.
    """
    cells_of: dict[str, Counter[str]] = {}
    for cell, label in zip(column.values, read.values, strict=True):
        if isinstance(cell, str) and isinstance(label, str):
            cells_of.setdefault(label, Counter())[cell] += 1
    joined = {label: cells for label, cells in cells_of.items() if len(cells) > 1}
    if joined:
        first, cells = next(iter(joined.items()))
        rows = sum(sum(counts.values()) - counts[label] for label, counts in joined.items())
        others = ", ".join(repr(cell) for cell in list(cells)[:3] if cell != first)
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


def _split_labels(cell: str, separator: str) -> tuple[str, ...]:
    """Return the labels of one cell, each once; none of an empty cell."""
    if separator == _LISTS:
        inner = cell.strip()[1:-1] if _LIST.fullmatch(cell) else cell
        quoted = [single or double for single, double in _QUOTED.findall(inner)]
        parts = quoted or (inner.split(",") if "," in inner else inner.split())
    else:
        parts = cell.split() if separator == " " else cell.split(separator)
    return tuple(dict.fromkeys(label for part in parts if (label := label_text(part))))


def _set_separator(values: Sequence[str]) -> str:
    """Return the mark between labels of a multilabel target: the first one that a cell has."""
    if all(_LIST.fullmatch(value) for value in values):
        return _LISTS
    certain = (mark for mark in _SEPARATORS if any(mark in value for value in values))
    # New York is one label, unless New or York are in other cells, too.
    doubtful = (mark for mark in _DOUBTFUL if _labels_repeat(values, mark))
    return next(certain, None) or next(doubtful, _SEPARATORS[0])


def _inferred_sets(values: Sequence[str]) -> Cells:
    """Return the reading of a target without a given task: sets of labels if labels repeat beside other ones."""
    if all(_LIST.fullmatch(value) for value in values):
        return {"as": "sets", "separator": _LISTS}
    for mark in _SEPARATORS:
        labels = [label for value in values for label in _split_labels(value, mark)]
        are_sets = len(labels) > len(values) and 2 * len(set(labels)) <= len(labels)
        if are_sets and (mark == "|" or _labels_repeat(values, mark)):
            return {"as": "sets", "separator": mark}
    return {}


def _labels_repeat(values: Sequence[str], mark: str) -> bool:
    """Return whether there are fewer labels than different sets of them."""
    sets = {_split_labels(value, mark) for value in values}
    return any(len(labels) > 1 for labels in sets) and len({label for labels in sets for label in labels}) < len(sets)


def _number_cells(values: Sequence[str], name: str, decimal: str | None) -> Cells | None:
    """Return how these cells write numbers; None: they are no numbers."""
    matches = [_AMOUNT.fullmatch(_plain_marks(value)) for value in values]
    amounts = [match for match in matches if match is not None]
    if len(amounts) < len(values) or any(amount[2] and amount[6] for amount in amounts):
        return None
    bodies = [amount[4].strip() for amount in amounts]
    if any(_CODE.fullmatch(body) for body in bodies):
        return None
    marks = _marks(bodies, name, decimal)
    if marks is None:
        return None
    units = [amount[2] or amount[6] for amount in amounts]
    if len(set(units)) > 1:
        examples = [values[units.index(unit)] for unit in sorted(set(units))]
        raise TaskError(
            f"target {name!r} mixes units: {' and '.join(map(repr, examples[:3]))}; fix: give one unit, or numbers"
        )
    return {"as": "numbers", "decimal": marks[0], "thousands": marks[1], "unit": units[0]}


def _report_numbers(values: Sequence[str], name: str, decimal: str | None) -> None:
    """Refuse a decimal mark that the numbers do not have; warn if most cells are numbers, but not all."""
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
    """Return the decimal mark and the mark that groups thousands ("" for none); None: no numbers."""
    used = "".join(bodies)
    choices = [
        (point, group)
        for point in (".", ",")
        for group in ("", ",", ".", " ", "'")
        if group != point and decimal in (None, point)
    ]
    choices = [marks for marks in choices if all(_pattern(*marks).fullmatch(body) for body in bodies)]
    if not choices:
        return None
    # Prefer no thousands, and a decimal point where there is no mark at all.
    plain = [(point, "") for point, group in choices if not group and (point in used or not set(used) & set(".,"))]
    grouped = [(point, group) for point, group in choices if group and group in used]
    if plain and plain[0] == (".", ""):
        return plain[0]
    if {(".", ","), (",", ".")} <= set(grouped):
        comma, point = (next(body for body in bodies if mark in body) for mark in ",.")
        raise TaskError(
            f"target {name!r} has {comma!r} and {point!r}: which mark is the decimal one? "
            "fix: --decimal . or --decimal ,"
        )
    # 1,234 with three digits after every comma: English thousands.
    return (grouped or plain or choices)[0]


def _pattern(point: str, group: str) -> re.Pattern[str]:
    """Return the pattern of a number without sign and unit."""
    whole = r"[0-9]+" if not group else rf"(?:[0-9]+|[1-9][0-9]{{0,2}}(?:{re.escape(group)}[0-9]{{3}})+)"
    return re.compile(rf"{whole}(?:{re.escape(point)}[0-9]*)?|{re.escape(point)}[0-9]+")


def _plain_marks(cell: str) -> str:
    """Return the cell with the usual minus, apostrophe and space."""
    return re.sub(r"\s", " ", cell.strip().replace("−", "-").replace("’", "'"))


def _number(cell: Any, cells: Mapping[str, str], name: str, row: int) -> Any:
    """Return the number of a text cell, None for a missing one; any other cell as it is."""
    if not isinstance(cell, str):
        return cell
    bare = label_text(cell)
    if bare.lower() in _NO_NUMBER:
        return None
    amount = _AMOUNT.fullmatch(_plain_marks(bare))
    if amount is None or not _pattern(cells["decimal"], cells["thousands"]).fullmatch(amount[4].strip()):
        raise TaskError(f"target {name!r}: row {row} is {cell!r:.60}, no number like the others; fix: mend or drop it")
    body = amount[4].strip()
    if cells["thousands"]:
        body = body.replace(cells["thousands"], "")
    text = f"{amount[1] or amount[3]}{body.replace(cells['decimal'], '.')}{amount[5]}"
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else float(text)


def _warn(message: str) -> None:
    warnings.warn(message, TaskWarning, stacklevel=4)
