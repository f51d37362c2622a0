"""The worst out-of-fold rows, to be read by a person."""

from __future__ import annotations

from dataclasses import dataclass

from mlxbert.report.csv_table import FIX
from mlxbert.report.report_error import ReportError
from mlxbert.report.run_files import ReportedRun
from mlxbert.report.tables import column

TEXTS = ("text", "second")
NEEDED = ("rank", "loss", "truth", "prediction", "text")
MOST_CHARACTERS = 1200  # of a text: the page shows its beginning


@dataclass(frozen=True)
class WorstRows:
    """Worst first: `header` and `rows` of text cells; `texts` are the places of those that are long."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    texts: frozenset[int]


def worst_rows(run: ReportedRun) -> WorstRows | None:
    """worst_rows.csv for the page; None when there is none, or no row in it.

    Raises:
        ReportError: a column is missing, or a loss that is no number (its line is named).
    """
    table = run.worst
    if table is None or not table.lines:
        return None
    for name in NEEDED:
        if name not in table.columns:
            raise ReportError(f"{table.path}: no column {name!r}; {FIX}")
    columns = {
        name: list(map(_beginning, cells)) if name in TEXTS else list(map(_short_number, cells))
        for name, cells in table.columns.items()
    }
    columns["loss"] = column(table.numbers("loss").tolist())
    header = tuple(columns)
    texts = frozenset(i for i, name in enumerate(header) if name in TEXTS)
    return WorstRows(header, list(zip(*columns.values(), strict=True)), texts)


def _beginning(text: str) -> str:
    left = len(text) - MOST_CHARACTERS
    return text if left <= 0 else f"{text[:MOST_CHARACTERS]} … ({left:,} more characters)"


def _short_number(cell: str) -> str:
    """0.8213 for 0.82129347324; ids, labels and whole numbers stay as they are."""
    try:
        return f"{float(cell):.4f}" if "." in cell and len(cell) > 7 else cell
    except ValueError:
        return cell
