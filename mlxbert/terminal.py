"""Printing what a command found, in a way that no terminal, path or pipe can spoil."""

from __future__ import annotations

import errno
import os
import sys

import click
from rich.console import Console, RenderableType

MIN_WIDTH = 80


def show(*parts: RenderableType) -> None:
    """Print to standard output, as it is: brackets are no markup, lines of text are not folded, numbers not cut.

    A terminal narrower than 80 columns folds the lines itself. Where nobody reads them (`| head`, a full disk) the
    command goes on to its own exit code: what was printed last says nothing about what was done.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    with console.capture() as captured:
        for part in parts:
            console.print(part, soft_wrap=True)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        click.echo(captured.get().encode(encoding, "replace").decode(encoding), nl=False)
    except OSError as error:
        if error.errno != errno.EPIPE:
            click.echo(f"standard output: {error.strerror}", err=True)
        # What is left in the buffer is flushed at exit, and would fail there once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
