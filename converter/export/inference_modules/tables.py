"""Read CSV, TSV and JSONL files without pandas, as mlxbert reads them: the same columns, the same values.

pandas may be missing where an exported model predicts. A column's kind is that of the training file.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mlxbert.data.frames import MISSING, NO_NUMBERS, NUMBER, TRUTH, as_text
from mlxbert.errors import MLXBertError, escaped

InferenceError = MLXBertError
"""Every error that the user can mend: one line with the thing, the place and the fix, and perhaps a list."""

Columns = dict[str, list[Any]]
"""The values of each column, by name."""

CHUNK = 2048
"""Rows that are read, tokenized and written at once: memory does not grow with the file."""

TABLES, LINES = (".csv", ".tsv", ".tab"), (".jsonl", ".ndjson", ".json")

# How a text table writes a cell that holds the separator; the training file's is used, and a row that contradicts it
# is refused.
QUOTINGS: dict[str, dict[str, Any]] = {
    "none": {"quoting": csv.QUOTE_NONE},
    "minimal": {"strict": True},
    "escaped": {"strict": True, "escapechar": "\\"},
}


def say(message: str, kind: str = "warning: ") -> None:
    """Print a message on standard error; a name out of a file must not steer the terminal."""
    print(f"inference.py: {kind}{escaped(message)}", file=sys.stderr)


def read_columns(path: Path, kinds: Mapping[str, str], quoting: str | None = None) -> Iterator[Columns]:
    """Read a CSV, TSV or JSONL file, at most `CHUNK` rows at a time.

    Args:
        path: the file.
        kinds: "text", "number" or "boolean" of a column; others are text.
        quoting: of a text table: a key of `QUOTINGS`; None: "minimal".

    Raises:
        InferenceError: the file is not there, has another format, or a broken line (the message names it).
    """
    suffix = path.suffix.lower()
    if path.is_dir() or not path.exists():
        raise InferenceError(f"{path} is {'a directory' if path.is_dir() else 'not there'}; fix: check the path")
    if suffix not in TABLES + LINES:
        raise InferenceError(
            f"{path}: {suffix or 'no extension'!r} is not read; fix: give {', '.join(TABLES + LINES)}, or a pandas "
            "frame to Predictor.predict"
        )
    csv.field_size_limit(2**31 - 1)
    is_table = suffix in TABLES
    with path.open(encoding=_encoding(path), newline="" if is_table else None) as file:
        chunks = _table(path, file, kinds, quoting or "minimal") if is_table else _lines(path, file, kinds)
        is_empty = True
        for chunk in chunks:
            is_empty = False
            yield chunk
        if is_empty:
            raise InferenceError(f"{path} has no rows; fix: is it the right file?")


def read_whole(path: Path, kinds: Mapping[str, str], quoting: str | None = None) -> Columns:
    """Read a whole file, as `read_columns`."""
    whole: Columns = {}
    rows = 0
    for chunk in read_columns(path, kinds, quoting):
        count = len(next(iter(chunk.values())))
        for name in {**whole, **chunk}:
            # A line of a JSONL file may lack a key of the others.
            whole.setdefault(name, [None] * rows).extend(chunk.get(name, [None] * count))
        rows += count
    return whole


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name in ("utf-8-sig", "cp1252"):
        decoder = codecs.getincrementaldecoder(name)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    if b"\0" in chunk:
                        raise InferenceError(f"{path} is not text: it has zero bytes; fix: unpack it, or convert it")
                    decoder.decode(chunk)
                decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        if name != "utf-8-sig":
            say(f"{path} is not UTF-8; it is read as {name}")
        return name
    say(f"{path} is not UTF-8; it is read as latin-1")
    return "latin-1"


def _separator(path: Path, file: Any) -> str:
    head = file.read(1 << 20).lstrip("\ufeff\r\n").splitlines()
    file.seek(0)
    usual, other = ("\t", ",") if path.suffix.lower() in (".tsv", ".tab") else (",", "\t")
    unquoted = "".join(head[0].split('"')[::2]) if head else ""  # a separator in quotes is text
    return next((mark for mark in (usual, other, ";", "|") if mark in unquoted), usual)


def _table(path: Path, file: Any, kinds: Mapping[str, str], quoting: str) -> Iterator[Columns]:
    separator = _separator(path, file)
    # A backslash that escapes nothing is a character.
    escape = re.compile(rf'\\(["\\\r\n{re.escape(separator)}])|\\')
    lines = file if quoting != "escaped" else (escape.sub(lambda f: f[0] if f[1] else "\\\\", line) for line in file)
    reader = csv.reader(lines, delimiter=separator, **QUOTINGS[quoting])
    try:
        yield from _chunks(path, reader, kinds)
    except csv.Error as error:
        raise InferenceError(
            f"{path}: line {reader.line_num}: a quote opens a cell and does not close it at its end ({error}); "
            "fix: --quoting none if quotes are characters like any other, or mend it"
        ) from None


def _chunks(path: Path, reader: Any, kinds: Mapping[str, str]) -> Iterator[Columns]:
    header: list[str] = next((row for row in reader if row), [])
    names = [cell.strip().strip("\ufeff").strip() or f"Unnamed: {i}" for i, cell in enumerate(header)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or repeated:
        reason = f"column {repeated[0]!r} comes twice; fix: rename one" if repeated else "no header; fix: is it empty?"
        raise InferenceError(f"{path}: {reason}")
    rows = _complete(path, reader, len(names))
    while part := list(islice(rows, CHUNK)):
        columns = zip(names, zip(*part, strict=True), strict=True)
        yield {name: convert(cells, kinds.get(name, "text")) for name, cells in columns}


def _complete(path: Path, reader: Any, width: int) -> Iterator[list[str]]:
    """Yield rows of `width` cells: short ones are filled up; of several columns, blank lines are left out."""
    for row in reader:
        if width > 1 and (not row or (len(row) == 1 and row[0].isspace())):
            continue
        if len(row) == width + 1 and not row[-1].strip():
            row.pop()  # a separator at the end of the line
        if len(row) > width:
            raise InferenceError(
                f"{path}: line {reader.line_num} has {len(row)} cells, the header {width}; fix: mend quotes or commas"
            )
        yield row + [""] * (width - len(row))


def _lines(path: Path, file: Iterable[str], kinds: Mapping[str, str]) -> Iterator[Columns]:
    rows = _records(path, file)
    names: dict[str, None] = {}
    while part := list(islice(rows, CHUNK)):
        # A key that only some lines have is a column all the same.
        names |= dict.fromkeys(name for row in part for name in row)
        columns = {name: [row.get(name) for row in part] for name in names}
        yield {name: as_text(cells) if kinds.get(name) == "text" else cells for name, cells in columns.items()}


def _records(path: Path, file: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InferenceError(f"{path}: line {number} is not JSON ({error}); fix: one object a line") from None
        if not isinstance(record, dict):
            raise InferenceError(f"{path}: line {number} is no object; fix: one object a line")
        yield {name.strip(): value for name, value in record.items()}


def convert(cells: Sequence[str], kind: str) -> list[Any]:
    """Return a column's text cells as values of its kind, None for a missing one; what does not fit stays text."""
    if kind not in ("number", "boolean"):
        return [None if cell in MISSING else cell for cell in cells]
    bare = [cell.strip() for cell in cells]
    if kind == "boolean":
        return [TRUTH.get(word, None if word in NO_NUMBERS else cell) for word, cell in zip(bare, cells, strict=True)]
    # As in pandas, one value that is no whole number makes floats of the whole column.
    are_whole = all(re.fullmatch(r"[+-]?[0-9]+", word) and abs(int(word)) < 2**63 for word in bare)
    number: Any = int if are_whole else float
    return [
        number(word) if re.fullmatch(NUMBER, word) else None if word in NO_NUMBERS else cell
        for word, cell in zip(bare, cells, strict=True)
    ]
