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
