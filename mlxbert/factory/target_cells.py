"""What a target's cells say: numbers as a country writes them, several labels in one string, labels with stray spaces.

A German Excel writes 1,5, a bank $1,234.50, pandas ['x', 'z']: each of them would be a class of its own. How the cells
are read is found once, on the training rows, said with the task, and kept with it (`InferredTask.cells`).
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
from mlxbert.factory.frames import Column, shown
from mlxbert.factory.target_rules import MOST_RATINGS, TaskError, TaskWarning

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
