"""The CSV files of a run as columns of text, with the line that each row begins on, so that an error can name it."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mlxbert.files.reading import read_text
from mlxbert.report.report_error import ReportError

T = TypeVar("T")

FIX = "fix: restore the file, or move it away for a report without it"


@dataclass(frozen=True)
class CsvTable:
    """A CSV file.

    Attributes:
        path: of the file, for messages.
        columns: the cells of each column, by its name, in the file's order.
        lines: (rows,) the line, from 1, that each row ends on.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def named(self, prefix: str) -> list[str]:
        """What follows `prefix` in the names of the columns that begin with it."""
        return [name.removeprefix(prefix) for name in self.columns if name.startswith(prefix)]

    def cells(self, name: str) -> list[str]:
        """A column. Raises `ReportError` when there is none of that name."""
        if name not in self.columns:
            raise ReportError(f"{self.path}: no column {name!r}; {FIX}")
        return self.columns[name]

    def numbers(self, name: str, *, missing: bool = False) -> np.ndarray:
        """A column as float64 (rows,); an empty cell is NaN where `missing` allows it.

        Raises:
            ReportError: no such column, or a cell that is no finite number; its line is named.
        """
        cells = self.cells(name)

        def parse(cell: str) -> float:
            if not cell.strip() and missing:
                return float("nan")
            value = float(cell)
            if not np.isfinite(value):
                raise ValueError(cell)
            return value

        return np.array(self.parsed(name, cells, parse, "a number"), np.float64)

    def parsed(self, name: str, cells: list[str], parse: Callable[[str], T], expected: str) -> list[T]:
        """Every cell through `parse`, which raises ValueError or KeyError for one that is not `expected`."""
        values = []
        for cell, line in zip(cells, self.lines, strict=True):
            try:
                values.append(parse(cell))
            except (ValueError, KeyError):
                shown = cell if len(cell) <= 40 else f"{cell[:40]}…"
                raise ReportError(f"{self.path}: line {line}: {name} is {shown!r}, not {expected}; {FIX}") from None
        return values


def read_csv(path: Path) -> CsvTable | None:
    """The table in a file; None when there is no such file.

    Raises:
        ReportError: not UTF-8, no header, a name that comes twice, broken quotes, a row of another length.
    """
    text = read_text(path, ReportError)
    if text is None:
        return None
    limit = csv.field_size_limit(sys.maxsize)  # a text may be longer than the 131072 characters that csv allows
    try:
        return _parse(path, text)
    finally:
        csv.field_size_limit(limit)


def _parse(path: Path, text: str) -> CsvTable:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        header = next(reader, None)
        if not header:
            raise ReportError(f"{path}: line 1: no header; {FIX}")
        for row in reader:
            if not row:
                continue  # a blank line
            if len(row) != len(header):
                raise ReportError(
                    f"{path}: line {reader.line_num}: {len(row)} cells under {len(header)} column names; {FIX}"
                )
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ReportError(f"{path}: line {reader.line_num}: {error}; {FIX}") from None
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ReportError(f"{path}: line 1: column {twice[0]!r} comes twice; {FIX}")
    columns = [list(cells) for cells in zip(*rows, strict=True)] or [[] for _ in header]
    return CsvTable(path, dict(zip(header, columns, strict=True)), lines)
