"""Plots of classes, ratings and labels: confusion, ROC, precision and recall, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.command_line import install_fix
from mlxbert.report.figures import Plot, Theme, legend_below, short
from mlxbert.report.reported_run import ClassPredictions, LabelPredictions, Reliability, ReportError, reliability

MOST = 8  # curves that can be told apart


@dataclass(frozen=True)
class Curve:
    """One column's curves: `roc` (false, true positive rate), `precision_recall` (recall, precision), their areas."""

    name: str
    roc: tuple[np.ndarray, np.ndarray]
    precision_recall: tuple[np.ndarray, np.ndarray]
    auc: float
    average_precision: float
    share: float


@dataclass(frozen=True)
class Ranked:
    """The curves to draw: `thin` ones without a name behind `curves`; `note` says what they are of."""

    curves: list[Curve]
    thin: list[Curve]
    note: str


def ranked_columns(predictions: ClassPredictions | LabelPredictions, task: str) -> Ranked:
    """Return the curves of a task; a column without both positives and negatives has none.

    Two classes have the curve of the positive one, pooled and of each fold; several have one for each against the
    rest; ratings one for each threshold between them.
    """
    if task == "binary" and isinstance(predictions, ClassPredictions):
        truth, score = predictions.truth, predictions.probability[:, 1]
        folds = [predictions.fold == fold for fold in np.unique(predictions.fold)]
        thin = [_curve("", truth[rows], score[rows]) for rows in folds] if len(folds) > 1 else []
        pooled = _curve(f"{predictions.names[1]}, all folds", truth, score)
        note = "Gray: each fold alone." if thin else ""
        return Ranked([pooled] if pooled else [], [curve for curve in thin if curve], note)
    names, truths, scores, note = _columns(predictions, task)
    curves = [
        curve
        for name, truth, score in zip(names, truths, scores, strict=True)
        if (curve := _curve(name, truth[truth >= 0], score[truth >= 0])) is not None
    ]
    if len(curves) > MOST:
        note += f" The {MOST} of {len(curves)} with most positives."
        order = sorted(range(len(curves)), key=lambda i: -curves[i].share)[:MOST]
        curves = [curves[i] for i in sorted(order)]
    return Ranked(curves, [], note)


def _columns(
    predictions: ClassPredictions | LabelPredictions, task: str
) -> tuple[list[str], list[np.ndarray], list[np.ndarray], str]:
    """Return (names, truths, scores, a note on them); a truth is 0, 1, or −1 for unknown."""
    numbers = range(len(predictions.names))
    if isinstance(predictions, LabelPredictions):
        return list(predictions.names), list(predictions.truth.T), list(predictions.probability.T), "One line a label."
    if task == "ordinal":
        at_least = predictions.probability[:, ::-1].cumsum(axis=1)[:, ::-1]  # (N, C) P(rating ≥ c)
        return (
            [f"{name} or more" for name in predictions.names[1:]],
            [(predictions.truth >= i).astype(np.int64) for i in numbers[1:]],
            [at_least[:, i] for i in numbers[1:]],
            "One line a threshold between ratings.",
        )
    truths = [(predictions.truth == i).astype(np.int64) for i in numbers]
    return list(predictions.names), truths, list(predictions.probability.T), "Each class against the rest."


def _curve(name: str, truth: np.ndarray, score: np.ndarray) -> Curve | None:
    if not truth.any() or truth.all():
        return None
    try:
        from sklearn import metrics
    except ModuleNotFoundError as error:
        raise ReportError(f"ROC curves need scikit-learn; fix: {install_fix('kaggle')}") from error
    false_rate, true_rate, _ = metrics.roc_curve(truth, score)
    precision, recall, _ = metrics.precision_recall_curve(truth, score, drop_intermediate=True)
    return Curve(
        name,
        (false_rate, true_rate),
        (recall[::-1], precision[::-1]),
        float(metrics.roc_auc_score(truth, score)),
        float(metrics.average_precision_score(truth, score)),
        float(truth.mean()),
    )


MOST_CLASSES = 40  # of a confusion matrix: with more, a cell is too small to see
MOST_NUMBERS = 12  # with more classes, numbers do not fit in the cells


def class_plots(predictions: ClassPredictions, task: str) -> list[Plot]:
    """Return the plots of a binary, multiclass or ordinal run."""
    plots = [_confusion(predictions)]
    if task == "ordinal":
        plots.append(_distances(predictions))
    return [*plots, *_ranked(ranked_columns(predictions, task)), *_calibration(reliability(predictions))]


def label_plots(predictions: LabelPredictions) -> list[Plot]:
    """Return the plots of a multilabel run."""
    return [*_ranked(ranked_columns(predictions, "multilabel")), *_calibration(reliability(predictions))]


def confusion_matrix(predictions: ClassPredictions) -> np.ndarray:
    """Return how many rows of each class (first axis) have each predicted label (second axis): (C, C)."""
    count = len(predictions.names)
    return np.bincount(predictions.truth * count + predictions.label, minlength=count * count).reshape(count, count)


def _confusion(predictions: ClassPredictions) -> Plot:
    matrix = confusion_matrix(predictions)
    support = matrix.sum(axis=1)
    shown = np.sort(np.argsort(-support, kind="stable")[:MOST_CLASSES])
    numbers = "; numbers: rows" if len(shown) <= MOST_NUMBERS else ""
    caption = f"Rows of each true class by what they were given. Color: share of the true class{numbers}."
    if len(shown) < len(matrix):
        caption += f" The {MOST_CLASSES} most frequent of {len(matrix)} classes."
    names = [predictions.names[i] for i in shown]
    part = matrix[np.ix_(shown, shown)]
    size = 3.9 if len(shown) <= 6 else min(8.0, 2.6 + 0.34 * len(shown))
    return Plot(
        "confusion",
        "Confusion matrix",
        caption,
        lambda figure, theme: _draw_confusion(figure, theme, part, support[shown], names),
        size=(max(5.2, size * 1.2), size),
        wide=size > 6,
    )


def _draw_confusion(figure: Any, theme: Theme, matrix: np.ndarray, support: np.ndarray, names: Sequence[str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import PercentFormatter

    axes = figure.subplots()
    share = matrix / np.maximum(support, 1)[:, None]  # (C, C)
    colors = LinearSegmentedColormap.from_list("share", [theme.card, theme.series[0]])
    image = axes.imshow(share, cmap=colors, vmin=0, vmax=1, aspect="auto")
    bar = figure.colorbar(image, ax=axes, format=PercentFormatter(1.0), label="share of the true class")
    bar.outline.set_visible(False)
    axes.grid(visible=False)
    # Lines between the cells: a share of 0 has the color of the page.
    edges = np.arange(len(names) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(visible=True, which="minor", color=theme.muted, linewidth=0.8 if len(names) <= MOST_NUMBERS else 0.3)
    axes.tick_params(which="minor", length=0)
    length = 14 if len(names) <= MOST_NUMBERS else 18
    ticks, labels = range(len(names)), [short(name, length) for name in names]
    if len(set(labels)) < len(labels):  # names with the same beginning differ at their ends
        labels = [
            label if len(name) <= length else f"{label[: length // 2 - 1]}…{short(name, len(name))[-length // 2 :]}"
            for name, label in zip(names, labels, strict=True)
        ]
    turn = 90 if len(names) > MOST_NUMBERS else 35 if max(map(len, labels)) > 5 else 0
    axes.set_xticks(ticks, labels, rotation=turn, ha="right" if turn == 35 else "center")
    axes.set_yticks(ticks, labels)
    if len(names) > MOST_NUMBERS:
        axes.tick_params(labelsize=7)
    else:
        for (i, j), value in np.ndenumerate(share):
            color = theme.card if value > 0.55 else theme.text
            axes.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", color=color, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")


def _distances(predictions: ClassPredictions) -> Plot:
    steps = predictions.label - predictions.truth
    reach = max(1, int(np.abs(steps).max()))
    shares = np.bincount(steps + reach, minlength=2 * reach + 1) / len(steps)

    def draw(figure: Any, theme: Theme) -> None:
        axes = figure.subplots()
        places = np.arange(-reach, reach + 1)
        colors = [theme.series[1] if place == 0 else theme.series[0] for place in places]
        bars = axes.bar(places, 100 * shares, color=colors, width=0.75)
        axes.bar_label(bars, [f"{100 * share:.1f}" for share in shares], color=theme.muted, fontsize=8.5, padding=2)
        axes.set_xticks(places, [f"{place:+d}" if place else "0" for place in places])
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="predicted − true (ratings)", ylabel="rows (%)")

    caption = f"How many ratings off; {100 * shares[reach - 1 : reach + 2].sum():.1f} % of the rows are within one."
    return Plot("distance", "Distance from the true rating", caption, draw)


def _ranked(ranked: Ranked) -> list[Plot]:
    if not ranked.curves:
        return []
    return [
        Plot(
            "roc",
            "ROC",
            f"The share of the positives that are found at each rate of false alarms. {ranked.note}",
            lambda figure, theme: _draw_roc(figure, theme, ranked),
        ),
        Plot(
            "precision-recall",
            "Precision and recall",
            "The share of true positives among the rows that are found; AP is the average precision. Dashed: "
            f"guessing, the share of positives. {ranked.note}",
            lambda figure, theme: _draw_precision_recall(figure, theme, ranked),
        ),
    ]


def _draw_roc(figure: Any, theme: Theme, ranked: Ranked) -> None:
    axes = figure.subplots()
    for curve in ranked.thin:
        axes.plot(*curve.roc, color=theme.muted, linewidth=0.7, alpha=0.7)
    for curve, color in zip(ranked.curves, theme.series, strict=False):
        axes.plot(*curve.roc, color=color, label=f"{short(curve.name)}: AUC {curve.auc:.3f}")
    axes.plot([0, 1], [0, 1], color=theme.limit, linestyle="--", linewidth=1)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    legend_below(figure, axes)


def _draw_precision_recall(figure: Any, theme: Theme, ranked: Ranked) -> None:
    axes = figure.subplots()
    for curve in ranked.thin:
        axes.plot(*curve.precision_recall, color=theme.muted, linewidth=0.7, alpha=0.7, drawstyle="steps-post")
    for curve, color in zip(ranked.curves, theme.series, strict=False):
        label = f"{short(curve.name)}: AP {curve.average_precision:.3f}"
        axes.plot(*curve.precision_recall, color=color, label=label, drawstyle="steps-post")
        axes.axhline(curve.share, color=color, linestyle="--", linewidth=0.9, alpha=0.8)
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    legend_below(figure, axes)


def _calibration(diagram: Reliability) -> list[Plot]:
    if (diagram.rows > 0).sum() < 2:
        return []  # `tables.point_tables` shows a single point
    return [
        Plot(
            "calibration",
            f"Calibration: ECE {diagram.ece:.4f}",
            f"{diagram.what} On the diagonal, 70 % means 70 %; below it, the model is too confident. Bars: the "
            "number of rows in each bin of probabilities.",
            lambda figure, theme: _draw_calibration(figure, theme, diagram),
        )
    ]


def _draw_calibration(figure: Any, theme: Theme, curve: Reliability) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=theme.limit, linestyle="--", linewidth=1)
    filled = curve.rows > 0
    above.plot(curve.probability[filled], curve.happened[filled], color=theme.series[0], marker="o", markersize=4)
    above.set(ylabel="how often it is so", xlim=(-0.01, 1.01), ylim=(-0.02, 1.02))
    edges = np.linspace(0, 1, len(curve.rows) + 1)
    below.bar(edges[:-1], curve.rows, width=np.diff(edges) * 0.9, align="edge", color=theme.series[0], alpha=0.75)
    below.set(xlabel="predicted probability", ylabel=curve.unit)
    below.grid(visible=False, axis="x")
    below.locator_params(axis="y", nbins=3)
