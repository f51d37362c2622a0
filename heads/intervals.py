"""Prediction intervals, and whether they hold what they promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from heads.checks import as_array
from heads.errors import HeadError
from heads.host import Float


@dataclass(frozen=True)
class Coverage:
    """How often the truth lay inside.

    Attributes:
        level: the share that the interval promises.
        observed: the share that was inside.
        mean_width: mean of upper − lower, in the user's units.
        count: number of values compared.
    """

    level: float
    observed: float
    mean_width: float
    count: int

    def __str__(self) -> str:
        return f"{self.observed:.1%} of {self.count} values inside the {self.level:.0%} interval"


@dataclass(frozen=True)
class Interval:
    """Central prediction intervals in the user's units; every array has the shape of the predictions.

    Attributes:
        value: the prediction.
        lower: the interval's ends.
        upper: likewise.
        level: the share of true values that should lie between them.
    """

    value: Float
    lower: Float
    upper: Float
    level: float

    def coverage(self, targets: Any) -> Coverage:
        """Compare with the true values, in the user's units and the shape of `value`.

        Raises:
            HeadError: another shape.
        """
        truth = as_array(targets, np.float64, "coverage")
        if truth.shape != self.value.shape:
            raise HeadError(f"coverage: targets have shape {truth.shape}, predictions {self.value.shape}")
        if not truth.size:
            raise HeadError("coverage: no rows to compare")
        inside = (self.lower <= truth) & (truth <= self.upper)
        return Coverage(self.level, float(inside.mean()), float((self.upper - self.lower).mean()), inside.size)


def normal_quantile(level: float, what: str) -> float:
    """The z for which a standard normal lies in ±z with probability `level`.

    Raises:
        HeadError: not between 0 and 1.
    """
    from scipy.stats import norm

    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 < level < 1:
        raise HeadError(f"{what}: level must lie between 0 and 1, such as 0.9, not {level!r}")
    return float(norm.ppf((1 + level) / 2))
