"""Numbers and lists of them as a user, or a saved file, gives them: taken or refused by name."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from heads.errors import HeadError


def check_number(
    value: Any, what: str, low: float = -math.inf, high: float = math.inf, *, open_ends: bool = False
) -> float:
    """`value` if it is a finite number in [low, high], or in (low, high) with `open_ends`.

    Raises:
        HeadError: it is not; `what` names the head and the setting.
    """
    if getattr(value, "ndim", None) == 0:  # numpy's and MLX's own numbers
        value = value.item()
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if number and (low < value < high if open_ends else low <= value <= high):
        return float(value)
    left, right = ("(", ")") if open_ends else ("[", "]")
    raise HeadError(f"{what} is {value!r}; fix: a number in {left}{low:g}, {high:g}{right}")


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


def listed(values: Any, what: str) -> tuple[Any, ...]:
    """`values` as a tuple.

    Raises:
        HeadError: a string, a mapping, or nothing to iterate over.
    """
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise HeadError(f"{what}: {values!r} is no list; fix: give a list or a tuple")
    return tuple(values)


def as_array(values: Any, dtype: Any, what: str) -> np.ndarray[Any, Any]:
    """`values` as a numpy array; `dtype` None: whatever fits.

    Raises:
        HeadError: rows of different lengths, or text where numbers are expected.
    """
    try:
        return np.asarray(values, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise HeadError(f"{what}: the values cannot be read ({error}); fix: give one kind of value a row") from None


OPTION_RANGES = {
    "label_smoothing": (0.0, 1.0),
    "alpha": (0.0, 1.0),
    "gamma": (0.0, math.inf),
    "gamma_neg": (0.0, math.inf),
    "gamma_pos": (0.0, math.inf),
    "clip": (0.0, 0.5),
    "delta": (0.0, math.inf),
}
"""What the losses take: a wrong number is refused when the head is made, not in the first step of training."""


def check_options(what: str, objective: str, allowed: Mapping[str, tuple[str, ...]], given: Mapping[str, Any]) -> None:
    """Refuse an unknown objective, options that the chosen one would ignore, and numbers out of their range.

    Raises:
        HeadError: naming the objectives, or the option and the objective it belongs to, or its range.
    """
    if not isinstance(objective, str) or objective not in allowed:
        raise HeadError(f"{what}: objective {objective!r} is unknown; known: {', '.join(allowed)}")
    for option, value in given.items():
        if value is not None and option not in allowed[objective]:
            owners = " or ".join(f"objective={name!r}" for name, options in allowed.items() if option in options)
            raise HeadError(
                f"{what}: {option} has no effect with objective={objective!r}; fix: use {owners}, or leave it out"
            )
        if value is not None and option in OPTION_RANGES:
            check_number(value, f"{what}: {option}", *OPTION_RANGES[option], open_ends=option == "delta")
