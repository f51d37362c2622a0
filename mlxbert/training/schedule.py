"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mlxbert.errors import MLXBertError


class ScheduleError(MLXBertError):
    """A schedule that is unknown, or whose numbers make none."""


def _linear(progress: float, _: float) -> float:
    return 1 - progress


def _cosine(progress: float, _: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _constant(_progress: float, _: float) -> float:
    return 1.0


def _polynomial(progress: float, power: float) -> float:
    return float((1 - progress) ** power)


# From p, the part done of the steps after the warm-up (0 … 1), and the power, to the part of the peak above the end.
SHAPES: dict[str, Callable[[float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "polynomial": _polynomial,
}


@dataclass(frozen=True)
class Schedule:
    """factor(t) = (t + offset) / W in the warm-up t < W, then end + (1 − end) · shape((t − W) / (T − W)).

    With `first_step_is_zero` the offset is 0 and these are transformers' `get_*_schedule_with_warmup`
    (`optimization.py`): the first step then changes nothing. Otherwise it is 1, and no step is lost.

    Attributes:
        total_steps: T, optimizer steps of the run; the factor stays at `end` beyond.
        kind: "linear" (to `end`), "cosine" (half a wave), "constant", or "polynomial": (1 − p)^power.
        warmup_steps: W, from 0 to T.
        end: the factor at T, of 1 at the peak.
        power: of "polynomial"; 2 falls fast and then slowly.
        first_step_is_zero: as transformers does it.
    """

    total_steps: int
    kind: str = "linear"
    warmup_steps: int = 0
    end: float = 0.0
    power: float = 2.0
    first_step_is_zero: bool = False

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ScheduleError(f"schedule {self.kind!r} is unknown; known: {', '.join(SHAPES)}")
        if self.total_steps < 1:
            raise ScheduleError(f"schedule: total_steps must be at least 1, not {self.total_steps}")
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ScheduleError(
                f"schedule: warmup_steps is {self.warmup_steps}; fix: from 0 to total_steps, {self.total_steps}"
            )
        if not 0 <= self.end <= 1:
            raise ScheduleError(f"schedule: end must be from 0 to 1, a part of the peak rate, not {self.end}")
        if not (math.isfinite(self.power) and self.power > 0):
            raise ScheduleError(f"schedule: power must be above 0, not {self.power}")

    def factor(self, step: int) -> float:
        """What the peak rate is multiplied by at optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + (0 if self.first_step_is_zero else 1)) / self.warmup_steps
        length = max(self.total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / length, 1.0)
        return self.end + (1 - self.end) * SHAPES[self.kind](progress, self.power)


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """After which steps of an epoch to evaluate: the last one is always among them."""
    count = min(steps, evaluations)
    return frozenset(round(steps * (i + 1) / count) for i in range(count))
