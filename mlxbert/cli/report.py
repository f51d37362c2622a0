"""`mlxbert report`: a run as one HTML page."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The page; RUN/report.html by default.")
@click.option("--plots", type=click.Path(path_type=Path), help="The folder of the PNGs; RUN/plots by default.")
def report(run: Path, out: Path | None, plots: Path | None) -> None:
    """Make RUN, a directory that `mlxbert train` wrote, one HTML page and PNG plots.

    It may still be training: the page shows what there is.

    \b
    Example:
      mlxbert report runs/tweets
    """
    from mlxbert.report.page import shown_score, write
    from mlxbert.terminal import show

    made = write(run, out, plots)
    path = shlex.quote(str(run))
    following = f"predict {path} test.csv -o submission.csv" if made.run.scores else f"train --resume {path}"
    rows = [
        ("Run", f"{run}: {shown_score(made.run)}"),
        ("Plots", f"{made.folder}: {made.plots} PNG files"),
        ("Written", str(made.page)),
        ("Next", f"open {made.page.absolute().as_uri()} in a browser"),
        ("", f"mlxbert {following}"),
    ]
    show("\n".join(f"{label:<10}{text}" for label, text in rows))
