"""A run as one HTML page and PNG plots.

`write_report` reads the run's files (`run_files`, `predictions`), says what was decided how (`decisions`), draws
(`curves`, `classification_plots`, `regression_plots`, `forecast_plots`) and writes. Texts, labels and column names in
a run are hostile: the page escapes them, runs no script and loads nothing.
"""

from __future__ import annotations

from pathlib import Path

from mlxbert.report.predictions import ReportError

__all__ = ["ReportError", "write_report"]


def write_report(run_directory: str | Path, out: str | Path | None = None, plots: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, and give the page's path.

    Args:
        run_directory: as `mlxbert train … -o` made it.
        out: the page; RUN/report.html by default.
        plots: the folder of the PNGs; RUN/plots by default.

    Raises:
        RunError: not a run, damaged JSON of it (the field or line is named), or a link where the run is written.
        ReportError: a damaged table of it (the line is named), an `out` that is no report of ours, or matplotlib or
            scikit-learn missing.
        WriteError: it cannot be written.
    """
    from mlxbert.report.page import write

    return write(run_directory, out, plots).page
