"""`--quantize auto`: measure how much each layer matters, allot bits, calibrate, and look whether it came out so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from converter.quantize.affine import SCALE_DTYPES, rounded
from converter.quantize.allotment import (
    Allotment,
    BudgetError,
    Choice,
    CurvePoint,
    Option,
    allot_bits,
    check_reach,
    rounded_down,
)
from converter.quantize.calibrated import EMBEDDINGS, Calibrated, calibrate
from converter.quantize.quality import embeddings
from converter.quantize.recipes import GROUP, RECIPES, configure, fitted
from converter.quantize.settings import QuantizeSettings
from converter.quantize.texts import VARIANTS, CalibrationError, TokenBatch
from mlxbert.core import BertCore
from mlxbert.model_tensors import named_parameters
from mlxbert.quantization import MODES, LayerQuantization

Progress = Callable[[str, int, int], None]
MakeBatches = Callable[..., list[TokenBatch]]

# What sensitivity is measured at; the other widths' harm is proportional to their squared error.
_MEASURED = LayerQuantization(4, GROUP)
_CANDIDATES = tuple(LayerQuantization(bits, group) for bits in MODES["affine"][0] for group in (32, 64, 128))

# One text in four is held back from the choice of codes where a cosine is to be reached.
_HELD_BACK = 4
_ATTEMPTS = 4

# Rows of a matrix that the error of a packing is measured on.
_SAMPLED_ROWS = 512

# The pooler has no part in the mean of hidden states; what it gives by itself counts a tenth.
_POOLER_SHARE = 0.1


def allot(
    core: BertCore,
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
        progress: told of "measure" and "calibrate".

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
    held = make(texts[::_HELD_BACK])
    plain = configure(RECIPES["4bit"], shapes)
    packable = {path: shape for path, shape in shapes.items() if plain.of(path) is not None}
    item = SCALE_DTYPES[dtype].itemsize
    skipped = sum(item * rows * width for path, (rows, width) in shapes.items() if path not in packable)
    plain_bytes += skipped
    fixed_bytes = plain_bytes + file_bytes
    parameters = sum(rows * width for rows, width in shapes.values()) + (plain_bytes - skipped) // item

    study = _Study(core, held, pooling, dtype)
    harms = study.harms(packable, progress=partial(progress, "measure"))
    gain = study.gain(calibrate(core, make(kept), plain, dtype=dtype, progress=partial(progress, "try 4 bits")), harms)
    options = {path: _options(core, path, shape, harms[path], gain, dtype) for path, shape in packable.items()}
    check_reach(target, options, fixed_bytes=fixed_bytes, file_bytes=file_bytes, parameters=parameters)

    def choose(**limit: Any) -> tuple[dict[str, Option], list[CurvePoint]]:
        return allot_bits(options, fixed_bytes=fixed_bytes, **limit)

    def done(chosen: dict[str, Option], curve: list[CurvePoint]) -> Allotment:
        config = configure(settings.recipe, shapes, {path: option.layer for path, option in chosen.items()})
        # An entry for each: the default is nobody's, and cannot be mistaken for what a layer has.
        config = replace(config, overrides={path: option.layer for path, option in chosen.items()})
        expected = CurvePoint(
            fixed_bytes + sum(option.bytes for option in chosen.values()),
            1 - sum(option.harm for option in chosen.values()),
        )
        choices = tuple(Choice(path, *shapes[path], harms[path], option) for path, option in chosen.items())
        uniform = _uniform(options, fixed_bytes)
        return Allotment(config, target, choices, tuple(curve), uniform, expected)

    if target.cosine is None:
        budget = target.size if target.size is not None else int((target.bits or 0) * parameters / 8) + file_bytes
        allotment = done(*choose(budget=budget))
        batches = make(texts, variants=VARIANTS)
        calibrated = calibrate(core, batches, allotment.config, dtype=dtype, progress=partial(progress, "calibrate"))
        return replace(allotment, measured=study.cosine(calibrated)), calibrated
    batches = make(kept, variants=VARIANTS)
    allowed = 1 - target.cosine
    tried: list[Allotment] = []
    for attempt in range(_ATTEMPTS):
        allotment = done(*choose(harm=allowed))
        stage = "calibrate" if attempt == 0 else f"calibrate again ({attempt + 1})"
        calibrated = calibrate(core, batches, allotment.config, dtype=dtype, progress=partial(progress, stage))
        measured = study.cosine(calibrated)
        tried.append(replace(allotment, measured=measured))
        if measured >= target.cosine:
            return tried[-1], calibrated
        allowed *= 0.95 * (1 - target.cosine) / (1 - measured)
    best = max(tried, key=lambda found: found.measured or 0.0)
    raise BudgetError(
        f"--target-cosine {target.cosine:g}: the nearest found is {rounded_down(best.measured or 0.0, 5)}, at "
        f"{best.expected.bytes / 1e6:.2f}MB; fix: "
        f"--target-cosine {rounded_down(best.measured or 0.0, 4)}, or --target-size"
    )


class _Study:
    """Sentence embeddings of the held-back texts, and how rounding moves them."""

    def __init__(self, core: BertCore, held: Sequence[TokenBatch], pooling: Sequence[str], dtype: str):
        self._core, self._held, self._pooling, self._dtype = core, held, pooling, dtype
        self._exact = embeddings(core, held, pooling)
        self._exact_pooler = embeddings(core, held, ("pooler",)) if "pooler" in core else None

    def harms(
        self, shapes: Mapping[str, tuple[int, int]], *, progress: Callable[[int, int], None]
    ) -> dict[str, float]:
        """Mean 1 − cosine with one layer alone rounded to 4 bits, for each."""
        found = {}
        for done, (path, (_, width)) in enumerate(shapes.items()):
            layer = fitted(_MEASURED, width)
            assert layer is not None  # unpackable ones are left out
            name = f"{path}.weight"
            weight = named_parameters(self._core)[name]
            changed = rounded(np.array(weight), layer, search=True, dtype=self._dtype).numbers
            try:
                self._core.load_weights([(name, mx.array(changed))], strict=False)
                found[path] = self._harm(path)
            finally:
                self._core.load_weights([(name, weight)], strict=False)
            progress(done + 1, len(shapes))
        return found

    def gain(self, calibrated: Calibrated, harms: Mapping[str, float]) -> float:
        """What calibration leaves of the linear layers' harm, measured on the whole model at 4 bits."""
        tables = sum(harm for path, harm in harms.items() if path in EMBEDDINGS)
        linear = sum(harm for path, harm in harms.items() if path not in EMBEDDINGS and path != "pooler.dense")
        left = 1 - self.cosine(calibrated) - tables
        return float(np.clip(left / linear, 0.05, 1.0)) if linear > 0 else 1.0

    def cosine(self, calibrated: Calibrated) -> float:
        """Mean cosine of the calibrated model's embeddings with float32's."""
        before = named_parameters(self._core)
        changed = [(f"{path}.weight", mx.array(weight.numbers)) for path, weight in calibrated.weights.items()]
        changed += [(name, mx.array(bias)) for name, bias in calibrated.biases.items()]
        try:
            self._core.load_weights(changed, strict=False)
            return float((embeddings(self._core, self._held, self._pooling) * self._exact).sum(axis=1).mean())
        finally:
            self._core.load_weights([(name, before[name]) for name, _ in changed], strict=False)

    def _harm(self, path: str) -> float:
        if path == "pooler.dense" and self._exact_pooler is not None:
            now = embeddings(self._core, self._held, ("pooler",))
            harm = _POOLER_SHARE * float(1 - (now * self._exact_pooler).sum(axis=1).mean())
        else:
            now = embeddings(self._core, self._held, self._pooling)
            harm = float(1 - (now * self._exact).sum(axis=1).mean())
        return max(harm, 1e-9)  # rounding noise may be below 0


def _options(core: BertCore, path: str, shape: tuple[int, int], harm: float, gain: float, dtype: str) -> list[Option]:
    rows, width = shape
    item = SCALE_DTYPES[dtype].itemsize
    weight = named_parameters(core)[f"{path}.weight"]
    sample = np.array(weight[:: -(-rows // _SAMPLED_ROWS)])
    measured = fitted(_MEASURED, width)
    assert measured is not None
    share = 1.0 if path in EMBEDDINGS else gain
    scale = share * harm / (_squared_error(sample, measured, dtype) or 1.0)
    return [
        Option(layer, layer.bytes_of(rows, width, item), scale * _squared_error(sample, layer, dtype))
        for layer in _CANDIDATES
        if layer.fits(width)
    ]


def _squared_error(weight: np.ndarray, layer: LayerQuantization, dtype: str) -> float:
    return float(np.square(rounded(weight, layer, search=True, dtype=dtype).numbers - weight).sum())


def _uniform(options: Mapping[str, Sequence[Option]], fixed_bytes: int) -> dict[str, CurvePoint]:
    """What the plain recipes are expected to give, calibrated likewise."""
    points = {}
    for bits in MODES["affine"][0]:
        same = [
            min((o for o in found if o.layer.bits == bits), key=lambda option: abs(option.layer.group_size - GROUP))
            for found in options.values()
        ]
        size = fixed_bytes + sum(option.bytes for option in same)
        points[f"{bits}bit"] = CurvePoint(size, 1 - sum(option.harm for option in same))
    return points
