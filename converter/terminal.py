"""What the commands show: progress bars while they work, tables and the next step when they are done."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from converter.convert import ConvertResult
from converter.convert import Progress as ProgressCallback
from converter.parity.report import ParityReport
from mlxbert.terminal import show

_VERBS = {
    "convert": "Converting",
    "verify": "Comparing with PyTorch",
    "measure": "Measuring each layer",
    "try 4 bits": "Calibrating, 4 bits",
    "calibrate": "Calibrating",
}


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """One bar a stage, on standard error; nothing where that is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_VERBS.get(stage, stage.capitalize()))
            bars.update(tasks[stage], completed=done, total=total)

        yield progress


def show_parity(report: ParityReport) -> None:
    """The parity table, and what a quantization cost, on standard output."""
    from converter.parity.table import parity_table

    show(parity_table(report))
    if report.quantization is not None:
        from converter.quantize.table import quantization_table

        show("", quantization_table(report.quantization))


def show_result(result: ConvertResult) -> None:
    """What a conversion did, whether it is proven, where it is, and what to do next."""
    if result.report is not None:
        show_parity(result.report)
    if result.allotment is not None or result.quantization is not None:
        from converter.quantize.table import allotment_table, quantization_table

        if result.allotment is not None:
            show(allotment_table(result.allotment), "")
        if result.quantization is not None and result.report is None:
            show(quantization_table(result.quantization), "")
    rows = [
        ("Written", str(result.path)),
        ("Encoder", f"{result.parameters:,} parameters, {result.dtype}, {result.size / 1e6:.1f} MB"),
    ]
    if result.heads:
        rows.append(("Own head", f"{len(result.heads)} tensors in heads.safetensors"))
    rows += [("Dropped", f"{key}: {why}") for key, why in result.dropped.items()]
    rows += [("Note", note) for note in result.notes]
    rows.append(("Parity", "VERIFIED" if result.report else f"NOT VERIFIED: {result.unverified}"))
    path = str(result.path)
    rows.append(("Next", f"mlxbert.load({json.dumps(path, ensure_ascii=False)})"))
    rows.append(("", f'mlxbert encode {shlex.quote(path)} "A sentence."'))
    show("\n".join(f"{label:<10}{text}" for label, text in rows))
