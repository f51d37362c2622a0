"""`mlxbert blend`: several runs as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from mlxbert.runs.blend import Blend

PATH = click.Path(path_type=Path)
# Characters of a terminal, and of them those for a run's name.
_WIDTH, _RUN = 80, 24


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option(
    "-o", "--out", type=PATH, help="Directory for the blend, which `mlxbert predict` takes.  [default: none]"
)
@click.option("--metric", help="Metric that the weights optimize, such as auc or f1.  [default: the first run's]")
@click.option(
    "--average",
    type=click.Choice(["probabilities", "ranks"]),
    default="probabilities",
    show_default=True,
    help="What is averaged over the runs.",
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
    from mlxbert.runs.blend import blend as make
    from mlxbert.terminal import show

    made = make(runs, out=out, **options)
    show(_table(made), "blend: weights and thresholds of each row are chosen on the rows of other folds")
    if out is None:
        show("Next   the same with -o DIRECTORY keeps the blend, for:")
        show("       mlxbert predict DIRECTORY test.csv -o submission.csv")
    else:
        show(f"Blend  {made.path}\nNext   mlxbert predict {made.path} test.csv -o submission.csv")


def _table(made: Blend) -> Table:
    """The scores of each run and of the blend: as many metrics as 80 columns hold with their whole names."""
    from rich.table import Table

    record = made.record
    direction = "higher" if record.greater_is_better else "lower"
    table = Table(title=f"Out-of-fold scores ({record.metric} is optimized, {direction} is better)")
    table.add_column("run", overflow="fold", max_width=_RUN)
    table.add_column("weight", justify="right", no_wrap=True)
    names: list[str] = []
    left = _WIDTH - (min(_RUN, max(len(run.path.name) for run in made.runs)) + 3) - len("weight") - 4
    for name in record.pooled:
        left -= max(len(name), 6) + 3
        if names and left < 0:
            break
        names.append(name)
        table.add_column(name, justify="right", no_wrap=True)
    for run, weight, alone in zip(made.runs, made.weights, record.alone, strict=True):
        table.add_row(run.path.name, f"{weight:.2f}", *(_shown(alone[name]) for name in names))
    table.add_row("blend", "", *(_shown(record.pooled[name]) for name in names))
    return table


def _shown(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}"
