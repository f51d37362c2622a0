"""Classifiers, beyond the checks of every head: calibration, thresholds, weights, labels."""

from __future__ import annotations

import warnings
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, log_loss

from heads.base import Head
from heads.binary import BinaryClassificationHead
from heads.calibration import HIGHEST, LOWEST, fit_temperature
from heads.errors import HeadError
from heads.multiclass import MulticlassClassificationHead
from heads.multilabel import MultilabelClassificationHead, ThresholdWarning

RNG = np.random.default_rng(5)


def test_the_temperature_undoes_overconfidence() -> None:
    """Return labels drawn from σ(z) and logits 4 z: the right temperature is 4."""
    z = RNG.normal(size=20_000) * 2
    labels = (RNG.random(20_000) < scipy.special.expit(z)).astype(int)
    head = BinaryClassificationHead(8)
    logits = mx.array(4 * z[:, None])
    head.calibrate(logits, labels)
    # The maximum-likelihood scale of another program.
    slope = LogisticRegression(C=np.inf, fit_intercept=False).fit(4 * z[:, None], labels).coef_[0, 0]
    assert np.isclose(head.temperature, 1 / slope, rtol=1e-4)
    assert 3.7 < head.temperature < 4.3
    assert np.allclose(head.predict(logits), scipy.special.expit(4 * z / head.temperature), atol=1e-6)


def test_a_multiclass_temperature_never_makes_log_loss_worse_nor_changes_a_decision() -> None:
    z = RNG.normal(size=(2000, 4))
    labels = np.array([RNG.choice(4, p=row) for row in scipy.special.softmax(z, axis=1)])
    head = MulticlassClassificationHead(8, classes=range(4))
    for scale in (0.3, 1.0, 5.0):
        logits, head.temperature = mx.array(scale * z), 1.0
        before, decided = log_loss(labels, head.predict(logits)), head.decide(logits)
        head.calibrate(logits, labels)
        assert np.isclose(head.temperature, scale, rtol=0.15)
        assert log_loss(labels, head.predict(logits)) <= before + 1e-12
        assert np.array_equal(decided, head.decide(logits))


@pytest.mark.parametrize(("labels", "limit"), [([0, 0, 1, 1], LOWEST), ([1, 1, 0, 0], HIGHEST)])
def test_the_temperature_stays_above_zero_and_finite_where_all_is_right_or_wrong(
    labels: list[int], limit: float
) -> None:
    head = BinaryClassificationHead(8)
    head.calibrate(mx.array([[-3.0], [-1.0], [1.0], [3.0]]), labels)
    assert np.isclose(head.temperature, limit, rtol=1e-3)
    assert np.isfinite(head.predict(mx.array([[1e4], [-1e4]]))).all()


def test_a_temperature_that_cannot_be_fitted() -> None:
    with pytest.raises(HeadError, match="binary: a temperature cannot be fitted on no rows"):
        fit_temperature(np.zeros(0), lambda z: 0.0, "binary")
    with pytest.raises(HeadError, match="on logits that are not finite; fix: give held-out logits"):
        BinaryClassificationHead(8).calibrate(mx.array([[np.nan], [1.0]]), [0, 1])
    head = BinaryClassificationHead(8)
    head.temperature = 0.0
    with pytest.raises(HeadError, match=r"temperature is 0\.0; fix: a number in \(0, inf\)"):
        head.predict(mx.zeros((1, 1)))
    with pytest.raises(HeadError, match="2 rows of logits, 3 of targets"):
        head.calibrate(mx.zeros((2, 1)), [0, 1, 1])


def test_the_threshold_is_the_best_there_is_for_the_metric() -> None:
    labels = (RNG.random(300) < 0.1).astype(int)
    logits = mx.array((2 * labels + RNG.normal(size=300))[:, None])
    head = BinaryClassificationHead(8)
    head.calibrate(logits, labels, metric="f1")
    probabilities = head.predict(logits)
    best = max(f1_score(labels, probabilities >= t) for t in np.unique(probabilities))
    assert np.isclose(f1_score(labels, head.decide(logits)), best)
    assert best > f1_score(labels, probabilities >= 0.5)
    head.calibrate(logits, labels, metric="mcc")
    assert 0 < head.threshold < 1


def test_metrics_without_a_threshold_are_refused() -> None:
    logits, labels = mx.array([[1.0], [2.0]]), [0, 1]
    head = BinaryClassificationHead(8)
    with pytest.raises(HeadError, match=r"roc_auc reads \w+, so no threshold changes it; fix: a metric of labels"):
        head.calibrate(logits, labels, metric="roc_auc")
    with pytest.raises(HeadError, match="there is no metric named 'f_1': did you mean 'f1'"):
        head.calibrate(logits, labels, metric="f_1")


def test_each_label_has_its_own_threshold_and_one_that_cannot_be_learned_is_named() -> None:
    truth = np.stack([RNG.random(400) < p for p in (0.05, 0.5, 0.3)], axis=1).astype(int)
    logits = 2.0 * truth + RNG.normal(size=truth.shape) - [2.0, 0.0, -2.0]
    truth = np.concatenate([truth, np.zeros((400, 1), int)], axis=1)  # no positive row
    logits = np.concatenate([logits, RNG.normal(size=(400, 1))], axis=1)
    truth[:50, 2] = -1
    head = MultilabelClassificationHead(8, classes=("rare", "even", "shifted", "never"))
    with pytest.warns(ThresholdWarning, match="multilabel: the held-out rows of 'never' are all of one kind"):
        head.calibrate(mx.array(logits), truth, metric="f1")
    assert head.thresholds[3] == 0.5
    assert head.thresholds[0] < 0.5 < head.thresholds[2]
    decided = head.decide(mx.array(logits))
    for column in range(3):
        known = truth[:, column] >= 0
        probabilities = scipy.special.expit(logits[known, column])
        best = max(f1_score(truth[known, column], probabilities >= t) for t in np.unique(probabilities))
        assert np.isclose(f1_score(truth[known, column], decided[known, column]), best, atol=1e-3)


def test_unknown_multilabel_entries_change_nothing() -> None:
    head = MultilabelClassificationHead(8, classes=range(3))
    logits = mx.random.normal((2, 3))
    with_nan = head.loss(logits, head.encode_targets([[1, -1, 0], [0, np.nan, 1]]))
    other = mx.array(logits)
    other[:, 1] = 50.0
    assert head.loss(other, head.encode_targets([[1, -1, 0], [0, -1, 1]])).item() == with_nan.item()


def _value(head: Head, logits: Any, targets: Any) -> float:
    return float(head.loss(mx.array(logits), head.encode_targets(targets)).item())


def test_balanced_weights_are_those_of_the_training_fold() -> None:
    binary = BinaryClassificationHead.from_targets(8, [0, 0, 0, 1], pos_weight="balanced")
    assert binary.fitted_pos_weight == 3.0
    multiclass = MulticlassClassificationHead.from_targets(
        8, ["a", "a", "a", "b"], classes=("a", "b", "c"), class_weights="balanced"
    )
    assert multiclass.fitted_class_weights == pytest.approx((4 / 9, 4 / 3, 1.0))
    multilabel = MultilabelClassificationHead.from_targets(8, [[0, 1], [0, 1], [1, -1]], pos_weight="balanced")
    assert multilabel.fitted_pos_weight == (2.0, 1.0)
    for head, logits, targets in (
        (BinaryClassificationHead(8, pos_weight="balanced"), [[1.0]], [1]),
        (MulticlassClassificationHead(8, classes="ab", class_weights="balanced"), [[1.0, 0.0]], ["a"]),
        (MultilabelClassificationHead(8, classes="a", pos_weight="balanced"), [[1.0]], [[1]]),
    ):
        with pytest.raises(HeadError, match=r"='balanced' (is|are) unknown yet; fix: fit_targets\(training labels\)"):
            _value(head, logits, targets)
    with pytest.raises(HeadError, match="needs rows of both classes in the training fold"):
        BinaryClassificationHead(8, pos_weight="balanced").fit_targets([1, 1])


def test_objectives_are_the_ones_of_torch() -> None:
    torch = pytest.importorskip("torch")
    logits = RNG.normal(size=(6, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 2, 1, 0])
    head = MulticlassClassificationHead(8, classes=range(3), class_weights=(1, 2, 5), label_smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(labels), weight=torch.tensor([1.0, 2.0, 5.0]), label_smoothing=0.1
    )
    assert np.isclose(_value(head, logits, labels), expected.item(), rtol=1e-6)
    binary = BinaryClassificationHead(8, pos_weight=3.0)
    targets = (labels > 0).astype(np.float32)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits[:, 0]), torch.tensor(targets), pos_weight=torch.tensor(3.0)
    )
    assert np.isclose(_value(binary, logits[:, :1], targets), expected.item(), rtol=1e-6)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        (BinaryClassificationHead, {"objective": "focal", "gamma": 1.0, "alpha": 0.5}),
        (MulticlassClassificationHead, {"objective": "focal", "gamma": 1.0, "classes": (0, 1)}),
        (MultilabelClassificationHead, {"objective": "focal", "gamma": 1.0, "classes": (0, 1)}),
        (MultilabelClassificationHead, {"objective": "asymmetric", "gamma_neg": 3.0, "clip": 0.0, "classes": (0, 1)}),
        (MultilabelClassificationHead, {"label_smoothing": 0.1, "pos_weight": (2.0, 3.0), "classes": (0, 1)}),
        (BinaryClassificationHead, {"label_smoothing": 0.1, "pos_weight": 2.0}),
    ],
)
def test_every_objective_has_an_effect_of_its_own(head: type[Any], options: dict[str, Any]) -> None:
    plain = head(8, **{key: value for key, value in options.items() if key == "classes"})
    chosen = head(8, **options)
    logits = RNG.normal(size=(4, plain.num_outputs))
    targets: Any = [[0, 1], [1, 0], [1, 1], [0, 0]] if head is MultilabelClassificationHead else [0, 1, 1, 0]
    assert np.isfinite(_value(chosen, logits, targets))
    assert abs(_value(chosen, logits, targets) - _value(plain, logits, targets)) > 1e-3
    for name, value in options.items():
        assert getattr(chosen, name) == value
        assert chosen.settings()["arguments"][name] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (BinaryClassificationHead, {"objective": "hinge"}, "objective 'hinge' is unknown; known: bce, focal"),
        (
            BinaryClassificationHead,
            {"gamma": 2.0},
            "gamma has no effect with objective='bce'; fix: use objective='focal', or leave it out",
        ),
        (BinaryClassificationHead, {"objective": "focal", "pos_weight": 2.0}, "pos_weight has no effect with"),
        (BinaryClassificationHead, {"pos_weight": "auto"}, "pos_weight must be a number or 'balanced', not 'auto'"),
        (BinaryClassificationHead, {"classes": "abc"}, "3 classes given; fix: two, or the multiclass head for more"),
        (BinaryClassificationHead, {"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        (BinaryClassificationHead, {"dropout_samples": 0}, "dropout_samples must be a positive whole number"),
        (MulticlassClassificationHead, {"classes": "aba"}, "class 'a' is given twice"),
        (MulticlassClassificationHead, {"classes": "a"}, r"1 class\(es\) given; at least 2 are needed"),
        (MulticlassClassificationHead, {"classes": (0, None)}, "class None is neither a string nor a number"),
        (
            MulticlassClassificationHead,
            {"classes": "ab", "class_weights": (1, 2, 3)},
            "class_weights has 3 numbers for 2 outputs; fix: one for each, in their order",
        ),
        (
            MulticlassClassificationHead,
            {"classes": "ab", "class_weights": (1, -2)},
            r"is -2; fix: a number in \[0, inf\]",
        ),
        (MultilabelClassificationHead, {"classes": "ab", "clip": 0.1}, "use objective='asymmetric', or leave it out"),
    ],
)
def test_mistakes_in_the_constructor(head: type[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        head(8, **options)


@pytest.mark.parametrize(
    ("head", "targets", "message"),
    [
        (
            BinaryClassificationHead(8),
            [0, 1, 2],
            "binary: row 2 has label 2, which is not one of the classes 0, 1; fix",
        ),
        (BinaryClassificationHead(8), [0, None, 1], r"binary: row 1 has no label \(None\); fix: drop rows without"),
        (BinaryClassificationHead(8), [0.0, np.nan], r"binary: row 1 has no label \(nan\)"),
        (BinaryClassificationHead(8), [[0], [1]], r"targets have shape \(2, 1\); expected one label a row, \(N,\)"),
        (MultilabelClassificationHead(8, classes="ab"), [0, 1], r"targets have shape \(2,\); expected \(N, 2\)"),
        (
            MultilabelClassificationHead(8, classes="ab"),
            [[0, 1], [0, 3]],
            "row 1, label 'b' is 3.0; expected 0, 1, or",
        ),
    ],
)
def test_mistakes_in_the_targets(head: Head, targets: Any, message: str) -> None:
    with pytest.raises(HeadError, match=message):
        head.encode_targets(targets)


def test_shapes_that_would_broadcast_are_refused() -> None:
    head = BinaryClassificationHead(8)
    with pytest.raises(HeadError):
        head.loss(mx.zeros((4, 1)), mx.zeros((4, 1)))
    with pytest.raises(HeadError, match=r"rows has shape \(3,\); expected \(4,\), one a row"):
        head.loss(mx.zeros((4, 1)), mx.zeros((4,)), rows=[1, 1, 0])


def test_labels_come_back_as_the_users_own() -> None:
    head = BinaryClassificationHead.from_targets(8, np.array(["spam", "ham", "spam"]))
    assert head.classes == ("ham", "spam")
    assert head.decide(mx.array([[3.0], [-3.0]])).tolist() == ["spam", "ham"]
    many = MulticlassClassificationHead.from_targets(8, [10, 30, 20])
    assert many.decide(mx.array([[0.0, 9.0, 1.0]])).tolist() == [20]
    labels, probabilities = many.top_k(mx.array([[0.0, 9.0, 1.0]]), 2)
    assert labels.tolist() == [[20, 30]]
    assert probabilities[0, 0] > probabilities[0, 1] > 0
    for k in (0, 4):
        with pytest.raises(HeadError, match=f"top_k with k={k}; fix: between 1 and the 3 classes"):
            many.top_k(mx.zeros((1, 3)), k)
    with pytest.raises(HeadError, match="the targets have 1 class; a classifier needs at least two"):
        BinaryClassificationHead.from_targets(8, [1, 1])
    with pytest.raises(HeadError, match="the labels mix int and str; fix: make them one type"):
        MulticlassClassificationHead.from_targets(8, np.array([1, "a"], dtype=object))


def test_a_frames_columns_name_the_labels() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"toxic": [0, 1], "threat": [1, 0]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = MultilabelClassificationHead.from_targets(8, frame)
    assert head.classes == ("toxic", "threat")


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "f1", "mcc"])
def test_thresholds_from_counts_are_those_from_labels(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from heads import calibration as thresholds
    from heads.metrics import get_metric

    rng = np.random.default_rng(1)
    for rows, share in ((6, 0.5), (40, 0.1), (300, 0.4)):
        probabilities, truth = rng.random(rows).round(2), np.zeros(rows, np.int32)
        truth[: max(1, int(share * rows))] = 1
        candidates = thresholds._candidates(probabilities)
        score = get_metric(metric).function
        slow = [score(truth, (probabilities >= t).astype(np.int32)) for t in candidates]
        np.testing.assert_allclose(thresholds._of_counts(metric, probabilities, truth, candidates), slow, atol=1e-12)
        fast = thresholds.best_threshold(probabilities, truth, metric, "head")
        with monkeypatch.context() as patch:
            patch.setattr(thresholds, "_OF_COUNTS", {})
            assert thresholds.best_threshold(probabilities, truth, metric, "head") == fast
