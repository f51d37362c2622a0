"""Plots of a time series: each forecast beside what came, and the error by how far ahead."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxbert.report.figures import Plot, Theme, evenly, panels, short
from mlxbert.report.predictions import NumberPredictions
from mlxbert.report.regression_plots import number

MOST_ORIGINS = 12


def forecast_plots(made: NumberPredictions) -> list[Plot]:
    """Forecasts per origin (the time that one is made at), and the mean error of every step ahead."""
    count, horizon = made.truth.shape
    if horizon == 1:
        if count == 1:
            return []  # one point: `tables.point_tables` has it
        return [
            Plot(
                "forecasts",
                "Forecasts",
                "One step ahead, from each origin in turn.",
                lambda figure, theme: _draw_single(figure, theme, made),
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
            lambda figure, theme: _draw_origins(figure, theme, made, shown),
            size=(10.4, 0.7 + 2.3 * -(-len(shown) // 3)),
            wide=True,
        ),
        Plot(
            "error-by-step",
            "Error by step ahead",
            f"Mean and median absolute error over the {count} origins.",
            lambda figure, theme: _draw_steps(figure, theme, made),
        ),
    ]


def _draw_origins(figure: Any, theme: Theme, made: NumberPredictions, shown: list[int]) -> None:
    assert made.origins is not None
    steps = np.arange(1, made.truth.shape[1] + 1)
    grid = panels(figure, len(shown), 3, sharex=True, sharey=True)
    for axes, i in zip(grid, shown, strict=True):
        small = {"linewidth": 1.3, "markersize": 2.5}
        axes.plot(steps, made.truth[i], color=theme.text, marker="o", label="truth", **small)
        forecast = made.prediction[i]
        axes.plot(steps, forecast, color=theme.series[0], linestyle="--", marker="s", label="forecast", **small)
        axes.set_title(f"made at {short(made.origins[i])}")
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.locator_params(axis="x", nbins=6, integer=True)
    figure.supxlabel("steps ahead", fontsize=9.5, color=theme.muted)
    figure.supylabel("value, in the series' own unit", fontsize=9.5, color=theme.muted)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)


def _draw_single(figure: Any, theme: Theme, made: NumberPredictions) -> None:
    assert made.origins is not None
    axes = figure.subplots()
    places = np.arange(len(made.origins))
    axes.plot(places, made.truth[:, 0], color=theme.text, linewidth=1.3, label="truth")
    axes.plot(places, made.prediction[:, 0], color=theme.series[0], linestyle="--", label="forecast")
    ticks = evenly(len(places), 6)
    axes.set_xticks(ticks, [short(made.origins[i]) for i in ticks])
    axes.set(xlabel="origin (the time that the forecast is made at)", ylabel="value, in the series' own unit")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)


def _draw_steps(figure: Any, theme: Theme, made: NumberPredictions) -> None:
    axes = figure.subplots()
    errors = np.ma.masked_invalid(np.abs(made.prediction - made.truth))  # (N, H); what is not known yet, left out
    steps = np.arange(1, errors.shape[1] + 1)
    axes.plot(steps, errors.mean(axis=0), color=theme.series[0], marker="o", markersize=4, label="mean")
    axes.plot(steps, np.ma.median(errors, axis=0), color=theme.series[1], marker="s", markersize=3.5, label="median")
    axes.set(xlabel="steps ahead", ylabel="absolute error, in the series' own unit")
    axes.set_ylim(bottom=0)
    axes.locator_params(axis="x", integer=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
