"""Regression targets on the scale that a network learns at, and back to the user's units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from heads.errors import HeadError
from heads.host import Float

KINDS = ("standard", "robust", "minmax", "none")


@dataclass(frozen=True)
class TargetScaler:
    """z = (f(y) − center) / scale, column by column; f is log(1 + y) with `log`, else y.

    Attributes:
        center: one number a target column (one for all with `shared`).
        scale: likewise, each above 0.
        log: targets are right-skewed and above −1: prices, counts.
    """

    center: tuple[float, ...]
    scale: tuple[float, ...]
    log: bool = False

    @classmethod
    def fit(
        cls, targets: Float, *, kind: str = "standard", log: bool = False, shared: bool = False, what: str
    ) -> Self:
        """Fit on the targets (N, T) of the training fold, and of nothing else.

        Args:
            kind: "standard" (mean, deviation), "robust" (median, interquartile range), "minmax" or "none".
            log: log(1 + y) first.
            shared: one center and scale for all columns: steps of one series.

        Raises:
            HeadError: an unknown kind, targets that are not finite, or a log of one at or below −1.
        """
        values = _function(np.asarray(targets, np.float64), log, what)
        columns = values.reshape(-1, 1) if shared else values
        if not len(columns):
            raise HeadError(f"{what}: no rows to fit the target scaler on")
        if kind == "standard":
            center, scale = columns.mean(axis=0), columns.std(axis=0)
        elif kind == "robust":
            low, center, high = np.percentile(columns, [25, 50, 75], axis=0)
            scale = high - low
        elif kind == "minmax":
            center, scale = columns.min(axis=0), np.ptp(columns, axis=0)
        elif kind == "none":
            center, scale = np.zeros(columns.shape[1]), np.ones(columns.shape[1])
        else:
            raise HeadError(f"{what}: scaling {kind!r} is unknown; known: {', '.join(KINDS)}")
        # Constant targets: any scale brings them back; 1 does so without dividing by 0.
        scale = np.where(scale > 0, scale, 1.0)
        return cls(tuple(map(float, center)), tuple(map(float, scale)), log)

    def transform(self, targets: Float, what: str) -> Float:
        """The user's units (N, T) to the network's."""
        return (_function(np.asarray(targets, np.float64), self.log, what) - self.center) / self.scale

    def inverse(self, scaled: Float) -> Float:
        """The network's units (…, T) to the user's; with `log` the median where `scaled` is a mean."""
        values = scaled * self.scale + self.center
        return np.expm1(values) if self.log else values

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], what: str) -> Self:
        """The scaler that `to_dict` described.

        Raises:
            HeadError: the fields are not those of a scaler.
        """
        try:
            center, scale = (tuple(float(number) for number in fields[name]) for name in ("center", "scale"))
            log = fields["log"]
        except (KeyError, TypeError, ValueError) as error:
            raise HeadError(f"{what}: the saved target scaler cannot be read ({error!r}); fix: save again") from None
        if (
            len(center) != len(scale)
            or not np.isfinite(center).all()
            or not all(0 < s < np.inf for s in scale)
            or not isinstance(log, bool)
        ):
            raise HeadError(f"{what}: the saved target scaler is not one: {dict(fields)!r}; fix: save again")
        return cls(center, scale, log)


def _function(values: Float, log: bool, what: str) -> Float:
    if not np.isfinite(values).all():
        row, column = map(int, np.argwhere(~np.isfinite(values))[0])
        raise HeadError(
            f"{what}: row {row} has no finite value ({values[row, column]}); fix: drop it, or fill the value in"
        )
    if not log:
        return values
    if (values <= -1).any():
        row, column = map(int, np.argwhere(values <= -1)[0])
        raise HeadError(
            f"{what}: log_targets needs values above −1, row {row} has {values[row, column]}; fix: log_targets=False"
        )
    return np.log1p(values)
