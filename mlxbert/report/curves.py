"""How the members trained: plots of loss, metrics and learning rate over the epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heads.metrics import METRICS
from mlxbert.report.figures import LEGEND_LINES, Plot, Theme, legend_below, panels, short
from mlxbert.report.reported_run import History, ReportedRun

OTHERS_A_ROW = 3


def curve_plots(run: ReportedRun) -> list[Plot]:
    """Return the plots of curves with two points or more; `tables.evaluation_table` shows single points."""
    stepped = [history for history in run.histories if len(history.steps) > 1]
    judged = [history for history in run.histories if len(history.evaluations) > 1]
    keep = run.record.config.keep
    plots: list[Plot] = []
    held_out = (
        "Dotted: loss of the held-out rows at each evaluation; where it rises, the member only memorizes its own "
        "rows. "
        if judged
        else "The held-out rows were evaluated once: the table has their loss. "
    )
    one_each = "" if len(run.histories) <= LEGEND_LINES else " A line is a member; a color is a fold."
    if stepped or judged:
        plots.append(
            Plot(
                "loss",
                "Loss and learning rate",
                f"Thin: training loss, a running mean over a fiftieth of the steps. {held_out}Below: the base "
                f"rate of the schedule; layers and head have multiples of it.{one_each}",
                lambda figure, theme: _draw_loss(figure, theme, run.histories),
                size=(5.2, 4.6),
            )
        )
    if judged:
        plots.append(
            Plot(
                "metric",
                f"{run.metric}, the run's metric",
                f"On the held-out rows; {direction(run.metric)}. A ring marks the weights that are kept.{one_each}",
                lambda figure, theme: _draw_metrics(figure, theme, judged, [run.metric], keep),
                size=(5.2, 4.6),
            )
        )
    others = [name for name in run.metrics if name != run.metric and any(map(_has(name), judged))]
    if others:
        rows = -(-len(others) // OTHERS_A_ROW)
        plots.append(
            Plot(
                "other-metrics",
                "The other metrics",
                "On the held-out rows. ↑ more is better, ↓ less is better.",
                lambda figure, theme: _draw_metrics(figure, theme, judged, others, keep),
                size=(10.4, 0.7 + 2.7 * rows),
                wide=True,
            )
        )
    return plots


def direction(metric: str) -> str:
    """Return whether more or less of a metric is better, in words."""
    if metric not in METRICS:
        return "as the run defines it"
    return "more is better" if METRICS[metric].greater_is_better else "less is better"


def arrow(metric: str) -> str:
    """Return ↑ where more is better, ↓ where less is, "" for an unknown metric."""
    return "" if metric not in METRICS else "↑" if METRICS[metric].greater_is_better else "↓"


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Return the running mean (N,) over the last `window` values (fewer at the start) without NaN."""
    present = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0))])
    counts = np.concatenate([[0], np.cumsum(present)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    found = counts[ends] - counts[starts]
    return np.where(found > 0, (sums[ends] - sums[starts]) / np.maximum(found, 1), np.nan)


def _color(theme: Theme, histories: Sequence[History], history: History) -> str:
    number = histories.index(history) if len(histories) <= LEGEND_LINES else history.fold
    return theme.series[number % len(theme.series)]


def _draw_loss(figure: Any, theme: Theme, histories: Sequence[History]) -> None:
    axes, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for history in histories:
        color = _color(theme, histories, history)
        steps = [history.steps[step] for step in sorted(history.steps)]
        if steps:
            epochs = np.array([step.epoch for step in steps])
            losses = smoothed(np.array([step.loss for step in steps]), max(1, len(steps) // 50))
            axes.plot(epochs, losses, color=color, linewidth=0.9, alpha=0.75)
            rates.plot(epochs, [step.rate * 1e5 for step in steps], color=color, linewidth=1.2)
        events = [history.evaluations[step] for step in sorted(history.evaluations)]
        if len(events) < 2:
            axes.plot([], [], color=color, label=history.label)  # for the legend
            continue
        dotted = {"linestyle": ":", "linewidth": 2, "marker": "o", "markersize": 4}
        losses_held_out = [event.loss for event in events]
        axes.plot([event.epoch for event in events], losses_held_out, color=color, label=history.label, **dotted)
    axes.set(ylabel="loss (mean of the rows)")
    rates.set(xlabel="epochs", ylabel="rate (× 1e-5)")
    rates.set_xlim(left=0)
    rates.set_ylim(bottom=0)
    rates.locator_params(axis="y", nbins=3)
    if len(histories) <= LEGEND_LINES:
        legend_below(figure, axes, columns=3)


def _draw_metrics(figure: Any, theme: Theme, histories: Sequence[History], names: Sequence[str], keep: str) -> None:
    grid = panels(figure, len(names), OTHERS_A_ROW)
    for axes, name in zip(grid, names, strict=True):
        for history in filter(_has(name), histories):
            color = _color(theme, histories, history)
            events = [event for _, event in sorted(history.evaluations.items()) if name in event.metrics]
            epochs = [event.epoch for event in events]
            values = [event.metrics[name] for event in events]
            axes.plot(epochs, values, color=color, marker="o", markersize=3.5, label=history.label)
            kept = [i for i, event in enumerate(events) if event.step == history.kept_step(keep)]
            axes.plot(
                [epochs[i] for i in kept],
                [values[i] for i in kept],
                linestyle="",
                marker="o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=color,
            )
        axes.set(xlabel="epochs", ylabel=f"{short(name, 30)} {arrow(name)}".strip())
        axes.set_xlim(left=0)
        axes.margins(y=0.15)
    if len(histories) <= LEGEND_LINES:
        legend_below(figure, grid[0], columns=3 if len(names) == 1 else LEGEND_LINES)


def _has(name: str) -> Callable[[History], bool]:
    return lambda history: any(name in event.metrics for event in history.evaluations.values())
