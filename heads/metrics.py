"""Every metric as a function `f(y_true, y_pred, **options) -> float`, and by name with its direction in `METRICS`.

A thin layer over scikit-learn and scipy. An undefined metric is nan with one `MetricUndefinedWarning` that gives the
reason; no content of the rows makes it raise. Shapes that do not fit, (N, 1) against (N,) among them, and a wrong kind
of `y_pred` (logits for probabilities) are a `HeadError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from heads.errors import HeadError
from heads.errors import MetricUndefinedWarning as MetricUndefinedWarning
from heads.metric_definition import (
    MASKED,
    Score,
    Shapes,
    Undefined,
    binary_columns,
    class_indices,
    column_mean,
    column_values,
    framed,
    mean_of_columns,
    metric,
    notice,
    positives,
    refuse_masked,
    sklearn_metrics,
)
from heads.metric_definition import METRICS as METRICS
from heads.metric_definition import CompetitionType as CompetitionType
from heads.metric_definition import Metric as Metric
from heads.metric_definition import Needs as Needs
from heads.metric_definition import get_metric as get_metric
from heads.metric_definition import metric_of as metric_of

Rate = Literal["precision", "recall", "f1"]
CLASSES: tuple[CompetitionType, ...] = ("binary", "multiclass", "multilabel", "ordinal")
VALUES: tuple[CompetitionType, ...] = ("regression", "ordinal", "time_series")
SERIES: tuple[CompetitionType, ...] = ("time_series",)

# --- Predicted labels ---


@metric("labels", "rows", ("binary", "multiclass", "ordinal"), greater_is_better=True)
def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the rows that are right."""
    return float(sklearn_metrics().accuracy_score(y_true, y_pred))


@metric("labels", "rows", ("binary", "multiclass", "ordinal"), greater_is_better=True)
def balanced_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean recall over the classes that `y_true` has; not rescaled for chance."""
    return float(sklearn_metrics().balanced_accuracy_score(y_true, y_pred))


@metric("labels", "rows", ("binary", "multiclass"), greater_is_better=True)
def mcc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the Matthews correlation: 0 for constant predictions, as scikit-learn; nan if `y_true` has one class."""
    if len(np.unique(y_true)) < 2:
        raise Undefined("y_true has one class")
    return float(sklearn_metrics().matthews_corrcoef(y_true, y_pred))


@metric("scores", "classes", ("multiclass", "ordinal"), greater_is_better=True)
def top_k_accuracy(
    y_true: np.ndarray, y_pred: np.ndarray, *, k: int = 5, labels: Sequence[object] | None = None
) -> float:
    """Return the share of the rows whose class is among the `k` best scored; with k ≥ C it is 1, with a warning.

    Scores (N, C); `labels` names the columns where they are not 0 … C−1.
    """
    if y_true.ndim == 2:
        raise HeadError("top_k_accuracy: y_true (N, L) has several labels a row; fix: class labels (N,)")
    classes = y_pred.shape[1]
    y_true = class_indices("top_k_accuracy", y_true, classes, labels)
    if k < 1:
        raise HeadError(f"top_k_accuracy: k={k}; fix: 1 or more")
    if k >= classes:
        notice(f"it is 1 whatever is predicted, as k={k} is not less than the {classes} classes")
        return 1.0
    if classes == 2:  # scikit-learn takes one score a row here, and guesses its threshold from the range
        return float(sklearn_metrics().accuracy_score(y_true, y_pred.argmax(axis=1)))
    return float(sklearn_metrics().top_k_accuracy_score(y_true, y_pred, k=k, labels=np.arange(classes)))


@metric("labels", "columns", ("multilabel",), greater_is_better=True)
def subset_accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the rows of which every label is right."""
    refuse_masked("subset_accuracy", y_true)
    return float(sklearn_metrics().accuracy_score(y_true, y_pred))


@metric("labels", "columns", ("multilabel",), greater_is_better=False)
def hamming_loss(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the known entries that are wrong."""
    known = y_true != MASKED
    if not known.any():
        raise Undefined("no label is known")
    return float(sklearn_metrics().hamming_loss(y_true[known], y_pred[known]))


@metric("labels", "rows", ("ordinal",), greater_is_better=True)
def quadratic_kappa(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[int] | None = None) -> float:
    """Return the quadratic weighted kappa of whole ratings; nan if all ratings are the same.

    Distances are between places in `labels`. The default is every whole number from the lowest to the highest rating
    of either side: a rating that does not occur still counts as a step.
    """
    both = np.concatenate([y_true, y_pred])
    if labels is None:
        if both.dtype.kind != "i":
            raise HeadError("quadratic_kappa: ratings that are not numbers have no order; fix: labels=, lowest first")
        labels = range(int(both.min()), int(both.max()) + 1)
    elif not np.isin(both, labels).all():
        strange = both[~np.isin(both, labels)][0]
        raise HeadError(f"quadratic_kappa: rating {strange} is not among labels={list(labels)}")
    if len(np.unique(both)) < 2:
        raise Undefined("y_true and y_pred are all one rating")
    return float(sklearn_metrics().cohen_kappa_score(y_true, y_pred, labels=list(labels), weights="quadratic"))


@metric("labels", "rows", ("ordinal",), greater_is_better=True)
def accuracy_within_one(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the share of the rows whose rating is at most one off."""
    if y_true.dtype.kind != "i" or y_pred.dtype.kind != "i":
        raise HeadError("accuracy_within_one needs ratings that are whole numbers")
    return float((np.abs(y_true - y_pred) <= 1).mean())


# Precision, recall and F1 = 2 tp / (2 tp + fp + fn) are of the positives (binary), the mean over classes or labels
# (macro), over all entries (micro), or the mean over rows (samples). 0/0 is undefined. A macro mean leaves out a class
# or label that neither occurs nor is predicted (scikit-learn counts it as 0: a perfect prediction is then not 1). In
# a macro mean the precision of a class that occurs and is never predicted is 0, as in scikit-learn; otherwise it would
# pay never to predict a difficult class. A row without labels for which none is predicted is right: its value is 1.
def _of_each_rate(
    function: Callable[..., float], name: str, shapes: Shapes, *, types: tuple[CompetitionType, ...], doc: str
) -> list[Callable[..., float]]:
    """Return precision, recall and F1 as metrics; "{}" in `name` and `doc` stands for their names."""

    def of_rate(rate: Rate) -> Callable[..., float]:
        def measured(y_true: np.ndarray, y_pred: np.ndarray, **options: Any) -> float:
            return function(rate, y_true, y_pred, **options)

        measured.__name__, measured.__doc__ = name.format(rate), doc.format("F1" if rate == "f1" else rate)
        return metric("labels", shapes, types, greater_is_better=True)(measured)

    return [of_rate(rate) for rate in get_args(Rate)]


def _score(rate: Rate, y_true: np.ndarray, y_pred: np.ndarray, **options: Any) -> float:
    return float(getattr(sklearn_metrics(), f"{rate}_score")(y_true, y_pred, zero_division=0, **options))


def _binary(rate: Rate, y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    y_true = positives(rate, "y_true", y_true, pos_label)
    y_pred = positives(rate, "y_pred", y_pred, pos_label)
    if rate == "precision" and not y_pred.any():
        raise Undefined("nothing is predicted positive")
    if rate == "recall" and not y_true.any():
        raise Undefined("there is no positive")
    if not y_true.any() and not y_pred.any():
        raise Undefined("there is no positive and none is predicted")
    return _score(rate, y_true, y_pred)


def _macro(rate: Rate, y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    if y_true.ndim == 1:  # the classes that occur on either side
        return _score(rate, y_true, y_pred, average="macro")

    def of_label(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        if not column_true.any() and not column_pred.any():
            raise Undefined("no positive and none predicted")
        return _score(rate, column_true, column_pred)

    return column_mean(binary_columns(f"{rate}_macro", y_true, y_pred, None), of_label, skip_undefined)


def _micro(rate: Rate, y_true: np.ndarray, y_pred: np.ndarray) -> float:
    if y_true.ndim == 1:
        return _score(rate, y_true, y_pred, average="micro")
    columns = binary_columns(f"{rate}_micro", y_true, y_pred, None)
    return _binary(rate, np.concatenate([true for true, _ in columns]), np.concatenate([p for _, p in columns]))


def _samples(rate: Rate, y_true: np.ndarray, y_pred: np.ndarray) -> float:
    refuse_masked(f"{rate}_samples", y_true)
    empty = (y_true == 0).all(axis=1) & (y_pred == 0).all(axis=1)  # (N,)
    if empty.all():
        return 1.0
    rest = _score(rate, y_true[~empty], y_pred[~empty], average="samples")
    return float((rest * (~empty).sum() + empty.sum()) / len(empty))


precision, recall, f1 = _of_each_rate(
    _binary, "{}", "rows", types=("binary",), doc="Return the {} of the positives; nan where it is 0/0."
)
precision_macro, recall_macro, f1_macro = _of_each_rate(
    _macro, "{}_macro", "same", types=CLASSES, doc="Return the mean of the {} of every class or label."
)
precision_micro, recall_micro, f1_micro = _of_each_rate(
    _micro, "{}_micro", "same", types=CLASSES, doc="Return the {} over all entries; of classes the accuracy."
)
precision_samples, recall_samples, f1_samples = _of_each_rate(
    _samples, "{}_samples", "columns", types=("multilabel",), doc="Return the mean of the {} of every row."
)


# --- Scores and probabilities: (N,) of class 1, (N, C) of exclusive classes, (N, L) of labels (mean over labels) ---


@metric("scores", "rows", ("binary",), greater_is_better=True)
def roc_auc(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return the area under the ROC curve; nan if `y_true` has one class."""
    return _roc_auc(positives("roc_auc", "y_true", y_true, pos_label), y_pred)


@metric("scores", "classes", ("multiclass", "multilabel"), greater_is_better=True)
def roc_auc_macro(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, skip_undefined: bool = True
) -> float:
    """Return the mean ROC-AUC over labels (N, L), or over classes against the rest (N, C).

    A column of one class is left out with a warning; with `skip_undefined=False` the mean is then nan.
    """
    return column_mean(binary_columns("roc_auc_macro", y_true, y_pred, labels), _roc_auc, skip_undefined)


@framed("scores", "classes", per_column=True)
def roc_auc_per_label(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None) -> np.ndarray:
    """Return the ROC-AUC (L,) of every label or class; nan, with one warning for all, in columns of one class."""
    return column_values(binary_columns("roc_auc_per_label", y_true, y_pred, labels), _roc_auc)


@metric("scores", "rows", ("binary",), greater_is_better=True)
def pr_auc(y_true: np.ndarray, y_pred: np.ndarray, *, pos_label: Any = None) -> float:
    """Return the average precision, the area under the steps of the precision-recall curve; nan without a positive."""
    return _pr_auc(positives("pr_auc", "y_true", y_true, pos_label), y_pred)


@metric("scores", "classes", ("multiclass", "multilabel"), greater_is_better=True)
def pr_auc_macro(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, skip_undefined: bool = True
) -> float:
    """Return the mean average precision over labels or classes; columns without a positive as in `roc_auc_macro`."""
    return column_mean(binary_columns("pr_auc_macro", y_true, y_pred, labels), _pr_auc, skip_undefined)


@framed("scores", "classes", per_column=True)
def pr_auc_per_label(y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None) -> np.ndarray:
    """Return the average precision (L,) of every label or class; nan, with a warning, without a positive."""
    return column_values(binary_columns("pr_auc_per_label", y_true, y_pred, labels), _pr_auc)


@metric("scores", "columns", ("multilabel",), greater_is_better=True)
def label_ranking_ap(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the label-ranking average precision; a row with no label, or with all, is 1, as in scikit-learn."""
    refuse_masked("label_ranking_ap", y_true)
    return float(sklearn_metrics().label_ranking_average_precision_score(y_true, y_pred))


@metric("values", "same", VALUES, greater_is_better=True)
def pearson(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the Pearson correlation (of columns: their mean); nan if a side is constant."""
    return _correlation("pearsonr", y_true, y_pred, skip_undefined)


@metric("values", "same", VALUES, greater_is_better=True)
def spearman(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the Spearman rank correlation (of columns: their mean); nan if a side is constant."""
    return _correlation("spearmanr", y_true, y_pred, skip_undefined)


@metric("values", "same", VALUES, greater_is_better=True)
def kendall(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return Kendall's τ-b (of columns: their mean); nan if a side is constant."""
    return _correlation("kendalltau", y_true, y_pred, skip_undefined)


def _roc_auc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    if y_true.all() or not y_true.any():
        raise Undefined(f"y_true has one class, all {y_true[0]}")
    return float(sklearn_metrics().roc_auc_score(y_true, y_pred))


def _pr_auc(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    if not y_true.any():
        raise Undefined("there is no positive")
    return float(sklearn_metrics().average_precision_score(y_true, y_pred))


def _correlation(function: str, y_true: np.ndarray, y_pred: np.ndarray, skip_undefined: bool) -> float:
    from scipy import stats

    def of_column(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        if len(column_true) < 2:
            raise Undefined("there are fewer than two rows")
        for what, values in (("y_true", column_true), ("y_pred", column_pred)):
            if (values == values[0]).all():
                raise Undefined(f"{what} is constant")
        return float(getattr(stats, function)(column_true, column_pred).statistic)

    return mean_of_columns(of_column, y_true, y_pred, skip_undefined)


@metric("probabilities", "any", CLASSES, greater_is_better=False)
def log_loss(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, pos_label: Any = None
) -> float:
    """Return the mean negative log-likelihood, probabilities clipped by float64's epsilon; classes may be absent."""
    if y_true.ndim < y_pred.ndim:
        classes = y_pred.shape[1]
        indices = class_indices("log_loss", y_true, classes, labels)
        return float(sklearn_metrics().log_loss(indices, y_pred, labels=np.arange(classes)))

    def of_column(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        return float(sklearn_metrics().log_loss(column_true, column_pred, labels=[0, 1]))

    return _binary_or_columns("log_loss", of_column, y_true, y_pred, pos_label)


@metric("probabilities", "any", CLASSES, greater_is_better=False)
def brier(
    y_true: np.ndarray, y_pred: np.ndarray, *, labels: Sequence[Any] | None = None, pos_label: Any = None
) -> float:
    """Return the Brier score (1950): (p − y)² of one probability, 0 … 1; its sum over classes for (N, C), 0 … 2."""
    if y_true.ndim < y_pred.ndim:
        classes = y_pred.shape[1]
        one_hot = np.eye(classes)[class_indices("brier", y_true, classes, labels)]
        return float(sklearn_metrics().mean_squared_error(one_hot, y_pred) * classes)

    def of_column(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        return float(sklearn_metrics().brier_score_loss(column_true, column_pred, pos_label=1))

    return _binary_or_columns("brier", of_column, y_true, y_pred, pos_label)


@metric("probabilities", "any", CLASSES, greater_is_better=False)
def ece(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    n_bins: int = 15,
    labels: Sequence[Any] | None = None,
    pos_label: Any = None,
) -> float:
    """Return the expected calibration error over `n_bins` bins (low, high] of equal width, arXiv 1706.04599.

    Guo et al. 2017. For (N, C) it compares the probability of the best class with the share of rows where that class
    is right; for (N,) and (N, L) the probability of class 1 with the share of rows of class 1.
    """
    if n_bins < 1:
        raise HeadError(f"ece: n_bins={n_bins}; fix: 1 or more")
    if y_true.ndim < y_pred.ndim:
        indices = class_indices("ece", y_true, y_pred.shape[1], labels)
        return _calibration_error(y_pred.argmax(axis=1) == indices, y_pred.max(axis=1), n_bins)
    return _binary_or_columns(
        "ece", lambda true, pred: _calibration_error(true, pred, n_bins), y_true, y_pred, pos_label
    )


def _calibration_error(happened: np.ndarray, probability: np.ndarray, n_bins: int) -> float:
    inner_edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    bins = np.digitize(probability, inner_edges, right=True)
    # A bin's weight n_b / N times its |mean difference| is its |sum of differences| / N.
    return float(np.abs(np.bincount(bins, weights=happened - probability)).sum() / len(probability))


def _binary_or_columns(name: str, score: Score, y_true: np.ndarray, y_pred: np.ndarray, pos_label: Any) -> float:
    if y_true.ndim == 1:
        return score(positives(name, "y_true", y_true, pos_label), y_pred)
    return column_mean(binary_columns(name, y_true, y_pred, None), score)


# --- Predicted numbers, (N,) or (N, L): errors of several columns are pooled if nothing else is said; 0.1 is 10 % ---


@metric("values", "same", VALUES, greater_is_better=False)
def mse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean squared error."""
    return float(sklearn_metrics().mean_squared_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", VALUES, greater_is_better=False)
def rmse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the root of the mean squared error of all entries (the mean of columns' roots is `mcrmse`)."""
    return float(sklearn_metrics().root_mean_squared_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "columns", ("regression", "time_series"), greater_is_better=False)
def mcrmse(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean over columns of their RMSE."""
    return float(sklearn_metrics().root_mean_squared_error(y_true, y_pred, multioutput="uniform_average"))


@metric("values", "same", VALUES, greater_is_better=False)
def mae(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean absolute error."""
    return float(sklearn_metrics().mean_absolute_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", VALUES, greater_is_better=True)
def r2(y_true: np.ndarray, y_pred: np.ndarray, *, skip_undefined: bool = True) -> float:
    """Return the share of the variance explained (of columns: their mean); nan if `y_true` is constant."""

    def of_column(column_true: np.ndarray, column_pred: np.ndarray) -> float:
        if (column_true == column_true[0]).all():
            raise Undefined("y_true is constant" if len(column_true) > 1 else "there are fewer than two rows")
        return float(sklearn_metrics().r2_score(column_true, column_pred))

    return mean_of_columns(of_column, y_true, y_pred, skip_undefined)


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def rmsle(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the RMSE of log(1 + value); nan if a value is −1 or less."""
    for what, values in (("y_true", y_true), ("y_pred", y_pred)):
        if bad := int((values <= -1).sum()):
            raise Undefined(f"{bad} of {values.size} numbers in {what} are −1 or less")
    return float(sklearn_metrics().root_mean_squared_log_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def mape(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of |error / y|; nan if a y is 0 (scikit-learn divides by 2e-16 there)."""
    if zeros := int((y_true == 0).sum()):
        raise Undefined(f"{zeros} of {y_true.size} targets are 0")
    return float(sklearn_metrics().mean_absolute_percentage_error(y_true.ravel(), y_pred.ravel()))


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def smape(y_true: np.ndarray, y_pred: np.ndarray) -> float:
    """Return the mean of 2 |error| / (|y| + |prediction|), 0 … 2; an entry counts as 0 if both are 0."""
    size = np.abs(y_true) + np.abs(y_pred)
    return float((2 * np.abs(y_true - y_pred) / np.where(size == 0, 1, size)).mean())


@metric("values", "same", SERIES, greater_is_better=False)
def mase(y_true: np.ndarray, y_pred: np.ndarray, *, y_train: ArrayLike | None = None, seasonality: int = 1) -> float:
    """Return MAE divided by that of the seasonal naive forecast in the history, Hyndman and Koehler 2006.

    `y_train` (T,) is the history before `y_true`, in order of time. A value below 1 is better than the naive forecast.
    It is nan if the history is not longer than `seasonality`, or repeats exactly.
    """
    if seasonality < 1:
        raise HeadError(f"mase: seasonality={seasonality}; fix: 1 or more steps")
    if y_train is None:
        raise Undefined("there is no history to scale by: pass y_train=")
    history = np.asarray(y_train, dtype=np.float64)
    if history.ndim != 1:
        raise HeadError(f"mase: y_train has shape {history.shape}; fix: (T,), one series")
    if len(history) <= seasonality:
        raise Undefined(f"a history of {len(history)} values has no difference over {seasonality} steps")
    scale = np.abs(history[seasonality:] - history[:-seasonality]).mean()
    if scale == 0 or not np.isfinite(scale):
        raise Undefined(f"the history's mean difference over {seasonality} steps is {scale:g}")
    return float(sklearn_metrics().mean_absolute_error(y_true.ravel(), y_pred.ravel()) / scale)


@metric("values", "same", SERIES, greater_is_better=True)
def directional_accuracy(y_true: np.ndarray, y_pred: np.ndarray, *, last: ArrayLike | None = None) -> float:
    """Return the share of the steps whose direction (up, down, level) from the last true value is predicted.

    (N,) is one series in order of time, `last` the value before its first (without it, the first step is left out).
    (N, H) are N forecasts of H steps, `last` (N,) the values before each.
    """
    series = y_true[None] if y_true.ndim == 1 else y_true  # (N, H)
    forecast = y_pred[None] if y_true.ndim == 1 else y_pred
    before = series[:, :-1]
    if last is not None:
        start = np.asarray(last, dtype=np.float64).reshape(-1)
        if start.shape != (len(series),):
            raise HeadError(f"directional_accuracy: last has shape {np.shape(last)}; fix: one value a series")
        before = np.concatenate([start[:, None], before], axis=1)
    steps = before.shape[1]
    if not steps:
        raise Undefined("a single step has no direction: pass last=")
    actual = np.sign(series[:, -steps:] - before)
    return float((actual == np.sign(forecast[:, -steps:] - before)).mean())


@metric("values", "same", ("regression", "time_series"), greater_is_better=False)
def pinball(y_true: np.ndarray, y_pred: np.ndarray, *, quantile: float = 0.5) -> float:
    """Return the mean quantile loss of predicted `quantile`s."""
    if not 0 < quantile < 1:
        raise HeadError(f"pinball: quantile={quantile}; fix: a number in (0, 1)")
    return float(sklearn_metrics().mean_pinball_loss(y_true.ravel(), y_pred.ravel(), alpha=quantile))
