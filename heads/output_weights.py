"""How much each class or label weighs in a loss, as the user gives it."""

from __future__ import annotations

from collections.abc import Sequence

from heads.checks import check_number, listed
from heads.errors import HeadError


def check_output_weights(
    weights: Sequence[float] | str | None, count: int, what: str
) -> tuple[float, ...] | str | None:
    """`weights` as a tuple of `count` numbers, "balanced" or None.

    Raises:
        HeadError: another number of them, or one that is negative or not finite.
    """
    if weights is None or (isinstance(weights, str) and weights == "balanced"):
        return weights
    if isinstance(weights, str):
        raise HeadError(f"{what} must be numbers or 'balanced', not {weights!r}")
    numbers = listed(weights, what)
    if len(numbers) != count:
        raise HeadError(f"{what} has {len(numbers)} numbers for {count} outputs; fix: one for each, in their order")
    return tuple(check_number(number, what, 0) for number in numbers)
