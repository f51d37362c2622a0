"""Small targets of every competition type, for the tests of every registered head of that type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from heads.head_registry import get_head, registered_heads

D, N = 16, 24


@dataclass(frozen=True)
class Sample:
    """Targets in the user's own units, and the other arguments of a head of that type."""

    targets: Any
    fit: dict[str, Any] = field(default_factory=dict)
    calibrate: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[Head], dict[str, mx.array]] = lambda head: {}


def _time_series() -> Sample:
    rng = np.random.default_rng(3)
    months = np.arange("2001-01", "2003-01", dtype="datetime64[M]")
    history = 100 + rng.normal(size=(N, 8)).cumsum(axis=1)

    def inputs(head: Any) -> dict[str, mx.array]:
        return head.inputs(history=history, made_at=months)

    return Sample(
        targets=100 + rng.normal(size=(N, 3)).cumsum(axis=1),
        fit={"known_at": months + 3, "window": 8, "period": 4, "calendar": ("year",)},
        calibrate={"made_at": months + 100},
        inputs=inputs,
    )


def _samples() -> dict[str, Sample]:
    rng = np.random.default_rng(0)
    multilabel = rng.integers(0, 2, (N, 4))
    multilabel[0, 1] = multilabel[5, 3] = -1
    return {
        "binary": Sample(np.where(np.arange(N) % 3 == 0, "yes", "no")),
        "multiclass": Sample(np.array(["cat", "dog", "eel"])[np.arange(N) % 3]),
        "multilabel": Sample(multilabel),
        "regression": Sample(200_000 + 50_000 * rng.normal(size=N)),
        "ordinal": Sample(1 + np.arange(N) % 5),
        "time_series": _time_series(),
    }


SAMPLES = _samples()
NAMES = tuple(registered_heads())


def sample_of(name: str) -> Sample:
    """Return the sample of a registered head's (first) competition type."""
    return SAMPLES[get_head(name).competition_types[0]]


def make(name: str, seed: int = 0, **options: Any) -> Head:
    """Return a head for its sample's targets, in training mode."""
    mx.random.seed(seed)
    sample = sample_of(name)
    return get_head(name).from_targets(D, sample.targets, **sample.fit, **options)


def features(rows: int = N, seed: int = 7) -> mx.array:
    """Return random features (rows, D)."""
    return mx.random.normal((rows, D), key=mx.random.key(seed))
