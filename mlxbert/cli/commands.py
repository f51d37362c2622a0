"""`mlxbert predict`, `blend`, `report`: the commands for runs; `competitions`; `encode`, for sentence embeddings."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlxbert.cli.rows import is_directory_output, refuse_table_options, shard_options, shard_progress, show_parts
from mlxbert.cli.train import GroupedCommand, argument_option
from mlxbert.files.reading import expand_home

if TYPE_CHECKING:
    from rich.table import Table

    from mlxbert.runs.blend import Blend

PATH = click.Path(path_type=Path)
AVERAGE = click.Choice(["probabilities", "ranks"])
# Columns of a terminal, and of them those for the name of a run.
_WIDTH, _RUN = 80, 24


@click.command(
    cls=GroupedCommand,
    groups={
        "Submission": ("out", "sample_submission", "values", "id", "intervals", "escape_formulas"),
        "Prediction": ("average", "base"),
        "Many rows, into a directory of Parquet files": ("shard", "resume", "rows_per_file"),
        "Reading DATA": ("encoding", "quoting"),
    },
)
@click.argument("run", type=PATH)
@click.argument("data")
@click.option("-o", "--out", required=True, help="CSV file to write, or a directory (out/) for Parquet files.")
@argument_option("sample_submission")
@argument_option("values")
@click.option(
    "--id",
    help="Column that names a row.  [default: the first column of the sample submission, else that of the training]",
)
@click.option(
    "--intervals",
    type=float,
    is_flag=False,
    flag_value=0.9,
    metavar="[LEVEL]",
    help="For numbers: add columns NAME_lower and NAME_upper; this share of the true values lies between them.  "
    "[without LEVEL: 0.9]",
)
@click.option(
    "--average",
    type=AVERAGE,
    default="probabilities",
    show_default=True,
    help="What is averaged over the models of the run.",
)
@click.option(
    "--base",
    metavar="DIRECTORY",
    help="Encoder below adapters that were saved without it.  [default: where it was in training]",
)
@argument_option("encoding")
@argument_option("escape_formulas")
@argument_option("quoting")
@shard_options
def predict(
    run: Path,
    data: str,
    out: str,
    base: str | None,
    shard: str | None,
    resume: bool,
    rows_per_file: int | None,
    **options: Any,
) -> None:
    """Predict DATA with RUN, a finished run or a blend, and write a submission, or Parquet files of many rows.

    \b
    Examples:
      mlxbert predict runs/tweets data/test.csv -o submission.csv
      mlxbert predict runs/tweets data/test.csv --sample-submission sample_submission.csv -o submission.csv
      mlxbert predict runs/jigsaw data/test.csv --average ranks -o submission.csv
      mlxbert predict runs/houses data/test.csv --intervals 0.9 -o submission.csv
      mlxbert predict runs/tweets data.parquet -o out/ --shard 3/16 --resume
    """
    from mlxbert.errors import MLXBertError
    from mlxbert.files.output_file import is_standard_output
    from mlxbert.rows.parts import ROWS_PER_FILE
    from mlxbert.runs.blend import open_predictor
    from mlxbert.runs.predict import write_submission
    from mlxbert.runs.progress import row_progress
    from mlxbert.runs.run import Run
    from mlxbert.terminal import show

    if run.is_file() and Path(data).is_dir():
        raise click.UsageError(
            f"the run comes first, then the data: mlxbert predict {shlex.quote(data)} {shlex.quote(str(run))}"
        )
    predictor = open_predictor(run)
    if base is not None:
        if not isinstance(predictor, Run):
            raise MLXBertError(
                f"--base is for one run, {run} is a blend; fix: put the base, or a link to it, at its recorded place"
            )
        predictor = Run.open(run, base=base)
    if shard is not None or resume or rows_per_file is not None or is_directory_output(out):
        layout = {
            "shard": shard or "0/1",
            "resume": resume,
            "rows_per_file": ROWS_PER_FILE if rows_per_file is None else rows_per_file,
        }
        _predict_parts(predictor, data, out, layout, options)
        return
    options["escape_formulas"] = bool(options["escape_formulas"])
    with row_progress() as progress:
        written = write_submission(predictor, data, out=out, progress=progress, **options)
    if not is_standard_output(Path(out)):  # a submission has no such line
        show(f"{written.rows} rows written to {out}: {written}")


def _predict_parts(predictor: Any, data: str, out: str, layout: dict[str, Any], options: dict[str, Any]) -> None:
    """Predict a table into a directory of Parquet files."""
    from mlxbert.runs.predict_rows import predict_parts

    for name in ("sample_submission", "escape_formulas"):
        if options.pop(name):
            raise click.UsageError(
                f"--{name.replace('_', '-')} is for a CSV file; fix: leave it out, or name a CSV file with -o"
            )
    with shard_progress("Predicting") as progress:
        written = predict_parts(predictor, data, out, progress=progress, **layout, **options)
    show_parts(written, layout["shard"])


@click.command()
def competitions() -> None:
    """List the ready competitions, each with an encoder for a quick try and one that suits its data.

    \b
    Examples:
      mlxbert competitions
      mlxbert convert microsoft/deberta-v3-small
      mlxbert train --competition titanic train.csv --model mlx_models/deberta-v3-small -o runs/titanic
    """
    from mlxbert.data.competitions import registered_competitions
    from mlxbert.terminal import show

    for name, competition in registered_competitions().items():
        show(f"{name}: {competition.title}")
        show(f"  {competition.task}, {competition.metric}; data: {competition.url}")
        show(f"  encoder: {competition.encoder or competition.checkpoint}; quick try: {competition.checkpoint}")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=PATH, help="Directory of the blend, for `mlxbert predict`.  [default: none]")
@click.option("--metric", help="Metric that the weights optimize, such as auc or f1.  [default: the first run's]")
@click.option(
    "--average", type=AVERAGE, default="probabilities", show_default=True, help="What is averaged over the runs."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing blend.")
def blend(runs: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Weigh RUNS by their out-of-fold predictions; `mlxbert predict` takes the blend like a run.

    \b
    Examples:
      mlxbert blend runs/a runs/b --metric auc
      mlxbert blend runs/a runs/b --metric auc -o runs/blend
      mlxbert predict runs/blend data/test.csv -o submission.csv
    """
    from mlxbert.runs import blend as blending
    from mlxbert.terminal import show

    result = blending.blend(runs, out=out, **options)
    show(_table(result), "blend: weights and thresholds of each row are chosen on the rows of other folds")
    if out is None:
        show("Next   the same with -o DIRECTORY keeps the blend, for:")
        show("       mlxbert predict DIRECTORY test.csv -o submission.csv")
    else:
        show(f"Blend  {result.path}\nNext   mlxbert predict {result.path} test.csv -o submission.csv")


def _table(blend: Blend) -> Table:
    """Return the scores of each run and of the blend: the metrics whose names fit 80 columns."""
    from rich.table import Table

    record = blend.record
    direction = "higher" if record.greater_is_better else "lower"
    table = Table(title=f"Out-of-fold scores ({record.metric} is optimized, {direction} is better)")
    table.add_column("run", overflow="fold", max_width=_RUN)
    table.add_column("weight", justify="right", no_wrap=True)
    names: list[str] = []
    left = _WIDTH - (min(_RUN, max(len(run.path.name) for run in blend.runs)) + 3) - len("weight") - 4
    for name in record.pooled:
        left -= max(len(name), 6) + 3
        if names and left < 0:
            break
        names.append(name)
        table.add_column(name, justify="right", no_wrap=True)
    for run, weight, alone in zip(blend.runs, blend.weights, record.alone, strict=True):
        table.add_row(run.path.name, f"{weight:.2f}", *(_score(alone[name]) for name in names))
    table.add_row("blend", "", *(_score(record.pooled[name]) for name in names))
    return table


def _score(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}"


@click.command()
@click.argument("run", type=PATH)
@click.option("-o", "--out", type=PATH, help="HTML page to write.  [default: RUN/report.html]")
@click.option("--plots", type=PATH, help="Folder for the plots.  [default: RUN/plots]")
def report(run: Path, out: Path | None, plots: Path | None) -> None:
    """Write a report of RUN, a directory that `mlxbert train` wrote: one HTML page and PNG plots.

    The run may still be training; the page then shows the results so far.

    \b
    Example:
      mlxbert report runs/tweets
    """
    from mlxbert.report.page import shown_score, write
    from mlxbert.terminal import show

    written = write(run, out, plots)
    path = shlex.quote(str(run))
    command = f"predict {path} test.csv -o submission.csv" if written.run.scores else f"train --resume {path}"
    rows = [
        ("Run", f"{run}: {shown_score(written.run)}"),
        ("Plots", f"{written.folder}: {written.plots} PNG files"),
        ("Written", str(written.page)),
        ("Next", f"open {written.page.absolute().as_uri()} in a browser"),
        ("", f"mlxbert {command}"),
    ]
    show("\n".join(f"{label:<10}{text}" for label, text in rows))


if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

# The matrix of cosines of this many texts fits 80 columns.
MATRIX = 6


@click.command(
    cls=GroupedCommand,
    groups={
        "Model": ("given_model", "revision", "normalize", "prompt_name", "prompt", "batch_size"),
        "A table of texts": ("text", "id", "encoding", "quoting"),
        "Output": ("out", "precision", "calibrate", "shard", "resume", "rows_per_file"),
    },
)
@click.argument("model")
@click.argument("texts", nargs=-1)
@click.option("--model", "given_model", metavar="MODEL", help="The model, where DATA is the first argument.")
@click.option("--revision", help="Branch, tag or commit of a model on the Hub.")
@click.option(
    "-o", "--out", help="File (.npy) for the embeddings of TEXTS, an array (texts, width); for DATA a directory."
)
@click.option(
    "--text",
    multiple=True,
    help='Column of DATA with the text, or a template: "{title}: {body}".  [may be repeated]',
)
@click.option("--id", help="Column of DATA that names a row.  [default: rows are numbered from 0]")
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    help="float32, float16, int8, uint8, binary or ubinary, as in sentence-transformers.",
)
@click.option(
    "--calibrate",
    type=int,
    metavar="ROWS",
    help="Rows from the start of DATA that give the ranges of int8 and uint8, for all shards.  [default: 4096]",
)
@click.option("--normalize/--no-normalize", default=None, help="Scale to length 1.  [default: as the model says]")
@click.option("--prompt-name", help="Prompt of the model that is put before each text, such as query.")
@click.option("--prompt", help="A prompt of your own.")
@click.option("--batch-size", type=int, default=32, show_default=True, help="The most texts of a batch.")
@shard_options
@argument_option("encoding")
@argument_option("quoting")
@click.pass_context
def encode(
    context: click.Context, model: str, texts: tuple[str, ...], out: str | None, text: tuple[str, ...], **options: Any
) -> None:
    """Embed TEXTS, or the rows of a table, with MODEL, a converted directory or Hub id.

    Several TEXTS are compared with each other. With --text, the rows of DATA (Parquet, CSV, TSV, JSON, a directory of
    Parquet files) are embedded in little memory, and written as Parquet files.

    \b
    Examples:
      mlxbert encode mlx_models/minilm "A cat sits." "A kitten rests." "Stocks fell."
      mlxbert encode mlx_models/minilm data.parquet --text text -o out/
      mlxbert encode data.parquet --model mlx_models/minilm --text text -o out/ --shard 3/16 --resume
    """
    given_model = options.pop("given_model")
    if text:
        if (given_model is None) != (len(texts) == 1) or len(texts) > 1:
            raise click.UsageError("with --text give MODEL and DATA, or DATA and --model MODEL")
        if out is None:
            raise click.UsageError("with --text give -o DIRECTORY")
        name, data = (given_model, model) if given_model is not None else (model, texts[0])
        _encode_table(name, data, out, text, options)
        return
    refuse_table_options(
        context, ("text", "id", "calibrate", "shard", "resume", "rows_per_file", "encoding", "quoting")
    )
    if given_model is not None:
        model, texts = given_model, (model, *texts)
    if not texts:
        raise click.MissingParameter(ctx=context, param=context.command.params[1])
    if out is not None and is_directory_output(out):
        raise click.UsageError(f"{out} is a directory; fix: -o FILE.npy for TEXTS, or --text COLUMN for a table")
    if len(texts) == 1 and Path(texts[0]).suffix and expand_home(texts[0]).exists():
        raise click.UsageError(f"{texts[0]} is a file, not a text; fix: --text COLUMN -o DIRECTORY embeds its rows")
    _encode_texts(model, texts, out, options)


def _encode_table(model: str, data: str, out: str, text: tuple[str, ...], options: dict[str, Any]) -> None:
    """Embed the rows of a table into a directory of Parquet files."""
    from mlxbert.encode.rows import encode_table

    if Path(data).is_dir() and (Path(data) / "config.json").is_file() and Path(model).is_file():
        raise click.UsageError(f"the model comes first, then the data: mlxbert encode {data} {model} --text {text[0]}")
    given = {name: value for name, value in options.items() if value is not None}
    with shard_progress("Encoding") as progress:
        written = encode_table(model, data, out, text=text[0] if len(text) == 1 else text, progress=progress, **given)
    show_parts(written, given.get("shard", "0/1"))


def _encode_texts(model: str, texts: Sequence[str], out: str | None, options: dict[str, Any]) -> None:
    """Embed texts; show how similar they are, and write the embeddings if `out` is given."""
    import numpy as np

    from mlxbert.encode.encoder import SentenceEncoder
    from mlxbert.encode.precision import quantize
    from mlxbert.files.output_file import replace_file
    from mlxbert.terminal import show

    encoder = SentenceEncoder.from_pretrained(model, revision=options["revision"])
    how = {name: options[name] for name in ("batch_size", "normalize", "prompt_name", "prompt")}
    embeddings = encoder.encode(list(texts), **how)
    stored = quantize(embeddings, options["precision"])
    if out is not None:
        path = expand_home(out)
        array = io.BytesIO()  # where writing fails, numpy hides the reason of the system
        np.save(array, stored)
        replace_file(path, array.getbuffer())
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    show(_similarities(texts, unit @ unit.T, embeddings.shape[1]))
    if out is not None:
        show(f"Embeddings {stored.shape} written to {path}")


def _similarities(texts: Sequence[str], cosines: np.ndarray, width: int) -> Table:
    """Return the cosines as a matrix; if that does not fit 80 columns, each text with the text most like it.

    Args:
        texts: N texts, shortened in the table.
        cosines: (N, N).
        width: width of the embeddings.
    """
    from rich.table import Table

    table = Table(title=f"Cosine similarity, {width} dimensions")
    if len(texts) <= MATRIX:
        table.add_column("", no_wrap=True, overflow="ellipsis", max_width=76 - 9 * len(texts))
        for number in range(1, len(texts) + 1):
            table.add_column(str(number), justify="right", no_wrap=True, min_width=6)
        for number, (text, row) in enumerate(zip(texts, cosines, strict=True), start=1):
            table.add_row(f"{number}  {text}", *(f"{value:.3f}" for value in row))
        return table
    table.add_column("text", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("most like it", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("cosine", justify="right", no_wrap=True)
    for number, row in enumerate(cosines.tolist()):
        other = max((index for index in range(len(texts)) if index != number), key=row.__getitem__)
        table.add_row(f"{number + 1}  {texts[number]}", f"{other + 1}  {texts[other]}", f"{row[other]:.3f}")
    return table
