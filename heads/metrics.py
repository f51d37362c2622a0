"""`METRICS`: every metric by name, with its direction. A thin layer over scikit-learn and scipy.

Each is also a plain function `f(y_true, y_pred, **options) -> float`. An undefined metric is nan with one
`MetricUndefinedWarning` that says why; it never raises for what the rows hold. Shapes that do not fit, (N, 1) against
(N,) among them, and a wrong kind of `y_pred` (logits for probabilities) are a `HeadError`.
"""

from __future__ import annotations

from heads.errors import HeadError, MetricUndefinedWarning, unknown_name
from heads.scoring.calibration import brier, ece, log_loss
from heads.scoring.classification import (
    accuracy,
    accuracy_within_one,
    balanced_accuracy,
    hamming_loss,
    mcc,
    quadratic_kappa,
    subset_accuracy,
    top_k_accuracy,
)
from heads.scoring.definition import REGISTERED, CompetitionType, Metric
from heads.scoring.inputs import Needs
from heads.scoring.precision_recall import (
    f1,
    f1_macro,
    f1_micro,
    f1_samples,
    precision,
    precision_macro,
    precision_micro,
    precision_samples,
    recall,
    recall_macro,
    recall_micro,
    recall_samples,
)
from heads.scoring.ranking import (
    kendall,
    label_ranking_ap,
    pearson,
    pr_auc,
    pr_auc_macro,
    pr_auc_per_label,
    roc_auc,
    roc_auc_macro,
    roc_auc_per_label,
    spearman,
)
from heads.scoring.values import (
    directional_accuracy,
    mae,
    mape,
    mase,
    mcrmse,
    mse,
    pinball,
    r2,
    rmse,
    rmsle,
    smape,
)

METRICS: dict[str, Metric] = dict(sorted(REGISTERED.items()))
# These give an array (L,), a value a column, and so are not in the table of numbers.
PER_LABEL = {"roc_auc_per_label": roc_auc_per_label, "pr_auc_per_label": pr_auc_per_label}


def get_metric(name: str) -> Metric:
    """The metric of that name. Raises `HeadError` with the nearest names if there is none."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    return METRICS[name]


_SHORT: dict[str, dict[str, str]] = {
    "auc": {"binary": "roc_auc", "multilabel": "roc_auc_macro"},
    "kappa": {"ordinal": "quadratic_kappa", "multiclass": "quadratic_kappa"},
    "f1": {"multiclass": "f1_macro", "multilabel": "f1_macro"},
}
"""What is meant by a short name, by competition type."""


def metric_of(name: str, competition_type: str) -> Metric:
    """The metric of that name, or short name ("auc", "kappa"), for a type of competition.

    Raises:
        HeadError: there is none, or it is not for that type (those that are, are given).
    """
    metric = get_metric(_SHORT.get(name, {}).get(competition_type, name))
    if competition_type not in metric.competition_types:
        fitting = ", ".join(one.name for one in METRICS.values() if competition_type in one.competition_types)
        raise HeadError(f"metric {name!r} is not for {competition_type}; fix: one of {fitting}")
    return metric


def metrics_for(competition_type: CompetitionType) -> tuple[Metric, ...]:
    """The metrics that fit a type of competition, by name."""
    return tuple(metric for metric in METRICS.values() if competition_type in metric.competition_types)


__all__ = [
    "METRICS",
    "PER_LABEL",
    "CompetitionType",
    "Metric",
    "MetricUndefinedWarning",
    "Needs",
    "accuracy",
    "accuracy_within_one",
    "balanced_accuracy",
    "brier",
    "directional_accuracy",
    "ece",
    "f1",
    "f1_macro",
    "f1_micro",
    "f1_samples",
    "get_metric",
    "hamming_loss",
    "kendall",
    "label_ranking_ap",
    "log_loss",
    "mae",
    "mape",
    "mase",
    "mcc",
    "mcrmse",
    "metric_of",
    "metrics_for",
    "mse",
    "pearson",
    "pinball",
    "pr_auc",
    "pr_auc_macro",
    "pr_auc_per_label",
    "precision",
    "precision_macro",
    "precision_micro",
    "precision_samples",
    "quadratic_kappa",
    "r2",
    "recall",
    "recall_macro",
    "recall_micro",
    "recall_samples",
    "rmse",
    "rmsle",
    "roc_auc",
    "roc_auc_macro",
    "roc_auc_per_label",
    "smape",
    "spearman",
    "subset_accuracy",
    "top_k_accuracy",
]
