"""Bits for every layer under a budget: from what each costs and what each harms, the best of both. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converter.quantize.recipes import RecipeError, Target
from mlxbert.quantization import LayerQuantization, QuantizationConfig


class BudgetError(RecipeError):
    """No allotment of bits reaches the target; the message says the nearest."""


@dataclass(frozen=True)
class Option:
    """One way to pack one layer: bytes with scales and biases, and the mean 1 − cosine that it is expected to cost."""

    layer: LayerQuantization
    bytes: int
    harm: float


@dataclass(frozen=True)
class CurvePoint:
    """A whole model: bytes of its weight files and its expected mean cosine with float32."""

    bytes: int
    cosine: float


@dataclass(frozen=True)
class Choice:
    """What one layer was given, for the table.

    Attributes:
        path: of the layer.
        rows, width: of its matrix.
        sensitivity: mean 1 − cosine of sentence embeddings with this layer alone calibrated at 4 bits.
        option: what it was given.
    """

    path: str
    rows: int
    width: int
    sensitivity: float
    option: Option


@dataclass(frozen=True)
class Allotment:
    """How `auto` chose.

    Attributes:
        config: the result.
        target: what was asked for.
        choices: each layer's.
        curve: the best models from the smallest to the largest, as expected: what layers alone harm, added up, and
            brought to what the model tried with these bits harmed in all.
        uniform: the same packing for every layer, by recipe, as expected.
        expected: of the chosen model, on text held back from its trial.
        measured: its mean cosine on calibration text; None before it was calibrated. Where a cosine is the target,
            that text was held back from the choice of codes; otherwise all of it chose them, and only the held-out
            lists of `converter.quantize.quality` are unseen.
    """

    config: QuantizationConfig
    target: Target
    choices: tuple[Choice, ...]
    curve: tuple[CurvePoint, ...]
    uniform: Mapping[str, CurvePoint]
    expected: CurvePoint
    measured: float | None = None

    @property
    def measured_on(self) -> str:
        """For people: whether the codes that were chosen saw the text."""
        return "calibration text held back" if self.target.cosine is not None else "the calibration text itself"


def frontier(options: Sequence[Option]) -> list[Option]:
    """Those options worth having, smallest first: on the lower convex hull of harm over bytes.

    Along it every byte more buys less than the one before, which is what makes the greedy choice the best one.
    """
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.harm)):
        if hull and option.harm >= hull[-1].harm:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def check_reach(
    target: Target,
    options: Mapping[str, Sequence[Option]],
    *,
    fixed_bytes: int,
    file_bytes: int,
    parameters: int,
) -> None:
    """Refuse a target below the smallest model or above the best one.

    Args:
        target: what is asked for.
        options: of each layer; any order.
        fixed_bytes: of the files beside the packed layers.
        file_bytes: those of them that are not the encoder's.
        parameters: of the encoder.

    Raises:
        BudgetError: says the nearest, in the target's own unit.
    """
    hulls = {path: frontier(found) for path, found in options.items()}
    small, best = (point_of({path: hull[end] for path, hull in hulls.items()}, fixed_bytes) for end in (0, -1))
    nearest = f"{small.bytes / 1e6:.2f}MB (expected cosine {small.cosine:.3f})"
    if target.size is not None and small.bytes > target.size:
        raise BudgetError(
            f"--target-size {target.size / 1e6:.2f}MB: no allotment is so small; the nearest is {nearest}; "
            f"fix: --target-size {_up(small.bytes / 1e6)}MB or more"
        )
    bits = 8 * (small.bytes - file_bytes) / parameters
    if target.bits is not None and bits > target.bits:
        raise BudgetError(
            f"--target-bits {target.bits:g}: no allotment is so small; the nearest is {_up(bits)} bits a weight, "
            f"{nearest}; fix: --target-bits {_up(bits)} or more"
        )
    if target.cosine is not None and best.cosine < target.cosine:
        raise BudgetError(
            f"--target-cosine {target.cosine:g}: no allotment is so near; the nearest is "
            f"{rounded_down(best.cosine, 5)}, at {best.bytes / 1e6:.2f}MB; "
            "fix: a lower --target-cosine, or --dtype float16 without --quantize"
        )


def allot_bits(
    options: Mapping[str, Sequence[Option]],
    *,
    fixed_bytes: int,
    budget: int | None = None,
    harm: float | None = None,
) -> tuple[dict[str, Option], list[CurvePoint]]:
    """Give every layer its smallest option, then spend bytes where they help most.

    Args:
        options: of each layer; any order.
        fixed_bytes: of the files beside the packed layers.
        budget: bytes of all files at most; or
        harm: expected mean 1 − cosine at most.

    Returns:
        the choice, and the curve from the smallest model to the largest, the choice on it; the nearest to a budget
        or a harm that is out of reach.
    """
    hulls = {path: frontier(found) for path, found in options.items()}
    place = dict.fromkeys(hulls, 0)
    size = fixed_bytes + sum(hull[0].bytes for hull in hulls.values())
    total = sum(hull[0].harm for hull in hulls.values())
    curve = [CurvePoint(size, 1 - total)]
    chosen: dict[str, Option] | None = None
    steps = [(-_gain(hull[0], hull[1]), path) for path, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    spent = False
    while True:
        if harm is not None and chosen is None and total <= harm:
            chosen = {path: hulls[path][at] for path, at in place.items()}
        if not steps:
            break
        _, path = heapq.heappop(steps)
        hull, at = hulls[path], place[path]
        new_size = size + hull[at + 1].bytes - hull[at].bytes
        if budget is not None and new_size > budget and not spent:
            spent = True
            chosen = _filled(hulls, place, size, budget)
        size, total = new_size, total + hull[at + 1].harm - hull[at].harm
        place[path] = at + 1
        curve.append(CurvePoint(size, 1 - total))
        if at + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull[at + 1], hull[at + 2]), path))
    return chosen or {path: hulls[path][at] for path, at in place.items()}, curve


def _filled(
    hulls: Mapping[str, Sequence[Option]], place: Mapping[str, int], size: int, budget: int
) -> dict[str, Option]:
    """The next step is too large for what is left of the budget; smaller ones may still fit."""
    place = dict(place)
    while True:
        fitting = [
            (_gain(hull[at], hull[at + 1]), path)
            for path, hull in hulls.items()
            if (at := place[path]) + 1 < len(hull) and size + hull[at + 1].bytes - hull[at].bytes <= budget
        ]
        if not fitting:
            return {path: hulls[path][at] for path, at in place.items()}
        _, path = max(fitting)
        size += hulls[path][place[path] + 1].bytes - hulls[path][place[path]].bytes
        place[path] += 1


def _gain(small: Option, large: Option) -> float:
    """Harm avoided for each byte more."""
    return (small.harm - large.harm) / max(large.bytes - small.bytes, 1)


def point_of(chosen: Mapping[str, Option], fixed_bytes: int) -> CurvePoint:
    """The whole model with a choice for every layer, as expected: harms add up."""
    options = chosen.values()
    return CurvePoint(fixed_bytes + sum(o.bytes for o in options), 1 - sum(o.harm for o in options))


def _up(value: float) -> str:
    """Rounded up: the fix that is told has to work."""
    return f"{math.ceil(value * 100) / 100:.2f}"


def rounded_down(cosine: float, digits: int) -> str:
    """A cosine that is reached, as text: rounded to the nearest, it may not be."""
    return f"{math.floor(cosine * 10**digits) / 10**digits:.{digits}f}"
