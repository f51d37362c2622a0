"""Options and targets that no head can be made of, or learn from: refused by name, when they are given."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from heads.errors import HeadError
from heads.head_registry import get_head


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("binary", {"pos_weight": -1}, r"binary: pos_weight is -1; fix: a number in \[0, inf\]"),
        ("binary", {"pos_weight": [1, 2]}, "binary: pos_weight is"),
        ("binary", {"pos_weight": float("nan")}, "binary: pos_weight is nan"),
        ("binary", {"label_smoothing": 2}, r"label_smoothing is 2; fix: a number in \[0, 1\]"),
        ("binary", {"label_smoothing": "x"}, "label_smoothing is 'x'"),
        ("binary", {"objective": "focal", "alpha": 1.5}, "alpha is 1.5"),
        ("binary", {"objective": ["bce"]}, "objective .* is unknown; known: bce, focal"),
        ("multiclass", {"classes": 3}, "multiclass: classes: 3 is no list; fix: give a list or a tuple"),
        ("multiclass", {"classes": (0, 1), "class_weights": 3}, "class_weights: 3 is no list"),
        ("multiclass", {"classes": (0, 1), "class_weights": (1, None)}, "class_weights is None"),
        ("multiclass", {"classes": (0, 1), "objective": "focal", "gamma": -1}, "gamma is -1"),
        ("multilabel", {"classes": (0, 1), "pos_weight": 3}, "pos_weight: 3 is no list"),
        ("multilabel", {"classes": (0, 1), "objective": "asymmetric", "clip": 0.7}, r"a number in \[0, 0.5\]"),
        ("regression", {"objective": "huber", "delta": 0}, r"delta is 0; fix: a number in \(0, inf\)"),
        ("time_series", {"window": 4, "history_size": -3}, "history_size must be a positive whole number, not -3"),
        ("time_series", {"calendar": 3}, "calendar: 3 is no list"),
    ],
)
def test_options_are_refused_when_the_head_is_made(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        get_head(name)(8, **options)


def test_numbers_of_numpy_and_mlx_are_taken() -> None:
    weights = np.array([1, 2.5], np.float32)
    for given in (weights, list(weights), mx.array(weights)):
        assert get_head("multiclass")(8, classes=("a", "b"), class_weights=given).class_weights == (1.0, 2.5)
    assert get_head("binary")(8, pos_weight=np.float32(1.5)).pos_weight == 1.5


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("binary", [[1], [0, 1]]),
        ("binary", np.array([[1], {}], object)),
        ("multiclass", np.array([{"a": 1}], object)),
        ("multilabel", [["a", "b"]]),
        ("multilabel", [[1], [1, 0]]),
        ("regression", ["a", "b"]),
        ("regression", [[1.0], [1.0, 2.0]]),
        ("ordinal", [[1], [1, 2]]),
    ],
)
def test_targets_that_are_no_table_of_labels_or_numbers(name: str, targets: Any) -> None:
    classes = {} if name == "regression" else {"classes": (0, 1)}
    head = get_head(name)(8, **classes)
    with pytest.raises(HeadError, match=rf"^{name}: "):
        head.metric_targets(targets)
