"""`--quantize auto`: measure the harm of packing each layer, allot bits in several ways, try them, calibrate the best.

The harm of a layer is measured with that layer alone packed, and compensated as in calibration. The allotments that
follow from the harms, and the best uniform recipe that fits, are calibrated on three texts in four; the one that is
nearest to float32 on the fourth text wins.
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
    Choice,
    Option,
    allot_bits,
    check_reach,
    point_of,
    rounded_down,
)
from converter.quantize.calibrated import Calibrated, calibrate, embedding_metric
from converter.quantize.quality import embeddings
from converter.quantize.recipes import (
    GROUP,
    RECIPES,
    VARIANTS,
    CalibrationError,
    QuantizeSettings,
    RecipeError,
    TokenBatch,
    configure,
    fitted,
)
from converter.quantize.rounding import SCALE_DTYPES, rounded
from mlxbert.model_arrays import named_parameters
from mlxbert.models.base import Encoder
from mlxbert.quantization import MODES, LayerQuantization, QuantizationConfig

Chosen = dict[str, Option]
"""Path of a layer -> its chosen option."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""

MakeBatches = Callable[..., list[TokenBatch]]
"""`token_batches` for one tokenizer: called with texts and `variants=`."""

# One text in four is held back from the choice of bits; with a cosine as the target, from the choice of codes too.
_HELD_BACK = 4
# Calibrations that try to reach a cosine.
_ATTEMPTS = 4
# Variants of each text in a trial: enough to tell allotments apart, and fast.
TRIED_VARIANTS = 1
# What the harm of the tables is multiplied by, once for each allotment that is tried. The harm of all layers together
# is not the sum of the harms of single ones, and the tables, which every layer reads, differ from the rest in that.
TILTS = (1.0, 0.5)
# The packing that the harm is measured with; that of any other is in proportion to its squared error.
_MEASURED = LayerQuantization(4, GROUP)
_CANDIDATES = tuple(LayerQuantization(bits, group) for bits in MODES["affine"][0] for group in (32, 64, 128))
# Rows of a matrix that the squared error of a packing is measured on.
_SAMPLED_ROWS = 512
# The smallest harm: noise may make a measured one negative.
_SMALLEST_HARM = 1e-9
# What follows the layers has no part in the mean of hidden states; the harm to its own output counts a tenth.
_POOLER_SHARE = 0.1


@dataclass
class Search:
    """One run of `auto`.

    Attributes:
        core: the float32 encoder.
        make: makes batches of texts.
        texts: the calibration texts.
        shapes: path of every layer with a matrix -> its (rows, width).
        settings: the settings, with a target.
        pooling: pooling strategies of the sentence embeddings.
        dtype: dtype of scales and biases.
        plain_bytes: bytes of the encoder's tensors that are not matrices.
        file_bytes: bytes of the weight files beside the encoder's tensors: headers, heads.
        progress: called at every step.
    """

    core: Encoder
    make: MakeBatches
    texts: Sequence[str]
    shapes: Mapping[str, tuple[int, int]]
    settings: QuantizeSettings
    pooling: Sequence[str]
    dtype: str
    plain_bytes: int
    file_bytes: int
    progress: Progress

    def __post_init__(self) -> None:
        target = self.settings.target
        assert target is not None
        self._target = target
        self._kept = [text for i, text in enumerate(self.texts) if i % _HELD_BACK]
        self._plain = configure(RECIPES["4bit"].default, self.shapes, kept=self.core.architecture.kept)
        self._packable = [path for path in self.shapes if self._plain.of(path) is not None]
        sizes = {path: rows * width for path, (rows, width) in self.shapes.items()}
        item = SCALE_DTYPES[self.dtype].itemsize
        skipped = item * sum(size for path, size in sizes.items() if path not in self._packable)
        self._fixed_bytes = self.plain_bytes + skipped + self.file_bytes
        self._parameters = sum(sizes.values()) + self.plain_bytes // item
        self._options: Mapping[str, Sequence[Option]] = {}
        self._harms: dict[str, float] = {}

    def run(self) -> tuple[Allotment, Calibrated]:
        """Choose bits for every layer, and calibrate with them.

        Raises:
            RecipeError: no allotment reaches the target; the message has the nearest one.
            CalibrationError: there is one text only, and auto needs texts to calibrate with and others to measure on.
        """
        if not self._kept:
            raise CalibrationError(
                "--quantize auto: chooses codes on some texts and measures on others, but there is one text; "
                "fix: --calibration with a few hundred, one a line"
            )
        self._study = Study(self.core, self.make(self.texts[::_HELD_BACK]), self.pooling)
        progress = partial(self.progress, "embeddings")
        self._metric = embedding_metric(self.core, self.make(self._kept), progress=progress)
        alone = self._calibrate(self._kept, self._plain, variants=0, stage="each layer alone", alone=True)
        self._harms = self._study.harms(alone, progress=partial(self.progress, "measure"))
        self._options = {
            path: layer_options(self.core, path, self.shapes[path], self._harms[path], self.dtype)
            for path in self._packable
        }
        check_reach(
            self._target,
            self._options,
            fixed_bytes=self._fixed_bytes,
            file_bytes=self.file_bytes,
            parameters=self._parameters,
        )
        chosen = self._best_trial()
        if self._target.cosine is not None:
            return self._reach_cosine(self._target.cosine)
        allotment = self._allotment(chosen)
        calibrated = self._calibrate(self.texts, allotment.config, variants=VARIANTS, stage="calibrate")
        return replace(allotment, measured=self._study.cosine(calibrated)), calibrated

    def _best_trial(self) -> Chosen:
        """Calibrate the allotments that are worth a trial; return the best, after which the options have its harm."""
        ways = worth_a_trial(self._options, fixed_bytes=self._fixed_bytes, budget=self._budget())
        trials: list[tuple[float, float, Chosen]] = []
        for number, (tilt, chosen) in enumerate(ways, 1):
            stage = f"try {number} of {len(ways)}"
            calibrated = self._calibrate(self._kept, self._configure(chosen), variants=TRIED_VARIANTS, stage=stage)
            trials.append((self._study.cosine(calibrated), tilt, chosen))
        cosine, tilt, chosen = max(trials, key=lambda trial: trial[0])
        options = scaled(self._options, 1, tilt)
        expected = 1 - point_of(as_offered(options, chosen), self._fixed_bytes).cosine
        self._options = scaled(options, max(1 - cosine, _SMALLEST_HARM) / expected)
        return as_offered(self._options, chosen)

    def _budget(self) -> int:
        """Return the bytes of all weight files that a trial may have; for a cosine those of the expected model."""
        target = self._target
        if target.size is not None:
            return target.size
        if target.cosine is None:
            return int((target.bits or 0) * self._parameters / 8) + self.file_bytes
        near, _ = allot_bits(self._options, fixed_bytes=self._fixed_bytes, harm=1 - target.cosine)
        return point_of(near, self._fixed_bytes).bytes

    def _reach_cosine(self, cosine: float) -> tuple[Allotment, Calibrated]:
        """Calibrate allotments of more and more bits until the measured cosine is reached.

        Raises:
            RecipeError: it is not; the message has the nearest one.
        """
        allowed = 1 - cosine
        attempts: list[tuple[float, Allotment]] = []
        for attempt in range(_ATTEMPTS):
            chosen, _ = allot_bits(self._options, fixed_bytes=self._fixed_bytes, harm=allowed)
            allotment = self._allotment(chosen)
            stage = "calibrate" if attempt == 0 else f"calibrate again ({attempt + 1})"
            calibrated = self._calibrate(self._kept, allotment.config, variants=VARIANTS, stage=stage)
            measured = self._study.cosine(calibrated)
            attempts.append((measured, allotment))
            if measured >= cosine:
                return replace(allotment, measured=measured), calibrated
            allowed *= 0.95 * (1 - cosine) / (1 - measured)
        best, allotment = max(attempts, key=lambda attempt: attempt[0])
        raise RecipeError(
            f"--target-cosine {cosine:g}: the nearest found is {rounded_down(best, 5)}, at "
            f"{allotment.expected.bytes / 1e6:.2f}MB; fix: "
            f"--target-cosine {rounded_down(best, 4)}, or --target-size"
        )

    def _allotment(self, chosen: Chosen) -> Allotment:
        _, curve = allot_bits(self._options, fixed_bytes=self._fixed_bytes)
        uniform = uniform_choices(self._options)
        return Allotment(
            config=self._configure(chosen),
            target=self._target,
            choices=tuple(Choice(path, self._harms[path], option) for path, option in chosen.items()),
            curve=tuple(curve),
            uniform={name: point_of(same, self._fixed_bytes) for name, same in uniform.items()},
            expected=point_of(chosen, self._fixed_bytes),
        )

    def _configure(self, chosen: Chosen) -> QuantizationConfig:
        layers = {path: option.layer for path, option in chosen.items()}
        # Every layer has an entry, so that nobody takes the default for its packing.
        kept = self.core.architecture.kept
        return replace(configure(self.settings.recipe.default, self.shapes, layers, kept), overrides=layers)

    def _calibrate(
        self, texts: Sequence[str], config: QuantizationConfig, *, variants: int, stage: str, alone: bool = False
    ) -> Calibrated:
        """Calibrate on texts and some variants of each; `stage` is its name for the progress."""
        return calibrate(
            self.core,
            self.make(texts, variants=variants),
            config,
            dtype=self.dtype,
            alone=alone,
            metric=self._metric,
            progress=partial(self.progress, stage),
        )


class Study:
    """Float32 embeddings of held-back texts, and their cosines with those of other weights.

    Args:
        core: the float32 encoder; it has other weights during a measurement.
        held: the texts.
        pooling: pooling strategies of the embeddings.
    """

    def __init__(self, core: Encoder, held: Sequence[TokenBatch], pooling: Sequence[str]):
        self._core, self._held, self._pooling = core, held, tuple(pooling)
        self._exact = embeddings(core, held, self._pooling)
        self._exact_pooler = embeddings(core, held, ("pooler",)) if core.has_pooler else None
        self._after_layers = {
            path for group in core.linears() if group.stage > core.num_layers for path in group.paths
        }

    def harms(self, alone: Calibrated, *, progress: Callable[[int, int], None]) -> dict[str, float]:
        """Return the mean 1 − cosine for each layer alone; `alone` has every layer rounded as the only one."""
        harms = {}
        for done, (path, weight) in enumerate(alone.weights.items(), 1):
            bias = f"{path}.bias"
            only = Calibrated({path: weight}, {bias: alone.biases[bias]} if bias in alone.biases else {})
            if path in self._after_layers and self._exact_pooler is not None:
                harm = _POOLER_SHARE * (1 - self._cosine(only, ("pooler",), self._exact_pooler))
            else:
                harm = 1 - self.cosine(only)
            harms[path] = max(harm, _SMALLEST_HARM)
            progress(done, len(alone.weights))
        return harms

    def cosine(self, calibrated: Calibrated) -> float:
        """Return the mean cosine of the calibrated model's embeddings with those of float32."""
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


def layer_options(core: Encoder, path: str, shape: tuple[int, int], harm: float, dtype: str) -> list[Option]:
    """Return every packing of one layer.

    Args:
        core: the float32 encoder.
        path: path of the layer.
        shape: (rows, width) of its matrix.
        harm: mean 1 − cosine with this layer alone packed at 4 bits.
        dtype: dtype of scales and biases.
    """
    rows, width = shape
    item = SCALE_DTYPES[dtype].itemsize
    weight = named_parameters(core)[f"{path}.weight"]
    sample = np.array(weight[:: -(-rows // _SAMPLED_ROWS)])
    measured = fitted(_MEASURED, width)
    assert measured is not None  # layers that cannot be packed are left out
    scale = harm / (_squared_error(sample, measured, dtype) or 1.0)
    return [
        Option(
            layer,
            layer.bytes_of(rows, width, item),
            scale * _squared_error(sample, layer, dtype),
            is_table=path in core.architecture.tables.values(),
        )
        for layer in _CANDIDATES
        if layer.fits(width)
    ]


def _squared_error(weight: np.ndarray, layer: LayerQuantization, dtype: str) -> float:
    return float(np.square(rounded(weight, layer, search=True, dtype=dtype).numbers - weight).sum())


def worth_a_trial(
    options: Mapping[str, Sequence[Option]], *, fixed_bytes: int, budget: int
) -> list[tuple[float, Chosen]]:
    """Return different ways to spend `budget` bytes, each with the factor on the harm of the tables.

    First come the allotments that follow from the harms. A harm that was measured on some sentences is uncertain, so
    two simple ways follow: the best with one width for the tables and one for the rest, and the best uniform one.
    """
    ways: list[tuple[float, Chosen]] = []
    for tilt in TILTS:
        tilted, _ = allot_bits(scaled(options, 1, tilt), fixed_bytes=fixed_bytes, budget=budget)
        ways.append((tilt, as_offered(options, tilted)))
    widths = MODES["affine"][0]
    for pairs in (product(widths, widths), zip(widths, widths, strict=True)):
        models = [_two_widths(options, *pair) for pair in pairs]
        fitting = [chosen for chosen in models if point_of(chosen, fixed_bytes).bytes <= budget]
        if fitting:
            ways.append((1.0, max(fitting, key=lambda chosen: point_of(chosen, fixed_bytes).cosine)))
    return [way for i, way in enumerate(ways) if way[1] not in [before for _, before in ways[:i]]]


def scaled(options: Mapping[str, Sequence[Option]], share: float, tables: float = 1.0) -> dict[str, list[Option]]:
    """Return the options with `share` of their harm, those of tables times `tables`."""
    return {
        path: [replace(option, harm=share * (tables if option.is_table else 1) * option.harm) for option in of_layer]
        for path, of_layer in options.items()
    }


def uniform_choices(options: Mapping[str, Sequence[Option]]) -> dict[str, Chosen]:
    """Return recipe -> the same bits for every layer, in groups as near to the recipe's as the width allows."""
    return {f"{bits}bit": _two_widths(options, bits, bits) for bits in MODES["affine"][0]}


def _two_widths(options: Mapping[str, Sequence[Option]], tables: int, others: int) -> Chosen:
    """Return `tables` bits for the tables and `others` for the rest, in groups as near to a recipe's as possible."""
    return {
        path: min(
            (option for option in of_layer if option.layer.bits == (tables if option.is_table else others)),
            key=lambda option: abs(option.layer.group_size - GROUP),
        )
        for path, of_layer in options.items()
    }


def as_offered(options: Mapping[str, Sequence[Option]], chosen: Chosen) -> Chosen:
    """Return the same packings with the harm that they have in `options`."""
    return {
        path: next(option for option in options[path] if option.layer == picked.layer)
        for path, picked in chosen.items()
    }
