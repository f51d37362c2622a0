"""A run's scores as a table: each model, their spread, and all out-of-fold rows together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from mlxbert.errors import printable
from mlxbert.runs.files import RunError
from mlxbert.runs.record import SCORES, read_scores

if TYPE_CHECKING:
    from mlxbert.runs.run import Run


def scores_frame(run: Run) -> Any:
    """A pandas frame: a row a model, then "pooled" and "hold-out"; columns are the metrics."""
    import pandas

    scores = read_scores(run.path)
    rows = {} if scores is None else {one.member: one.metrics for one in scores.members}
    if scores is not None:
        rows["pooled"] = scores.pooled
        if scores.hold_out is not None:
            rows["hold-out"] = scores.hold_out.metrics
    return pandas.DataFrame.from_dict(rows, orient="index")


def scores_table(run: Run) -> Table:
    """A finished run's scores for the terminal: the first few metrics, the optimized one first.

    Raises:
        RunError: the run is not finished, or scores.json is damaged.
    """
    scores = read_scores(run.path)
    if scores is None:
        raise RunError(f"{run.path}: there is no {SCORES}; fix: {run.go_on}")
    names = list(scores.pooled)[:4]
    direction = "higher" if scores.greater_is_better else "lower"
    title = f"{run.task.task}, {printable(run.record.metric)} ({direction} is better)"
    table = Table(title=title)
    table.add_column("", no_wrap=True, min_width=12)
    table.add_column("rows", justify="right", no_wrap=True)
    for name in names:
        table.add_column(printable(name, 40), justify="right", no_wrap=True)
    for one in scores.members:
        table.add_row(printable(one.member, 40), str(one.rows), *(_shown(one.metrics.get(name)) for name in names))
    if len(scores.members) > 1:
        spreads = [scores.spread.get(name) for name in names]
        table.add_row("mean", "", *(_shown(None if one is None else one.mean) for one in spreads))
        table.add_row("deviation", "", *(_shown(None if one is None else one.std) for one in spreads))
    rows = sum(one.rows for one in scores.members if one.seed == scores.members[0].seed)
    table.add_row("all out of fold", str(rows), *(_shown(scores.pooled[name]) for name in names))
    held = scores.hold_out
    if held is not None:
        table.add_row("held out of all", str(held.rows), *(_shown(held.metrics.get(name)) for name in names))
    return table


def _shown(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
