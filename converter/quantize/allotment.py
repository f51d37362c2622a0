"""Bits for every layer under a budget: a greedy choice along each layer's best trade of bytes for harm. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from converter.quantize.recipes import RecipeError, Target
from mlxbert.quantization import LayerQuantization, QuantizationConfig


@dataclass(frozen=True)
class Option:
    """One way to pack one layer.

    Attributes:
        layer: the packing.
        bytes: its size, scales and biases included.
        harm: its expected mean 1 − cosine of sentence embeddings.
        is_table: whether the layer is an embedding table.
    """

    layer: LayerQuantization
    bytes: int
    harm: float
    is_table: bool = False


@dataclass(frozen=True)
class CurvePoint:
    """A whole model: the bytes of its weight files and its expected mean cosine with float32."""

    bytes: int
    cosine: float


@dataclass(frozen=True)
class Choice:
    """The packing of one layer, for the table.

    Attributes:
        path: path of the layer.
        sensitivity: mean 1 − cosine of sentence embeddings with this layer alone calibrated at 4 bits.
        option: the chosen packing.
    """

    path: str
    sensitivity: float
    option: Option


@dataclass(frozen=True)
class Allotment:
    """The result of `auto`.

    Attributes:
        config: the packing of every layer.
        target: the target.
        choices: the same, with sensitivities.
        curve: the best models from the smallest to the largest, as expected: the sum of the harms of single layers,
            scaled to the harm that the best trial showed.
        uniform: recipe -> the model with the same packing for every layer, as expected.
        expected: the chosen model, as expected on text that its trial did not see.
        measured: its mean cosine on calibration text; None before calibration. With a cosine as the target, that text
            was held back from the choice of codes; otherwise calibration saw all of it, and only the held-out lists of
            `converter.quantize.quality` are unseen.
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
        """The text of `measured`, in words."""
        return "calibration text held back" if self.target.cosine is not None else "the calibration text itself"


def check_reach(
    target: Target, options: Mapping[str, Sequence[Option]], *, fixed_bytes: int, file_bytes: int, parameters: int
) -> None:
    """Refuse a target below the smallest model or above the best one.

    Args:
        target: the target.
        options: path of a layer -> its options, in any order.
        fixed_bytes: bytes of the weight files beside the packed layers.
        file_bytes: those of them that are not the encoder's.
        parameters: parameters of the encoder.

    Raises:
        RecipeError: the message has the nearest value, in the unit of the target.
    """
    hulls = {path: frontier(of_layer) for path, of_layer in options.items()}
    small, best = (point_of({path: hull[end] for path, hull in hulls.items()}, fixed_bytes) for end in (0, -1))
    nearest = f"{small.bytes / 1e6:.2f}MB (expected cosine {small.cosine:.3f})"
    if target.size is not None and small.bytes > target.size:
        raise RecipeError(
            f"--target-size {target.size / 1e6:.2f}MB: no allotment is so small; the nearest is {nearest}; "
            f"fix: --target-size {_rounded_up(small.bytes / 1e6)}MB or more"
        )
    bits = 8 * (small.bytes - file_bytes) / parameters
    if target.bits is not None and bits > target.bits:
        raise RecipeError(
            f"--target-bits {target.bits:g}: no allotment is so small; the nearest is {_rounded_up(bits)} bits a "
            f"weight, {nearest}; fix: --target-bits {_rounded_up(bits)} or more"
        )
    if target.cosine is not None and best.cosine < target.cosine:
        raise RecipeError(
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
        options: path of a layer -> its options, in any order.
        fixed_bytes: bytes of the weight files beside the packed layers.
        budget: maximum of the bytes of all files; or
        harm: maximum of the expected mean 1 − cosine; without either, the result is the largest model.

    Returns:
        the choice, and the curve from the smallest model to the largest. If the budget or the harm is out of reach,
        the choice is the nearest one.
    """
    hulls = {path: frontier(of_layer) for path, of_layer in options.items()}
    models = list(_greedy_models(hulls, fixed_bytes))
    curve = [CurvePoint(size, 1 - total) for size, total, _ in models]
    size, _, places = models[-1]
    if harm is not None:
        places = next((at for _, total, at in models if total <= harm), places)
    elif budget is not None:
        too_large = next((i for i, model in enumerate(models) if i and model[0] > budget), None)
        if too_large is not None:
            size, _, places = models[too_large - 1]
            places = _filled(hulls, places, size, budget)
    return {path: hulls[path][place] for path, place in places.items()}, curve


def frontier(options: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex hull of harm over bytes, smallest first.

    Along it every byte more helps less than the one before, so that the greedy choice is the best one.
    """
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.harm)):
        if hull and option.harm >= hull[-1].harm:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _greedy_models(
    hulls: Mapping[str, Sequence[Option]], fixed_bytes: int
) -> Iterator[tuple[int, float, dict[str, int]]]:
    """Yield (bytes, harm, place in its hull of every layer), from the smallest model to the largest."""
    places = dict.fromkeys(hulls, 0)
    size = fixed_bytes + sum(hull[0].bytes for hull in hulls.values())
    total = sum(hull[0].harm for hull in hulls.values())
    yield size, total, dict(places)
    steps = [(-_gain(hull[0], hull[1]), path) for path, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, path = heapq.heappop(steps)
        hull, place = hulls[path], places[path]
        size += hull[place + 1].bytes - hull[place].bytes
        total = total + hull[place + 1].harm - hull[place].harm
        places[path] = place + 1
        yield size, total, dict(places)
        if place + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull[place + 1], hull[place + 2]), path))


def _filled(
    hulls: Mapping[str, Sequence[Option]], places: Mapping[str, int], size: int, budget: int
) -> dict[str, int]:
    """Return the places after smaller steps that still fit into the budget, although the best step does not."""
    filled = dict(places)
    while True:
        fitting = [
            (_gain(hull[place], hull[place + 1]), path)
            for path, hull in hulls.items()
            if (place := filled[path]) + 1 < len(hull) and size + hull[place + 1].bytes - hull[place].bytes <= budget
        ]
        if not fitting:
            return filled
        _, path = max(fitting)
        size += hulls[path][filled[path] + 1].bytes - hulls[path][filled[path]].bytes
        filled[path] += 1


def _gain(small: Option, large: Option) -> float:
    """Return the harm avoided by each byte more."""
    return (small.harm - large.harm) / max(large.bytes - small.bytes, 1)


def point_of(chosen: Mapping[str, Option], fixed_bytes: int) -> CurvePoint:
    """Return the whole model with a choice for every layer, as expected: harms add up."""
    options = chosen.values()
    return CurvePoint(fixed_bytes + sum(o.bytes for o in options), 1 - sum(o.harm for o in options))


def _rounded_up(value: float) -> str:
    """Return two decimals, rounded up, so that the suggested target is enough."""
    return f"{math.ceil(value * 100) / 100:.2f}"


def rounded_down(cosine: float, digits: int) -> str:
    """Return a cosine as text, rounded down: the nearest number may be out of reach."""
    return f"{math.floor(cosine * 10**digits) / 10**digits:.{digits}f}"
