"""Bits for every layer under a budget: from what each costs and what each harms, the best of both. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from converter.quantize.recipes import RecipeError
from converter.quantize.settings import Target
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
        sensitivity: mean 1 − cosine of sentence embeddings with this layer alone rounded to 4 bits.
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
        curve: the best models from the smallest to the largest, as expected.
        uniform: the same packing for every layer, by recipe, as expected.
        expected: of the chosen model.
        measured: its mean cosine on calibration text held back; None before it was calibrated.
    """

    config: QuantizationConfig
    target: Target
    choices: tuple[Choice, ...]
    curve: tuple[CurvePoint, ...]
    uniform: Mapping[str, CurvePoint]
    expected: CurvePoint
    measured: float | None = None

    def files(self) -> dict[str, bytes]:
        """The plot of size against quality, for the output directory; nothing where matplotlib is missing."""
        from converter.quantize.size_plot import PLOT, plot_sizes

        data = plot_sizes(self)
        return {} if data is None else {PLOT: data}


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
        the choice, and the curve from the smallest model to the largest, the choice on it.

    Raises:
        BudgetError: not even the smallest (or the best) is within it.
    """
    hulls = {path: frontier(found) for path, found in options.items()}
    place = dict.fromkeys(hulls, 0)
    size = fixed_bytes + sum(hull[0].bytes for hull in hulls.values())
    total = sum(hull[0].harm for hull in hulls.values())
    if budget is not None and size > budget:
        raise BudgetError(
            f"--target-size {budget / 1e6:.2f}MB: no allotment is so small; the nearest is {size / 1e6:.2f}MB "
            f"(expected cosine {1 - total:.3f}); fix: --target-size {_rounded_up(size)}MB or more"
        )
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
    if chosen is None and harm is not None:
        raise BudgetError(
            f"--target-cosine {1 - harm:g}: no allotment is so near; the nearest is {1 - total:.5f}, "
            f"at {size / 1e6:.2f}MB; fix: a lower --target-cosine, or --dtype float16 without --quantize"
        )
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


def _rounded_up(size: int) -> str:
    return f"{-(-size // 10**4) / 100:.2f}"
