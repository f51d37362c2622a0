"""Columns that name a row: found by what they are called and by their values, kept out of texts, written back.

An id says nothing about a row, and a language model that reads it learns noise. A submission without its ids is
worthless. So a column that is called an id, and has another value in every row, is recognized without being named.

`RowText`: the text that a model reads for each row of a frame.

One column as it is, several columns as "column: value", a template such as "{Sex}, age {Age}", or a pair of these
(sentence A and B).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from mlxbert.data.frames import Column, Table, shown
from mlxbert.errors import MLXBertError

# id, ID, uuid, index, …; what pandas calls an index that was written without a name.
_WHOLE = re.compile(r"(ids?|idx|uuid|guid|index|identifier|row(number)?|unnamed: 0)", re.IGNORECASE)
# user_id, id_code, sample-uuid, row.index
_PARTS = re.compile(r"(.*[ _.-](id|idx|uuid|guid|index)|(id|uuid|guid)[ _.-].*)", re.IGNORECASE)
# PassengerId, textID, rowIndex, pageUUID
_CAMEL = re.compile(r".*[a-z0-9](Id|ID|Idx|Index|UUID|Uuid|GUID|Guid)")
# Written in one case: qid and textid are ids, while paid, valid and grid are words.
_SHORT = re.compile(
    r"([cdegnopqrstu]|pm|txt|text|tweet|post|comment|msg|message|mail|user|item|product|review|article|row|line|sentence|"
    r"passenger|customer|client|order|case|record|question|answer|query|doc|document|image|img|sample|example|test|"
    r"train|object|entry|event|session|page|paragraph|essay|story|news|video|song|movie|book|job|patient|account)id",
    re.IGNORECASE,
)
# An id is a word or a number: what is longer is a text.
_LONGEST = 80


def is_called_id(name: Any) -> bool:
    """Return whether a column's name says that it names a row: id, PassengerId, user_id, qid, uuid, index, …."""
    text = str(name).strip()
    return any(rule.fullmatch(text) for rule in (_WHOLE, _PARTS, _CAMEL, _SHORT))


def id_columns(table: Table, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Return the columns that are called an id and have another value in every row, the likeliest first.

    Args:
        table: of all rows.
        taken: columns that are something else: targets, times, groups.
    """
    found = [
        name
        for name in table.names
        if isinstance(name, str) and name not in taken and is_called_id(name) and table.names.count(name) == 1
    ]
    unique = [name for name in found if names_rows(table.column(name).values)]
    return tuple(sorted(unique, key=_likelihood))


def names_rows(values: Iterable[Any]) -> bool:
    """Return whether values could name rows: short words or whole numbers, none missing, none twice."""
    listed = list(values)
    kinds = all(
        (isinstance(value, str) and 0 < len(value) <= _LONGEST)
        or (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
        for value in listed
    )
    return kinds and len(set(listed)) == len(listed)


def _likelihood(name: str) -> int:
    """Sort "id" before "PassengerId" before "index"; sorting keeps the table's order among equals."""
    folded = name.strip().casefold()
    return 0 if folded == "id" else 2 if folded in ("index", "idx", "row", "unnamed: 0") else 1


Part = str | tuple[str, ...]


class TextError(MLXBertError):
    """A template that cannot be read, or a value that it cannot format."""


@dataclass(frozen=True)
class Rendered:
    """A frame's texts.

    Attributes:
        texts: one a row.
        pairs: the second texts, where the rows are pairs; else None.
        empty: how many rows have no text at all; they are encoded as an empty string.
    """

    texts: list[str]
    pairs: list[str] | None
    empty: int


@dataclass(frozen=True)
class RowText:
    """How a row becomes a text.

    Attributes:
        first: a column's name (its text as it is; a missing one is empty), a template with columns in braces, which
            may have a format (`"fare {Fare:.0f}"`), or several names: "column: value, column: value".
        second: likewise, the second sentence of a pair; None: no pairs.
        missing: what stands for a missing value in templates and several columns.
    """

    first: Part
    second: Part | None = None
    missing: str = "unknown"

    def __post_init__(self) -> None:
        for part in self._parts():
            if not _names(part):
                raise TextError(
                    f"the text {part!r} names no column; fix: a column's name, or a template with {{column}}"
                )

    @classmethod
    def make(
        cls, text: RowText | str | int | Sequence[str | int], pair: str | int | Sequence[str | int] | None = None
    ) -> RowText:
        """From what a user gives: names, templates, lists of names, or a `RowText` itself; 0 is the column "0"."""
        if isinstance(text, RowText):
            if pair is not None:
                raise TextError("pair= is given beside a RowText; fix: RowText(first, second)")
            return text
        return cls(_part(text), None if pair is None else _part(pair))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        return tuple(dict.fromkeys(name for part in self._parts() for name in _names(part)))

    def render(self, frame: Any, what: str = "the frame") -> Rendered:
        """The texts of a frame's rows.

        Raises:
            FrameError: a column is missing (the nearest names are given), or there are no rows.
            TextError: a value does not fit its format.
        """
        table = frame if isinstance(frame, Table) else Table(frame, what)
        columns = {name: table.column(name, "text column") for name in self.columns}
        firsts = self._texts(self.first, columns, table.rows)
        seconds = None if self.second is None else self._texts(self.second, columns, table.rows)
        both = zip(firsts, seconds or firsts, strict=True)
        return Rendered(firsts, seconds, sum(not one.strip() and not two.strip() for one, two in both))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `mlxbert.files.reading` reads it."""
        first, second = (list(part) if isinstance(part, tuple) else part for part in (self.first, self.second))
        return {"first": first, "second": second, "missing": self.missing}

    def _parts(self) -> tuple[Part, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def _texts(self, part: Part, columns: dict[str, Column], rows: int) -> list[str]:
        if isinstance(part, tuple):
            parts = [(name, columns[name].values) for name in part]
            return [
                ", ".join(f"{columns[name].name}: {shown(values[row], self.missing)}" for name, values in parts)
                for row in range(rows)
            ]
        if "{" not in part:
            return [
                "" if value is None else value if isinstance(value, str) else shown(value)
                for value in columns[part].values
            ]
        pieces = _parse(part)
        return ["".join(self._pieces(pieces, columns, row)) for row in range(rows)]

    def _pieces(
        self, pieces: Sequence[tuple[str, str | None, str]], columns: dict[str, Column], row: int
    ) -> Iterable[str]:
        for literal, name, spec in pieces:
            yield literal
            if name is None:
                continue
            value = columns[name].values[row]
            if not spec or value is None:
                yield shown(value, self.missing)
                continue
            try:
                yield format(value, spec)
            except (TypeError, ValueError) as error:
                raise TextError(
                    f"row {row}: column {name!r} is {value!r}, which {{{name}:{spec}}} cannot format ({error}); "
                    "fix: leave the format out"
                ) from None


def every_column(table: Table, ignore: Iterable[str]) -> RowText:
    """ "column: value" of all columns of a table but those in `ignore`.

    Raises:
        TextError: none is left.
    """
    left = set(ignore)
    names = tuple(str(name) for name in table.names if name not in left)
    if not names:
        raise TextError(f"{table.what} has no column left to read but the target; fix: text='column', or more columns")
    return RowText(names)


def _part(text: str | int | Sequence[str | int]) -> Part:
    if isinstance(text, str | int):
        return str(text)
    if not all(isinstance(name, str | int) for name in text):
        raise TextError(f"text columns must be names, not {list(text)!r}")
    return tuple(map(str, text))


def _names(part: Part) -> list[str]:
    if isinstance(part, tuple):
        return list(part)
    return [name for _, name, _ in _parse(part) if name is not None] if "{" in part else [part] if part else []


def _parse(template: str) -> list[tuple[str, str | None, str]]:
    """(text before it, column, format) of every field; the last may be text alone."""
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise TextError(f"template {template!r}: {error}; fix: write {{{{ and }}}} for braces of the text") from None
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if not name or conversion or "{" in (spec or ""):
            raise TextError(f"template {template!r}: a field must be {{column}} or {{column:format}}")
    return [(literal, name, spec or "") for literal, name, spec, _ in pieces]
