"""`mlxbert train`: from the data of a competition to a cross-validated model.

Its options are the arguments of `mlxbert.train`: name, type, help and heading are stated once, in their fields.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from heads.command_line import OptionGroups
from mlxbert.runs.settings import arguments, default_of, flag_of

_TYPES: dict[str, Any] = {"int": int, "float": float}
_COMMAND = Callable[..., Any]


class GroupedCommand(OptionGroups, click.Command):
    """A command whose `--help` lists its options under headings."""


def argument_options(command: _COMMAND) -> _COMMAND:
    """Decorator: an option for every argument of `mlxbert.train`; its value is None where it is not given."""
    for argument in reversed(arguments()):
        command = _option(argument)(command)
    return command


def argument_option(name: str) -> Callable[[_COMMAND], _COMMAND]:
    """Decorator: the option of one argument of `mlxbert.train`, for another command."""
    return next(_option(argument) for argument in arguments() if argument.name == name)


def _option(argument: dataclasses.Field[Any]) -> Callable[[_COMMAND], _COMMAND]:
    flag, help, choices = flag_of(argument), argument.metadata["help"], argument.metadata.get("choices")
    kind, default = str(argument.type).partition(" | ")[0], default_of(argument)
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        help = f"{help}  [default: {default}]"
    if argument.metadata.get("switch"):
        return click.option(flag, argument.name, is_flag=True, default=None, help=help)
    if kind == "bool":
        shown = "yes" if default else "no"
        return click.option(f"{flag}/--no-{flag[2:]}", argument.name, default=None, help=f"{help}  [default: {shown}]")
    several = kind.startswith(("tuple", "Mapping", "RowText"))
    if several:
        help = f"{help}  [may be repeated]"
    return click.option(
        flag,
        argument.name,
        type=click.Choice(choices) if choices else int if kind == "tuple[int, ...]" else _TYPES.get(kind, str),
        metavar=argument.metadata.get("metavar"),
        multiple=several,
        default=None,
        help=help,
    )


PATH = click.Path(path_type=Path)
# The options that people use first.
FIRST = ("model", "text", "target", "test", "sample_submission", "metric", "epochs", "out")


def _groups() -> dict[str, tuple[str, ...]]:
    """Heading of `--help` -> names of the options, as the arguments' fields have them."""
    groups = {"Options that most runs need": FIRST, "Data": ("pair",)}
    groups |= dict.fromkeys(("Folds", "Model", "Optimization", "Memory", "Output"), ())
    groups["Run"] = ("resume", "allow_changes", "overwrite", "trackers", "workers", "members")
    for argument in arguments():
        if argument.name not in FIRST:
            groups[argument.metadata["group"]] += (argument.name,)
    return groups


@click.command(cls=GroupedCommand, groups=_groups())
@click.argument("data", required=False)
@click.option("-o", "--out", type=PATH, help="Directory of the run.")
@click.option(
    "--pair",
    multiple=True,
    help="Column with the second sentence of a pair, or a template.  [may be repeated]",
)
@click.option("--resume", type=PATH, metavar="RUN", help="Resume an interrupted run; it ends in the same bytes.")
@click.option(
    "--allow-changes",
    is_flag=True,
    help="With --resume: go on although device or versions have changed.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing run.")
@click.option(
    "--log",
    "trackers",
    multiple=True,
    help="Log to tensorboard or wandb, if it is installed: loss, rate, norm, rows a second, share of padding.  "
    "[may be repeated]",
)
@click.option(
    "--workers",
    type=int,
    default=1,
    help="Processes that train folds and seeds at the same time, with the threads divided among them.  [default: 1]",
)
@click.option(
    "--member",
    "members",
    multiple=True,
    metavar="fold=N,seed=N",
    help="Train only this model; other machines with the same directory train others, and --resume ends the run.  "
    "[may be repeated]",
)
@argument_options
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
      mlxbert train data/train.csv --model mlx_models/minilm --text text --target target -o runs/t --workers 2
      mlxbert train --resume runs/tweets
    """
    from mlxbert.runs import session
    from mlxbert.runs.command import head_options, labels
    from mlxbert.training.parallel import current_world

    was_finished = False
    if resume is not None:
        _refuse_settings(context)
        was_finished = (resume / "scores.json").is_file()
        beside = {name: options[name] for name in ("trackers", "workers", "members")}
        run = session.resume(resume, data, allow_changes=allow_changes, **beside)
    elif data is None or out is None:
        raise click.UsageError("give DATA and -o DIRECTORY, or --resume RUN")
    elif allow_changes:
        raise click.UsageError("--allow-changes goes with --resume")
    else:
        given = {name: value for name, value in options.items() if value is not None and value != ()}
        for name in {"text", "pair", "target"} & given.keys():
            if len(given[name]) == 1:
                (given[name],) = given[name]
        given["head"] = head_options(given.get("head", ()))
        given["classes"] = labels(given.get("classes", ()))
        run = session.train(data, out=out, **given)
    if not current_world().writes:
        return
    if options["members"] and not run.files.scores.is_file():
        show_members(run)
    else:
        show_run(run, was_finished=was_finished)


def _refuse_settings(context: click.Context) -> None:
    """Refuse every other option beside --resume: a run that goes on has its settings already."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        fits = parameter.name in ("data", "resume", "allow_changes", "trackers", "workers", "members")
        if source is click.core.ParameterSource.COMMANDLINE and not fits:
            raise click.UsageError(f"--resume takes the run's own settings, not {parameter.opts[-1]}")


def show_members(run: Any) -> None:
    """Show which models of a run are finished and which are missing, and what to do next."""
    from mlxbert.errors import first_ten
    from mlxbert.terminal import show

    finished = {path.name for path in run.members}
    missing = [name for name in run.record.members if name not in finished]
    lines = [f"Run         {run.path}", f"Finished    {len(finished)} of {len(run.record.members)} models"]
    if missing:
        lines += ["Missing", first_ten(missing)]
        lines.append("Next        train the missing ones (--member), on any machine with this directory; at last")
        lines.append(f"            {run.go_on}   (trains what is missing, and writes the results of all)")
    else:
        lines.append(f"Next        {run.go_on}   (writes the results of all models)")
    show("\n".join(lines))


def show_run(run: Any, was_finished: bool = False) -> None:
    """Show the scores, where everything is, and what to do next; and whether the run was finished already."""
    from mlxbert.runs.progress import decision, scores_table
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
