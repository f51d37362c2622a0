"""Print results so that no text steers the terminal, and no closed pipe changes the exit code."""

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
    """A console for foreign text: brackets are not markup, and control characters do not reach the terminal.

    Control characters in lines, titles, headers and cells are shown as escapes. In tables, words of more than 200
    characters are shortened in the middle; lines keep them, so that a path can be copied.
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
    """Print to standard output with `SafeConsole`; lines of text are not folded, and numbers are not cut.

    A terminal narrower than 80 columns folds the lines itself. If the output cannot be written (`| head`, a full
    disk), the command still ends with its own exit code, because its work is done.
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
        # The rest of the buffer is flushed at exit, and would fail there again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
