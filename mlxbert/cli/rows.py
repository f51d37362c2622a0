"""What `mlxbert encode` and `mlxbert predict` share where they write a directory of Parquet files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlxbert.rows.parts import WrittenParts

# Seconds between two lines where standard error is no terminal.
_EVERY = 30
_COMMAND = Callable[..., Any]


def shard_options(command: _COMMAND) -> _COMMAND:
    """Decorator: --shard, --resume and --rows-per-file."""
    options = (
        click.option(
            "--shard", metavar="K/N", help="The share K, counted from 0, of the rows in N shares.  [default: 0/1]"
        ),
        click.option("--resume", is_flag=True, help="Keep the finished files of this shard, and write the others."),
        click.option(
            "--rows-per-file",
            type=int,
            metavar="ROWS",
            help="Rows of a Parquet file; a kill loses no more.  [default: 8192]",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@contextmanager
def shard_progress(verb: str) -> Iterator[Callable[[int, int, int], None]]:
    """Show rows, rows a second and the time left on standard error: a bar on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from heads.errors import say
    from mlxbert.runs.progress import duration, shows_bars

    console = Console(stderr=True)
    bars = Progress(TextColumn(verb), BarColumn(), TextColumn("{task.description}"), console=console)
    bars.disable = not shows_bars(console)
    begin = last = time.monotonic()
    with bars:
        task = bars.add_task("", total=None)

        def progress(done: int, total: int, kept: int) -> None:
            nonlocal last
            now = time.monotonic()
            text = f"{done:,} of {total:,} rows"
            if done > kept:
                rate = (done - kept) / max(now - begin, 1e-9)
                text += f", {rate:,.0f} rows/s, {duration((total - done) / rate)} left"
            bars.update(task, completed=done, total=total, description=text)
            if bars.disable and (now - last > _EVERY or (done == kept and kept)):
                last = now
                say(f"{verb}: {text}{f' ({kept:,} were there)' if done == kept else ''}")

        yield progress


def show_parts(written: WrittenParts, shard: str) -> None:
    """Say where the files are, how many rows they have, and how to read them."""
    from mlxbert.terminal import show

    path = str(written.out)
    kept = f", {written.kept:,} of them kept" if written.kept else ""
    files = "1 file" if written.files == 1 else f"{written.files} files"
    lines = [f"{written.rows + written.kept:,} rows{kept}, {files} of shard {shard} in {path}"]
    if written.present < written.expected:
        lines.append(f"All shards together have {written.expected} files; {written.present} of them are written")
    lines.append(f"Next   pandas.read_parquet({path!r})   polars.scan_parquet({path + '/*.parquet'!r})")
    show("\n".join(lines))


def is_directory_output(out: str) -> bool:
    """Return whether `-o` names a directory: it ends in a slash, or is one."""
    from mlxbert.files.reading import expand_home

    return out.endswith("/") or expand_home(out).is_dir()


def refuse_table_options(context: click.Context, names: Sequence[str]) -> None:
    """Refuse options that are for a table, where texts are given."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in names and source is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{parameter.opts[-1]} is for a table; fix: mlxbert encode MODEL DATA --text COLUMN -o DIRECTORY"
            )
