"""Printing what a command found, in a way that no terminal, path or pipe can spoil."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from mlxbert.errors import escaped, readable

MIN_WIDTH = 80


class SafeConsole(Console):
    """A console for text out of files and answers: brackets are no markup, and nothing steers the terminal.

    Control characters of every line, title, header and cell are shown as escapes. In tables, words of more than 200
    characters are shortened in their middle; a line keeps its words, so that a path in it can be copied.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(readable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text) and escaped(renderable.plain) != renderable.plain:
            renderable = Text(escaped(renderable.plain), style=renderable.style)
        return super().render(renderable, options)


def show(*parts: RenderableType) -> None:
    """Print to standard output, as `SafeConsole` does; lines of text are not folded, numbers not cut.

    A terminal narrower than 80 columns folds the lines itself. Where nobody reads them (`| head`, a full disk) the
    command goes on to its own exit code: what was printed last says nothing about what was done.
    """
    console = SafeConsole()
    console.width = max(console.width, MIN_WIDTH)
    with console.capture() as captured:
        for part in parts:
            console.print(Text(escaped(part)) if isinstance(part, str) else part, soft_wrap=True)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        click.echo(captured.get().encode(encoding, "replace").decode(encoding), nl=False)
    except OSError as error:
        if error.errno != errno.EPIPE:
            click.echo(f"standard output: {error.strerror}", err=True)
        # What is left in the buffer is flushed at exit, and would fail there once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
