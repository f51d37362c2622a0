"""`mlxbert predict`: a submission from a finished run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from mlxbert.cli.training_options import quoting_option

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=PATH)
@click.argument("data")
@click.option("-o", "--out", type=PATH, required=True, help="The CSV file to write.")
@click.option("--sample-submission", type=PATH, help="File whose ids, columns and order the submission must have.")
@click.option(
    "--values",
    type=click.Choice(["labels", "probabilities", "values"]),
    help="What the submission holds.  [default: as in the sample, else what the run's metric compares]",
)
@click.option("--id", help="Column that names a row.  [default: the sample's first column, else that of the training]")
@click.option(
    "--average",
    "how",
    type=click.Choice(["probabilities", "ranks"]),
    default="probabilities",
    show_default=True,
    help="What is averaged over the models of the run.",
)
@click.option("--encoding", help="Encoding of DATA, such as cp1252.  [default: found out]")
@click.option(
    "--escape-formulas", is_flag=True, help="Write ' before cells that begin with = + - @ (numbers excepted)."
)
@quoting_option
def predict(run: Path, data: str, out: Path, **options: Any) -> None:
    """Predict DATA with RUN, a finished run or a blend, and write a submission.

    \b
    Examples:
      mlxbert predict runs/tweets data/test.csv -o submission.csv
      mlxbert predict runs/tweets data/test.csv --sample-submission sample_submission.csv -o submission.csv
      mlxbert predict runs/jigsaw data/test.csv --average ranks -o submission.csv
    """
    from mlxbert.files.output_file import is_standard_output
    from mlxbert.runs.place import row_progress
    from mlxbert.runs.predict import open_predictor, write_submission
    from mlxbert.terminal import show

    if run.is_file() and Path(data).is_dir():
        raise click.UsageError(
            f"the run comes first, then the data: mlxbert predict {shlex.quote(data)} {shlex.quote(str(run))}"
        )
    opened = open_predictor(run)
    with row_progress() as progress:
        written = write_submission(opened, data, out=out, progress=progress, **options)
    if not is_standard_output(out):  # a submission has no such line
        show(f"{written.rows} rows written to {out}: {written}")
