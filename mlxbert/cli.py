"""The `mlxbert` command group."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import click

from mlxbert.errors import MLXBertError
from mlxbert.home import expand_home

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Group):
    """A group whose commands answer a mistake of the caller's with one clear message and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _warn
                return super().invoke(ctx)
        except MLXBertError as error:
            click.echo(f"mlxbert: error: {error}", err=True)
            ctx.exit(2)
        except click.exceptions.NoArgsIsHelpError:
            raise  # a bare `mlxbert` shows its help
        except click.UsageError as error:
            asked = (error.ctx or ctx).command_path
            click.echo(f"{asked}: error: {error.format_message()}; fix: see {asked} --help", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("\nmlxbert: interrupted", err=True)
            ctx.exit(130)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in the code, which is of no use to whoever typed a command."""
    click.echo(f"mlxbert: warning: {message}", err=True)


@click.group(cls=OneLineErrors, context_settings=CONTEXT)
@click.version_option(package_name="mlxbert")
def main() -> None:
    """Use converted BERT checkpoints; make one with mlxbert-convert."""


@main.command()
@click.argument("model")
@click.argument("texts", nargs=-1, required=True)
@click.option("--revision", help="Branch, tag or commit of a model on the Hub.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write the embeddings, (texts, width), to a .npy file."
)
def encode(model: str, texts: tuple[str, ...], revision: str | None, out: Path | None) -> None:
    """Embed TEXTS with MODEL, a converted directory or Hub id, and show how alike they are.

    \b
    Example:
      mlxbert encode mlx_models/minilm "A cat sits." "A kitten rests." "Stocks fell."
    """
    import numpy as np
    from rich.table import Table

    from mlxbert.encode import SentenceEncoder
    from mlxbert.terminal import show
    from mlxbert.writer.output_file import write_errors

    embeddings = SentenceEncoder.from_pretrained(model, revision=revision).encode(list(texts))
    if out is not None:
        out = expand_home(out)
        with write_errors(out, needed=embeddings.nbytes), out.open("wb") as file:
            np.save(file, embeddings)
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    table = Table(title=f"Cosine similarity, {embeddings.shape[1]} dimensions")
    table.add_column("", no_wrap=True, min_width=12)
    for number in range(1, len(texts) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for number, (text, row) in enumerate(zip(texts, unit @ unit.T, strict=True), start=1):
        table.add_row(f"{number}  {text}", *(f"{value:.3f}" for value in row))
    show(table)
    if out is not None:
        show(f"Embeddings {embeddings.shape} written to {out}")
