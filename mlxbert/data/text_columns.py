"""`RowText`: the text that a model reads for each row of a frame; and the columns that name a row.

A text is one column, several columns as "column: value", a template such as "{Sex}, age {Age}", or a pair of these
(sentence A and B).

An id says nothing about a row, and a language model that reads it learns noise; but a submission needs its ids. So a
column with an id's name, and another value in every row, is recognized, left out of the texts, and written back.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from mlxbert.data.frames import Column, DataError, DataWarning, Table, as_text, shown
from mlxbert.errors import first_ten

Part = str | tuple[str, ...]


class EmptyTextWarning(DataWarning):
    """Rows have no text.

    Attributes:
        empty: how many, for a sum over many pieces of a table.
    """

    empty: int = 0


@dataclass(frozen=True)
class Rendered:
    """A frame's texts.

    Attributes:
        texts: one a row.
        pairs: the second texts of pairs; else None.
        empty: how many rows have no text; these are encoded as an empty string.
    """

    texts: list[str]
    pairs: list[str] | None
    empty: int


@dataclass(frozen=True)
class RowText:
    """How a row becomes a text.

    Attributes:
        first: a column's name (its text is read as it is; a missing one is empty), a template with columns in braces,
            which may have a format (`"fare {Fare:.0f}"`), or several names: "column: value, column: value".
        second: the same for the second sentence of a pair; None: no pairs.
        missing: the word for a missing value in templates and several columns.
    """

    first: Part
    second: Part | None = None
    missing: str = "unknown"

    def __post_init__(self) -> None:
        for part in self._parts():
            if not _column_names(part):
                raise DataError(
                    f"the text {part!r} names no column; fix: a column's name, or a template with {{column}}"
                )

    @classmethod
    def make(
        cls, text: RowText | str | int | Sequence[str | int], pair: str | int | Sequence[str | int] | None = None
    ) -> RowText:
        """Return it from what a user gives: names, templates, lists of names, or a `RowText`; 0 is the column "0"."""
        if isinstance(text, RowText):
            if pair is not None:
                raise DataError("pair= is given beside a RowText; fix: RowText(first, second)")
            return text
        return cls(_part(text), None if pair is None else _part(pair))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        return tuple(dict.fromkeys(name for part in self._parts() for name in _column_names(part)))

    def render(self, frame: Any, what: str = "the frame", *, start: int = 0) -> Rendered:
        """Return the texts of a frame's rows.

        Args:
            frame: a pandas frame, or a `Table`.
            what: the frame's name in messages.
            start: the number of its first row, where it is a piece of a file.

        Raises:
            DataError: a column is missing (the message has the nearest names), there are no rows, or a value does not
                fit its format.
        """
        table = frame if isinstance(frame, Table) else Table(frame, what)
        columns = {name: table.column(name, "text column") for name in self.columns}
        texts = self._texts(self.first, columns, table.rows, start)
        pairs = None if self.second is None else self._texts(self.second, columns, table.rows, start)
        empty = sum(not text.strip() and not pair.strip() for text, pair in zip(texts, pairs or texts, strict=True))
        return Rendered(texts, pairs, empty)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them; `mlxbert.files.reading` reads them back."""
        first, second = (list(part) if isinstance(part, tuple) else part for part in (self.first, self.second))
        return {"first": first, "second": second, "missing": self.missing}

    def _parts(self) -> tuple[Part, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def _texts(self, part: Part, columns: dict[str, Column], rows: int, start: int) -> list[str]:
        if isinstance(part, tuple):
            named_values = [(columns[name].name, columns[name].values) for name in part]
            return [
                ", ".join(f"{name}: {shown(values[row], self.missing)}" for name, values in named_values)
                for row in range(rows)
            ]
        if "{" not in part:
            return [
                "" if value is None else value if isinstance(value, str) else shown(value)
                for value in columns[part].values
            ]
        fields = _parse(part)
        return ["".join(self._pieces(fields, columns, row, start)) for row in range(rows)]

    def _pieces(
        self, fields: Sequence[tuple[str, str | None, str]], columns: dict[str, Column], row: int, start: int
    ) -> Iterable[str]:
        for literal, name, spec in fields:
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
                raise DataError(
                    f"row {start + row}: column {name!r} is {value!r}, which {{{name}:{spec}}} cannot format "
                    f"({error}); fix: leave the format out"
                ) from None


def every_column(table: Table, ignore: Iterable[str]) -> RowText:
    """Return "column: value" of all columns of a table but those in `ignore`.

    Raises:
        DataError: no column is left.
    """
    ignored = set(ignore)
    names = tuple(str(name) for name in table.names if name not in ignored)
    if not names:
        raise DataError(f"{table.what} has no column left to read but the target; fix: text='column', or more columns")
    return RowText(names)


def render_texts(frame: Any, text: RowText, what: str = "the data") -> Rendered:
    """Return `text.render`, and warn of rows without text.

    Raises:
        DataError: as `RowText.render`.

    Warns:
        DataWarning: how many rows have no text; these are encoded as an empty one.
    """
    rendered = text.render(frame, what)
    warn_of_empty(rendered.empty, len(rendered.texts), what, stacklevel=2)
    return rendered


def warn_of_empty(empty: int, rows: int, what: str, *, stacklevel: int) -> None:
    """Warn if some rows have no text; `stacklevel` 1 is the function that calls this one."""
    if empty:
        warning = EmptyTextWarning(f"{what}: {empty} of {rows} rows have no text; they are encoded as an empty one")
        warning.empty = empty
        warnings.warn(warning, stacklevel=stacklevel + 1)


def _part(text: str | int | Sequence[str | int]) -> Part:
    if isinstance(text, str | int):
        return str(text)
    if not all(isinstance(name, str | int) for name in text):
        raise DataError(f"text columns must be names, not {list(text)!r}")
    return tuple(map(str, text))


def _column_names(part: Part) -> list[str]:
    if isinstance(part, tuple):
        return list(part)
    if "{" in part:
        return [name for _, name, _ in _parse(part) if name is not None]
    return [part] if part else []


def _parse(template: str) -> list[tuple[str, str | None, str]]:
    """Return (text before it, column, format) of each field; the last may be text alone."""
    try:
        fields = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; fix: write {{{{ and }}}} for braces of the text") from None
    for _, name, spec, conversion in fields:
        if name is not None and (not name or conversion or "{" in (spec or "")):
            raise DataError(f"template {template!r}: a field must be {{column}} or {{column:format}}")
    return [(literal, name, spec or "") for literal, name, spec, _ in fields]


# id, ID, uuid, index, …; "Unnamed: 0" is pandas' name for an index that was written without one.
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
# An id is a word or a number; anything longer is a text.
_LONGEST_ID = 80


def is_called_id(name: Any) -> bool:
    """Return whether a column has an id's name: id, PassengerId, user_id, qid, uuid, index, …."""
    text = str(name).strip()
    return any(pattern.fullmatch(text) for pattern in (_WHOLE, _PARTS, _CAMEL, _SHORT))


def id_columns(table: Table, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Return the columns with an id's name and another value in every row, the likeliest first.

    Args:
        table: of all rows.
        taken: columns that have another use: targets, times, groups.
    """
    named = [
        name
        for name in table.names
        if isinstance(name, str) and name not in taken and is_called_id(name) and table.names.count(name) == 1
    ]
    unique = [name for name in named if names_rows(table.column(name).values)]
    return tuple(sorted(unique, key=_likelihood))


def names_rows(values: Iterable[Any]) -> bool:
    """Return whether values could name rows: short words or whole numbers, none missing, none twice."""
    values = list(values)
    are_words_or_numbers = all(
        (isinstance(value, str) and 0 < len(value) <= _LONGEST_ID)
        or (isinstance(value, int) and not isinstance(value, bool))
        or (isinstance(value, float) and value.is_integer())
        for value in values
    )
    return are_words_or_numbers and len(set(values)) == len(values)


def id_values(frame: Any, column: str, what: str = "the data") -> list[str]:
    """Return a column of ids as text.

    Raises:
        DataError: an id is missing or repeats (the message has the first ten), or there is no such column (the message
            has the nearest names).
    """
    values = as_text(Table(frame, what).column(column, "id column").values)
    for row, value in enumerate(values):
        if value is None:
            raise DataError(f"{what}: row {row} has no id in column {column!r}; fix: fill it, or leave the id out")
    ids = [value for value in values if value is not None]
    repeated = [value for value, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(
            f"{what}: {len(repeated)} ids of column {column!r} come more than once; fix: drop the repeated rows, or "
            "name another column: --id COLUMN\n" + first_ten(repeated)
        )
    return ids


def _likelihood(name: str) -> int:
    """Sort "id" before "PassengerId" before "index"; sorting keeps the table's order among equals."""
    folded = name.strip().casefold()
    return 0 if folded == "id" else 2 if folded in ("index", "idx", "row", "unnamed: 0") else 1
