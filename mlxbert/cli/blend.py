"""`mlxbert blend`: several runs as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("-o", "--out", type=PATH, help="The blend's directory, for `mlxbert predict`; else nothing is written.")
@click.option("--metric", help="To optimize: auc, f1, kappa, rmse, ….  [default: the first run's]")
@click.option(
    "--average",
    type=click.Choice(["probabilities", "ranks"]),
    default="probabilities",
    show_default=True,
    help="What is averaged.",
)
@click.option("--overwrite", is_flag=True, help="Replace a blend that is there already.")
def blend(runs: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Weigh RUNS by their out-of-fold predictions; `mlxbert predict` takes the blend like a run.

    \b
    Examples:
      mlxbert blend runs/a runs/b --metric auc
      mlxbert blend runs/a runs/b --metric auc -o runs/blend
      mlxbert predict runs/blend data/test.csv -o submission.csv
    """
    from rich.table import Table

    from mlxbert.runs.blend import blend as make
    from mlxbert.terminal import show

    made = make(runs, out=out, **options)
    record = made.record
    names = list(record.pooled)[:4]
    direction = "higher" if record.greater_is_better else "lower"
    table = Table(title=f"Out-of-fold scores ({record.metric} is optimized, {direction} is better)")
    table.add_column("run", no_wrap=True)
    table.add_column("weight", justify="right")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for run, weight, alone in zip(made.runs, made.weights, record.alone, strict=True):
        table.add_row(run.path.name, f"{weight:.2f}", *(_shown(alone[name]) for name in names))
    table.add_row("blend, weights of other rows", "", *(_shown(record.pooled[name]) for name in names))
    show(table)
    if out is None:
        show("Next   -o DIRECTORY keeps the blend, and mlxbert predict DIRECTORY test.csv -o submission.csv uses it")
    else:
        show(f"Blend  {made.path}\nNext   mlxbert predict {made.path} test.csv -o submission.csv")


def _shown(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}"
