"""The ways to pack each layer, what they are expected to harm, and the allotments worth a trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from converter.quantize.affine import SCALE_DTYPES, rounded
from converter.quantize.allotment import Option, allot_bits, point_of
from converter.quantize.calibrated import EMBEDDINGS
from converter.quantize.recipes import GROUP, fitted
from mlxbert.core import BertCore
from mlxbert.model_tensors import named_parameters
from mlxbert.quantization import MODES, LayerQuantization

Chosen = dict[str, Option]
"""Path of a layer to what it is given."""

MEASURED = LayerQuantization(4, GROUP)
"""What sensitivity is measured at; the other widths' harm is proportional to their squared error."""

_CANDIDATES = tuple(LayerQuantization(bits, group) for bits in MODES["affine"][0] for group in (32, 64, 128))

# What the tables' harm is multiplied by: once for each allotment that is tried. Errors of all layers together are not
# the sum of each layer's alone, and those of the tables, which every layer reads, add up otherwise than the rest.
TILTS = (1.0, 0.5)

# Rows of a matrix that the error of a packing is measured on.
_SAMPLED_ROWS = 512


def layer_options(core: BertCore, path: str, shape: tuple[int, int], harm: float, dtype: str) -> list[Option]:
    """Every packing of one layer.

    Args:
        core: the float32 encoder.
        path: of the layer.
        shape: (rows, width).
        harm: mean 1 − cosine with it alone packed as `MEASURED`.
        dtype: of scales and biases.
    """
    rows, width = shape
    item = SCALE_DTYPES[dtype].itemsize
    weight = named_parameters(core)[f"{path}.weight"]
    sample = np.array(weight[:: -(-rows // _SAMPLED_ROWS)])
    measured = fitted(MEASURED, width)
    assert measured is not None  # unpackable ones are left out
    scale = harm / (_squared_error(sample, measured, dtype) or 1.0)
    return [
        Option(layer, layer.bytes_of(rows, width, item), scale * _squared_error(sample, layer, dtype))
        for layer in _CANDIDATES
        if layer.fits(width)
    ]


def scaled(options: Mapping[str, Sequence[Option]], share: float, tables: float = 1.0) -> dict[str, list[Option]]:
    """The options with `share` of their harm, those of the tables times `tables`."""
    return {
        path: [
            replace(option, harm=share * (tables if path in EMBEDDINGS else 1) * option.harm) for option in of_layer
        ]
        for path, of_layer in options.items()
    }


def uniform_choices(options: Mapping[str, Sequence[Option]]) -> dict[str, Chosen]:
    """The plain recipes: the same bits for every layer, in groups as near to theirs as its width allows."""
    return {f"{bits}bit": _two_levels(options, bits, bits) for bits in MODES["affine"][0]}


def worth_a_trial(
    options: Mapping[str, Sequence[Option]], *, fixed_bytes: int, budget: int
) -> list[tuple[float, Chosen]]:
    """Different ways to spend `budget` bytes, each with the tables' multiplier.

    First the allotments that follow from every layer's harm. A harm measured on some sentences is uncertain, so that
    simple ways come after them: the best with two widths, one for the tables and one for the rest; and the uniform.
    """
    ways: list[tuple[float, Chosen]] = []
    for tilt in TILTS:
        tilted, _ = allot_bits(scaled(options, 1, tilt), fixed_bytes=fixed_bytes, budget=budget)
        ways.append((tilt, as_offered(options, tilted)))
    widths = MODES["affine"][0]
    for pairs in (product(widths, widths), zip(widths, widths, strict=True)):
        same = [_two_levels(options, *pair) for pair in pairs]
        fitting = [chosen for chosen in same if point_of(chosen, fixed_bytes).bytes <= budget]
        if fitting:
            ways.append((1.0, max(fitting, key=lambda chosen: point_of(chosen, fixed_bytes).cosine)))
    return [way for i, way in enumerate(ways) if way[1] not in [before for _, before in ways[:i]]]


def _two_levels(options: Mapping[str, Sequence[Option]], tables: int, others: int) -> Chosen:
    """`tables` bits for the tables and `others` for the rest, in groups as near to a recipe's as a width allows."""
    return {
        path: min(
            (option for option in of_layer if option.layer.bits == (tables if path in EMBEDDINGS else others)),
            key=lambda option: abs(option.layer.group_size - GROUP),
        )
        for path, of_layer in options.items()
    }


def as_offered(options: Mapping[str, Sequence[Option]], chosen: Chosen) -> Chosen:
    """The same packings, with the harm that `options` say."""
    return {
        path: next(option for option in options[path] if option.layer == picked.layer)
        for path, picked in chosen.items()
    }


def _squared_error(weight: np.ndarray, layer: LayerQuantization, dtype: str) -> float:
    return float(np.square(rounded(weight, layer, search=True, dtype=dtype).numbers - weight).sum())
