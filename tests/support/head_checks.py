"""Checks of every registered head; `tests/heads/test_heads.py` runs them all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from heads.base import Head
from heads.errors import HeadError
from heads.head_registry import get_head, head_from_settings
from heads.metrics import METRICS
from tests.support.head_samples import N, features, make, sample_of

Check = Callable[[str], None]


def _run(head: Head, name: str, x: mx.array) -> mx.array:
    return head(x, **sample_of(name).inputs(head))


def _targets(head: Head, name: str) -> np.ndarray:
    return head.encode_targets(sample_of(name).targets)


def _parameters(head: Head) -> dict[str, mx.array]:
    return dict(tree_flatten(head.parameters()))


def shapes(name: str) -> None:
    head = make(name)
    logits = _run(head, name, features())
    assert logits.shape == (N, head.num_outputs)
    assert logits.dtype == mx.float32
    loss = head.loss(logits, _targets(head, name))
    assert loss.shape == ()
    assert loss.dtype == mx.float32
    assert len(head.predict(logits)) == N
    assert np.asarray(head.predict(logits)).dtype.kind != "f" or np.isfinite(head.predict(logits)).all()


def metrics_are_known_and_fit(name: str) -> None:
    head = get_head(name)
    assert head.default_metric in head.metrics
    for metric in head.metrics:
        assert set(head.competition_types) <= set(METRICS[metric].competition_types), metric


def evaluates_all_its_metrics(name: str) -> None:
    head = make(name).eval()
    values = head.evaluate(_run(head, name, features()), sample_of(name).targets)
    assert set(values) == set(head.metrics)
    assert all(np.isfinite(value) for value in values.values()), values


def gradients_reach_every_parameter_and_the_loss_falls(name: str) -> None:
    head, x = make(name, dropout=0.0), features()
    targets = mx.array(_targets(head, name))
    extra = sample_of(name).inputs(head)
    step = nn.value_and_grad(head, lambda: head.loss(head(x, **extra), targets))
    _, gradients = step()
    for path, gradient in tree_flatten(gradients):
        assert mx.isfinite(gradient).all().item(), path
        assert mx.abs(gradient).max().item() > 0, path
    assert {path for path, _ in tree_flatten(gradients)} == set(_parameters(head))
    optimizer = optim.Adam(learning_rate=0.05)
    first = None
    for _ in range(60):
        value, gradients = step()
        first = value.item() if first is None else first
        optimizer.update(head, gradients)
        mx.eval(head.parameters(), optimizer.state)
    assert value.item() < 0.7 * first, (first, value.item())


def trains_compiled(name: str) -> None:
    head, x = make(name), features()
    targets, extra = mx.array(_targets(head, name)), sample_of(name).inputs(head)
    optimizer = optim.Adam(learning_rate=0.01)
    optimizer.init(head.trainable_parameters())
    state = [head.state, optimizer.state, mx.random.state]
    loss_and_gradient = nn.value_and_grad(head, lambda: head.loss(head(x, **extra), targets))

    def step() -> mx.array:
        loss, gradients = loss_and_gradient()
        optimizer.update(head, gradients)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    losses = []
    for _ in range(60):
        losses.append(compiled().item())
        mx.eval(state)
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert len(set(losses)) > 50  # dropout draws anew at every step


def padding_rows_change_nothing(name: str) -> None:
    head = make(name).eval()
    x, targets, extra = features(), _targets(head, name), sample_of(name).inputs(head)
    padded_x = mx.concatenate([x, mx.full((5, x.shape[1]), 1e4)])
    padded_targets = np.concatenate([targets, targets[:5]])
    padded_extra = {key: mx.concatenate([value, value[:5]]) for key, value in extra.items()}
    rows = np.arange(N + 5) < N

    def value(x: mx.array, targets: np.ndarray, extra: dict[str, mx.array], rows: Any) -> Callable[[], mx.array]:
        return lambda: head.loss(head(x, **extra), targets, rows=rows)

    assert np.allclose(head(padded_x, **padded_extra)[:N], head(x, **extra), atol=1e-5)
    loss, gradients = nn.value_and_grad(head, value(x, targets, extra, None))()
    padded_loss, padded_gradients = nn.value_and_grad(head, value(padded_x, padded_targets, padded_extra, rows))()
    assert np.isclose(loss.item(), padded_loss.item(), rtol=1e-5)
    for (path, ours), (_, theirs) in zip(tree_flatten(gradients), tree_flatten(padded_gradients), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5), path
    nothing = nn.value_and_grad(head, value(padded_x, padded_targets, padded_extra, np.zeros(N + 5)))()
    assert nothing[0].item() == 0
    assert all(mx.abs(gradient).max().item() == 0 for _, gradient in tree_flatten(nothing[1]))


def targets_are_never_broadcast(name: str) -> None:
    head = make(name).eval()
    logits, encoded = _run(head, name, features()), _targets(head, name)
    wrong = (encoded[:1], encoded[:-1], encoded[..., None], encoded[0] if encoded.ndim > 1 else np.float32(1))
    for rows in (None, np.ones(N)):
        for wrong_targets in wrong:
            with pytest.raises(HeadError, match=r"nothing is broadcast|need targets of shape"):
                head.loss(logits, wrong_targets, rows=rows)


def targets_of_any_dtype_are_taken(name: str) -> None:
    head = make(name).eval()
    logits, encoded = _run(head, name, features()), _targets(head, name)
    if not np.isin(encoded, range(256)).all():
        return  # values, or −1 for unknown: no small integers
    expected = head.loss(logits, encoded).item()
    for dtype in (np.uint8, np.int64, *([bool] if encoded.max() <= 1 else [])):
        assert head.loss(logits, encoded.astype(dtype)).item() == expected, dtype


def half_precision(name: str) -> None:
    wide = make(name, dropout=0.0)
    expected = _run(wide, name, features())
    for dtype, tolerance in ((mx.float16, 5e-3), (mx.bfloat16, 4e-2)):
        head = make(name, dropout=0.0)
        head.set_dtype(dtype)
        logits = _run(head, name, features().astype(dtype))
        assert logits.dtype == mx.float32
        scale = max(1.0, mx.abs(expected).max().item())
        assert np.abs(np.array(logits - expected)).max() < tolerance * scale, dtype
        targets = mx.array(_targets(head, name))
        extra = sample_of(name).inputs(head)
        x = features().astype(dtype)
        loss, gradients = nn.value_and_grad(head, lambda h=head, x=x, e=extra, t=targets: h.loss(h(x, **e), t))()
        assert mx.isfinite(loss).item()
        for path, gradient in tree_flatten(gradients):
            assert gradient.dtype == dtype, path
            assert mx.isfinite(gradient).all().item(), path


def settings_round_trip_through_json_and_predictions_stay(name: str) -> None:
    head, sample = make(name, dropout=0.25, dropout_samples=3), sample_of(name)
    head.eval()
    logits = _run(head, name, features())
    before = head.predict(logits)
    head.calibrate(logits, sample.targets, **sample.calibrate)
    settings = head.settings()
    again = head_from_settings(json.loads(json.dumps(settings, allow_nan=False)))
    assert type(again) is type(head)
    assert again.settings() == settings
    assert (again.dropout, again.dropout_samples) == (0.25, 3)
    again.load_weights(list(_parameters(head).items()))
    again.eval()
    for ours, theirs in ((head.predict(logits), again.predict(logits)), (logits, _run(again, name, features()))):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert {path: a.shape for path, a in _parameters(again).items()} == {
        path: a.shape for path, a in _parameters(head).items()
    }
    assert len(before) == N


HOSTILE: tuple[Any, ...] = (
    *(None, True, -1, 0, 5, 10**30, 10**400, 2.5, -0.5, float("nan"), float("inf"), "x", "__import__('os').abort()"),
    *([], [1], [0.5, 0.5], ["a", "b"], [[1]], {}, {"a": 1}),
)


def settings_of_a_hostile_file_are_refused_by_name(name: str) -> None:
    settings = make(name).settings()
    logits, targets = np.zeros((N, make(name).num_outputs), np.float32), make(name).encode_targets
    changed: list[dict[str, Any]] = [{**settings, "arguments": {}}, {**settings, "arguments": 3}]
    for part in ("arguments", "fitted"):
        for key in settings[part]:
            changed += [{**settings, part: {**settings[part], key: value}} for value in HOSTILE]
            changed.append({**settings, part: {other: v for other, v in settings[part].items() if other != key}})
    used = 0
    for changed_settings in changed:
        try:
            head = head_from_settings(changed_settings)
            if head.hidden_size == features().shape[1] and head.num_outputs == logits.shape[1]:
                assert len(head.predict(logits)) == N, changed_settings
                mx.eval(head.loss(mx.array(logits), targets(sample_of(name).targets)))
                used += 1
        except HeadError:
            continue
    assert 0 < used < len(changed)  # some of the changes are legal


def dropout_is_for_training_and_its_samples_are_averaged(name: str) -> None:
    head = make(name, dropout=0.5, dropout_samples=1)
    head.output.weight = mx.random.normal(head.output.weight.shape)
    x = features()
    head.eval()
    assert mx.array_equal(_run(head, name, x), _run(head, name, x))
    expected = np.array(_run(head, name, x))
    head.train()

    def spread(samples: int) -> float:
        head.dropout_samples = samples
        runs = np.stack([np.array(_run(head, name, x)) for _ in range(40)])
        assert np.abs(runs.mean(axis=0) - expected).mean() < 4 * runs.std(axis=0).mean() / np.sqrt(40)
        return float(runs.std(axis=0).mean())

    one, sixteen = spread(1), spread(16)
    assert one > 0
    assert 0.15 < sixteen / one < 0.4  # 1/√16


def wrong_widths_are_refused(name: str) -> None:
    head = make(name)
    with pytest.raises(HeadError, match=r"expected \(batch, \d+\)"):
        head(mx.zeros((N, 15)), **sample_of(name).inputs(head))
    with pytest.raises(HeadError, match=r"logits have shape \(24, 99\); expected"):
        head.predict(mx.zeros((N, 99)))
    sample = sample_of(name)
    with pytest.raises(HeadError, match="hidden_size must be a positive whole number, not 0"):
        get_head(name).from_targets(0, sample.targets, **sample.fit)


CHECKS: tuple[Check, ...] = (
    shapes,
    metrics_are_known_and_fit,
    evaluates_all_its_metrics,
    gradients_reach_every_parameter_and_the_loss_falls,
    trains_compiled,
    padding_rows_change_nothing,
    targets_are_never_broadcast,
    targets_of_any_dtype_are_taken,
    half_precision,
    settings_round_trip_through_json_and_predictions_stay,
    settings_of_a_hostile_file_are_refused_by_name,
    dropout_is_for_training_and_its_samples_are_averaged,
    wrong_widths_are_refused,
)
