"""Compare every loss with the implementation that it names, and its gradients with torch.autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import heads.losses as losses
from heads.errors import HeadError

torch = pytest.importorskip("torch")
F = torch.nn.functional

N, L, C, K = 24, 5, 4, 5
RNG = np.random.default_rng(7)
LOGITS_1 = RNG.normal(0, 2, N).astype(np.float32)
LOGITS_2 = RNG.normal(0, 2, (N, L)).astype(np.float32)
BITS_1 = (RNG.random(N) < 0.4).astype(np.int32)
BITS_2 = (RNG.random((N, L)) < 0.4).astype(np.int32)
MASKED_BITS = np.where(RNG.random((N, L)) < 0.3, -1, BITS_2).astype(np.int32)
SOFT_BITS = RNG.random((N, L)).astype(np.float32)
POS_WEIGHT = np.array([0.5, 1, 2, 5, 9], np.float32)
WEIGHT = RNG.random((N, L)).astype(np.float32)
CLASS_LOGITS = RNG.normal(0, 2, (N, C)).astype(np.float32)
CLASSES = RNG.integers(0, C, N).astype(np.int32)
SOME_IGNORED = np.where(np.arange(N) % 3 == 1, -100, CLASSES).astype(np.int32)
CLASS_WEIGHT = np.array([0.2, 1, 3, 0.7], np.float32)
TOKEN_LOGITS = RNG.normal(0, 2, (3, 8, C)).astype(np.float32)
TOKEN_LABELS = np.where(RNG.random((3, 8)) < 0.4, -100, RNG.integers(0, C, (3, 8))).astype(np.int32)
VALUES = RNG.normal(0, 3, N).astype(np.float32)
PREDICTED = RNG.normal(0, 3, N).astype(np.float32)
VARIANCE = np.concatenate([RNG.random(N - 3) * 4, [1e-9, 0, 1e-7]]).astype(np.float32)
ORDINAL_LOGITS = RNG.normal(0, 2, (N, K - 1)).astype(np.float32)
RATINGS = RNG.integers(0, K, N).astype(np.int32)
RATINGS_IGNORED = np.where(np.arange(N) % 4 == 2, -100, RATINGS).astype(np.int32)
THRESHOLDS = np.array([-2.0, -0.5, 0.1, 1.7], np.float32)


def bce_masked(logits: Any, targets: Any, **options: Any) -> Any:
    keep = targets != -1
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none", **options) * keep, keep.sum()


def focal_formula(z: Any, y: Any, alpha: float | None = 0.25, gamma: float = 2.0) -> Any:
    """Return the formula in torchvision's documentation: α_t (1 − p_t)^γ BCE."""
    p = torch.sigmoid(z)
    p_t = p * y + (1 - p) * (1 - y)
    loss = F.binary_cross_entropy_with_logits(z, y, reduction="none") * (1 - p_t) ** gamma
    return loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss


def asl_formula(z: Any, y: Any, gamma_neg: float = 4, gamma_pos: float = 0, clip: float = 0.05) -> Any:
    """Return equations 4 to 6 of Ridnik et al. 2020."""
    p = torch.sigmoid(z)
    shifted = (p - clip).clamp(min=0)
    return -(y * (1 - p) ** gamma_pos * torch.log(p) + (1 - y) * shifted**gamma_neg * torch.log(1 - shifted))


def softmax_focal_formula(z: Any, y: Any, gamma: float = 2.0, weight: Any = None) -> Any:
    keep = y != -100
    y = torch.where(keep, y, 0)
    p = torch.softmax(z, -1).gather(-1, y[..., None])[..., 0]
    row = keep * (torch.ones_like(p) if weight is None else weight.to(p)[y])
    return row * (1 - p) ** gamma * -torch.log(p), row.sum()


def coral_formula(z: Any, y: Any, importance: Any = None) -> Any:
    """Return the loss of coral-pytorch: binary cross-entropy of "above k", summed over k."""
    keep = y != -100
    levels = (y[:, None] > torch.arange(z.shape[1])).to(z)
    terms = F.logsigmoid(z) * levels + (F.logsigmoid(z) - z) * (1 - levels)
    terms = terms if importance is None else terms * importance.to(z)
    return -terms.sum(1) * keep, keep.sum()


def corn_formula(z: Any, y: Any) -> Any:
    """Return the loss of coral-pytorch 1.4: question k for rows with y > k − 1, and the number of questions."""
    rows, asked = torch.zeros_like(z[:, 0]), 0
    for k in range(z.shape[1]):
        mask = y > k - 1
        asked += int(mask.sum())
        label = (y > k).to(z)
        rows = rows - mask * (F.logsigmoid(z[:, k]) * label + (F.logsigmoid(z[:, k]) - z[:, k]) * (1 - label))
    return rows, asked


def cumulative_formula(scores: Any, thresholds: Any, y: Any) -> Any:
    keep = y != -100
    infinity = torch.full((1,), math.inf, dtype=thresholds.dtype)
    bounds = torch.cat([-infinity, thresholds, infinity])
    y = torch.where(keep, y, 0)
    upper, lower = torch.sigmoid(bounds[y + 1] - scores), torch.sigmoid(bounds[y] - scores)
    return -torch.log(upper - lower) * keep, keep.sum()


@dataclass(frozen=True)
class Case:
    """Our loss and its reference, on the same inputs; the first `trained` inputs get gradients."""

    name: str
    ours: Callable[..., mx.array]
    reference: Callable[..., Any]  # unreduced losses, or (losses, what their mean divides by)
    inputs: tuple[np.ndarray, ...]
    trained: int = 1
    options: dict[str, Any] = field(default_factory=dict)


def tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def unreduced(function: Callable[..., Any]) -> Callable[..., Any]:
    return partial(function, reduction="none")


def smoothed_bits(z: Any, y: Any, eps: float) -> Any:
    return F.binary_cross_entropy_with_logits(z, y * (1 - eps) + eps / 2, reduction="none")


BCE = unreduced(F.binary_cross_entropy_with_logits)


def torch_ce(z: Any, y: Any, weight: Any = None, label_smoothing: float = 0.0) -> Any:
    """Return torch's cross-entropy, and the divisor of its mean."""
    weight = None if weight is None else weight.to(z)
    options = {"weight": weight, "label_smoothing": label_smoothing}
    # torch takes classes as the second axis: (B, C, …)
    rows = F.cross_entropy(z.movedim(-1, 1), y, reduction="none", **options)
    mean = F.cross_entropy(z.movedim(-1, 1), y, reduction="mean", **options)
    return rows, rows.detach().sum() / mean.detach()


CASES = [
    Case("bce", losses.bce_with_logits, BCE, (LOGITS_1, BITS_1)),
    Case("bce multilabel", losses.bce_with_logits, BCE, (LOGITS_2, BITS_2)),
    Case("bce soft", losses.bce_with_logits, BCE, (LOGITS_2, SOFT_BITS)),
    Case(
        "bce pos_weight and weight",
        losses.bce_with_logits,
        lambda z, y, pos_weight, weight: BCE(z, y, pos_weight=pos_weight.to(z), weight=weight.to(z)),
        (LOGITS_2, SOFT_BITS),
        options={"pos_weight": POS_WEIGHT, "weight": WEIGHT},
    ),
    Case(
        "bce one pos_weight",
        losses.bce_with_logits,
        lambda z, y, pos_weight: BCE(z, y, pos_weight=torch.tensor(pos_weight).to(z)),
        (LOGITS_1, BITS_1),
        options={"pos_weight": 3.5},
    ),
    Case(
        "bce smoothed",
        losses.bce_with_logits,
        lambda z, y, label_smoothing: smoothed_bits(z, y, label_smoothing),
        (LOGITS_2, BITS_2),
        options={"label_smoothing": 0.1},
    ),
    Case(
        "bce masked",
        losses.bce_with_logits,
        lambda z, y, ignore_index: bce_masked(z, y),
        (LOGITS_2, MASKED_BITS),
        options={"ignore_index": -1},
    ),
    Case("sigmoid focal", losses.sigmoid_focal, focal_formula, (LOGITS_2, BITS_2)),
    Case("sigmoid focal soft", losses.sigmoid_focal, focal_formula, (LOGITS_2, SOFT_BITS)),
    Case("focal γ 0.5", losses.sigmoid_focal, focal_formula, (LOGITS_1, BITS_1), options={"gamma": 0.5, "alpha": 0.9}),
    Case("focal γ 0", losses.sigmoid_focal, focal_formula, (LOGITS_1, BITS_1), options={"gamma": 0.0, "alpha": None}),
    Case("asl", losses.asymmetric, asl_formula, (LOGITS_2, BITS_2)),
    Case(
        "asl with γ₊",
        losses.asymmetric,
        asl_formula,
        (LOGITS_2, BITS_2),
        options={"gamma_neg": 3.0, "gamma_pos": 1.0, "clip": 0.2},
    ),
    Case(
        "asl no clip",
        losses.asymmetric,
        asl_formula,
        (LOGITS_2, BITS_2),
        options={"gamma_neg": 2.0, "gamma_pos": 0.5, "clip": 0.0},
    ),
    Case("ce", losses.cross_entropy, torch_ce, (CLASS_LOGITS, CLASSES)),
    Case("ce −100", losses.cross_entropy, torch_ce, (CLASS_LOGITS, SOME_IGNORED)),
    Case("ce weight", losses.cross_entropy, torch_ce, (CLASS_LOGITS, CLASSES), options={"weight": CLASS_WEIGHT}),
    Case("ce smooth", losses.cross_entropy, torch_ce, (CLASS_LOGITS, CLASSES), options={"label_smoothing": 0.1}),
    Case(
        "ce weight, smooth, −100",
        losses.cross_entropy,
        torch_ce,
        (CLASS_LOGITS, SOME_IGNORED),
        options={"weight": CLASS_WEIGHT, "label_smoothing": 0.2},
    ),
    Case(
        "ce of tokens",
        losses.cross_entropy,
        torch_ce,
        (TOKEN_LOGITS, TOKEN_LABELS),
        options={"weight": CLASS_WEIGHT, "label_smoothing": 0.2},
    ),
    Case("softmax focal", losses.softmax_focal, softmax_focal_formula, (CLASS_LOGITS, CLASSES)),
    Case(
        "softmax focal weight, −100",
        losses.softmax_focal,
        softmax_focal_formula,
        (CLASS_LOGITS, SOME_IGNORED),
        options={"weight": CLASS_WEIGHT, "gamma": 0.5},
    ),
    Case(
        "softmax focal γ 0 is ce",
        losses.softmax_focal,
        lambda z, y, gamma: torch_ce(z, y),
        (CLASS_LOGITS, SOME_IGNORED),
        options={"gamma": 0.0},
    ),
    Case("mse", losses.mse, unreduced(F.mse_loss), (PREDICTED, VALUES), 2),
    Case("mae", losses.mae, unreduced(F.l1_loss), (PREDICTED, VALUES), 2),
    Case("huber", losses.huber, unreduced(F.huber_loss), (PREDICTED, VALUES), 2),
    Case("huber δ", losses.huber, unreduced(F.huber_loss), (PREDICTED, VALUES), 2, {"delta": 2.5}),
    Case(
        "gaussian",
        losses.gaussian_nll,
        lambda mean, var, y: F.gaussian_nll_loss(mean, y, var, reduction="none"),
        (PREDICTED, np.maximum(VARIANCE, 1e-2), VALUES),
        3,
    ),
    Case(
        "gaussian full",
        losses.gaussian_nll,
        lambda mean, var, y, full, eps: F.gaussian_nll_loss(mean, y, var, full=full, eps=eps, reduction="none"),
        (PREDICTED, VARIANCE, VALUES),
        3,
        {"full": True, "eps": 0.5},
    ),
    Case(
        "pinball",
        losses.pinball,
        lambda p, y, quantile: torch.maximum(quantile * (y - p), (quantile - 1) * (y - p)),
        (PREDICTED, VALUES),
        2,
        {"quantile": 0.8},
    ),
    Case("coral", losses.coral, coral_formula, (ORDINAL_LOGITS, RATINGS)),
    Case(
        "coral importance, −100",
        losses.coral,
        coral_formula,
        (ORDINAL_LOGITS, RATINGS_IGNORED),
        options={"importance": np.array([1, 2, 0.5, 3], np.float32)},
    ),
    Case("corn", losses.corn, corn_formula, (ORDINAL_LOGITS, RATINGS)),
    Case("corn −100", losses.corn, corn_formula, (ORDINAL_LOGITS, RATINGS_IGNORED)),
    Case("cumulative", losses.cumulative_link, cumulative_formula, (VALUES, THRESHOLDS, RATINGS), 2),
    Case("cumulative −100", losses.cumulative_link, cumulative_formula, (VALUES, THRESHOLDS, RATINGS_IGNORED), 2),
    Case("cumulative K 2", losses.cumulative_link, cumulative_formula, (VALUES, THRESHOLDS[:1], RATINGS // 3), 2),
    Case(
        "cumulative logits",
        losses.cumulative_logits,
        lambda z, y: cumulative_formula(torch.zeros(len(z), dtype=z.dtype), -z[0], y),
        (np.tile(-THRESHOLDS, (N, 1)), RATINGS),
        trained=0,
    ),
]
PARAMETERS = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def reference_inputs(case: Case, inputs: tuple[np.ndarray, ...]) -> list[Any]:
    """Return the inputs as float64 for torch, so that only our error remains; class labels as whole numbers."""
    tensors = []
    for number, array in enumerate(inputs):
        labels = number and array.dtype == np.int32 and case.ours not in BINARY
        tensors.append(torch.tensor(array.astype(np.int64 if labels else np.float64)))
    return tensors


BINARY = (losses.bce_with_logits, losses.sigmoid_focal, losses.asymmetric)


def reference(case: Case, inputs: list[Any], reduction: str) -> Any:
    result = case.reference(*inputs, **{key: tensor(value) for key, value in case.options.items()})
    rows, total = result if isinstance(result, tuple) else (result, result.numel())
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / total}[reduction]


def ours(case: Case, inputs: list[mx.array], reduction: str = "mean") -> mx.array:
    options = {key: mx.array(v) if isinstance(v, np.ndarray) else v for key, v in case.options.items()}
    return case.ours(*inputs, **options, reduction=reduction)


def error(got: mx.array, wanted: Any) -> float:
    """Return the largest difference, divided by the reference where that is above 1."""
    got, wanted = np.array(got, np.float64), wanted.detach().numpy()
    assert got.shape == wanted.shape
    return float((np.abs(got - wanted) / np.maximum(1, np.abs(wanted))).max())


@PARAMETERS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_values_are_the_reference(case: Case, reduction: str) -> None:
    got = ours(case, [mx.array(array) for array in case.inputs], reduction)
    assert got.dtype == mx.float32
    assert error(got, reference(case, reference_inputs(case, case.inputs), reduction)) < 1e-5


# The reference of the other case is not a function of each logit: see test_cumulative_logits_are_cumulative_link.
TRAINED = pytest.mark.parametrize("case", [case for case in CASES if case.trained], ids=lambda case: case.name)


@TRAINED
def test_gradients_are_torch_autograds(case: Case) -> None:
    tensors = reference_inputs(case, case.inputs)
    for leaf in tensors[: case.trained]:
        leaf.requires_grad_()
    reference(case, tensors, "sum").backward()
    arrays = [mx.array(array) for array in case.inputs]
    argnums = list(range(case.trained))
    gradients = mx.grad(lambda *inputs: ours(case, list(inputs), "sum"), argnums=argnums)(*arrays)
    gradients = [gradients] if isinstance(gradients, mx.array) else gradients  # MLX unpacks a single one
    for got, leaf in zip(gradients, tensors[: case.trained], strict=True):
        assert error(got, leaf.grad) < 1e-5


@PARAMETERS
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_are_computed_in_float32(case: Case, dtype: str) -> None:
    """Numbers in half precision give the loss of torch for the same numbers in float64."""
    half = [
        mx.array(array).astype(getattr(mx, dtype)) if array.dtype == np.float32 else mx.array(array)
        for array in case.inputs
    ]
    if case.ours is losses.gaussian_nll and dtype == "float16":
        half[1] = mx.maximum(half[1], 0)
    rounded = tuple(
        np.array(array.astype(mx.float32)) if array.dtype != mx.int32 else np.array(array) for array in half
    )
    got = ours(case, half)
    assert got.dtype == mx.float32
    assert error(got, reference(case, reference_inputs(case, rounded), "mean")) < 1e-5
    gradient = mx.grad(lambda logits: ours(case, [logits, *half[1:]]))(half[0])
    assert gradient.dtype == half[0].dtype
    assert bool(mx.isfinite(gradient).all())


EXTREME = np.array([1e4, -1e4, 88.8, -88.8, 104, -104, 17, -17, 0], np.float32)


@TRAINED
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_extreme_inputs_give_finite_losses_and_gradients(case: Case, dtype: str) -> None:
    first = np.resize(EXTREME, case.inputs[0].shape).astype(np.float32)
    arrays = [mx.array(first).astype(getattr(mx, dtype)), *map(mx.array, case.inputs[1:])]
    value, gradient = mx.value_and_grad(lambda logits: ours(case, [logits, *arrays[1:]]))(arrays[0])
    assert math.isfinite(value.item())
    assert bool(mx.isfinite(gradient).all())


@pytest.mark.parametrize("loss", BINARY)
@pytest.mark.parametrize("label", [0, 1])
def test_extreme_logits_meet_both_labels(loss: Callable[..., mx.array], label: int) -> None:
    targets = mx.full(EXTREME.shape, label)
    value, gradient = mx.value_and_grad(lambda z: loss(z, targets, reduction="sum"))(mx.array(EXTREME))
    assert math.isfinite(value.item())
    # A logit that is wrong by 1e4 costs 1e4, except in ASL: with its clip a negative costs at most −log 0.05.
    assert value.item() > (9 if loss is losses.asymmetric and label == 0 else 1e3)
    assert bool(mx.isfinite(gradient).all())


ONE_OF_EACH = list({case.ours: case for case in CASES}.values())  # on Linux each compilation runs a C++ compiler


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.name)
def test_compiled_gives_the_same(case: Case) -> None:
    arrays = [mx.array(array) for array in case.inputs]
    step = mx.value_and_grad(lambda *inputs: ours(case, list(inputs)))
    value, gradient = step(*arrays)
    compiled_value, compiled_gradient = mx.compile(step)(*arrays)
    assert abs(value.item() - compiled_value.item()) < 1e-6
    assert float(mx.abs(gradient - compiled_gradient).max()) < 1e-6


@PARAMETERS
def test_no_rows_give_zero(case: Case) -> None:
    arrays = [
        mx.array(array[:0]) if array is not THRESHOLDS and array.shape[0] != 1 else mx.array(array)
        for array in case.inputs
    ]
    options = {key: value for key, value in case.options.items() if not (key == "weight" and value is WEIGHT)}
    options = {key: mx.array(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    assert case.ours(*arrays, **options).item() == 0


# --- documented values -------------------------------------------------------------------------------------------


def test_coral_is_the_documented_0_6920() -> None:
    logits = mx.array([[2.1, 1.8, -2.1, -1.8], [1.9, -1.0, -1.5, -1.3], [1.9, 1.8, 1.7, 1.6]])
    labels = mx.array([2, 1, 4])  # levels 1100, 1000, 1111
    assert f"{losses.coral(logits, labels).item():.4f}" == "0.6920"
    assert np.allclose(losses.coral(logits, labels, reduction="none"), [0.5370, 0.8951, 0.6441], atol=5e-5)
    assert f"{losses.coral(logits, labels, reduction='sum').item():.4f}" == "2.0761"


def test_corn_is_the_documented_0_7127() -> None:
    """The value is in the docstring of coral-pytorch 1.4; division by the classes gives 3.4210."""
    torch.manual_seed(123)
    features = torch.rand(8, 99)
    labels = np.array([0, 1, 2, 2, 2, 3, 4, 4], np.int32)
    logits = mx.array(torch.nn.Linear(99, 4)(features).detach().numpy())
    assert f"{losses.corn(logits, mx.array(labels)).item():.4f}" == "0.7127"
    assert f"{losses.corn(logits, mx.array(labels), reduction='sum').item() / 5:.4f}" == "3.4210"


def test_cumulative_link_is_statsmodels_ordered_model() -> None:
    ordinal_model = pytest.importorskip("statsmodels.miscmodels.ordinal_model")
    features = RNG.normal(size=(60, 3))
    ratings = np.concatenate([np.arange(K), RNG.integers(0, K, 55)])
    model = ordinal_model.OrderedModel(ratings, features, distr="logit")
    for _ in range(3):
        parameters = RNG.normal(size=3 + K - 1)
        thresholds = model.transform_threshold_params(parameters)[1:-1]
        scores = features @ parameters[:3]
        got = losses.cumulative_link(
            mx.array(scores.astype(np.float32)),
            mx.array(thresholds.astype(np.float32)),
            mx.array(ratings),
            reduction="none",
        )
        assert np.allclose(-np.array(got), model.loglikeobs(parameters), atol=1e-5, rtol=1e-5)
        assert -np.array(got).sum() == pytest.approx(model.loglike(parameters), rel=1e-5)


def test_pinball_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for quantile in (0.1, 0.5, 0.95):
        got = losses.pinball(mx.array(PREDICTED), mx.array(VALUES), quantile=quantile).item()
        assert got == pytest.approx(metrics.mean_pinball_loss(VALUES, PREDICTED, alpha=quantile), abs=1e-5)


def test_cumulative_logits_are_cumulative_link() -> None:
    scores, thresholds, ratings = mx.array(VALUES), mx.array(THRESHOLDS), mx.array(RATINGS_IGNORED)
    link = mx.value_and_grad(losses.cumulative_link, argnums=[0, 1])
    logits = mx.value_and_grad(lambda s, t, y: losses.cumulative_logits(s[:, None] - t, y), argnums=[0, 1])
    (value, (by_score, by_threshold)), (value_2, by_2) = (
        link(scores, thresholds, ratings),
        logits(scores, thresholds, ratings),
    )
    assert abs(value.item() - value_2.item()) < 1e-6
    assert float(mx.abs(by_score - by_2[0]).max()) < 1e-6
    assert float(mx.abs(by_threshold - by_2[1]).max()) < 1e-6


# --- where other libraries are wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9])
def test_focal_gradients_are_finite_where_p_rounds_to_one(gamma: float) -> None:
    logits = mx.array([20.0, 50.0, 104.0, 1e4])
    gradient = mx.grad(lambda z: losses.sigmoid_focal(z, mx.ones(4), gamma=gamma))(logits)
    assert bool(mx.isfinite(gradient).all())
    assert bool((gradient <= 0).all())
    rows = mx.stack([logits, mx.zeros(4)], axis=1)
    gradient = mx.grad(lambda z: losses.softmax_focal(z, mx.zeros(4, dtype=mx.int32), gamma=gamma))(rows)
    assert bool(mx.isfinite(gradient).all())
    # The plain formula is not finite:
    z = torch.tensor([50.0], requires_grad=True)
    focal_formula(z, torch.ones(1), gamma=0.5).sum().backward()
    assert not torch.isfinite(z.grad).all()


def test_alpha_weights_positives() -> None:
    z = mx.zeros(1)
    positive = losses.sigmoid_focal(z, mx.ones(1), alpha=0.25).item()
    negative = losses.sigmoid_focal(z, mx.zeros(1), alpha=0.25).item()
    assert positive == pytest.approx(negative / 3)


def test_the_mean_of_ignored_labels_is_that_of_the_others_alone() -> None:
    kept = SOME_IGNORED != -100
    for loss in (losses.cross_entropy, losses.softmax_focal):
        for weight in (None, mx.array(CLASS_WEIGHT)):
            all_rows = loss(mx.array(CLASS_LOGITS), mx.array(SOME_IGNORED), weight=weight).item()
            alone = loss(mx.array(CLASS_LOGITS[kept]), mx.array(CLASSES[kept]), weight=weight).item()
            assert all_rows == pytest.approx(alone, abs=1e-6)


IGNORABLE = [
    (losses.cross_entropy, CLASS_LOGITS, N, -100, {}),
    (losses.cross_entropy, CLASS_LOGITS, N, -100, {"label_smoothing": 0.1, "weight": mx.array(CLASS_WEIGHT)}),
    (losses.softmax_focal, CLASS_LOGITS, N, -100, {}),
    (losses.coral, ORDINAL_LOGITS, N, -100, {}),
    (losses.corn, ORDINAL_LOGITS, N, -100, {}),
    (losses.cumulative_logits, ORDINAL_LOGITS, N, -100, {}),
    (losses.bce_with_logits, LOGITS_2, (N, L), -1, {"ignore_index": -1}),
    (losses.sigmoid_focal, LOGITS_2, (N, L), -1, {"ignore_index": -1}),
    (losses.asymmetric, LOGITS_2, (N, L), -1, {"ignore_index": -1}),
]


@pytest.mark.parametrize(("loss", "logits", "shape", "ignored", "options"), IGNORABLE)
def test_a_batch_of_ignored_labels_is_zero_and_moves_nothing(
    loss: Callable[..., mx.array], logits: np.ndarray, shape: Any, ignored: int, options: dict[str, Any]
) -> None:
    targets = mx.full(shape, ignored, dtype=mx.int32)
    for array in (mx.array(logits), mx.full(logits.shape, mx.nan)):  # what is ignored may be anything
        value, gradient = mx.value_and_grad(lambda z: loss(z, targets, **options))(array)
        assert value.item() == 0
        assert float(mx.abs(gradient).max()) == 0


@pytest.mark.parametrize(
    "loss", [losses.cross_entropy, losses.softmax_focal, losses.coral, losses.corn, losses.cumulative_logits]
)
@pytest.mark.parametrize("label", [-1, 99])
def test_an_impossible_label_gives_nan_never_a_number(loss: Callable[..., mx.array], label: int) -> None:
    targets = mx.array([0, label, 1])
    logits = mx.array(np.tile(-THRESHOLDS, (3, 1)))
    value, gradient = mx.value_and_grad(lambda z: loss(z, targets))(logits)
    assert math.isnan(value.item())
    assert bool(mx.isnan(gradient).any())
    row = loss(logits, targets, reduction="none")
    assert mx.isnan(row).tolist() == [False, True, False]


@pytest.mark.parametrize(("label", "dtype"), [(2**32 + 1, "int64"), (2**32 - 100, "uint32"), (2**64 - 100, "uint64")])
def test_a_label_beyond_32_bits_is_no_other_label(label: int, dtype: str) -> None:
    targets = mx.array(np.array([label], dtype))  # cut to 32 bits it would be 1, or −100
    assert math.isnan(losses.cross_entropy(mx.zeros((1, 3)), targets).item())


def test_unsigned_labels_are_not_mistaken_for_minus_100() -> None:
    logits = mx.array(RNG.normal(size=(1, 200)).astype(np.float32))
    got = losses.cross_entropy(logits, mx.array([156], dtype=mx.uint8)).item()  # −100 as uint8 is 156
    assert got == pytest.approx(losses.cross_entropy(logits, mx.array([156])).item())
    assert got > 0


def test_a_negative_variance_is_nan() -> None:
    assert math.isnan(losses.gaussian_nll(mx.zeros(2), mx.array([1.0, -1.0]), mx.zeros(2)).item())


def test_far_scores_keep_their_likelihood() -> None:
    """σ(a) − σ(b) is 0 in float32 here; its logarithm is not −∞."""
    got = losses.cumulative_link(mx.array([60.0, -60.0]), mx.array([0.0, 1.0]), mx.array([1, 1]), reduction="none")
    exact = [60 - 0 - math.log(1 - math.exp(-1)) - 1, 60 - math.log(1 - math.exp(-1))]
    assert np.allclose(got, exact, rtol=1e-6)


# --- refusals ----------------------------------------------------------------------------------------------------


def refusal(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(HeadError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["bce_with_logits", "sigmoid_focal", "asymmetric"])
def test_a_column_against_a_row_is_refused(name: str) -> None:
    loss = getattr(losses, name)
    assert refusal(loss, mx.zeros((8, 1)), mx.zeros(8)) == (
        f"{name}: logits (8, 1) and targets (8,) must have one shape, nothing is broadcast; fix: logits.squeeze(-1)"
    )
    assert refusal(loss, mx.zeros(8), mx.zeros((8, 1))).endswith("fix: targets.squeeze(-1)")
    assert refusal(loss, mx.zeros((8, 2)), mx.zeros((8, 3))).endswith("fix: give targets the shape of logits")


@pytest.mark.parametrize("loss", [losses.mse, losses.mae, losses.huber, partial(losses.pinball, quantile=0.5)])
def test_regression_never_broadcasts(loss: Callable[..., mx.array]) -> None:
    assert "predictions (8, 1) and targets (8,)" in refusal(loss, mx.zeros((8, 1)), mx.zeros(8))


def test_gaussian_nll_never_broadcasts() -> None:
    message = refusal(losses.gaussian_nll, mx.zeros(8), mx.ones((8, 1)), mx.zeros(8))
    assert message == (
        "gaussian_nll: mean (8,) and variance (8, 1) must have one shape, nothing is broadcast; "
        "fix: variance.squeeze(-1)"
    )


@pytest.mark.parametrize("name", ["cross_entropy", "softmax_focal", "coral", "corn", "cumulative_logits"])
def test_class_targets_are_whole_numbers_a_row(name: str) -> None:
    loss = getattr(losses, name)
    assert refusal(loss, mx.zeros((8, 3)), mx.zeros((8, 1), dtype=mx.int32)) == (
        f"{name}: logits (8, 3) need targets of shape (8,), not (8, 1); "
        "fix: logits are (N, C) and targets are class indices (N,)"
    )
    assert "targets are mlx.core.float32, class indices are integers" in refusal(loss, mx.zeros((8, 3)), mx.zeros(8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.mse(mx.zeros(2), mx.zeros(2), reduction="max"), "mse: unknown reduction 'max'"),
        (lambda: losses.huber(mx.zeros(2), mx.zeros(2), delta=0.0), "huber: delta is 0.0; fix: a number in (0, inf)"),
        (
            lambda: losses.pinball(mx.zeros(2), mx.zeros(2), quantile=1.0),
            "pinball: quantile is 1.0; fix: a number in (0, 1)",
        ),
        (
            lambda: losses.cross_entropy(mx.zeros((2, 3)), mx.zeros(2, dtype=mx.int32), label_smoothing=1.5),
            "cross_entropy: label_smoothing is 1.5; fix: a number in [0, 1]",
        ),
        (
            lambda: losses.cross_entropy(mx.zeros((2, 3)), mx.zeros(2, dtype=mx.int32), weight=[1.0, 2.0]),
            "cross_entropy: weight has shape (2,); fix: give (3,)",
        ),
        (
            lambda: losses.bce_with_logits(mx.zeros(4), mx.zeros(4), pos_weight=[1.0, 2.0, 3.0, 4.0]),
            "bce_with_logits: pos_weight has shape (4,); fix: give a number or (1,)",
        ),
        (
            lambda: losses.bce_with_logits(mx.zeros((4, 2)), mx.zeros((4, 2)), weight=mx.ones(4)),
            "bce_with_logits: weight has shape (4,); fix: give a number or (1,) or (2,) or (4, 1) or (4, 2)",
        ),
        (
            lambda: losses.sigmoid_focal(mx.zeros(2), mx.zeros(2), gamma=-1.0),
            "sigmoid_focal: gamma is -1.0; fix: a number in [0, inf]",
        ),
        (
            lambda: losses.cumulative_link(mx.zeros(2), mx.zeros((1, 3)), mx.zeros(2, dtype=mx.int32)),
            "cumulative_link: scores (2,) and thresholds (1, 3); fix: scores (N,), thresholds (K − 1,)",
        ),
        (
            lambda: losses.coral(mx.zeros(2), mx.zeros(2, dtype=mx.int32)),
            "coral: logits have shape (2,); fix: (N, K − 1), one less than there are ratings",
        ),
    ],
)
def test_wrong_settings_are_refused(call: Callable[[], Any], message: str) -> None:
    assert refusal(call).startswith(message)


@pytest.mark.parametrize("loss", [losses.bce_with_logits, losses.sigmoid_focal, losses.asymmetric])
@pytest.mark.parametrize("target", [5.0, -1.0])
def test_a_target_that_is_no_probability_is_nan_and_never_a_number(
    loss: Callable[..., mx.array], target: float
) -> None:
    values = loss(mx.zeros(2), mx.array([1.0, target]), reduction="none")
    assert mx.isfinite(values[0])
    assert mx.isnan(values[1])
