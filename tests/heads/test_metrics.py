"""Metrics against scikit-learn and scipy, invariances over the whole table, and every undefined case."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import heads.metrics as metrics
from heads.command_line import install_fix
from heads.errors import HeadError, MetricUndefinedWarning
from heads.metrics import METRICS, Metric, get_metric, metric_of

sk = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

N, C, L = 60, 4, 5
RNG = np.random.default_rng(3)
BITS = (RNG.random(N) < 0.4).astype(int)
GUESSED_BITS = np.where(RNG.random(N) < 0.7, BITS, 1 - BITS)
SCORES = RNG.normal(0, 2, N) + 2 * BITS
PROBABILITIES = 1 / (1 + np.exp(-SCORES))
CLASSES = np.concatenate([np.arange(C), RNG.integers(0, C, N - C)])
GUESSED_CLASSES = np.where(RNG.random(N) < 0.6, CLASSES, RNG.integers(0, C, N))
CLASS_SCORES = RNG.normal(0, 1, (N, C)) + np.eye(C)[CLASSES]
CLASS_PROBABILITIES = np.exp(CLASS_SCORES) / np.exp(CLASS_SCORES).sum(1, keepdims=True)
LABELS = np.concatenate([np.eye(L, dtype=int), (RNG.random((N - L, L)) < 0.4).astype(int)])
GUESSED_LABELS = np.where(RNG.random((N, L)) < 0.7, LABELS, 1 - LABELS)
LABEL_SCORES = RNG.normal(0, 1, (N, L)) + LABELS
LABEL_PROBABILITIES = 1 / (1 + np.exp(-LABEL_SCORES))
VALUES = RNG.gamma(2, 10, N)
PREDICTED = VALUES * RNG.lognormal(0, 0.3, N)
TABLE = RNG.gamma(2, 10, (N, 3))
PREDICTED_TABLE = TABLE * RNG.lognormal(0, 0.3, (N, 3))
HISTORY = RNG.gamma(2, 10, 40)
RATINGS = np.concatenate([np.arange(1, 6), RNG.integers(1, 6, N - 5)])
GUESSED_RATINGS = np.clip(RATINGS + RNG.integers(-2, 3, N), 1, 5)


def kappa_formula(y_true: np.ndarray, y_pred: np.ndarray, ratings: list[int]) -> float:
    """Return the competition's definition: 1 − Σ w O / Σ w E with w = (i − j)², from counts."""
    places = {rating: place for place, rating in enumerate(ratings)}
    size = len(ratings)
    observed = np.zeros((size, size))
    for true, guess in zip(y_true, y_pred, strict=True):
        observed[places[true], places[guess]] += 1
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    weights = np.array([[(i - j) ** 2 for j in range(size)] for i in range(size)])
    return float(1 - (weights * observed).sum() / (weights * expected).sum())


def ece_formula(happened: np.ndarray, probability: np.ndarray, n_bins: int = 15) -> float:
    """Return the calibration error of Guo et al. 2017, equation 3, bin by bin."""
    total = 0.0
    edges = np.linspace(0, 1, n_bins + 1)
    for low, high in itertools.pairwise(edges):
        inside = (probability > low) & (probability <= high) | ((low == 0) & (probability == 0))
        if inside.any():
            total += inside.mean() * abs(happened[inside].mean() - probability[inside].mean())
    return float(total)


def columns(function: Callable[..., float]) -> Callable[..., float]:
    """Return the mean of a function over columns."""
    return lambda y, p: float(np.mean([function(y[:, c], p[:, c]) for c in range(y.shape[1])]))


CLASS_HIT = CLASS_PROBABILITIES.argmax(1) == CLASSES
ONE_HOT = np.eye(C)[CLASSES]
TOP_2 = np.mean([true in np.argsort(-row)[:2] for true, row in zip(CLASSES, CLASS_SCORES, strict=True)])

# (metric, y_true, y_pred, options, value of the trusted implementation)
REFERENCES: list[tuple[str, Any, Any, dict[str, Any], float]] = [
    ("accuracy", CLASSES, GUESSED_CLASSES, {}, sk.accuracy_score(CLASSES, GUESSED_CLASSES)),
    ("balanced_accuracy", CLASSES, GUESSED_CLASSES, {}, sk.balanced_accuracy_score(CLASSES, GUESSED_CLASSES)),
    ("mcc", CLASSES, GUESSED_CLASSES, {}, sk.matthews_corrcoef(CLASSES, GUESSED_CLASSES)),
    ("precision", BITS, GUESSED_BITS, {}, sk.precision_score(BITS, GUESSED_BITS)),
    ("precision", BITS, GUESSED_BITS, {"pos_label": 0}, sk.precision_score(BITS, GUESSED_BITS, pos_label=0)),
    ("recall", BITS, GUESSED_BITS, {}, sk.recall_score(BITS, GUESSED_BITS)),
    ("f1", BITS, GUESSED_BITS, {}, sk.f1_score(BITS, GUESSED_BITS)),
    ("roc_auc", BITS, SCORES, {}, sk.roc_auc_score(BITS, SCORES)),
    ("roc_auc", np.where(BITS, "spam", "ham"), SCORES, {"pos_label": "spam"}, sk.roc_auc_score(BITS, SCORES)),
    (
        "roc_auc_macro",
        CLASSES,
        CLASS_PROBABILITIES,
        {},
        sk.roc_auc_score(CLASSES, CLASS_PROBABILITIES, multi_class="ovr"),
    ),
    ("roc_auc_macro", LABELS, LABEL_SCORES, {}, sk.roc_auc_score(LABELS, LABEL_SCORES)),
    ("pr_auc", BITS, SCORES, {}, sk.average_precision_score(BITS, SCORES)),
    ("pr_auc_macro", LABELS, LABEL_SCORES, {}, sk.average_precision_score(LABELS, LABEL_SCORES)),
    ("pr_auc_macro", CLASSES, CLASS_SCORES, {}, sk.average_precision_score(CLASSES, CLASS_SCORES)),
    ("log_loss", BITS, PROBABILITIES, {}, sk.log_loss(BITS, PROBABILITIES)),
    ("log_loss", CLASSES, CLASS_PROBABILITIES, {}, sk.log_loss(CLASSES, CLASS_PROBABILITIES)),
    ("log_loss", LABELS, LABEL_PROBABILITIES, {}, columns(sk.log_loss)(LABELS, LABEL_PROBABILITIES)),
    ("brier", BITS, PROBABILITIES, {}, sk.brier_score_loss(BITS, PROBABILITIES)),
    ("brier", CLASSES, CLASS_PROBABILITIES, {}, float(((ONE_HOT - CLASS_PROBABILITIES) ** 2).sum(1).mean())),
    ("brier", LABELS, LABEL_PROBABILITIES, {}, columns(sk.brier_score_loss)(LABELS, LABEL_PROBABILITIES)),
    ("ece", BITS, PROBABILITIES, {}, ece_formula(BITS, PROBABILITIES)),
    ("ece", BITS, np.round(PROBABILITIES, 1), {"n_bins": 10}, ece_formula(BITS, np.round(PROBABILITIES, 1), 10)),
    ("ece", CLASSES, CLASS_PROBABILITIES, {}, ece_formula(CLASS_HIT, CLASS_PROBABILITIES.max(1))),
    ("ece", LABELS, LABEL_PROBABILITIES, {}, columns(ece_formula)(LABELS, LABEL_PROBABILITIES)),
    ("top_k_accuracy", CLASSES, CLASS_SCORES, {"k": 2}, sk.top_k_accuracy_score(CLASSES, CLASS_SCORES, k=2)),
    ("top_k_accuracy", CLASSES, CLASS_SCORES, {"k": 2}, TOP_2),
    ("subset_accuracy", LABELS, GUESSED_LABELS, {}, sk.accuracy_score(LABELS, GUESSED_LABELS)),
    ("hamming_loss", LABELS, GUESSED_LABELS, {}, sk.hamming_loss(LABELS, GUESSED_LABELS)),
    ("label_ranking_ap", LABELS, LABEL_SCORES, {}, sk.label_ranking_average_precision_score(LABELS, LABEL_SCORES)),
    ("mse", VALUES, PREDICTED, {}, sk.mean_squared_error(VALUES, PREDICTED)),
    ("rmse", VALUES, PREDICTED, {}, sk.root_mean_squared_error(VALUES, PREDICTED)),
    ("rmse", TABLE, PREDICTED_TABLE, {}, float(np.sqrt(((TABLE - PREDICTED_TABLE) ** 2).mean()))),
    ("mae", VALUES, PREDICTED, {}, sk.mean_absolute_error(VALUES, PREDICTED)),
    ("r2", VALUES, PREDICTED, {}, sk.r2_score(VALUES, PREDICTED)),
    ("r2", TABLE, PREDICTED_TABLE, {}, sk.r2_score(TABLE, PREDICTED_TABLE)),
    ("rmsle", VALUES, PREDICTED, {}, sk.root_mean_squared_log_error(VALUES, PREDICTED)),
    ("mape", VALUES, PREDICTED, {}, sk.mean_absolute_percentage_error(VALUES, PREDICTED)),
    ("smape", np.array([1.0, 0.0, -2.0]), np.array([3.0, 0.0, 2.0]), {}, (1.0 + 0.0 + 2.0) / 3),
    (
        "mase",
        VALUES,
        PREDICTED,
        {"y_train": HISTORY, "seasonality": 12},
        float(np.abs(VALUES - PREDICTED).mean() / np.mean([abs(HISTORY[t] - HISTORY[t - 12]) for t in range(12, 40)])),
    ),
    # 1 → 3 → 2 → 2, predicted from each true value before: up (right), up (wrong), level (right).
    ("directional_accuracy", np.array([1, 3, 2, 2]), np.array([9, 2, 4, 2]), {}, 2 / 3),
    ("directional_accuracy", np.array([1, 3, 2, 2]), np.array([9, 2, 4, 2]), {"last": 0}, 3 / 4),
    ("directional_accuracy", np.array([[1, 3], [2, 1]]), np.array([[2, 0], [0, 0]]), {"last": [0, 5]}, 3 / 4),
    (
        "pinball",
        VALUES,
        PREDICTED,
        {"quantile": 0.9},
        sk.mean_pinball_loss(VALUES, PREDICTED, alpha=0.9),
    ),
    ("quadratic_kappa", RATINGS, GUESSED_RATINGS, {}, kappa_formula(RATINGS, GUESSED_RATINGS, [1, 2, 3, 4, 5])),
    (
        "quadratic_kappa",
        RATINGS,
        GUESSED_RATINGS,
        {},
        sk.cohen_kappa_score(RATINGS, GUESSED_RATINGS, weights="quadratic"),
    ),
    ("accuracy_within_one", [1, 2, 3, 5], [2, 4, 3, 4], {}, 3 / 4),
    ("kendall", RATINGS, GUESSED_RATINGS, {}, stats.kendalltau(RATINGS, GUESSED_RATINGS, variant="b").statistic),
    ("spearman", VALUES, PREDICTED, {}, stats.spearmanr(VALUES, PREDICTED).statistic),
    ("pearson", VALUES, PREDICTED, {}, stats.pearsonr(VALUES, PREDICTED).statistic),
    ("pearson", TABLE, PREDICTED_TABLE, {}, columns(lambda y, p: stats.pearsonr(y, p)[0])(TABLE, PREDICTED_TABLE)),
    ("mcrmse", TABLE, PREDICTED_TABLE, {}, columns(sk.root_mean_squared_error)(TABLE, PREDICTED_TABLE)),
]
# A row without labels for which none is predicted counts 1, as in scikit-learn with zero_division=1.
_want = sk.f1_score(LABELS, GUESSED_LABELS, average="samples", zero_division=1)
REFERENCES.append(("f1_samples", LABELS, GUESSED_LABELS, {}, _want))
NOT_EMPTY = LABELS.any(1) | GUESSED_LABELS.any(1)
for _kind in ("precision", "recall", "f1"):
    _score = getattr(sk, f"{_kind}_score")
    _want = _score(LABELS[NOT_EMPTY], GUESSED_LABELS[NOT_EMPTY], average="samples", zero_division=0)
    REFERENCES.append((f"{_kind}_samples", LABELS[NOT_EMPTY], GUESSED_LABELS[NOT_EMPTY], {}, _want))
    for _average in ("macro", "micro"):
        _want = _score(LABELS, GUESSED_LABELS, average=_average, zero_division=0)
        REFERENCES.append((f"{_kind}_{_average}", LABELS, GUESSED_LABELS, {}, _want))
    for _average in ("macro", "micro"):
        _want = _score(CLASSES, GUESSED_CLASSES, average=_average)
        REFERENCES.append((f"{_kind}_{_average}", CLASSES, GUESSED_CLASSES, {}, _want))


@pytest.fixture(autouse=True)
def _no_stray_warnings() -> Any:
    """Fail at every warning; a test of an undefined metric catches its warning itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("name", "y_true", "y_pred", "options", "wanted"),
    REFERENCES,
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_are_the_reference(name: str, y_true: Any, y_pred: Any, options: dict[str, Any], wanted: float) -> None:
    value = METRICS[name].function(y_true, y_pred, **options)
    assert type(value) is float
    assert value == pytest.approx(wanted, abs=1e-12, rel=1e-12)
    assert METRICS[name](y_true, y_pred, **options) == value


def test_every_metric_has_a_reference() -> None:
    assert {name for name, *_ in REFERENCES} == set(METRICS)


def test_the_multiclass_brier_score_is_scikit_learns() -> None:
    wanted = sk.brier_score_loss(CLASSES, CLASS_PROBABILITIES, labels=range(C))  # scikit-learn 1.7
    assert metrics.brier(CLASSES, CLASS_PROBABILITIES) == pytest.approx(wanted)


# --- invariances over the table (after scikit-learn's metrics/tests/test_common.py) --------------------------------


def usual(metric: Metric) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]]:
    """Return y_true, a prediction, the perfect prediction and options, for each kind of problem of the metric."""
    options: dict[str, Any] = {"mase": {"y_train": HISTORY}, "top_k_accuracy": {"k": 2}}.get(metric.name, {})
    binary = {
        "labels": (BITS, GUESSED_BITS, BITS),
        "scores": (BITS, SCORES, BITS * 2.0 - 1),
        "probabilities": (BITS, PROBABILITIES, BITS * 1.0),
        "values": (VALUES, PREDICTED, VALUES),
    }[metric.needs]
    classes = {
        "labels": (CLASSES, GUESSED_CLASSES, CLASSES),
        "scores": (CLASSES, CLASS_SCORES, ONE_HOT * 2 - 1),
        "probabilities": (CLASSES, CLASS_PROBABILITIES, ONE_HOT),
        "values": (VALUES, PREDICTED, VALUES),
    }[metric.needs]
    labels = {
        "labels": (LABELS, GUESSED_LABELS, LABELS),
        "scores": (LABELS, LABEL_SCORES, LABELS * 2.0 - 1),
        "probabilities": (LABELS, LABEL_PROBABILITIES, LABELS * 1.0),
        "values": (TABLE, PREDICTED_TABLE, TABLE),
    }[metric.needs]
    examples = []
    types = set(metric.competition_types)
    if metric.needs == "values":
        examples += [labels] if metric.name == "mcrmse" else [binary, labels]
    else:
        examples += [binary] if "binary" in types else []
        examples += [classes] if types & {"multiclass", "ordinal"} else []
        examples += [labels] if "multilabel" in types else []
    assert examples
    return [(*example, options) for example in examples]


def best(metric: Metric) -> float:
    return 1.0 if metric.greater_is_better else 0.0


PARAMETERS = pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)


def but(drop: Callable[[Metric], bool]) -> Any:
    kept = [metric for metric in METRICS.values() if not drop(metric)]
    return pytest.mark.parametrize("metric", kept, ids=lambda metric: metric.name)


@but(lambda metric: metric.name == "directional_accuracy")  # (N,) is a series in order of time; (N, H): see below
def test_the_order_of_rows_is_nothing(metric: Metric) -> None:
    order = RNG.permutation(N)
    for y_true, y_pred, _, options in usual(metric):
        assert metric(y_true[order], y_pred[order], **options) == pytest.approx(metric(y_true, y_pred, **options))


def test_the_order_of_forecasts_is_nothing_for_directions() -> None:
    order = RNG.permutation(N)
    shuffled = metrics.directional_accuracy(TABLE[order], PREDICTED_TABLE[order])
    assert shuffled == pytest.approx(metrics.directional_accuracy(TABLE, PREDICTED_TABLE))


@PARAMETERS
def test_a_perfect_prediction_is_best(metric: Metric) -> None:
    for y_true, y_pred, perfect, options in usual(metric):
        value = metric(y_true, perfect, **options)
        assert value == pytest.approx(best(metric), abs=1e-12)
        assert metric.is_better(value, metric(y_true, y_pred, **options))


@PARAMETERS
def test_worse_predictions_score_worse(metric: Metric) -> None:
    """The more predictions are given to other rows, the worse the score: from perfect to useless."""
    for y_true, _, perfect, options in usual(metric):
        values = []
        for share in (0, 0.3, 1):
            moved = np.arange(N) < share * N
            worse = perfect.copy()
            worse[moved] = np.roll(perfect[moved], 7, axis=0)
            values.append(metric(y_true, worse, **options))
        assert metric.is_better(values[0], values[1])
        assert metric.is_better(values[1], values[2])
        assert not metric.is_better(values[2], values[0])


@PARAMETERS
def test_the_direction_is_that_of_the_values(metric: Metric) -> None:
    good, bad = (0.9, 0.2) if metric.greater_is_better else (0.2, 0.9)
    assert metric.is_better(good, bad)
    assert not metric.is_better(bad, good)
    assert not metric.is_better(good, good)
    assert metric.is_better(bad, math.nan)
    assert not metric.is_better(math.nan, bad)
    assert not metric.is_better(math.nan, math.nan)


ERRORS = {
    "log_loss",
    "brier",
    "ece",
    "hamming_loss",
    "mse",
    "rmse",
    "mcrmse",
    "mae",
    "rmsle",
    "mape",
    "smape",
    "mase",
    "pinball",
}


def test_errors_are_lower_is_better_and_all_others_higher() -> None:
    assert {name for name, metric in METRICS.items() if not metric.greater_is_better} == ERRORS


RANKS = [name for name, metric in METRICS.items() if metric.needs == "scores"] + ["spearman", "kendall"]


@pytest.mark.parametrize("name", RANKS)
def test_rank_metrics_look_at_the_order_alone(name: str) -> None:
    metric = METRICS[name]
    for y_true, y_pred, _, options in usual(metric):
        value = metric(y_true, y_pred, **options)
        for moved in (3 * y_pred + 7, np.exp(y_pred / 10)):
            assert metric(y_true, moved, **options) == pytest.approx(value)


@pytest.mark.parametrize("name", ["pearson", "r2", "mape", "smape", "mase", "directional_accuracy"])
def test_units_do_not_matter_to_relative_metrics(name: str) -> None:
    metric = METRICS[name]
    for y_true, y_pred, _, options in usual(metric):
        scaled = {"y_train": 100 * HISTORY} if options else {}
        assert metric(100 * y_true, 100 * y_pred, **scaled) == pytest.approx(metric(y_true, y_pred, **options))


@pytest.mark.parametrize(
    "name", ["mse", "rmse", "mae", "r2", "smape", "pearson", "spearman", "kendall", "mcc", "quadratic_kappa"]
)
def test_symmetric_metrics(name: str) -> None:
    metric = METRICS[name]
    for y_true, y_pred, _, options in usual(metric):
        same = metric(y_pred, y_true, **options) == pytest.approx(metric(y_true, y_pred, **options))
        assert same == (name != "r2")


@PARAMETERS
def test_lists_and_mlx_arrays_are_taken(metric: Metric) -> None:
    for y_true, y_pred, _, options in usual(metric):
        wanted = metric(y_true, y_pred, **options)
        assert metric(y_true.tolist(), y_pred.tolist(), **options) == wanted
        in_float32 = y_pred.astype(np.float32) if y_pred.dtype.kind == "f" else y_pred
        assert metric(mx.array(y_true), mx.array(in_float32), **options) == pytest.approx(wanted, rel=1e-5)


def test_bfloat16_predictions_are_taken() -> None:
    half = mx.softmax(mx.array(CLASS_SCORES).astype(mx.bfloat16), axis=1)
    assert metrics.log_loss(CLASSES, half) == pytest.approx(metrics.log_loss(CLASSES, CLASS_PROBABILITIES), rel=1e-2)


def test_frames_are_taken() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"y": np.where(BITS, "yes", "no"), "p": np.where(GUESSED_BITS, "yes", "no")})
    assert metrics.accuracy(frame["y"], frame["p"]) == pytest.approx((BITS == GUESSED_BITS).mean())
    assert metrics.f1(frame["y"], frame["p"], pos_label="yes") == pytest.approx(sk.f1_score(BITS, GUESSED_BITS))


# --- undefined: nan and one warning with the reason ------------------------------------------------------------------


def warned(name: str, *arguments: Any, **options: Any) -> tuple[Any, str]:
    """Return the value, and the text of the only warning."""
    function = getattr(metrics, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function(*arguments, **options)
    assert [entry.category for entry in caught] == [MetricUndefinedWarning]
    return value, str(caught[0].message)


ONES, ZEROS = np.ones(4, int), np.zeros(4, int)
RAMP = np.array([0.1, 0.2, 0.3, 0.4])
UNDEFINED = [
    ("roc_auc", ONES, RAMP, {}, "y_true has one class, all 1"),
    ("roc_auc", ZEROS, RAMP, {}, "y_true has one class, all 0"),
    ("pr_auc", ZEROS, RAMP, {}, "there is no positive"),
    ("precision", [0, 1, 1, 0], ZEROS, {}, "nothing is predicted positive"),
    ("recall", ZEROS, [0, 1, 1, 0], {}, "there is no positive"),
    ("f1", ZEROS, ZEROS, {}, "there is no positive and none is predicted"),
    ("f1_micro", np.zeros((2, 2), int), np.zeros((2, 2), int), {}, "there is no positive and none is predicted"),
    ("mcc", ONES, [0, 1, 1, 0], {}, "y_true has one class"),
    ("quadratic_kappa", 3 * ONES, 3 * ONES, {}, "y_true and y_pred are all one rating"),
    ("r2", ONES, RAMP, {}, "y_true is constant"),
    ("r2", [1.0], [2.0], {}, "there are fewer than two rows"),
    ("pearson", RAMP, ONES, {}, "y_pred is constant"),
    ("spearman", RAMP, ONES, {}, "y_pred is constant"),
    ("kendall", RAMP, ONES, {}, "y_pred is constant"),
    ("kendall", ONES, RAMP, {}, "y_true is constant"),
    ("pearson", [1.0], [2.0], {}, "there are fewer than two rows"),
    ("rmsle", RAMP, [0.1, -1.0, -5.0, 2.0], {}, "2 of 4 numbers in y_pred are −1 or less"),
    ("mape", [0.0, 1.0, 0.0], [1.0, 1.0, 1.0], {}, "2 of 3 targets are 0"),
    ("mase", RAMP, RAMP, {}, "there is no history to scale by: pass y_train="),
    ("mase", RAMP, RAMP, {"y_train": [1.0, 1.0, 1.0]}, "the history's mean difference over 1 steps is 0"),
    (
        "mase",
        RAMP,
        RAMP,
        {"y_train": RAMP, "seasonality": 4},
        "a history of 4 values has no difference over 4 steps",
    ),
    ("directional_accuracy", [1.0], [2.0], {}, "a single step has no direction: pass last="),
    ("hamming_loss", [[-1, -1]], [[0, 1]], {}, "no label is known"),
]


@pytest.mark.parametrize(("name", "y_true", "y_pred", "options", "why"), UNDEFINED)
def test_undefined_is_nan_and_one_warning(
    name: str, y_true: Any, y_pred: Any, options: dict[str, Any], why: str
) -> None:
    value, message = warned(name, y_true, y_pred, **options)
    assert math.isnan(value)
    assert message == f"{name}: undefined, {why}"


@but(lambda metric: metric.needs == "labels")  # which are whole numbers
def test_a_diverged_run_goes_on(metric: Metric) -> None:
    for y_true, y_pred, _, options in usual(metric):
        for bad in (np.nan, np.inf):
            broken = y_pred.copy()
            broken.flat[3] = bad
            value, message = warned(metric.name, y_true, broken, **options)
            assert math.isnan(value)
            assert message == f"{metric.name}: undefined, 1 of {y_pred.size} numbers in y_pred are not finite"


@PARAMETERS
def test_no_rows_are_undefined(metric: Metric) -> None:
    for y_true, y_pred, _, options in usual(metric):
        value, message = warned(metric.name, y_true[:0], y_pred[:0], **options)
        assert math.isnan(value)
        assert message == f"{metric.name}: undefined, there are no rows"


@PARAMETERS
def test_constant_predictions_and_single_rows_never_stop_a_run(metric: Metric) -> None:
    """The value is always a float, and nan comes with exactly one warning."""
    for y_true, y_pred, perfect, options in usual(metric):
        cases = [
            (y_true, np.full_like(y_pred, 1 / y_pred.shape[-1] if y_pred.ndim > 1 else 1)),
            (y_true[:1], y_pred[:1]),
        ]
        cases.append((np.full_like(y_true, y_true.flat[0]), perfect))
        for rows, constant in cases:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                value = metric(rows, constant, **options)
            assert type(value) is float
            assert {entry.category for entry in caught} <= {MetricUndefinedWarning}
            assert len(caught) <= 1
            assert caught or not math.isnan(value)


def test_an_all_negative_label_is_left_out_of_the_mean_and_named() -> None:
    y_true = LABELS.copy()
    y_true[:, 2] = 0
    rest = [0, 1, 3, 4]
    value, message = warned("roc_auc_macro", y_true, LABEL_SCORES)
    assert value == pytest.approx(sk.roc_auc_score(y_true[:, rest], LABEL_SCORES[:, rest]))
    assert message == "roc_auc_macro: the mean leaves out 1 of 5 columns: column 2 (y_true has one class, all 0)"
    value, message = warned("roc_auc_macro", y_true, LABEL_SCORES, skip_undefined=False)
    assert math.isnan(value)
    assert message.startswith("roc_auc_macro: undefined, as it is in 1 of 5 columns: column 2")
    value, _ = warned("pr_auc_macro", y_true, LABEL_SCORES)
    assert value == pytest.approx(sk.average_precision_score(y_true[:, rest], LABEL_SCORES[:, rest]))
    value, message = warned("roc_auc_macro", np.zeros_like(LABELS), LABEL_SCORES)
    assert math.isnan(value)
    assert "as it is in 5 of 5 columns" in message


def test_per_label_values_are_nan_where_undefined() -> None:
    y_true = LABELS.copy()
    y_true[:, 2] = 0
    for name, score in (("roc_auc_per_label", sk.roc_auc_score), ("pr_auc_per_label", sk.average_precision_score)):
        values, message = warned(name, y_true, LABEL_SCORES)
        assert message.startswith(f"{name}: undefined in 1 of 5 columns: column 2 (")
        assert np.isnan(values).tolist() == [False, False, True, False, False]
        for label in (0, 1, 3, 4):
            assert values[label] == pytest.approx(score(y_true[:, label], LABEL_SCORES[:, label]))
        assert np.allclose(getattr(metrics, name)(LABELS, LABEL_SCORES), score(LABELS, LABEL_SCORES, average=None))
        values, message = warned(name, LABELS, LABEL_SCORES * np.nan)
        assert np.isnan(values).tolist() == [True] * L
        assert message.endswith("300 of 300 numbers in y_pred are not finite")


def test_f1_macro_leaves_out_labels_that_are_neither_there_nor_predicted() -> None:
    y_true = np.array([[1, 0, 0], [0, 1, 0]])
    value, message = warned("f1_macro", y_true, y_true)
    assert value == 1.0
    assert message == "f1_macro: the mean leaves out 1 of 3 columns: column 2 (no positive and none predicted)"
    assert metrics.f1_samples([[0, 0], [1, 0]], [[0, 0], [0, 1]]) == 0.5  # the empty row is right
    assert metrics.f1_samples([[0, 0]], [[0, 0]]) == 1.0
    assert metrics.precision_macro([0, 1, 2], [0, 0, 0]) == pytest.approx(1 / 9)  # never predicted counts 0


def test_a_fold_that_lacks_a_class() -> None:
    lacking = CLASSES != 2
    y_true, scores, probabilities = CLASSES[lacking], CLASS_SCORES[lacking], CLASS_PROBABILITIES[lacking]
    assert metrics.log_loss(y_true, probabilities) == pytest.approx(
        sk.log_loss(y_true, probabilities, labels=range(C))
    )
    assert metrics.top_k_accuracy(y_true, scores, k=2) == pytest.approx(
        sk.top_k_accuracy_score(y_true, scores, k=2, labels=range(C))
    )
    value, message = warned("roc_auc_macro", y_true, scores)
    of_each = [sk.roc_auc_score(y_true == c, scores[:, c]) for c in (0, 1, 3)]
    assert value == pytest.approx(np.mean(of_each))
    assert "leaves out 1 of 4 columns: column 2" in message
    assert metrics.f1_macro(y_true, y_true) == metrics.balanced_accuracy(y_true, y_true) == 1.0
    guesses = GUESSED_CLASSES[lacking]  # predicts the class that is not there: no warning of scikit-learn's either
    assert metrics.balanced_accuracy(y_true, guesses) == pytest.approx(
        np.mean([(guesses[y_true == c] == c).mean() for c in (0, 1, 3)])
    )
    assert 0 < metrics.brier(y_true, probabilities) < 2
    assert 0 < metrics.ece(y_true, probabilities) < 1
    only_one = np.zeros(3, int)
    assert metrics.log_loss(only_one, CLASS_PROBABILITIES[:3]) == pytest.approx(
        -np.log(CLASS_PROBABILITIES[:3, 0]).mean()
    )
    assert metrics.log_loss(only_one, [0.5, 0.5, 0.5]) == pytest.approx(math.log(2))


def test_classes_that_are_names() -> None:
    names = np.array(["ant", "bee", "cat", "dog"])
    value = metrics.log_loss(names[CLASSES], CLASS_PROBABILITIES, labels=names)
    assert value == pytest.approx(metrics.log_loss(CLASSES, CLASS_PROBABILITIES))
    with pytest.raises(HeadError, match=r"log_loss: y_true holds cat, which is no column of y_pred; fix: labels="):
        metrics.log_loss(["cat"], [[0.5, 0.5]], labels=["ant", "bee"])
    with pytest.raises(HeadError, match=r"log_loss: 1 labels for the 2 columns of y_pred"):
        metrics.log_loss(["cat"], [[0.5, 0.5]], labels=["ant"])


@pytest.mark.parametrize("k", [C, C + 1, 100])
def test_k_of_all_classes_is_one_and_says_so(k: int) -> None:
    value, message = warned("top_k_accuracy", CLASSES, CLASS_SCORES, k=k)
    assert value == 1.0
    assert message == f"top_k_accuracy: it is 1 whatever is predicted, as k={k} is not less than the 4 classes"


def test_top_1_of_two_classes_is_the_larger_score() -> None:
    """scikit-learn takes one score a row here, with a threshold of 0 or 0.5 that depends on the range."""
    scores = np.array([[0.0, 0.3], [0.1, 0.4], [0.6, 0.2]])
    assert metrics.top_k_accuracy([1, 1, 0], scores, k=1) == 1.0
    assert metrics.top_k_accuracy([1, 0, 1], scores, k=1) == pytest.approx(1 / 3)


def test_unknown_labels_are_left_out() -> None:
    y_true = LABELS.copy()
    y_true[RNG.random((N, L)) < 0.2] = -1
    known = y_true != -1
    for name, score in (("roc_auc_macro", sk.roc_auc_score), ("pr_auc_macro", sk.average_precision_score)):
        each = [score(y_true[known[:, c], c], LABEL_SCORES[known[:, c], c]) for c in range(L)]
        assert METRICS[name](y_true, LABEL_SCORES) == pytest.approx(np.mean(each))
    each = [sk.f1_score(y_true[known[:, c], c], GUESSED_LABELS[known[:, c], c]) for c in range(L)]
    assert metrics.f1_macro(y_true, GUESSED_LABELS) == pytest.approx(np.mean(each))
    assert metrics.f1_micro(y_true, GUESSED_LABELS) == pytest.approx(sk.f1_score(y_true[known], GUESSED_LABELS[known]))
    assert metrics.hamming_loss(y_true, GUESSED_LABELS) == pytest.approx((y_true != GUESSED_LABELS)[known].mean())
    each = [sk.log_loss(y_true[known[:, c], c], LABEL_PROBABILITIES[known[:, c], c]) for c in range(L)]
    assert metrics.log_loss(y_true, LABEL_PROBABILITIES) == pytest.approx(np.mean(each))
    for name in ("subset_accuracy", "f1_samples"):
        with pytest.raises(HeadError, match=rf"{name} compares whole rows, and y_true has unknown labels \(-1\)"):
            METRICS[name](y_true, GUESSED_LABELS)


def test_kappa_counts_a_rating_that_nobody_gave() -> None:
    y_true, y_pred = np.array([1, 2, 4, 5, 2]), np.array([2, 2, 5, 4, 1])  # no 3 on either side
    wanted = kappa_formula(y_true, y_pred, [1, 2, 3, 4, 5])
    assert metrics.quadratic_kappa(y_true, y_pred) == pytest.approx(wanted)
    assert metrics.quadratic_kappa(y_true, y_pred, labels=[1, 2, 3, 4, 5]) == pytest.approx(wanted)
    without = sk.cohen_kappa_score(y_true, y_pred, weights="quadratic")  # 2 and 4 are neighbours to it
    assert abs(without - wanted) > 0.01
    names = np.array(["", "bad", "poor", "fair", "good", "best"])
    order = ["bad", "poor", "fair", "good", "best"]
    assert metrics.quadratic_kappa(names[y_true], names[y_pred], labels=order) == pytest.approx(wanted)
    with pytest.raises(HeadError, match="ratings that are not numbers have no order; fix: labels=, lowest first"):
        metrics.quadratic_kappa(names[y_true], names[y_pred])
    with pytest.raises(HeadError, match=r"quadratic_kappa: rating 5 is not among labels=\[1, 2, 3, 4\]"):
        metrics.quadratic_kappa(y_true, y_pred, labels=[1, 2, 3, 4])


def test_a_probability_on_an_edge_is_in_the_lower_bin() -> None:
    """Bins are (low, high]: 0.5 is in the bin of 0.2, and their errors +0.5 and −0.2 cancel in part."""
    assert metrics.ece([1, 0], [0.5, 0.2], n_bins=2) == pytest.approx(0.15)
    assert metrics.ece([1, 0, 0], [1.0, 0.0, 0.0], n_bins=2) == 0


def test_a_label_that_is_known_in_no_row_is_left_out() -> None:
    y_true = LABELS.copy()
    y_true[:, 0] = -1
    value, message = warned("log_loss", y_true, LABEL_PROBABILITIES)
    assert value == pytest.approx(columns(sk.log_loss)(LABELS[:, 1:], LABEL_PROBABILITIES[:, 1:]))
    assert message == "log_loss: the mean leaves out 1 of 5 columns: column 0 (there are no rows)"


def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(MetricUndefinedWarning) as caught:
        metrics.roc_auc(ONES, RAMP)
    assert caught[0].filename == __file__


def test_a_nan_that_nobody_foresaw_tells_what_the_library_said() -> None:
    from heads.metric_definition import framed

    @framed("values", "rows")
    def odd(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        warnings.warn("the third moment is zero", RuntimeWarning, stacklevel=1)
        return math.nan

    with pytest.warns(MetricUndefinedWarning) as caught:
        assert math.isnan(odd(RAMP, RAMP))
    assert [str(entry.message) for entry in caught] == ["odd: undefined, the third moment is zero"]


def test_deprecations_of_others_are_not_swallowed() -> None:
    from heads.metric_definition import framed

    @framed("values", "rows")
    def ageing(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        warnings.warn("soon gone", FutureWarning, stacklevel=1)
        return 1.0

    with pytest.warns(FutureWarning, match="soon gone"):
        assert ageing(RAMP, RAMP) == 1.0


# --- refusals ----------------------------------------------------------------------------------------------------


@PARAMETERS
def test_a_column_against_a_row_is_refused(metric: Metric) -> None:
    for y_true, y_pred, _, options in usual(metric):
        if y_true.ndim == 1:
            column = y_pred[:, :1] if y_pred.ndim == 2 else y_pred[:, None]
            for pair in ((y_true, column), (y_true[:, None], column[:, 0])):
                with pytest.raises(
                    HeadError, match=rf"^{metric.name}: y_true \(60,.*\) and y_pred \(60,.*\) must be "
                ) as caught:
                    metric(*pair, **options)
                assert "\n" not in str(caught.value)
        with pytest.raises(HeadError, match=f"^{metric.name}: y_true"):
            metric(y_true, y_pred[:-1], **options)


def test_the_refusal_names_the_fix() -> None:
    with pytest.raises(HeadError) as caught:
        metrics.rmse(VALUES, PREDICTED[:, None])
    assert str(caught.value) == (
        "rmse: y_true (60,) and y_pred (60, 1) must be one shape, (N,) or (N, L); fix: ravel y_pred"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.log_loss(BITS, SCORES), "log_loss needs probabilities, and y_pred goes from "),
        (lambda: metrics.log_loss([0], [[0.5, 0.9]]), "log_loss needs probabilities, and a row of y_pred sums to 1.4"),
        (
            lambda: metrics.accuracy(BITS, PROBABILITIES),
            "accuracy compares labels, and y_pred holds fractions; fix: thr",
        ),
        (lambda: metrics.f1(RATINGS, RATINGS), "f1: y_true holds other labels than 0 and 1; fix: pos_label="),
        (
            lambda: metrics.f1(RATINGS, RATINGS, pos_label=1),
            "f1: y_true holds 5 classes, not two; fix: a macro metric",
        ),
        (lambda: metrics.roc_auc([-1, 1], [0, 1]), "roc_auc: y_true holds other labels than 0 and 1; fix: pos_label="),
        (lambda: metrics.f1_macro([[2, 0]], [[1, 0]]), "f1_macro: y_true (1, 2) holds other labels than 0 and 1"),
        (lambda: metrics.rmse(["a"], [1.0]), "rmse needs numbers, and y_true is <U1"),
        (lambda: metrics.accuracy(["a", None], ["a", "a"]), "accuracy: y_true holds missing or mixed values"),
        (lambda: metrics.pinball(RAMP, RAMP, quantile=2), "pinball: quantile=2; fix: a number in (0, 1)"),
        (lambda: metrics.ece([1], [0.5], n_bins=0), "ece: n_bins=0; fix: 1 or more"),
        (lambda: metrics.top_k_accuracy(CLASSES, CLASS_SCORES, k=0), "top_k_accuracy: k=0; fix: 1 or more"),
        (
            lambda: metrics.top_k_accuracy(LABELS, LABEL_SCORES),
            "top_k_accuracy: y_true (N, L) has several labels a row",
        ),
        (lambda: metrics.mase(RAMP, RAMP, y_train=RAMP, seasonality=0), "mase: seasonality=0; fix: 1 or more steps"),
        (lambda: metrics.mase(RAMP, RAMP, y_train=[RAMP]), "mase: y_train has shape (1, 4); fix: (T,), one series"),
        (
            lambda: metrics.directional_accuracy(RAMP, RAMP, last=RAMP),
            "directional_accuracy: last has shape (4,); fix: one value a series",
        ),
        (
            lambda: metrics.accuracy_within_one(["a"], ["b"]),
            "accuracy_within_one needs ratings that are whole numbers",
        ),
    ],
)
def test_wrong_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(HeadError) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_lookup() -> None:
    assert get_metric("f1_macro") is METRICS["f1_macro"]
    with pytest.raises(HeadError) as caught:
        get_metric("roc_auk")
    assert str(caught.value).startswith("there is no metric named 'roc_auk': did you mean 'roc_auc'")
    for name in ("quadratic_kappa", "accuracy_within_one", "kendall"):
        assert metric_of(name, "ordinal") is METRICS[name]
    for kind in ("binary", "multiclass", "multilabel", "regression", "ordinal", "time_series"):
        with pytest.raises(HeadError, match=f"metric '.*' is not for {kind}; fix: one of [a-z]"):
            metric_of("hamming_loss" if kind != "multilabel" else "rmse", kind)
    fitting = ", ".join(sorted(name for name in METRICS if "ordinal" in METRICS[name].competition_types))
    with pytest.raises(HeadError, match=f"metric 'rmsle' is not for ordinal; fix: one of {fitting}$"):
        metric_of("rmsle", "ordinal")


def test_the_table_is_read_without_importing_scikit_learn() -> None:
    """A checkpoint loads and predicts where scikit-learn is not installed; the first metric asks for it."""
    code = (
        "import sys; from heads.metrics import METRICS; assert METRICS; assert 'sklearn' not in sys.modules\n"
        "sys.modules['sklearn'] = None\n"
        "try: METRICS['accuracy']([1], [1])\n"
        "except ValueError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"metrics need scikit-learn and scipy; fix: {install_fix('kaggle')}\n"


def test_labels_of_two_kinds_are_refused() -> None:
    with pytest.raises(HeadError, match=r"accuracy: y_true holds <U1 and y_pred int64; fix: labels of one kind"):
        METRICS["accuracy"](["a", "b"], [1, 0])
