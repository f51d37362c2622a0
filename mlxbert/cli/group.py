"""The `mlxbert` command group.

Commands import heavy modules inside their functions, so that `mlxbert --help` answers at once. Other packages add
commands through the entry-point group `mlxbert.commands`. The four commands of the converter come that way, because
nothing in mlxbert imports the converter; they are also commands of their own (`mlxbert convert` is `mlxbert-convert`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from mlxbert.cli.commands import blend, competitions, encode, predict, report
from mlxbert.cli.train import train
from mlxbert.errors import last_catch, readable
from mlxbert.own_packages import use_own_package
from mlxbert.training.config import our_name

COMMANDS = "mlxbert.commands"
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Group):
    """A group whose commands answer a mistake of the user with one clear message and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        return _loaded(cmd_name) if command is None and cmd_name in _added() else command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each command with its whole first sentence; click's own list cuts it at the width of the terminal."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=1000)) for name, command in commands if command is not None]
            )

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        with _one_line(str(info_name)):
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        passing = (click.ClickException, click.exceptions.Exit, click.Abort)
        with _one_line(ctx.command_path), last_catch("mlxbert", passing):
            return super().invoke(ctx)


@contextmanager
def _one_line(command: str) -> Iterator[None]:
    """Print an error of the parser in one line, and exit with code 2."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise  # a bare `mlxbert` shows its help
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else command
        message = _with_usual_option(error) or f"{error.format_message()}; fix: see {path} --help"
        click.echo(readable(f"{path}: error: {message}"), err=True)
        raise click.exceptions.Exit(2) from error


def _with_usual_option(error: click.UsageError) -> str | None:
    """Return the message for an option of other tools (--learning-rate), with ours for it; None if it is unknown."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return None
    name = our_name(error.option_name) or error.option_name.strip("-").replace("-", "_")
    parameters = {parameter.name: parameter for parameter in error.ctx.command.params}
    ours = parameters.get(name) or (parameters.get("data") if name == "test" else None)
    if ours is None:
        return None
    message = f"No such option {error.option_name!r}"
    if isinstance(ours, click.Argument):
        return f"{message}; fix: give the file without a flag: {error.ctx.command_path} {str(ours.name).upper()}"
    metavar = f" {ours.metavar}" if ours.metavar else ""
    return f"{message}; did you mean {max(ours.opts, key=len)}{metavar}?"


@cache
def _added() -> dict[str, EntryPoint]:
    """Return the commands that installed packages add, by name."""
    return {entry.name: entry for entry in entry_points(group=COMMANDS)}


@cache
def _loaded(name: str) -> click.Command:
    """Return a command of another package."""
    entry = _added()[name]
    if entry.module.startswith("converter."):
        use_own_package("converter")
    command: click.Command = entry.load()
    return command


@click.group(cls=OneLineErrors, context_settings=CONTEXT)
@click.version_option(package_name="mlxbert")
def main() -> None:
    """Convert BERT checkpoints to MLX, prove them equal to PyTorch, fine-tune them, and predict.

    \b
    Examples:
      mlxbert convert bert-base-uncased
      mlxbert encode mlx_models/bert-base-uncased "A cat sits." "A kitten rests."
      mlxbert train --help
    """


for command in (encode, competitions, train, predict, report, blend):
    main.add_command(click.version_option(package_name="mlxbert")(command))
