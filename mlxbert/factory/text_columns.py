"""`RowText`: the text that a model reads for each row of a frame.

One column as it is, several columns as "column: value", a template such as "{Sex}, age {Age}", or a pair of these
(sentence A and B).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from mlxbert.errors import MLXBertError
from mlxbert.factory.frames import Column, Table, shown

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
        """JSON-able; `mlxbert.files.typed_json` reads it."""
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
