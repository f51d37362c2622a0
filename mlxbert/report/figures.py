"""`Plot` and its PNG for a light or a dark page, and the plots of the training: loss, metrics, rate over the epochs.

Only matplotlib's object-oriented interface is used. A notebook's figures and settings neither change nor matter
here: the same run gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from heads.command_line import install_fix
from heads.metrics import METRICS
from mlxbert.report.reported_run import History, ReportedRun, ReportError

DPI = 160
LEGEND_LINES = 8


@dataclass(frozen=True)
class Theme:
    """The colors of a page, the same as in page.html; those of `series` differ in lightness, too."""

    name: str
    card: str
    text: str
    muted: str
    line: str
    limit: str
    series: tuple[str, ...]


LIGHT = Theme(
    name="light",
    card="#ffffff",
    text="#1a1f2b",
    muted="#5c6575",
    line="#dde1e8",
    limit="#c05a00",
    series=("#2563c9", "#0f8a6d", "#8a4bc2", "#c05a00", "#b3315f", "#3d8fb5", "#6f7d12", "#5c6575"),
)
DARK = Theme(
    name="dark",
    card="#1b2029",
    text="#e6e9ef",
    muted="#9aa4b5",
    line="#323a47",
    limit="#ffa657",
    series=("#7aa9ff", "#4fd0ae", "#c99cf5", "#ffa657", "#ff8fb1", "#7fd1f0", "#d3d96b", "#9aa4b5"),
)


@dataclass(frozen=True)
class Plot:
    """One figure of a report.

    Attributes:
        name: of its file, without .png.
        title: above it on the page.
        caption: what it shows and how to read it.
        draw: draws on a matplotlib `Figure`.
        size: (width, height) in inches; the page shows 100 pixels an inch at most.
        wide: takes the page's whole width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any, Theme], None]
    size: tuple[float, float] = (5.2, 3.9)
    wide: bool = False


def render(plot: Plot, theme: Theme) -> bytes:
    """Return the plot as a PNG.

    Raises:
        ReportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ReportError(f"plots need matplotlib; fix: {install_fix('kaggle')}") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(theme))
        figure = Figure(figsize=plot.size, dpi=DPI, layout="constrained")
        plot.draw(figure, theme)
        buffer = io.BytesIO()
        # The default metadata names matplotlib's version.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "axes.edgecolor": theme.line,
        "axes.facecolor": theme.card,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": theme.muted,
        "axes.labelsize": 9.5,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.text,
        "axes.titlesize": 10,
        "figure.facecolor": theme.card,
        "font.family": ["DejaVu Sans"],  # comes with matplotlib
        "font.size": 9.5,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.labelcolor": theme.text,
        "lines.linewidth": 1.6,
        "text.color": theme.text,
        "text.parse_math": False,  # a class named "$x" is not a formula
        "xtick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "xtick.labelsize": 9,
        "ytick.color": theme.line,
        "ytick.labelcolor": theme.muted,
        "ytick.labelsize": 9,
    }


@cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def short(text: str, length: int = 22) -> str:
    """Return a name from the data in one line of at most `length` characters, with □ for those that the font lacks."""
    text = " ".join(text.split())
    text = "".join(sign if ord(sign) in _drawable() else "□" for sign in text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def legend_below(figure: Any, axes: Any, columns: int = 2) -> None:
    """Draw the legend of `axes` below them, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))


def panels(figure: Any, count: int, columns: int, **options: Any) -> list[Any]:
    """Return `count` axes in rows of `columns`; the other places stay empty."""
    rows = math.ceil(count / columns)
    grid = figure.subplots(rows, min(columns, count), squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return list(grid[:count])


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 … count − 1, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


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
    """Return ↑ if more is better, ↓ if less is better, "" for an unknown metric."""
    return "" if metric not in METRICS else "↑" if METRICS[metric].greater_is_better else "↓"


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Return the running mean (N,) over the last `window` values (fewer at the start) without NaN."""
    present = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0))])
    counts = np.concatenate([[0], np.cumsum(present)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    rows = counts[ends] - counts[starts]
    return np.where(rows > 0, (sums[ends] - sums[starts]) / np.maximum(rows, 1), np.nan)


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
