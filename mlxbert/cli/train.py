"""`mlxbert train`: from a competition's data to a cross-validated model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from mlxbert.cli.training_options import given_settings, quoting_option, training_options

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("data", required=False)
@click.option("-o", "--out", type=PATH, help="The run's directory.")
@click.option("--resume", type=PATH, help="Go on with an interrupted run, to the same bytes.")
@click.option("--model", help="A converted directory, or a converted repository's id on the Hub.")
@click.option("--target", multiple=True, help="The column to predict; several times for several.")
@click.option("--text", multiple=True, help='A column, several, or a template: "{Sex}, age {Age}".')
@click.option("--pair", multiple=True, help="The second sentence, likewise.")
@click.option("--competition", help="A ready configuration: titanic, house-prices, disaster-tweets, ….")
@click.option("--task", help="binary, multiclass, multilabel, regression, ordinal, time_series.  [default: inferred]")
@click.option("--class", "classes", multiple=True, help="A label, in order; where the data do not tell all.")
@click.option("--id", help="Column that names a row.  [default: one called an id (id, PassengerId, …), all different]")
@click.option("--group", help="Rows of one value never lie on both sides of a fold.")
@click.option("--time", help="The column of times: a series, or forward-chaining folds.")
@click.option("--ignore", multiple=True, help="A column that is not read where --text is not given.")
@click.option("--head", multiple=True, metavar="NAME=VALUE", help="Of the head: objective=focal, horizon=12.")
@click.option("--valid", help="A file of rows to be judged on, in place of folds.")
@click.option("--hold-out", type=float, help="Rows held out of everything and scored at the end: share or number.")
@click.option("--test", help="A file to predict at the end.")
@click.option("--sample-submission", help="File whose ids, columns and order the predictions of --test must have.")
@click.option(
    "--values",
    type=click.Choice(["labels", "probabilities", "values"]),
    help="What a submission holds.  [default: as in the sample, else what the metric compares]",
)
@click.option("--drop-missing", is_flag=True, help="Leave out rows without a target.")
@click.option("--encoding", help="Encoding of the files, such as cp1252.  [default: found out]")
@quoting_option
@click.option("--decimal", type=click.Choice([".", ","]), help="Decimal mark of the target.  [default: found out]")
@click.option("--label-separator", help="Between labels of one cell: ';' or '[]'.  [default: found out]")
@click.option(
    "--escape-formulas", is_flag=True, help="Write ' before CSV cells that begin with = + - @ (not numbers)."
)
@click.option("--revision", help="Branch, tag or commit of a model on the Hub.")
@click.option("--log", "trackers", multiple=True, help="tensorboard or wandb, where installed.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there already.")
@click.option("--allow-changes", is_flag=True, help="With --resume: go on though device, versions or threads changed.")
@training_options
@click.pass_context
def train(
    context: click.Context,
    data: str | None,
    out: Path | None,
    resume: Path | None,
    allow_changes: bool,
    **options: Any,
) -> None:
    """Fine-tune on DATA (CSV, TSV, JSON, Parquet, Excel) with cross-validation, and predict.

    \b
    Examples:
      mlxbert train data/train.csv --model mlx_models/minilm --text text --target target -o runs/tweets
      mlxbert train --competition titanic data/train.csv --test data/test.csv -o runs/titanic
      mlxbert train data/train.csv --model mlx_models/minilm --text "{Sex}, age {Age}" --target Survived -o runs/t
      mlxbert train --resume runs/tweets
    """
    from mlxbert.runs import train as run
    from mlxbert.runs.settings import head_options, labels
    from mlxbert.runs.train import resume as go_on

    settings = given_settings(options)
    if resume is not None:
        _refuse_settings(context)
        was_finished = (resume / "scores.json").is_file()
        finished = go_on(resume, data, allow_changes=allow_changes, trackers=options["trackers"])
    else:
        was_finished = False
        if data is None or out is None:
            raise click.UsageError("give DATA and -o DIRECTORY, or --resume RUN")
        if allow_changes:
            raise click.UsageError("--allow-changes goes with --resume")
        for name in ("text", "pair", "target"):
            options[name] = _one_or_several(options[name])
        options["head"] = head_options(options["head"])
        options["classes"] = labels(options["classes"])
        finished = run(data, out=out, **options, **settings)
    show_run(finished, was_finished=was_finished)


def _refuse_settings(context: click.Context) -> None:
    """A run that goes on has its settings already: refuse every other flag, whatever its value."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        own = parameter.name in ("data", "resume", "allow_changes", "trackers")
        if source is click.core.ParameterSource.COMMANDLINE and not own:
            raise click.UsageError(f"--resume takes the run's own settings, not {parameter.opts[-1]}")


def show_run(run: Any, was_finished: bool = False) -> None:
    """Show the scores, where everything is, and what to do next; whether all that was there already."""
    from mlxbert.runs.finish import decision, scores_table
    from mlxbert.terminal import show

    files, path = run.files, shlex.quote(str(run.path))
    table = scores_table(run)
    lines = [f"Run         {run.path}", f"Out of fold {files.oof}"]
    if files.submission.is_file():
        form = run.submission()
        lines.append(f"Submission  {files.submission}: {form.values} in {', '.join(map(repr, form.columns[:3]))}")
    how = decision(run.record)
    if how is not None:
        lines.append(f"Labels      {how}")
    lines.append(f"Next        mlxbert predict {path} test.csv -o submission.csv")
    lines.append(f"            mlxbert report {path}")
    lines.append(f"            mlxbert-export {path} -o DIRECTORY   (for a notebook without MLX)")
    if was_finished:
        show(f"{run.path} is finished: nothing is left to do")
    show(table)
    show("\n".join(lines))


def _one_or_several(names: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return None if not names else names[0] if len(names) == 1 else names
