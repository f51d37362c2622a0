"""The CSV files of a run: the same bytes for the same numbers, whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.files.output_file import replace_file
from mlxbert.files.reading import open_regular
from mlxbert.runs.files import RunError

_FIX = "fix: restore the file from a copy of the run, or train again"

# What a spreadsheet computes instead of showing it (https://owasp.org/www-community/attacks/CSV_Injection): full-width
# signs too, and a tab or a carriage return that it strips first. Numbers are no formulas.
_FORMULA = re.compile(r"(?![+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?%?$)[=+\-@\t\r＝＋－＠]", re.ASCII)
_ESCAPED = re.compile(r"'[=+\-@\t\r＝＋－＠]")
# Column names that mean something in oof.csv and worst_rows.csv.
_TAKEN = re.compile(r"(row|fold|made_at|target|prediction|probability|label|rank|loss|truth|text|second)(:.*)?")


def write_csv(file: Path, frame: Any, *, escape_formulas: bool = False, follow_links: bool = False) -> None:
    """Write a pandas frame as CSV: floats with all their digits, lines ended by a newline alone.

    Args:
        file: where to.
        frame: a pandas frame.
        escape_formulas: put a ' before cells that a spreadsheet would compute (`escaped_formula`).
        follow_links: for an output that the user named, as in `mlxbert.files.output_file.replacing`.

    Raises:
        WriteError: the disk is full, or cannot be written; what was there is still there.
    """
    if escape_formulas:
        frame = frame.map(lambda cell: escaped_formula(cell) if isinstance(cell, str) else cell)
        frame.columns = [escaped_formula(str(name)) for name in frame.columns]
    data = frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogatepass")
    replace_file(file, data, follow_links=follow_links)


def read_csv(file: Path, text: Iterable[str] = ()) -> Any:
    """Return what `write_csv` wrote as a pandas frame: `text` columns as they are written, others as pandas does.

    Raises:
        RunError: no such file, not a regular one, or damaged.
    """
    import pandas

    opened = open_regular(file, RunError)
    if opened is None:
        raise RunError(f"{file} is not there; {_FIX}")
    with opened:
        try:
            return pandas.read_csv(
                opened, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""], low_memory=False
            )
        # pandas' own errors are ValueErrors; a file of other bytes ends in any of these.
        except (ValueError, OverflowError, MemoryError, OSError) as error:
            raise RunError(f"{file} is damaged ({str(error).strip()}); {_FIX}") from error


def numbers(frame: Any, name: str, file: Path, *, missing: bool = False) -> np.ndarray:
    """Return a column of `read_csv` as float64 (rows,); an empty cell is NaN where `missing` allows it.

    Raises:
        RunError: no such column, or a cell that is no finite number.
    """
    import pandas

    if name not in frame.columns:
        raise RunError(f"{file} has no column {name!r}; {_FIX}")
    # What is no number becomes NaN, and is told from an empty cell below.
    values: np.ndarray = pandas.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)
    wrong = ~np.isfinite(values) & ~(frame[name].isna().to_numpy() & missing)
    if wrong.any():
        row = int(wrong.argmax())
        raise RunError(f"{file}: column {name!r} is {frame[name].iloc[row]!r} in row {row}, not a number; {_FIX}")
    return values


def escaped_formula(cell: str) -> str:
    """Return a cell with a ' before it if a spreadsheet would compute it: text that begins with =, +, - or @."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def plain_cell(cell: str) -> str:
    """Return what `escaped_formula` was given."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def truth_columns(names: Iterable[str], what: str = "target") -> list[str]:
    """Return the columns of oof.csv that hold truths (or `what` else: "prediction").

    Older runs have "target:NAME" for one target, too.
    """
    listed = list(names)
    return [name for name in listed if name.startswith(f"{what}:")] or [name for name in listed if name == what]


def id_name(column: str) -> str:
    """Return what the ids' column is called in oof.csv: its own name, or "id:NAME" where that means something else."""
    return f"id:{column}" if _TAKEN.fullmatch(column) else column
