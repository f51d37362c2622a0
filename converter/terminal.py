"""Show the progress and the results of the converter's commands, and ask before a push."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from converter.card.card import LOAD, LOAD_WITH_HEAD
from converter.card.loaders import lines as loader_lines
from converter.convert import ConvertResult
from converter.parity.render import parity_table
from converter.parity.report import ParityReport
from converter.publish.leaks import PublishError
from converter.quantize.report import allotment_table, quantization_table
from converter.verify import Progress as ProgressCallback
from mlxbert.errors import printable, readable
from mlxbert.terminal import SafeConsole, show

if TYPE_CHECKING:  # the client of the Hub, which a conversion does not need
    from converter.publish.sending import PushPlan, PushResult

# Step of a conversion -> label of its progress bar.
_LABELS = {
    "convert": "Converting",
    "verify": "Comparing with PyTorch",
    "embeddings": "Measuring embeddings",
    "each layer alone": "Rounding each layer",
    "measure": "Measuring each layer",
    "calibrate": "Calibrating",
}


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Show a progress bar for each step on standard error, if that is a terminal."""
    console = SafeConsole(stderr=True)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(_LABELS.get(step, step.capitalize()))
            bars.update(tasks[step], completed=done, total=total)

        yield progress


def show_parity(report: ParityReport) -> None:
    """Show the parity table and the cost of a quantization."""
    show(parity_table(report))
    if report.quantization is not None:
        show("", quantization_table(report.quantization))


def show_result(result: ConvertResult) -> None:
    """Show what a conversion wrote, whether it is verified, and what to do next."""
    if result.report is not None:
        show_parity(result.report)
    if result.allotment is not None:
        show(allotment_table(result.allotment), "")
    if result.quantization is not None and result.report is None:
        show(quantization_table(result.quantization), "")
    rows = [
        ("Written", str(result.path)),
        ("Encoder", f"{result.parameters:,} parameters, {result.dtype}, {result.size / 1e6:.1f} MB"),
    ]
    if result.heads:
        file = f"{'model' if result.full_layout else 'heads'}.safetensors"
        rows.append(("Own head", f"{len(result.heads)} tensors in {file}"))
    rows += [("Dropped", f"{printable(key)}: {why}") for key, why in result.dropped.items()]
    rows += [("Note", readable(note)) for note in result.notes]
    rows += loader_lines(result.readings)
    verdict = f"NOT VERIFIED: {result.unverified}" if result.report is None else result.report.verdict
    rows.append(("Parity", verdict))
    path = str(result.path)
    # Only calls that succeeded on these files.
    lines = [
        f"{call}({json.dumps(path, ensure_ascii=False)})"
        for call in (LOAD, LOAD_WITH_HEAD)
        if call in result.usage.ran
    ]
    if result.usage.encodes:
        lines.append(f'mlxbert encode {shlex.quote(path)} "A sentence." "Another one."')
    rows += [("" if i else "Next", line) for i, line in enumerate(lines)]
    show("\n".join(f"{label:<10}{text}" for label, text in rows))


def confirm_push(plan: PushPlan, directory: Path, *, yes: bool) -> bool:
    """Show what would be published, and return whether the user agrees.

    Raises:
        PublishError: there is no terminal to ask on.
    """
    show("\n".join(plan.lines(directory)))
    if yes:
        return True
    try:
        return click.confirm("Publish?", err=True)
    except click.Abort as abort:  # no terminal, the end of a pipe, or Ctrl-C
        click.echo(err=True)
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise PublishError("nothing was sent, because there is no terminal to ask on; fix: add --yes") from None


def show_push(result: PushResult, directory: Path) -> None:
    """Show the result of a push, and where to look at it."""
    if result.status == "dry run":
        show(
            "\n".join(result.plan.lines(directory)),
            "",
            result.plan.card,
            "Dry run: nothing was sent, nobody was asked.",
        )
        return
    outcome = {
        "declined": "Nothing was sent.",
        "unchanged": f"Nothing to do: the same bytes are there already ({result.url}).",
        "pushed": f"Published, and compared with what was sent: {result.url}",
        "recognised": f"Published, although the Hub's answer was lost; compared with what was sent: {result.url}",
    }[result.status]
    rows = [outcome]
    if result.commit is not None:
        rows += [f"Commit    {result.commit}"]
    if result.status in ("pushed", "recognised") and not result.plan.pull_request:
        at = f", revision={json.dumps(result.plan.revision)}" if result.plan.revision else ""
        rows += [f"Next      mlxbert.load({json.dumps(result.plan.repo_id)}{at})"]
    show("\n".join(rows))
