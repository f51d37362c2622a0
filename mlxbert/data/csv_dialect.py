"""`DataFile`, which opens a data file for reading, and `find_quoting`, which says how a text table uses quotes.

Opening a file refuses what is no regular file, unpacks it, and stops at a bound.

The quoting of a table is the one with which its lines, quotes and rows agree. A file without quoting that is read with
quoting loses rows: a quote at the start of a cell swallows every row up to the next quote, and nothing in the result
shows it. So all lines are counted before anything is read.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

from mlxbert.data.frames import DataError, DataWarning
from mlxbert.errors import first_ten
from mlxbert.files.reading import open_regular

Format = Literal["csv", "jsonl", "json", "parquet", "excel"]
Compression = Literal["gzip", "bzip2", "xz", "zip"]
Quoting = Literal["none", "minimal", "escaped"]
"""How a text table treats quotes. "none": a quote is an ordinary character. "minimal": a cell may be in quotes, and a
quote inside it is doubled. "escaped": a quote inside it has a backslash before it."""

DIALECTS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    "minimal": {"quotechar": '"', "doublequote": True},
    "escaped": {"quotechar": '"', "doublequote": True, "escapechar": "\\"},
}
"""Arguments for `csv.reader` and `pandas.read_csv`, by quoting."""

MOST_CHARACTERS = 64 << 20
"""The longest cell and the longest line: more is a missing quote, or an attack on the memory."""

# Text compresses to a tenth, logs to a thirtieth; honest data do not grow more than a hundredfold.
_MOST_RATIO, _HARMLESS = 100, 64 << 20
# The errors of the unpacking modules for a damaged or locked archive.
_DAMAGE = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


@dataclass(frozen=True)
class DataFile:
    """A data file and how to read it.

    Attributes:
        path: of the file.
        format: of the content; "jsonl" is one object a line, "json" a document.
        size: in bytes.
        sha256: of the bytes, in hex, for run.json.
        compression: None: the file is not compressed.
        encoding: of the text; None for Parquet and Excel.
        separator: between the columns of a text table; else None.
        quoting: of a text table with quotes in it; else None.
        skipped: lines before the header (Excel's ``sep=;``).
        extra: separators at the end of every row that the header does not have.
    """

    path: Path
    format: Format
    size: int
    sha256: str
    compression: Compression | None = None
    encoding: str | None = None
    separator: str | None = None
    quoting: Quoting | None = None
    skipped: int = 0
    extra: int = 0

    @contextmanager
    def open_bytes(self) -> Iterator[IO[bytes]]:
        """Open the unpacked bytes.

        Raises:
            DataError: the file is gone, not regular, damaged, or unpacks to far more than its size.
        """
        with os_errors(self.path), open_unpacked(self.path, self.compression, self.size) as stream:
            yield stream

    @contextmanager
    def open_text(self, encoding: str | None = None) -> Iterator[IO[str]]:
        """Open the text after the skipped lines, with its own line ends; raises as `open_bytes`."""
        with self.open_bytes() as stream, io.TextIOWrapper(stream, encoding or self.encoding, newline="") as text:
            for _ in range(self.skipped):
                text.readline()
            yield text


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn an error of reading `path` into a one-line `DataError`."""
    try:
        yield
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read: {reason}; fix: get the file again") from error


@contextmanager
def open_unpacked(path: Path, compression: Compression | None, size: int) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it is compressed; refuse to read past 64 MB and 100 times its size."""
    with ExitStack() as stack:
        file = open_regular(path, DataError)
        if file is None:
            raise DataError(f"{path} is not there; fix: check the path")
        source: Any = stack.enter_context(io.BufferedReader(file, 1 << 16))
        if compression is None:
            yield source
            return
        if compression == "zip":
            archive = stack.enter_context(zipfile.ZipFile(source))
            source = archive.open(only_member(archive, path))
        else:
            opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[compression]
            source = opener(source)
        stack.enter_context(source)
        yield stack.enter_context(io.BufferedReader(_Bounded(source, path, size), 1 << 16))


def only_member(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the name of the only file in an archive, without the files that systems add.

    Raises:
        DataError: there is none, or there are several.
    """
    names = [member.filename for member in archive.infolist() if not member.is_dir()]
    names = [name for name in names if not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")]
    if len(names) != 1:
        what = f"holds {len(names)} files, not one" if names else "holds no file"
        listed = "\n" + first_ten(names) if names else ""
        raise DataError(f"{path} is a ZIP archive that {what}; fix: unpack it and name one of its files{listed}")
    return names[0]


class _Bounded(io.RawIOBase):
    """A stream that raises when more comes out of it than honest data can hold."""

    def __init__(self, source: IO[bytes], path: Path, size: int):
        self._source, self._path = source, path
        self._limit = max(_HARMLESS, _MOST_RATIO * size)
        self._left = self._limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with os_errors(self._path):
            data = self._source.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path} unpacks to more than {self._limit >> 20} MB, {_MOST_RATIO} times its size; "
                "fix: unpack it yourself if that is right"
            )
        buffer[: len(data)] = data
        return len(data)


@dataclass
class Layout:
    """Rows and cells of a file that is read with one quoting.

    Attributes:
        width: cells of the header.
        rows: below the header, without blank lines.
        short: rows with fewer cells than the header; `first_short` is the line of the first.
        wide: line of the first row with more cells than the header; None: there is none.
        trailing: whether every row has one more cell than the header, an empty one.
        broken: (first line, last line) of the first quoted cell that goes on after its closing quote, or never ends;
            None: all quotes are closed.
        swallowed: (first line, last line) of a row of several lines, each of which looks like a row.
        stray: line of a lone carriage return, in a file with other line ends.
        joined: whether a broken quote is in a cell of several lines.
        wrapped: whether the header, or all cells of a column, are in quotes.
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
    """Return the quoting that fits a file, and the file's layout with it; None: the quoting makes no difference.

    Args:
        file: a text table with known encoding and separator.
        given: the caller's choice, which is taken without a check.
        like: the training file's quoting, preferred where it fits.
        marks: whether the file has quotes, and whether it has backslashes.

    Raises:
        DataError: no quoting fits; the message names the line and the options.

    Warns:
        DataWarning: the quoting is not the usual one (`minimal`), or not the training file's, or a quote is not
            doubled.
    """
    if given is not None:
        if given not in get_args(Quoting):
            raise DataError(f"quoting {given!r} is not known; fix: {', '.join(get_args(Quoting))}")
        return given, _layout(file, given)
    quotes, backslashes = marks
    minimal = _layout(file, "minimal")
    if not quotes and not (backslashes and minimal.wide is not None):
        return None, minimal
    if like is not None:
        layout = minimal if like == "minimal" else _layout(file, like)
        fits = layout.broken is None and (layout.wide is None or layout.trailing)
        if fits and (like == "minimal" or not layout.short):
            return like, layout
    chosen, layout = _fitting(file, minimal, backslashes)
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


def _fitting(file: DataFile, minimal: Layout, backslashes: bool) -> tuple[Quoting, Layout]:
    """Return the first quoting with which all agrees; else one that loses no row."""
    if minimal.agrees:
        return "minimal", minimal
    if backslashes:
        escaped = _layout(file, "escaped")
        if escaped.agrees:
            return "escaped", escaped
    none = _layout(file, "none")
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
        return "minimal", minimal  # a row has too many cells with any quoting: the parser reports it
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


def _layout(file: DataFile, quoting: Quoting) -> Layout:
    """Count rows, cells and lines of a whole file that is read with one quoting, in little memory."""
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
    """Yield the records of a file; note the first broken quote in `layout`, and go on as pandas does."""
    # Strict: a closing quote must end its cell. An error loses the reader's state, so the record is read again.
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
    """The lines of a file: `number` of the last one, and `recent`, those of the current record."""

    def __init__(self, text: IO[str], file: DataFile):
        self.path, self.number = file.path, file.skipped
        self._text: Iterator[str] = iter(text)
        self._again: list[str] = []
        self.recent: list[str] = []

    def again(self, lines: list[str]) -> None:
        """Put back these lines, which were the last ones."""
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


# So many rows of one line are examined; a column with at most so many distinct values has "few".
_TYPICAL_ROWS, _FEW_VALUES = 2000, 20
# Rows of several lines are kept up to this many characters.
_KEPT_CHARACTERS = 16 << 20


@dataclass
class _Typical:
    """Columns of the rows of one line (all numbers? few values?), and the rows of several lines to compare with."""

    rows: int = 0
    several: list[tuple[int, list[str]]] = field(default_factory=list)
    characters: int = 0
    numeric: list[bool] = field(default_factory=list)
    values: list[set[str] | None] = field(default_factory=list)

    def add(self, record: list[str], width: int, lines: _Lines) -> None:
        """Learn from a row of one line; keep a row of several lines for later."""
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
        """Return (first line, last line) of the first row whose every line is by itself a typical row."""
        for last, lines in self.several:
            if self._fits_all(lines, width, separator):
                return last - len(lines) + 1, last
        return None

    def _fits_all(self, lines: list[str], width: int, separator: str) -> bool:
        rows = [_cells(line, separator) for line in lines]
        if any(len(row) != width for row in rows):
            return False
        columns = [i for i in range(width if self.rows else 0) if self.numeric[i] or self._few(i)]
        # A quote alone makes a cell differ from the others.
        fits = [self._fits(row[i], i) for row in rows for i in columns if '"' not in row[i]]
        return all(fits) if fits else len(lines) > 2

    def _fits(self, cell: str, column: int) -> bool:
        return _is_number(cell) if self.numeric[column] else cell in (self.values[column] or ())

    def _few(self, column: int) -> bool:
        seen = self.values[column]
        return seen is not None and self.rows >= 3 * len(seen)


def _cells(line: str, separator: str) -> list[str]:
    """Return the cells of one line by itself; a quote that is not closed in it is an ordinary character."""
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
    """Raise the csv module's limit for cells, which holds for the whole process."""
    before = csv.field_size_limit(MOST_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _warn(message: str) -> None:
    warnings.warn(message, DataWarning, stacklevel=5)
