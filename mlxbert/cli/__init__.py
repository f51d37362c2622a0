"""The `mlxbert` command group: one file a command, registered below.

A command's file imports what is heavy inside its function, so that `mlxbert --help` answers at once.
"""

from __future__ import annotations

import warnings
from typing import Any

import click

from mlxbert.cli import blend, encode, predict, report, train
from mlxbert.errors import Interrupted, MLXBertError
from mlxbert.training.usual_names import our_name

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Group):
    """A group whose commands answer a mistake of the caller's with one clear message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                return super().invoke(ctx)
        except Interrupted as error:
            click.echo(f"mlxbert: {error}", err=True)
            ctx.exit(130)
        except MLXBertError as error:
            click.echo(f"mlxbert: error: {error}", err=True)
            ctx.exit(2)
        except click.exceptions.NoArgsIsHelpError:
            raise  # a bare `mlxbert` shows its help
        except click.UsageError as error:
            asked = (error.ctx or ctx).command_path
            message = _with_usual_option(error) or f"{error.format_message()}; fix: see {asked} --help"
            click.echo(f"{asked}: error: {message}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("\nmlxbert: interrupted", err=True)
            ctx.exit(130)


def _with_usual_option(error: click.UsageError) -> str | None:
    """The message for an option that other tools have (--learning-rate), with ours of that meaning; None: unknown."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return None
    name = our_name(error.option_name) or error.option_name.strip("-").replace("-", "_")
    parameters = {parameter.name: parameter for parameter in error.ctx.command.params}
    found = parameters.get(name) or (parameters.get("data") if name == "test" else None)
    if found is None:
        return None
    message = f"No such option {error.option_name!r}"
    if isinstance(found, click.Argument):
        return f"{message}; fix: give the file without a flag: {error.ctx.command_path} {str(found.name).upper()}"
    metavar = f" {found.metavar}" if found.metavar else ""
    return f"{message}; did you mean {max(found.opts, key=len)}{metavar}?"


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in the code, which is of no use to whoever typed a command."""
    click.echo(f"mlxbert: warning: {message}", err=True)


@click.group(cls=OneLineErrors, context_settings=CONTEXT)
@click.version_option(package_name="mlxbert")
def main() -> None:
    """Use converted BERT checkpoints; make one with mlxbert-convert."""


for command in (encode.encode, train.train, predict.predict, report.report, blend.blend):
    main.add_command(command)
