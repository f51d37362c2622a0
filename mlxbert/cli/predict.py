"""`mlxbert predict`: a submission from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mlxbert.cli.training_options import quoting_option

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("data")
@click.option("-o", "--out", type=PATH, required=True, help="The CSV file to write.")
@click.option("--sample-submission", type=PATH, help="Its ids and columns are checked before anything is predicted.")
@click.option("--values", type=click.Choice(["labels", "probabilities", "values"]), help="[default: as trained for]")
@click.option(
    "--average",
    "how",
    type=click.Choice(["probabilities", "ranks"]),
    default="probabilities",
    show_default=True,
    help="What of the models is averaged.",
)
@click.option("--encoding", help="Of the data's text.  [default: found out]")
@quoting_option
def predict(run: Path, data: str, out: Path, **options: Any) -> None:
    """Predict DATA with RUN, a finished run or a blend, and write a submission.

    \b
    Examples:
      mlxbert predict runs/tweets data/test.csv -o submission.csv
      mlxbert predict runs/tweets data/test.csv --sample-submission sample_submission.csv -o submission.csv
      mlxbert predict runs/jigsaw data/test.csv --average ranks -o submission.csv
    """
    from mlxbert.runs.predict import open_predictor, write_submission
    from mlxbert.runs.progress import row_progress
    from mlxbert.terminal import show

    opened = open_predictor(run)
    with row_progress() as progress:
        rows = write_submission(opened, data, out=out, progress=progress, **options)
    show(f"{rows} rows written to {out}")
