"""The ways to pack each layer, what they are expected to harm, and the allotments worth a trial.

How far a calibrated model's sentence embeddings are from float32's, on text held back from its calibration.

`--quantize auto`: measure how much each layer matters, allot bits in some ways, try them, calibrate the best.

How much a layer matters is measured with that layer alone packed, and compensated as calibration does it. The
allotments that follow from it, and the best uniform recipe that fits, are calibrated on three texts in four; the one
that is nearest to float32 on the fourth is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import mlx.core as mx
import numpy as np

from converter.quantize.allotment import (
    Allotment,
    BudgetError,
    Choice,
    Option,
    allot_bits,
    check_reach,
    point_of,
    rounded_down,
)
from converter.quantize.calibrated import EMBEDDINGS, Calibrated, calibrate, embedding_metric
from converter.quantize.quality import embeddings
from converter.quantize.recipes import GROUP, RECIPES, QuantizeSettings, configure, fitted
from converter.quantize.rounding import SCALE_DTYPES, Array, rounded
from converter.quantize.texts import VARIANTS, CalibrationError, TokenBatch
from mlxbert.model_tensors import named_parameters
from mlxbert.models.base import Encoder
from mlxbert.quantization import MODES, LayerQuantization, QuantizationConfig

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


def layer_options(core: Encoder, path: str, shape: tuple[int, int], harm: float, dtype: str) -> list[Option]:
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


# The pooler has no part in the mean of hidden states; what it gives by itself counts a tenth.
_POOLER = "pooler.dense"
_POOLER_SHARE = 0.1

NOTHING = 1e-9
"""The smallest harm: of what is measured, noise may make less than 0."""


class Study:
    """Float32 embeddings of held-back texts, and what those of other weights differ by.

    Args:
        core: the float32 encoder; changed for the time of a measurement.
        held: the texts.
        pooling: how embeddings are made of hidden states.
    """

    def __init__(self, core: Encoder, held: Sequence[TokenBatch], pooling: Sequence[str]):
        self._core, self._held, self._pooling = core, held, tuple(pooling)
        self._exact = embeddings(core, held, self._pooling)
        self._exact_pooler = embeddings(core, held, ("pooler",)) if "pooler" in core else None

    def harms(self, alone: Calibrated, *, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Mean 1 − cosine of each layer by itself; `alone`: every layer rounded as if it were the only one."""
        found = {}
        for done, path in enumerate(alone.weights):
            only = Calibrated({path: alone.weights[path]})
            if (bias := f"{path}.bias") in alone.biases:
                only.biases[bias] = alone.biases[bias]
            if path == _POOLER and self._exact_pooler is not None:
                harm = _POOLER_SHARE * (1 - self._cosine(only, ("pooler",), self._exact_pooler))
            else:
                harm = 1 - self.cosine(only)
            found[path] = max(harm, NOTHING)
            progress(done + 1, len(alone.weights))
        return found

    def cosine(self, calibrated: Calibrated) -> float:
        """Mean cosine of the calibrated model's embeddings with float32's."""
        return self._cosine(calibrated, self._pooling, self._exact)

    def _cosine(self, calibrated: Calibrated, pooling: Sequence[str], exact: np.ndarray) -> float:
        before = named_parameters(self._core)
        changed = [(f"{path}.weight", mx.array(weight.numbers)) for path, weight in calibrated.weights.items()]
        changed += [(name, mx.array(bias)) for name, bias in calibrated.biases.items()]
        try:
            self._core.load_weights(changed, strict=False)
            return float((embeddings(self._core, self._held, pooling) * exact).sum(axis=1).mean())
        finally:
            self._core.load_weights([(name, before[name]) for name, _ in changed], strict=False)


Progress = Callable[[str, int, int], None]
MakeBatches = Callable[..., list[TokenBatch]]

# One text in four is held back from the choice of bits; and where a cosine is to be reached, from that of codes.
_HELD_BACK = 4
_ATTEMPTS = 4

# Variants of each text in a trial: enough to tell allotments apart, and quick.
TRIED_VARIANTS = 1


def allot(
    core: Encoder,
    make: MakeBatches,
    texts: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
    settings: QuantizeSettings,
    *,
    pooling: Sequence[str],
    dtype: str,
    plain_bytes: int,
    file_bytes: int,
    progress: Progress,
) -> tuple[Allotment, Calibrated]:
    """Choose bits for every layer, and calibrate with them.

    Args:
        core: the float32 encoder.
        make: texts (and `variants=`) to batches.
        texts: the calibration texts.
        shapes: path of every layer with a matrix to its (rows, width).
        settings: with the target.
        pooling: how embeddings are made of hidden states.
        dtype: of scales and biases.
        plain_bytes: of the encoder's tensors that are no matrices.
        file_bytes: of the weight files beside the encoder's tensors: headers, heads.
        progress: told of every stage: what is measured, tried, calibrated.

    Raises:
        BudgetError: no allotment reaches the target; says the nearest.
        CalibrationError: a single text, which cannot be both seen and held back.
    """
    target = settings.target
    assert target is not None
    kept = [text for i, text in enumerate(texts) if i % _HELD_BACK]
    if not kept:
        raise CalibrationError(
            "--quantize auto: chooses codes on some texts and measures on others, and there is one; "
            "fix: --calibration with a few hundred, one a line"
        )
    plain = configure(RECIPES["4bit"], shapes)
    packable = {path: shape for path, shape in shapes.items() if plain.of(path) is not None}
    item = SCALE_DTYPES[dtype].itemsize
    skipped = sum(item * rows * width for path, (rows, width) in shapes.items() if path not in packable)
    fixed_bytes = plain_bytes + skipped + file_bytes
    parameters = sum(rows * width for rows, width in shapes.values()) + plain_bytes // item

    study = Study(core, make(texts[::_HELD_BACK]), pooling)
    metric = embedding_metric(core, make(kept), progress=partial(progress, "embeddings"))
    run = _Calibration(core, make, metric, dtype, progress)
    harms = study.harms(run(kept, 0, plain, "each layer alone", alone=True), progress=partial(progress, "measure"))
    options = {path: layer_options(core, path, shape, harms[path], dtype) for path, shape in packable.items()}
    check_reach(target, options, fixed_bytes=fixed_bytes, file_bytes=file_bytes, parameters=parameters)
    if target.cosine is None:
        budget = target.size if target.size is not None else int((target.bits or 0) * parameters / 8) + file_bytes
    else:
        near, _ = allot_bits(options, fixed_bytes=fixed_bytes, harm=1 - target.cosine)
        budget = point_of(near, fixed_bytes).bytes

    ways = worth_a_trial(options, fixed_bytes=fixed_bytes, budget=budget)
    tried: list[tuple[float, float, Chosen]] = []
    for number, (tilt, chosen) in enumerate(ways, 1):
        config = _configured(settings, shapes, chosen)
        calibrated = run(kept, TRIED_VARIANTS, config, f"try {number} of {len(ways)}")
        tried.append((study.cosine(calibrated), tilt, chosen))
    cosine, tilt, chosen = max(tried, key=lambda found: found[0])
    # From what layers harm alone to what they were seen to harm together.
    options = scaled(options, 1, tilt)
    options = scaled(
        options, max(1 - cosine, NOTHING) / (1 - point_of(as_offered(options, chosen), fixed_bytes).cosine)
    )

    def allotment_of(chosen: Chosen) -> Allotment:
        _, curve = allot_bits(options, fixed_bytes=fixed_bytes)
        choices = tuple(Choice(path, *shapes[path], harms[path], option) for path, option in chosen.items())
        uniform = {name: point_of(same, fixed_bytes) for name, same in uniform_choices(options).items()}
        config = _configured(settings, shapes, chosen)
        return Allotment(config, target, choices, tuple(curve), uniform, point_of(chosen, fixed_bytes))

    if target.cosine is None:
        allotment = allotment_of(as_offered(options, chosen))
        calibrated = run(texts, VARIANTS, allotment.config, "calibrate")
        return replace(allotment, measured=study.cosine(calibrated)), calibrated
    allowed = 1 - target.cosine
    found: list[Allotment] = []
    for attempt in range(_ATTEMPTS):
        chosen, _ = allot_bits(options, fixed_bytes=fixed_bytes, harm=allowed)
        allotment = allotment_of(chosen)
        stage = "calibrate" if attempt == 0 else f"calibrate again ({attempt + 1})"
        calibrated = run(kept, VARIANTS, allotment.config, stage)
        found.append(replace(allotment, measured=study.cosine(calibrated)))
        measured = found[-1].measured or 0.0
        if measured >= target.cosine:
            return found[-1], calibrated
        allowed *= 0.95 * (1 - target.cosine) / (1 - measured)
    best = max(found, key=lambda one: one.measured or 0.0)
    raise BudgetError(
        f"--target-cosine {target.cosine:g}: the nearest found is {rounded_down(best.measured or 0.0, 5)}, at "
        f"{best.expected.bytes / 1e6:.2f}MB; fix: "
        f"--target-cosine {rounded_down(best.measured or 0.0, 4)}, or --target-size"
    )


@dataclass(frozen=True)
class _Calibration:
    """`calibrate`, with all that stays the same from one time to the next."""

    core: Encoder
    make: MakeBatches
    metric: Array
    dtype: str
    progress: Progress

    def __call__(
        self, texts: Sequence[str], variants: int, config: QuantizationConfig, stage: str, *, alone: bool = False
    ) -> Calibrated:
        return calibrate(
            self.core,
            self.make(texts, variants=variants),
            config,
            dtype=self.dtype,
            alone=alone,
            metric=self.metric,
            progress=partial(self.progress, stage),
        )


def _configured(
    settings: QuantizeSettings, shapes: Mapping[str, tuple[int, int]], chosen: Mapping[str, Option]
) -> QuantizationConfig:
    layers = {path: option.layer for path, option in chosen.items()}
    # An entry for each: the default is nobody's, and cannot be mistaken for what a layer has.
    return replace(configure(settings.recipe, shapes, layers), overrides=layers)
