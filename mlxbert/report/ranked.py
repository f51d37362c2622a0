"""ROC and precision-recall curves of the columns that a task ranks rows by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from heads.install import install_fix
from mlxbert.report.predictions import ClassPredictions, LabelPredictions
from mlxbert.report.report_error import ReportError

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


def ranked_columns(made: ClassPredictions | LabelPredictions, task: str) -> Ranked:
    """Two classes: the positive one, pooled and of each fold; several: each against the rest; ratings: each or more.

    A column without both positives and negatives has no curve.
    """
    if task == "binary" and isinstance(made, ClassPredictions):
        truth, score = made.truth, made.probability[:, 1]
        folds = [made.fold == fold for fold in np.unique(made.fold)]
        thin = [_curve("", truth[rows], score[rows]) for rows in folds] if len(folds) > 1 else []
        pooled = _curve(f"{made.names[1]}, all folds", truth, score)
        note = "Gray: each fold alone." if thin else ""
        return Ranked([pooled] if pooled else [], [one for one in thin if one], note)
    names, truths, scores, note = _columns(made, task)
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
    made: ClassPredictions | LabelPredictions, task: str
) -> tuple[list[str], list[np.ndarray], list[np.ndarray], str]:
    """(names, truths, scores, what they are); a truth is 0, 1, or −1 for unknown."""
    numbers = range(len(made.names))
    if isinstance(made, LabelPredictions):
        return list(made.names), list(made.truth.T), list(made.probability.T), "One line a label."
    if task == "ordinal":
        at_least = made.probability[:, ::-1].cumsum(axis=1)[:, ::-1]  # (N, C) P(rating ≥ c)
        return (
            [f"{name} or more" for name in made.names[1:]],
            [(made.truth >= i).astype(np.int64) for i in numbers[1:]],
            [at_least[:, i] for i in numbers[1:]],
            "One line a threshold between ratings.",
        )
    truths = [(made.truth == i).astype(np.int64) for i in numbers]
    return list(made.names), truths, list(made.probability.T), "Each class against the rest."


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
