"""Plots of numbers: predicted against true, and what is left over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxbert.report.figures import Plot, Theme, evenly, panels, short
from mlxbert.report.predictions import NumberPredictions

MOST_COLUMNS = 6
MOST_POINTS = 5000  # of one panel: more make a cloud without a shape

DrawColumn = Callable[[Any, Theme, np.ndarray, np.ndarray, str], None]


def number_plots(made: NumberPredictions) -> list[Plot]:
    """Predicted against true, residuals, and their distribution; a panel for each target, for at most six."""
    if made.origins is not None:  # the steps of a forecast are one quantity
        columns = {"value": (made.truth.ravel(), made.prediction.ravel())}
    else:
        shown = evenly(len(made.names), MOST_COLUMNS)
        columns = {made.names[i]: (made.truth[:, i], made.prediction[:, i]) for i in shown}
    present = {name: np.isfinite(truth) for name, (truth, _) in columns.items()}
    columns = {
        name: (truth[present[name]], prediction[present[name]])
        for name, (truth, prediction) in columns.items()
        if present[name].any()
    }
    if not columns or all(len(truth) < 2 for truth, _ in columns.values()):
        return []  # one point: `tables.point_tables` has it
    note = "" if made.origins is not None or len(columns) == len(made.names) else f" {len(columns)} of the targets."
    sampled = max(len(truth) for truth, _ in columns.values()) > MOST_POINTS
    points = f" {MOST_POINTS:,} of the rows are drawn, evenly chosen." if sampled else ""
    above = "above the dashed line too little was predicted"
    words = [
        (
            "predicted-against-true",
            "Predicted against true",
            f"On the dashed line, the prediction is right.{points}",
            _against,
        ),
        ("residuals", "Residuals", f"True − predicted, by what was predicted: {above}.{points}", _residuals),
        (
            "residual-distribution",
            "Distribution of the residuals",
            "True − predicted. Dashed: none; solid: the median. The bars at the ends hold what lies beyond.",
            _distribution,
        ),
    ]
    return [_plot(name, title, caption + note, draw, columns) for name, title, caption, draw in words]


def _plot(
    name: str, title: str, caption: str, draw: DrawColumn, columns: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Plot:
    wide = 2 if len(columns) in (1, 2, 4) else 3

    def draw_all(figure: Any, theme: Theme) -> None:
        grid = panels(figure, len(columns), wide)
        for axes, (column, (truth, prediction)) in zip(grid, columns.items(), strict=True):
            # A name has room beside an axis only where its panel is alone and large.
            draw(axes, theme, truth, prediction, short(column, 22) if len(columns) == 1 else "")
            if len(columns) > 1:
                axes.set_title(short(column, 30))
            axes.locator_params(axis="x", nbins=5 if wide == 2 else 3)

    if len(columns) == 1:
        return Plot(name, title, caption, draw_all)
    rows = -(-len(columns) // wide)
    return Plot(name, title, caption, draw_all, size=(10.4, 3.6 * rows), wide=True)


def _points(axes: Any, theme: Theme, x: np.ndarray, y: np.ndarray) -> None:
    chosen = evenly(len(x), MOST_POINTS)
    alpha = 0.8 if len(chosen) < 200 else 0.45 if len(chosen) < 1500 else 0.25
    axes.scatter(x[chosen], y[chosen], s=9, color=theme.series[0], alpha=alpha, linewidths=0)


def _against(axes: Any, theme: Theme, truth: np.ndarray, prediction: np.ndarray, name: str) -> None:
    _points(axes, theme, truth, prediction)
    ends = [min(truth.min(), prediction.min()), max(truth.max(), prediction.max())]
    axes.plot(ends, ends, color=theme.limit, linestyle="--", linewidth=1)
    axes.set(xlabel=f"true {name}".strip(), ylabel=f"predicted {name}".strip())
    _few_ticks(axes)


def _residuals(axes: Any, theme: Theme, truth: np.ndarray, prediction: np.ndarray, name: str) -> None:
    _points(axes, theme, prediction, truth - prediction)
    axes.axhline(0, color=theme.limit, linestyle="--", linewidth=1)
    axes.set(xlabel=f"predicted {name}".strip(), ylabel=f"true − predicted {name}".strip())
    _few_ticks(axes)


def _distribution(axes: Any, theme: Theme, truth: np.ndarray, prediction: np.ndarray, name: str) -> None:
    residuals = truth - prediction
    bins = int(np.clip(np.sqrt(len(residuals)) * 1.5, 8, 60))
    low, high = np.quantile(residuals, [0.002, 0.998])
    # Far outliers would leave one bar and an empty axis: they count in the bars at the ends.
    inside = np.clip(residuals, low, high) if high > low else residuals
    if np.ptp(inside) <= 1e-9 * np.abs(inside).max():
        bins = 1  # numpy refuses bins narrower than a float's own steps
    axes.hist(inside, bins=bins, color=theme.series[0], alpha=0.85, edgecolor=theme.card, linewidth=0.5)
    axes.axvline(0, color=theme.limit, linestyle="--", linewidth=1)
    axes.axvline(float(np.median(residuals)), color=theme.text, linewidth=1)
    axes.set(xlabel=f"true − predicted {name}".strip(), ylabel="how many")
    _few_ticks(axes)


def _few_ticks(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.locator_params(axis="y", nbins=6)


def number(value: float) -> str:
    """A tick's number as people write it: 250,000 and 0.05, without matplotlib's offset in a corner."""
    if value == 0 or 1e-4 <= abs(value) < 1e9:
        return f"{value:,.10g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.3g}"
