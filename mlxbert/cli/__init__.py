"""The `mlxbert` command group: one file a command, registered below.

A command's file imports what is heavy inside its function, so that `mlxbert --help` answers at once.
"""

from __future__ import annotations

from typing import Any

import click

from mlxbert.cli import blend, encode, predict, report, train
from mlxbert.errors import last_catch, readable

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Group):
    """A group whose commands answer a mistake of the caller's with one clear message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with last_catch("mlxbert", (click.ClickException, click.exceptions.Exit, click.Abort)):
                return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise  # a bare `mlxbert` shows its help
        except click.UsageError as error:
            asked = (error.ctx or ctx).command_path
            click.echo(readable(f"{asked}: error: {error.format_message()}; fix: see {asked} --help"), err=True)
            ctx.exit(2)


@click.group(cls=OneLineErrors, context_settings=CONTEXT)
@click.version_option(package_name="mlxbert")
def main() -> None:
    """Use converted BERT checkpoints; make one with mlxbert-convert."""


for command in (encode.encode, train.train, predict.predict, report.report, blend.blend):
    main.add_command(command)
