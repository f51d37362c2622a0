"""A run's scores as a table: each model, their spread, and all out-of-fold rows together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from mlxbert.runs.run import Run


def scores_frame(run: Run) -> Any:
    """A pandas frame: a row a model, then "pooled" and "hold-out"; columns are the metrics."""
    import pandas

    scores = run.scores or {"members": [], "pooled": {}}
    rows = {one["member"]: one["metrics"] for one in scores["members"]}
    if scores["pooled"]:
        rows["pooled"] = scores["pooled"]
    if scores.get("hold_out"):
        rows["hold-out"] = scores["hold_out"]["metrics"]
    return pandas.DataFrame.from_dict(rows, orient="index")


def scores_table(run: Run) -> Table:
    """For the terminal: the first few metrics, the optimized one first."""
    scores = run.scores or {"members": [], "pooled": {}, "spread": {}}
    names = list(scores["pooled"])[:4]
    direction = "higher" if scores.get("greater_is_better", True) else "lower"
    table = Table(title=f"{run.info['task']['task']}, {run.info['metric']} ({direction} is better)")
    table.add_column("", no_wrap=True, min_width=12)
    table.add_column("rows", justify="right", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for one in scores["members"]:
        table.add_row(one["member"], str(one["rows"]), *(_shown(one["metrics"].get(name)) for name in names))
    if len(scores["members"]) > 1:
        for label, what in (("mean", "mean"), ("deviation", "std")):
            table.add_row(label, "", *(_shown(scores["spread"][name][what]) for name in names))
    rows = sum(one["rows"] for one in scores["members"] if one["seed"] == scores["members"][0]["seed"])
    table.add_row("all out of fold", str(rows), *(_shown(scores["pooled"][name]) for name in names))
    held = scores.get("hold_out")
    if held:
        table.add_row("held out of all", str(held["rows"]), *(_shown(held["metrics"].get(n)) for n in names))
    return table


def _shown(value: float | None) -> str:
    return "—" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"
