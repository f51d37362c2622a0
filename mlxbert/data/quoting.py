"""Which quoting a text table was written with: the one in which its physical lines, quotes and rows agree.

A lone quote at the start of a cell swallows every row up to the next one when a file without quoting is read as a file
with it. Nothing in the result tells: so all lines are counted before anything is read.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, get_args

from mlxbert.data.data_file import DataError, DataFile, DataWarning, Quoting

MOST_CHARACTERS = 64 << 20
"""Of one cell, and of one line: more is a missing quote, or was made to fill a memory."""

DIALECTS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    "minimal": {"quotechar": '"', "doublequote": True},
    "escaped": {"quotechar": '"', "doublequote": True, "escapechar": "\\"},
}
_TYPICAL_ROWS, _FEW_VALUES = 2000, 20
# Of rows of several lines, which are looked at when the others are known.
_KEPT_CHARACTERS = 16 << 20


@dataclass
class Layout:
    """What a file is when it is read with one quoting.

    Attributes:
        width: cells of the header.
        rows: below the header; blank lines are none.
        short: rows with fewer cells; `first_short` is the line of the first.
        wide: the line of the first row with more cells; None: there is none.
        trailing: whether every row has one more cell than the header, which is empty.
        broken: (first line, last line) of the first cell in quotes that goes on after its closing quote, or never
            ends; None: every quote has its fellow.
        stray: the line of a carriage return alone, in a file whose lines end otherwise.
        swallowed: (first line, last line) of a row whose every line looks like a row of its own.
        joined: whether a broken quote lies in a cell of several lines.
        wrapped: whether the header, or all cells of a column, stand in quotes.
    """

    width: int = 0
    rows: int = 0
    short: int = 0
    first_short: int = 0
    wide: int | None = None
    trailing: bool = True
    broken: tuple[int, int] | None = None
    swallowed: tuple[int, int] | None = None
    stray: int = 0
    joined: bool = False
    wrapped: bool = False

    @property
    def agrees(self) -> bool:
        """Whether quotes, cells and lines agree."""
        return self.broken is None and self.swallowed is None and (self.wide is None or self.trailing)


def find_quoting(
    file: DataFile, given: Quoting | None, like: Quoting | None, marks: tuple[bool, bool]
) -> tuple[Quoting | None, Layout]:
    """Return the quoting that explains the file, and what the file is with it; None: it makes no difference.

    Args:
        file: a text table, its encoding and separator known.
        given: what the caller asks for: it is not doubted.
        like: the training file's, preferred where the file does not speak against it.
        marks: whether the file has quotes, and backslashes before a quote or a separator.

    Raises:
        DataError: no quoting explains the file; the line and the options are named.

    Warns:
        DataWarning: it is not the usual one (`minimal`), or not the training file's, or a quote is not doubled.
    """
    if given is not None:
        if given not in get_args(Quoting):
            raise DataError(f"quoting {given!r} is not known; fix: {', '.join(get_args(Quoting))}")
        return given, layout_of(file, given)
    quotes, backslashes = marks
    minimal = layout_of(file, "minimal")
    if not quotes and not (backslashes and minimal.wide is not None):
        return None, minimal
    if like is not None:
        alike = minimal if like == "minimal" else layout_of(file, like)
        if alike.broken is None and (alike.wide is None or alike.trailing) and (like == "minimal" or not alike.short):
            return like, alike
    chosen, layout = _explained(file, minimal, backslashes)
    if like is not None and like != chosen:
        _warn(f"{file.path}: quotes are read otherwise than in the training file ({chosen}, there {like})")
    elif chosen == "none":
        _warn(
            f"{file.path}: quotes are read as characters like any other (--quoting none), so that each of the "
            f"{layout.rows} lines below the header is a row; as quotes, {_complaint(minimal)}"
        )
    elif chosen == "escaped":
        _warn(f"{file.path}: a backslash before a quote is read as an escape (--quoting escaped)")
    return chosen, layout


def _explained(file: DataFile, minimal: Layout, backslashes: bool) -> tuple[Quoting, Layout]:
    """Return the first quoting with which all agrees; else what can be read without losing a row."""
    if minimal.agrees:
        return "minimal", minimal
    if backslashes:
        escaped = layout_of(file, "escaped")
        if escaped.agrees:
            return "escaped", escaped
    none = layout_of(file, "none")
    if none.wide is None and not none.short and not none.wrapped:
        return "none", none
    if minimal.swallowed is None and not minimal.joined and minimal.wide is None:
        line = minimal.broken[1] if minimal.broken else 0
        _warn(
            f"{file.path}: line {line} has a quote within a quoted cell that is not doubled; it is read as it stands, "
            "without the quote that opens the cell (--quoting none keeps all)"
        )
        return "minimal", minimal
    if minimal.broken is None and minimal.swallowed is None:
        return "minimal", minimal  # a row has too many cells, whatever the quotes: reading it says so
    one_cell = ", or --quoting minimal if these lines are one cell" if minimal.broken is None else ""
    raise DataError(
        f"{file.path}: with quotes, {_complaint(minimal)}; without, {_complaint(none)}; fix: mend the quotes "
        f"there{one_cell}"
    )


def _complaint(layout: Layout) -> str:
    if layout.broken is not None:
        first, last = layout.broken
        upto = "" if first == last else f" (up to line {last})"
        return f"the quote that opens a cell in line {first} is not closed at the end of one{upto}"
    if layout.swallowed is not None:
        first, last = layout.swallowed
        return f"lines {first} to {last} become one row, though each looks like a row"
    if layout.wide is not None:
        return f"line {layout.wide} has more cells than the header"
    return f"line {layout.first_short} has fewer cells than the header" if layout.short else "all rows are whole"


def layout_of(file: DataFile, quoting: Quoting) -> Layout:
    """Count rows, cells and lines of a whole file as one quoting has them; memory does not grow with the file."""
    layout, typical = Layout(), _Typical()
    with file.open_text() as text, _long_cells(file):
        lines = _Lines(text, file)
        records = _records(lines, file.separator or ",", quoting, layout)
        header = next((record for record in records if record), [])
        ends = lines.recent[-1][-1:] if lines.recent else ""
        lines.recent.clear()
        layout.width = len(header)
        quoted_header = any(_is_wrapped(cell) for cell in header)
        wrapped: list[bool] = [True] * len(header)
        for record in records:
            cells = len(record)
            if not cells or (layout.width > 1 and cells == 1 and record[0].isspace()):
                lines.recent.clear()
                continue
            layout.rows += 1
            if cells == layout.width:
                layout.trailing = False
            else:
                _note_width(layout, record, lines.number)
                if ends == "\n" and lines.recent[-1].endswith("\r"):
                    layout.stray = layout.stray or lines.number
            if quoting == "none":
                for i, cell in enumerate(record[: layout.width]):
                    wrapped[i] = wrapped[i] and (not cell or _is_wrapped(cell))
            else:
                typical.add(record, layout.width, lines)
            lines.recent.clear()
    layout.swallowed = typical.swallowed(layout.width, file.separator or ",")
    layout.trailing = layout.trailing and layout.wide is not None
    layout.wrapped = quoted_header or (layout.rows > 1 and any(wrapped))
    return layout


def _note_width(layout: Layout, record: list[str], line: int) -> None:
    if len(record) < layout.width:
        layout.short += 1
        layout.first_short = layout.first_short or line
        layout.trailing = False
        return
    layout.wide = layout.wide or line
    layout.trailing = layout.trailing and len(record) == layout.width + 1 and not record[-1].strip()


def _records(lines: _Lines, separator: str, quoting: Quoting, layout: Layout) -> Iterator[list[str]]:
    """Records of a file; the first broken quote is noted, and reading goes on as pandas does."""
    # Strict: a closing quote must end its cell. The state is lost with the error, so its record is read again.
    options = {"delimiter": separator, **DIALECTS[quoting]}
    reader = csv.reader(lines, strict=True, **options)
    while True:
        try:
            record = next(reader, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise DataError(
                    f"{lines.path}: line {lines.number} ends a cell of more than {MOST_CHARACTERS >> 20} million "
                    "characters; fix: is a quote missing?"
                ) from None
            layout.broken = layout.broken or (lines.number - len(lines.recent) + 1, lines.number)
            layout.joined = layout.joined or len(lines.recent) > 1
            lines.again(lines.recent)
            record = next(csv.reader(lines, **options), None)
            if record is not None and len(lines.recent) > 1:
                layout.joined = True
            reader = csv.reader(lines, strict=True, **options)
        if record is None:
            return
        yield record


class _Lines:
    """The lines of a file, those of the record at hand, and their number."""

    def __init__(self, text: IO[str], file: DataFile):
        self.path, self.number = file.path, file.skipped
        self._text: Iterator[str] = iter(text)
        self._again: list[str] = []
        self.recent: list[str] = []

    def again(self, lines: list[str]) -> None:
        """Give these lines, the last that were given, once more."""
        self._again = lines[::-1] + self._again
        self.number -= len(lines)
        self.recent = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._text)
        self.number += 1
        self.recent.append(line)
        return line


@dataclass
class _Typical:
    """What rows of one line look like (which columns hold numbers alone, or few values), and the rows of several."""

    rows: int = 0
    several: list[tuple[int, list[str]]] = field(default_factory=list)
    characters: int = 0
    numeric: list[bool] = field(default_factory=list)
    values: list[set[str] | None] = field(default_factory=list)

    def add(self, record: list[str], width: int, lines: _Lines) -> None:
        """Learn from a row of one line; keep one of several lines for later."""
        if len(lines.recent) > 1:
            if self.characters < _KEPT_CHARACTERS and width > 1:
                self.several.append((lines.number, [*lines.recent]))
                self.characters += sum(map(len, lines.recent))
            return
        if self.rows >= _TYPICAL_ROWS or len(record) != width:
            return
        if not self.rows:
            self.numeric, self.values = [True] * width, [set() for _ in range(width)]
        self.rows += 1
        for i, cell in enumerate(record):
            self.numeric[i] = self.numeric[i] and _is_number(cell)
            seen = self.values[i]
            if seen is not None:
                seen.add(cell)
                if len(seen) > _FEW_VALUES:
                    self.values[i] = None

    def swallowed(self, width: int, separator: str) -> tuple[int, int] | None:
        """The lines of the first row of several lines of which each is by itself a row like the others."""
        found = (one for one in self.several if self._fits_all(one[1], width, separator))
        return next(((last - len(lines) + 1, last) for last, lines in found), None)

    def _fits_all(self, lines: list[str], width: int, separator: str) -> bool:
        rows = [_cells(line, separator) for line in lines]
        if any(len(row) != width for row in rows):
            return False
        telling = [i for i in range(width if self.rows else 0) if self.numeric[i] or self._few(i)]
        # A cell with a quote differs from the others by it.
        told = [self._fits(row[i], i) for row in rows for i in telling if '"' not in row[i]]
        return all(told) if told else len(lines) > 2

    def _fits(self, cell: str, column: int) -> bool:
        return _is_number(cell) if self.numeric[column] else cell in (self.values[column] or ())

    def _few(self, column: int) -> bool:
        seen = self.values[column]
        return seen is not None and self.rows >= 3 * len(seen)


def _cells(line: str, separator: str) -> list[str]:
    """Cells of one line by itself; a quote that is not closed in it is a character."""
    line = line.rstrip("\r\n")
    try:
        return next(csv.reader([line], delimiter=separator, strict=True), [])
    except csv.Error:
        return line.split(separator)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_wrapped(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


@contextmanager
def _long_cells(file: DataFile) -> Iterator[None]:
    """Let the csv module take long cells, whose limit it has for the whole process."""
    before = csv.field_size_limit(MOST_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=5)
