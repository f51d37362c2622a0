"""How the members trained: loss, metrics and learning rate over the epochs.

In sentences: how probabilities became labels, which thresholds were fitted, and what the submission holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.calibration import threshold_metric
from heads.metrics import METRICS
from mlxbert.files.reading import from_json, read_json
from mlxbert.report.figures import LEGEND_LINES, Plot, Theme, legend_below, panels, short
from mlxbert.report.predictions import History, ReportedRun
from mlxbert.runs.files import RunError, RunFiles

OTHERS_A_ROW = 3


def curve_plots(run: ReportedRun) -> list[Plot]:
    """The curves that there is something to draw of: two points or more (`evaluation_table` has what is one point)."""
    stepped = [history for history in run.histories if len(history.steps) > 1]
    judged = [history for history in run.histories if len(history.evaluations) > 1]
    keep = run.record.config.keep
    plots: list[Plot] = []
    held_out = (
        "Dotted: loss of the held-out rows at each evaluation; where it rises, the member learns its own rows by "
        "heart. "
        if judged
        else "The held-out rows were judged once: their loss is in the table. "
    )
    one_each = "" if len(run.histories) <= LEGEND_LINES else " One line a member; those of a color share a fold."
    if stepped or judged:
        plots.append(
            Plot(
                "loss",
                "Loss and learning rate",
                f"Thin: training loss, a running mean over a fiftieth of the steps. {held_out}Below: the schedule's "
                f"base rate, of which layers and head have their multiples.{one_each}",
                lambda figure, theme: _draw_loss(figure, theme, run.histories),
                size=(5.2, 4.6),
            )
        )
    if judged:
        plots.append(
            Plot(
                "metric",
                f"{run.metric}, the run's metric",
                f"Of the held-out rows; {direction(run.metric)}. A ring marks the weights that were kept.{one_each}",
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
                "Of the held-out rows. ↑ more is better, ↓ less is better.",
                lambda figure, theme: _draw_metrics(figure, theme, judged, others, keep),
                size=(10.4, 0.7 + 2.7 * rows),
                wide=True,
            )
        )
    return plots


def direction(metric: str) -> str:
    """Which way is up, in words."""
    if metric not in METRICS:
        return "as the run defines it"
    return "more is better" if METRICS[metric].greater_is_better else "less is better"


def arrow(metric: str) -> str:
    """↑ where more is better, ↓ where less is, nothing where the metric is not known."""
    return "" if metric not in METRICS else "↑" if METRICS[metric].greater_is_better else "↓"


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Running mean over the last `window` values (fewer at the start), NaN left out; (N,) as `values`."""
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
        held_out = [history.evaluations[step] for step in sorted(history.evaluations)]
        if len(held_out) < 2:
            axes.plot([], [], color=color, label=history.label)
            continue
        epochs_of, losses_of = [one.epoch for one in held_out], [one.loss for one in held_out]
        dotted = {"linestyle": ":", "linewidth": 2, "marker": "o", "markersize": 4}
        axes.plot(epochs_of, losses_of, color=color, label=history.label, **dotted)
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
            found = {step: one for step, one in sorted(history.evaluations.items()) if name in one.metrics}
            epochs = [one.epoch for one in found.values()]
            values = [one.metrics[name] for one in found.values()]
            axes.plot(epochs, values, color=color, marker="o", markersize=3.5, label=history.label)
            kept = [i for i, step in enumerate(found) if step == history.kept_step(keep)]
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


def _has(name: str) -> Any:
    return lambda history: any(name in one.metrics for one in history.evaluations.values())


@dataclass(frozen=True)
class FittedValues:
    """What a head learned beside its weights."""

    temperature: float | None = None
    threshold: float | None = None
    thresholds: tuple[float, ...] | None = None


@dataclass(frozen=True)
class _Head:
    fitted: FittedValues


@dataclass(frozen=True)
class _OurPart:
    head: _Head


@dataclass(frozen=True)
class _MemberConfig:
    mlxbert: _OurPart


def fitted_values(run: ReportedRun) -> list[FittedValues]:
    """Return what the trained members' heads learned beside their weights; members that are not there are left out.

    Raises:
        RunError: a member's config.json is damaged.
    """
    files = RunFiles(run.path)
    found = []
    for member in run.record.members:
        file = files.member(member) / "config.json"
        values = read_json(file, RunError)
        if values is not None and files.is_done(member):
            config = from_json(_MemberConfig, values, place=str(file), fix="fix: train again", error=RunError)
            found.append(config.mlxbert.head.fitted)
    return found


def decisions(run: ReportedRun) -> list[str]:
    """Return what was done about thresholds, labels and the submission, a sentence each."""
    return [*_labels(run), *_submission(run)]


def _labels(run: ReportedRun) -> Iterator[str]:
    if run.task in ("regression", "time_series"):
        return
    fitted = fitted_values(run)
    if run.task == "multiclass":
        yield "A row is given the class with the highest probability."
    elif run.task == "ordinal":
        yield "A row is given the median rating: the first one that half of the probability does not exceed."
    else:
        yield from _thresholds(run, fitted)
    temperatures = [one.temperature for one in fitted if one.temperature is not None]
    if not run.record.config.calibrate:
        yield "Probabilities are not calibrated, and no threshold is fitted (--no-calibrate)."
    elif any(value != 1 for value in temperatures):
        yield f"Probabilities are calibrated by a temperature, fitted on held-out rows: {_range(temperatures)}."


def _thresholds(run: ReportedRun, fitted: list[FittedValues]) -> Iterator[str]:
    which = "a row is positive" if run.task == "binary" else "a label is given"
    values = [one.threshold for one in fitted if one.threshold is not None]
    values += [value for one in fitted for value in one.thresholds or ()]
    if not values:
        return
    if any(value != 0.5 for value in values):
        # One label of many is judged by F1, whatever the metric over all of them.
        metric = threshold_metric(run.metric) if run.task == "binary" and run.metric in METRICS else "f1"
        yield (
            f"Thresholds are fitted for {metric} on held-out rows: {which} from a probability of {_range(values)} on. "
            "The score of a row never depends on a threshold that was fitted on it; new rows are decided at the mean "
            "of the members' thresholds."
        )
    else:
        yield f"No threshold is fitted: {which} from a probability of 0.5 on."
    for history in run.histories:
        if history.finished is not None and history.finished.note:
            yield f"{history.member}: thresholds stay at one half: {history.finished.note}."


def _submission(run: ReportedRun) -> Iterator[str]:
    form = run.record.submission
    words = {
        "labels": "labels, decided as above",
        "probabilities": "probabilities, not labels (mlxbert predict --values labels writes labels)",
        "values": "numbers in the target's own unit",
    }[form.values]
    there = "submission.csv holds" if RunFiles(run.path).submission.is_file() else "A submission of this run holds"
    columns = ", ".join(form.columns[:5]) + (f" and {len(form.columns) - 5} more" if len(form.columns) > 5 else "")
    yield f"{there} {words}: {form.id_column}, {columns}."


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"
