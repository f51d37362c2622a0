"""Regression, ratings and series, beyond the checks of every head: units, uncertainty, order, time."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx import nn

from heads.errors import HeadError
from heads.forward_chaining import forward_folds, windows
from heads.ordinal import OrdinalRegressionHead
from heads.regression import KINDS, RegressionHead, TargetScaler
from heads.time_series import CALENDAR, TimeSeriesRegressionHead, calendar_features, decompose

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log", [False, True])
def test_scaling_is_inverted_exactly_and_the_network_sees_tame_targets(kind: str, log: bool) -> None:
    y = np.exp(RNG.normal(12, 0.5, size=(200, 2)))
    scaler = TargetScaler.fit(y, kind=kind, log=log, what="x")
    z = scaler.transform(y, "x")
    assert np.allclose(scaler.inverse(z), y, rtol=1e-12)
    assert TargetScaler.from_dict(scaler.to_dict(), "x") == scaler
    if kind == "standard":
        assert np.allclose(z.mean(axis=0), 0, atol=1e-10)
        assert np.allclose(z.std(axis=0), 1)


def test_a_constant_target_a_missing_one_and_a_log_of_too_little() -> None:
    assert TargetScaler.fit(np.full((3, 1), 7.0), what="x").inverse(np.zeros((1, 1))) == 7.0
    with pytest.raises(HeadError, match="regression: row 1 has no finite value"):
        RegressionHead.from_targets(8, [1.0, np.nan])
    with pytest.raises(HeadError, match=r"log_targets needs values above −1, row 0 has -1\.0; fix: log_targets=False"):
        RegressionHead.from_targets(8, [-1.0, 2.0], log_targets=True)
    with pytest.raises(HeadError, match="the saved target scaler cannot be read"):
        TargetScaler.from_dict({"center": [0]}, "x")
    with pytest.raises(HeadError, match="the saved target scaler is not one"):
        TargetScaler.from_dict({"center": [0], "scale": [0], "log": False}, "x")


def test_the_scaler_knows_the_training_fold_alone() -> None:
    head = RegressionHead.from_targets(8, [1.0, 3.0])
    assert head.scaler == TargetScaler((2.0,), (1.0,))
    assert head.encode_targets([102.0]).tolist() == [100.0]
    assert head.predict(mx.array([[100.0]])).tolist() == [102.0]
    with pytest.raises(HeadError, match="scaler is not fitted; fix: fit_targets\\(targets of the training fold\\)"):
        RegressionHead(8).encode_targets([1.0])
    assert RegressionHead(8, scaling="none").predict(mx.array([[5.0]])).tolist() == [5.0]


def test_shapes_are_refused_not_broadcast() -> None:
    head = RegressionHead.from_targets(8, [1.0, 3.0])
    with pytest.raises(HeadError, match=r"targets have shape \(2, 1\); expected \(N,\), never broadcast"):
        head.encode_targets([[1.0], [2.0]])
    with pytest.raises(HeadError):
        head.loss(mx.zeros((4, 1)), mx.zeros((4, 1)))
    several = RegressionHead.from_targets(8, [[1.0, 3.0], [2.0, 9.0]])
    assert several.predict(mx.zeros((5, 2))).shape == (5, 2)
    with pytest.raises(HeadError, match=r"targets have shape \(5,\); expected \(N, 2\)"):
        several.encode_targets(np.zeros(5))


@pytest.mark.parametrize(("objective", "expected"), [("mse", 2.5), ("mae", 1.5), ("huber", 1.0)])
def test_objectives(objective: str, expected: float) -> None:
    head = RegressionHead(8, objective=objective, scaling="none")
    assert head.loss(mx.array([[1.0], [2.0]]), mx.array([2.0, 0.0])).item() == expected
    with pytest.raises(HeadError, match="delta has no effect with objective='mse'; fix: use objective='huber'"):
        RegressionHead(8, delta=2.0)
    with pytest.raises(HeadError, match="scaling 'log' is unknown; known: standard, robust, minmax, none"):
        RegressionHead(8, scaling="log")


def _fit(head: Any, x: mx.array, y: Any, steps: int = 400, **extra: mx.array) -> None:
    targets, optimizer = mx.array(head.encode_targets(y)), optim.Adam(learning_rate=0.02)
    step = nn.value_and_grad(head, lambda: head.loss(head(x, **extra), targets))
    for _ in range(steps):
        _, gradients = step()
        optimizer.update(head, gradients)
        mx.eval(head.parameters(), optimizer.state)


def test_gaussian_intervals_cover_what_they_promise_and_are_wide_where_noise_is() -> None:
    mx.random.seed(0)
    x = RNG.normal(size=(3000, 2))
    noisy = x[:, 1] > 0
    y = 1000 + 50 * x[:, 0] + np.where(noisy, 40, 5) * RNG.normal(size=3000)
    features = mx.array(np.concatenate([x, noisy[:, None]], axis=1).astype(np.float32))
    head = RegressionHead.from_targets(3, y[:2000], objective="gaussian", dropout=0.0)
    _fit(head, features[:2000], y[:2000])
    logits = head(features[2000:])
    for level in (0.5, 0.9):
        covered = head.interval(logits[:500], level).coverage(y[2000:2500])
        assert abs(covered.observed - level) < 0.07, str(covered)
    head.calibrate(logits[500:], y[2500:])
    interval = head.interval(logits, 0.9)
    width = interval.upper - interval.lower
    assert width[noisy[2000:]].mean() > 4 * width[~noisy[2000:]].mean()
    covered = interval.coverage(y[2000:])
    assert (covered.level, covered.count) == (0.9, 1000)
    assert np.isclose(covered.mean_width, width.mean())
    assert str(covered) == f"{covered.observed:.1%} of 1000 values inside the 90% interval"


def test_mc_dropout_adds_what_the_model_does_not_know_and_reports_coverage() -> None:
    mx.random.seed(0)
    x = mx.array(RNG.normal(size=(1500, 6)).astype(np.float32))
    y = np.exp(3 + 0.3 * np.array(x).sum(axis=1) + 0.4 * RNG.normal(size=1500)) - 1
    head = RegressionHead.from_targets(6, y[:1000], log_targets=True, dropout=0.2)
    _fit(head, x[:1000], y[:1000])
    head.train()
    sampled = mx.stack([head(x[1000:]) for _ in range(50)])
    head.eval()
    with pytest.raises(HeadError, match="objective='mse' predicts no deviation; fix: calibrate on held-out rows"):
        head.interval(head(x))
    narrow = head.mc_interval(sampled[:, 250:], 0.9).coverage(y[1250:])
    head.calibrate(head(x[1000:1250]), y[1000:1250])
    head.calibrate_mc(sampled[:, :250], y[1000:1250])
    wide = head.mc_interval(sampled[:, 250:], 0.9)
    assert narrow.observed < 0.8  # dropout alone knows nothing of the noise
    assert abs(wide.coverage(y[1250:]).observed - 0.9) < 0.06
    assert (wide.lower > -1).all()  # where the log was taken from
    # The variance of the passes is not noise.
    assert head.mc_noise[0] < head.noise[0]
    # Far from the training rows the variance of the passes is larger; noise alone would not show it.
    far = 4 * x[:100]
    head.train()
    passes = mx.stack([head(far) for _ in range(50)])
    head.eval()
    width, near = (np.log1p(i.upper) - np.log1p(i.lower) for i in (head.mc_interval(passes), wide))
    assert width.mean() > 1.5 * near.mean()
    with pytest.raises(HeadError, match=r"shape \(1, 500, 1\); expected \(S, N, 1\) with S of at least 2"):
        head.mc_interval(sampled[:1])
    with pytest.raises(HeadError, match=r"level is 90; fix: a number in \(0, 1\)"):
        head.mc_interval(sampled, 90)
    with pytest.raises(HeadError, match=r"coverage: targets have shape \(3,\), predictions \(250,\)"):
        wide.coverage(np.zeros(3))


@pytest.mark.parametrize("objective", ["coral", "cumulative_link"])
def test_thresholds_are_ordered_whatever_the_parameters(objective: str) -> None:
    head = OrdinalRegressionHead(8, classes=range(6), objective=objective)
    for gaps in (RNG.normal(size=4) * 30, np.full(4, -1e4), np.zeros(4)):
        head.raw_gaps = mx.array(gaps)
        thresholds = np.array(head.thresholds)
        assert (np.diff(thresholds) > 0).all()
        logits = head(mx.random.normal((50, 8)))
        assert (np.diff(np.array(logits), axis=1) < 0).all()
        assert mx.isfinite(head.loss(logits, mx.arange(50) % 6)).item()


@pytest.mark.parametrize("objective", ["coral", "corn", "cumulative_link"])
@pytest.mark.parametrize("classes", [(1, 2), (1, 2, 3, 4, 5), ("bad", "fair", "good")])
def test_ratings(objective: str, classes: tuple[Any, ...]) -> None:
    head = OrdinalRegressionHead(8, classes=classes, objective=objective)
    logits = mx.random.normal((40, len(classes) - 1)) * 3
    if objective != "corn":
        logits = mx.sort(logits, axis=1)[:, ::-1]
    probabilities = head.probabilities(logits)
    assert probabilities.shape == (40, len(classes))
    assert (probabilities >= 0).all()
    assert np.allclose(probabilities.sum(axis=1), 1)
    ranks = head.outputs(logits, "labels")
    # The median: half of the probability on either side.
    cumulative = probabilities.cumsum(axis=1)
    for row, rank in enumerate(ranks):
        assert cumulative[row, rank] >= 0.5 - 1e-9
        assert rank == 0 or cumulative[row, rank - 1] <= 0.5 + 1e-9
    assert head.predict(logits).tolist() == [classes[rank] for rank in ranks]
    assert np.allclose(head.expected(logits), probabilities @ np.arange(len(classes)))


@pytest.mark.parametrize("objective", ["coral", "corn", "cumulative_link"])
def test_ratings_are_learned(objective: str) -> None:
    mx.random.seed(1)
    x = RNG.normal(size=(600, 4)).astype(np.float32)
    stars = 1 + np.digitize(x @ [2.0, -1.0, 0.5, 0.0] + 0.3 * RNG.normal(size=600), [-3, -1, 1, 3])
    head = OrdinalRegressionHead.from_targets(4, stars, objective=objective, dropout=0.0)
    _fit(head, mx.array(x[:400]), stars[:400])
    predicted = head.predict(head(mx.array(x[400:])))
    assert (predicted == stars[400:]).mean() > 0.75
    assert (np.abs(predicted - stars[400:]) <= 1).mean() > 0.97


def test_cumulative_link_is_the_model_of_statsmodels() -> None:
    ordered = pytest.importorskip("statsmodels.miscmodels.ordinal_model")
    x = RNG.normal(size=(500, 2))
    y = np.digitize(x @ [1.0, -0.5] + RNG.logistic(size=500), [-1, 0.5, 2])
    fitted = ordered.OrderedModel(y, x, distr="logit").fit(method="bfgs", disp=False)
    head = OrdinalRegressionHead(2, classes=range(4), objective="cumulative_link", dropout=0.0)
    _fit(head, mx.array(x.astype(np.float32)), y, steps=1500)
    assert np.allclose(np.array(head.output.weight)[0], fitted.params[:2], atol=0.01)
    thresholds = fitted.model.transform_threshold_params(fitted.params)[1:-1]
    assert np.allclose(np.array(head.thresholds), thresholds, atol=0.01)
    loss = head.loss(head(mx.array(x.astype(np.float32))), mx.array(y)).item()
    assert np.isclose(loss, -fitted.llf / 500, atol=1e-4)


def test_mistakes_with_ratings() -> None:
    with pytest.raises(HeadError, match=r"the ratings are words; fix: give classes=\(…\), lowest first"):
        OrdinalRegressionHead.from_targets(8, ["good", "bad"])
    with pytest.raises(HeadError, match="objective='corn' has no thresholds"):
        _ = OrdinalRegressionHead(8, classes=range(3)).thresholds
    with pytest.raises(HeadError, match="objective 'mord' is unknown; known: coral, corn, cumulative_link"):
        OrdinalRegressionHead(8, classes=range(3), objective="mord")


def _series(months: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return a series that grows and has a yearly season, and its months."""
    t = np.arange(months)
    return 100 + 2.0 * t + 20 * np.sin(2 * np.pi * t / 12), np.datetime64("1990-01") + t.astype("timedelta64[M]")


def test_a_series_is_forecast_beyond_what_training_saw() -> None:
    mx.random.seed(0)
    values, months = _series()
    rows = windows(values, window=24, horizon=6, times=months)
    train, test = list(forward_folds(rows.made_at, rows.known_at, 3))[-1]
    head = TimeSeriesRegressionHead.from_targets(
        4,
        rows.targets[train],
        known_at=rows.known_at[train],
        window=24,
        period=12,
        calendar=("year",),
        dropout=0.0,
    )
    text = mx.zeros((len(rows.targets), 4))
    extra = head.inputs(history=rows.history, made_at=rows.made_at)
    picked = {key: value[mx.array(train)] for key, value in extra.items()}
    _fit(head, text[mx.array(train)], rows.targets[train], **picked)
    logits = head(text, **extra)[mx.array(test)]
    truth = rows.targets[test]
    assert truth.max() > rows.targets[train].max()
    error = np.abs(head.predict(logits) - truth).mean()
    naive = np.abs(rows.history[test][:, -12:-6] - truth).mean()  # the same months a year before
    assert error < 0.5 * naive
    head.calibrate(logits, truth, made_at=rows.made_at[test])
    assert head.interval(logits).coverage(truth).count == truth.size


@pytest.mark.parametrize(("baseline", "expected"), [("last", [9, 9, 9, 9, 9]), ("seasonal", [7, 8, 9, 7, 8])])
def test_an_untrained_head_gives_the_naive_forecast(baseline: str, expected: list[float]) -> None:
    head = TimeSeriesRegressionHead(4, horizon=5, window=9, period=3, baseline=baseline)
    head.fit_targets(np.arange(10.0).reshape(2, 5), known_at=[1, 2])
    head.output.weight = mx.zeros_like(head.output.weight)
    logits = head(mx.zeros((1, 4)), **head.inputs(history=[np.arange(1.0, 10.0)]))
    assert np.allclose(head.predict(logits), [expected], atol=1e-5)


def test_history_is_on_the_scale_of_the_targets_and_its_parts_add_up() -> None:
    values, _ = _series()
    history = np.stack([values[i : i + 36] for i in range(5)])
    trend, seasonal, remainder = decompose(history, 12, "x")
    assert np.allclose(trend + seasonal + remainder, history)
    assert np.abs(np.diff(trend, axis=1) - 2).max() < 0.5
    assert np.ptp(seasonal) > 30
    head = TimeSeriesRegressionHead(4, horizon=2, window=36, period=12)
    head.fit_targets(history[:, :2], known_at=range(5))
    inputs = np.array(head.inputs(history=history)["history"])
    assert inputs.shape == (5, 108)
    assert np.allclose(head.scaler.inverse(inputs[:, :36]), history, rtol=1e-5)
    # No later row influences the features of an earlier row.
    assert np.array_equal(np.array(head.inputs(history=history[:1])["history"]), inputs[:1])


def test_forward_chaining_only() -> None:
    values, months = _series()
    rows = windows(values, window=12, horizon=3, times=months)
    head = TimeSeriesRegressionHead.from_targets(4, rows.targets[:40], known_at=rows.known_at[:40], window=12)
    extra = head.inputs(history=rows.history)
    logits = head(mx.zeros((len(rows.targets), 4)), **extra)
    # Row 40 is forecast when the target of row 39 is not known yet; row 42 is the first valid one.
    with pytest.raises(HeadError) as caught:
        head.calibrate(logits[40:], rows.targets[40:], made_at=rows.made_at[40:])
    assert str(caught.value) == (
        "time_series: forward chaining only: held-out row 0 is forecast at 1994-04, before the training targets are "
        "known (1994-06); fix: train on rows known by then (heads.forward_chaining.forward_folds)"
    )
    head.calibrate(logits[42:], rows.targets[42:], made_at=rows.made_at[42:])
    with pytest.raises(HeadError, match="held-out row 0 is forecast at 1990-12, before"):
        head.evaluate(logits[:5], rows.targets[:5], made_at=rows.made_at[:5])
    with pytest.raises(HeadError, match=r"forward chaining only; fix: calibrate\(logits, targets, made_at=times\)"):
        head.calibrate(logits, rows.targets)
    with pytest.raises(HeadError, match=r"forward chaining only; fix: fit_targets\(targets, known_at=times\)"):
        head.fit_targets(rows.targets)
    with pytest.raises(HeadError, match=r"known_at are datetime64.*, made_at int64; fix: give both as dates"):
        head.check_forward([1, 2])


def test_folds_never_look_ahead() -> None:
    values, months = _series()
    rows = windows(values, window=6, horizon=4, times=months)
    assert np.array_equal(rows.history[3], values[3:9])
    assert np.array_equal(rows.targets[3], values[9:13])
    assert (rows.made_at[3], rows.known_at[3]) == (months[8], months[12])
    seen: list[int] = []
    for train, test in forward_folds(rows.made_at, rows.known_at, 5):
        assert rows.known_at[train].max() <= rows.made_at[test].min()
        assert len(train) == test[0] - 3  # all but the rows whose horizon reaches into the block
        seen += list(test)
    assert seen == list(range(seen[0], len(rows.targets)))
    with pytest.raises(HeadError, match="nothing is known yet at"):
        list(forward_folds([1, 2, 3, 4], [9, 9, 9, 9], 2))
    with pytest.raises(HeadError, match="5 folds need more than 5 forecast times, not 4"):
        list(forward_folds([1, 2, 3, 4], [2, 3, 4, 5], 5))
    with pytest.raises(HeadError, match="time 1990-01 at row 1 is not after 1990-02; fix: sort by time"):
        windows(values[:2], window=1, horizon=1, times=months[:2][::-1])
    with pytest.raises(HeadError, match="4 values have no row of window=3 and horizon=2"):
        windows(np.zeros(4), window=3, horizon=2)


def test_calendar_features() -> None:
    columns = calendar_features(["2024-01-01", "2024-07-01T12:00", "2023-10-02"], ("day", "week", "year"), "x")
    assert columns.shape == (3, 6)
    assert np.allclose(columns[0], [0, 1, 0, 1, 0, 1])  # midnight, a Monday, New Year
    assert np.allclose(columns[1, :2], [0, -1])  # noon
    assert np.allclose(columns[2, 2:4], [0, 1])  # a Monday too
    assert np.isclose(np.arctan2(*columns[1, 4:]) % (2 * np.pi), 2 * np.pi * 182.5 / 366)
    for cycle in CALENDAR:
        fraction = CALENDAR[cycle](
            np.arange("2020-01-01", "2022-01-01", dtype="datetime64[h]").astype("datetime64[s]")
        )
        assert fraction.min() == 0
        assert 0.9 < fraction.max() < 1
    with pytest.raises(HeadError, match="calendar features need dates, not int64"):
        calendar_features([1, 2], ("day",), "x")
    with pytest.raises(HeadError, match="row 1 has no time; fix: drop it"):
        calendar_features(np.array(["2024-01-01", "NaT"], "datetime64[D]"), ("day",), "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": -1}, "window must be a whole number from 0 on, not -1"),
        ({"window": 20, "period": 12}, "a season of period=12 needs a history of two periods, and window is 20"),
        ({"baseline": "last"}, "baseline='last' with window=0, period=None; fix: 'last' needs a window"),
        ({"window": 5, "baseline": "seasonal"}, "'seasonal' a period"),
        ({"baseline": "mean"}, "baseline='mean'"),
        ({"calendar": ("moon",)}, "calendar cycle 'moon' is unknown; known: day, week, month, year"),
        ({"horizon": 0}, "must be a positive whole number, not 0"),
    ],
)
def test_mistakes_with_series(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        TimeSeriesRegressionHead(4, **options)


def test_inputs_that_a_series_head_lacks_or_does_not_take() -> None:
    head = TimeSeriesRegressionHead(4, horizon=2, window=5, calendar=("year",))
    head.fit_targets(np.zeros((3, 2)), known_at=[1, 2, 3])
    with pytest.raises(HeadError, match=r"history has shape None; expected \(N, 5\)"):
        head.inputs()
    with pytest.raises(HeadError, match=r"history has shape \(1, 4\); expected \(N, 5\)"):
        head.inputs(history=np.zeros((1, 4)))
    with pytest.raises(HeadError, match=r"calendar=\('year',\) needs made_at=dates"):
        head.inputs(history=np.zeros((1, 5)))
    with pytest.raises(HeadError, match=r"history has shape None; expected \(3, 5\); fix: head.inputs\(…\) makes it"):
        head(mx.zeros((3, 4)))
    text_alone = TimeSeriesRegressionHead(4, horizon=2)
    text_alone.fit_targets(np.zeros((3, 2)), known_at=[1, 2, 3])
    assert text_alone.inputs() == {}
    with pytest.raises(HeadError, match="made with window=0, so it reads no history; fix: window=5"):
        text_alone.inputs(history=np.zeros((3, 5)))
