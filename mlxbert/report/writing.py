"""The report's files: what may be overwritten, and each written whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlxbert.files.output_file import replace_file
from mlxbert.home import expand_home
from mlxbert.report.page import MARK, Page, make_page
from mlxbert.report.report_error import ReportError
from mlxbert.report.run_files import ReportedRun, read_run
from mlxbert.runs.place import check_own

HEAD_BYTES = 1000  # the mark is in the page's first lines


@dataclass(frozen=True)
class Written:
    """A written report: the page's path, the folder of its plots and how many there are, and the run."""

    page: Path
    folder: Path
    plots: int
    run: ReportedRun


def write(run_directory: str | Path, out: str | Path | None, plots: str | Path | None) -> Written:
    """`mlxbert.report.write_report`, and what a command says of it."""
    run = read_run(run_directory)
    path, folder = report_paths(run.path, out, plots)
    page = make_page(run)
    write_page(page, path, folder, follow_links=out is not None)
    return Written(path, folder, len(page.plots), run)


def report_paths(run: Path, out: str | Path | None, plots: str | Path | None) -> tuple[Path, Path]:
    """Where the page and the folder of plots go.

    Raises:
        ReportError: a folder where the page should be, a file where the plots should, or a file that is no report.
    """
    page = run / "report.html" if out is None else expand_home(out)
    folder = run / "plots" if plots is None else expand_home(plots)
    for own in (page if out is None else None, folder if plots is None else None):
        if own is not None:
            check_own(own)
    if page.is_dir():
        raise ReportError(f"{page}: a directory; fix: name a file, -o {page / 'report.html'}")
    if page.is_file() and MARK.encode() not in _head(page):
        raise ReportError(f"{page}: exists, and is no report; it is left alone; fix: give another file with -o")
    if folder.exists() and not folder.is_dir():
        raise ReportError(f"{folder}: a file, not a directory; fix: give another folder with --plots")
    return page, folder


def write_page(page: Page, path: Path, folder: Path, *, follow_links: bool) -> None:
    """Write the page to `path` and its plots to `folder`/NAME.png, over those of an earlier report.

    Raises:
        WriteError: the disk is full, the place is not writable.
    """
    for name, png in page.plots.items():
        replace_file(folder / f"{name}.png", png, fix="give another folder with --plots", follow_links=False)
    replace_file(path, page.html.encode("utf-8"), follow_links=follow_links)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        raise ReportError(f"{path}: cannot be read: {error.strerror}; fix: give another file with -o") from None
