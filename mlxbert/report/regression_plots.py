"""Plots of numbers: predictions against the truth, residuals, and the forecasts of a time series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlxbert.report.figures import Plot, Theme, evenly, panels, short
from mlxbert.report.reported_run import NumberPredictions

MOST_COLUMNS = 6
MOST_POINTS = 5000  # of one panel: more would hide its shape

DrawColumn = Callable[[Any, Theme, np.ndarray, np.ndarray, str], None]


def number_plots(predictions: NumberPredictions) -> list[Plot]:
    """Return the plots of predictions and residuals: a panel for each target, for at most six."""
    if predictions.origins is not None:  # the steps of a forecast are one quantity
        columns = {"value": (predictions.truth.ravel(), predictions.prediction.ravel())}
    else:
        shown = evenly(len(predictions.names), MOST_COLUMNS)
        columns = {predictions.names[i]: (predictions.truth[:, i], predictions.prediction[:, i]) for i in shown}
    present = {name: np.isfinite(truth) for name, (truth, _) in columns.items()}
    columns = {
        name: (truth[present[name]], prediction[present[name]])
        for name, (truth, prediction) in columns.items()
        if present[name].any()
    }
    if not columns or all(len(truth) < 2 for truth, _ in columns.values()):
        return []  # `tables.point_tables` shows a single point
    note = (
        ""
        if predictions.origins is not None or len(columns) == len(predictions.names)
        else f" {len(columns)} of the targets."
    )
    sampled = max(len(truth) for truth, _ in columns.values()) > MOST_POINTS
    points = f" The plot shows {MOST_POINTS:,} of the rows, evenly chosen." if sampled else ""
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
            # A name fits beside an axis only if its panel is alone and large.
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
    # Far outliers would leave one bar and an empty axis, so the bars at the ends count them.
    inside = np.clip(residuals, low, high) if high > low else residuals
    if np.ptp(inside) <= 1e-9 * np.abs(inside).max():
        bins = 1  # numpy refuses bins narrower than the spacing of floats
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
    """Return a tick's number as people write it: 250,000 and 0.05, without matplotlib's offset in a corner."""
    if value == 0 or 1e-4 <= abs(value) < 1e9:
        return f"{value:,.10g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.3g}"


MOST_ORIGINS = 12


def forecast_plots(predictions: NumberPredictions) -> list[Plot]:
    """Return the plots of forecasts by origin (the time that a forecast is made at), and of the error by step."""
    count, horizon = predictions.truth.shape
    if horizon == 1:
        if count == 1:
            return []  # `tables.point_tables` shows a single point
        return [
            Plot(
                "forecasts",
                "Forecasts",
                "One step ahead, from each origin in turn.",
                lambda figure, theme: _draw_single(figure, theme, predictions),
                size=(10.4, 3.8),
                wide=True,
            )
        ]
    shown = evenly(count, MOST_ORIGINS)
    every = f"all {count}" if len(shown) == count else f"{len(shown)} of {count}, evenly chosen"
    return [
        Plot(
            "forecasts",
            "Forecasts against the truth",
            f"By origin, the time that a forecast is made at: {every}.",
            lambda figure, theme: _draw_origins(figure, theme, predictions, shown),
            size=(10.4, 0.7 + 2.3 * -(-len(shown) // 3)),
            wide=True,
        ),
        Plot(
            "error-by-step",
            "Error by step ahead",
            f"Mean and median absolute error over the {count} origins.",
            lambda figure, theme: _draw_steps(figure, theme, predictions),
        ),
    ]


def _draw_origins(figure: Any, theme: Theme, predictions: NumberPredictions, shown: list[int]) -> None:
    assert predictions.origins is not None
    steps = np.arange(1, predictions.truth.shape[1] + 1)
    grid = panels(figure, len(shown), 3, sharex=True, sharey=True)
    for axes, i in zip(grid, shown, strict=True):
        small = {"linewidth": 1.3, "markersize": 2.5}
        axes.plot(steps, predictions.truth[i], color=theme.text, marker="o", label="truth", **small)
        forecast = predictions.prediction[i]
        axes.plot(steps, forecast, color=theme.series[0], linestyle="--", marker="s", label="forecast", **small)
        axes.set_title(f"made at {short(predictions.origins[i])}")
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.locator_params(axis="x", nbins=6, integer=True)
    figure.supxlabel("steps ahead", fontsize=9.5, color=theme.muted)
    figure.supylabel("value, in the series' own unit", fontsize=9.5, color=theme.muted)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)


def _draw_single(figure: Any, theme: Theme, predictions: NumberPredictions) -> None:
    assert predictions.origins is not None
    axes = figure.subplots()
    places = np.arange(len(predictions.origins))
    axes.plot(places, predictions.truth[:, 0], color=theme.text, linewidth=1.3, label="truth")
    axes.plot(places, predictions.prediction[:, 0], color=theme.series[0], linestyle="--", label="forecast")
    ticks = evenly(len(places), 6)
    axes.set_xticks(ticks, [short(predictions.origins[i]) for i in ticks])
    axes.set(xlabel="origin (the time that the forecast is made at)", ylabel="value, in the series' own unit")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)


def _draw_steps(figure: Any, theme: Theme, predictions: NumberPredictions) -> None:
    axes = figure.subplots()
    errors = np.ma.masked_invalid(np.abs(predictions.prediction - predictions.truth))  # (N, H), without unknown values
    steps = np.arange(1, errors.shape[1] + 1)
    axes.plot(steps, errors.mean(axis=0), color=theme.series[0], marker="o", markersize=4, label="mean")
    axes.plot(steps, np.ma.median(errors, axis=0), color=theme.series[1], marker="s", markersize=3.5, label="median")
    axes.set(xlabel="steps ahead", ylabel="absolute error, in the series' own unit")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
