"""Check the numbers, lists and options that a user or a saved file gives; refuse a wrong one by its name."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from heads.errors import HeadError
from heads.labels import listed


def check_number(
    value: Any, what: str, low: float = -math.inf, high: float = math.inf, *, open_ends: bool = False
) -> float:
    """Return `value` as a float if it is a finite number in [low, high], or in (low, high) with `open_ends`.

    Raises:
        HeadError: it is not; `what` names the head and the setting.
    """
    if getattr(value, "ndim", None) == 0:  # a number of numpy or MLX
        value = value.item()
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if number and (low < value < high if open_ends else low <= value <= high):
        return float(value)
    left, right = ("(", ")") if open_ends else ("[", "]")
    raise HeadError(f"{what} is {value!r}; fix: a number in {left}{low:g}, {high:g}{right}")


def check_count(value: Any, what: str, least: int = 1) -> int:
    """Return `value` if it is a whole number from `least` (0 or 1) on.

    Raises:
        HeadError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = "a positive whole number" if least else "a whole number from 0 on"
        raise HeadError(f"{what} must be {kind}, not {value!r}")
    return value


def check_numbers(values: Any, count: int, what: str, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse anything but `count` finite numbers in [low, high].

    Raises:
        HeadError: as `check_number`, or another count.
    """
    items = listed(values, what)
    if len(items) != count:
        raise HeadError(f"{what} has {len(items)} numbers; fix: give {count}")
    for value in items:
        check_number(value, what, low, high)


OPTION_RANGES = {
    "label_smoothing": (0.0, 1.0),
    "alpha": (0.0, 1.0),
    "gamma": (0.0, math.inf),
    "gamma_neg": (0.0, math.inf),
    "gamma_pos": (0.0, math.inf),
    "clip": (0.0, 0.5),
    "delta": (0.0, math.inf),
}
"""Ranges that the losses accept; checked when the head is made, not in the first step of training."""


def check_options(what: str, objective: str, allowed: Mapping[str, tuple[str, ...]], given: Mapping[str, Any]) -> None:
    """Refuse options that the objective would ignore, and numbers out of their range.

    Args:
        what: the head, for messages.
        objective: a key of `allowed`.
        allowed: the options of each objective.
        given: option -> value; None: it is not given.

    Raises:
        HeadError: names the option and the objective that it belongs to, or its range.
    """
    for option, value in given.items():
        if value is not None and option not in allowed[objective]:
            owners = " or ".join(f"objective={name!r}" for name, options in allowed.items() if option in options)
            raise HeadError(
                f"{what}: {option} has no effect with objective={objective!r}; fix: use {owners}, or leave it out"
            )
        if value is not None and option in OPTION_RANGES:
            check_number(value, f"{what}: {option}", *OPTION_RANGES[option], open_ends=option == "delta")


def check_output_weights(
    weights: Sequence[float] | str | None, count: int, what: str
) -> tuple[float, ...] | str | None:
    """Return the weights of classes or labels as a tuple of `count` numbers, "balanced" or None.

    Raises:
        HeadError: another number of weights, or one that is negative or not finite.
    """
    if weights is None or (isinstance(weights, str) and weights == "balanced"):
        return weights
    if isinstance(weights, str):
        raise HeadError(f"{what} must be numbers or 'balanced', not {weights!r}")
    numbers = listed(weights, what)
    if len(numbers) != count:
        raise HeadError(f"{what} has {len(numbers)} numbers for {count} outputs; fix: one for each, in their order")
    return tuple(check_number(number, what, 0) for number in numbers)
