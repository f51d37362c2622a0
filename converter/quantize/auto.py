"""`--quantize auto`: measure how much each layer matters, allot bits in some ways, try them, calibrate the best.

How much a layer matters is measured with that layer alone packed, and compensated as calibration does it. The
allotments that follow from it, and the best uniform recipe that fits, are calibrated on three texts in four; the one
that is nearest to float32 on the fourth is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from converter.quantize.affine import SCALE_DTYPES, Array
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
from converter.quantize.calibrated import Calibrated, calibrate
from converter.quantize.embedding_metric import embedding_metric
from converter.quantize.layer_options import (
    Chosen,
    as_offered,
    layer_options,
    scaled,
    uniform_choices,
    worth_a_trial,
)
from converter.quantize.recipes import RECIPES, configure
from converter.quantize.settings import QuantizeSettings
from converter.quantize.study import NOTHING, Study
from converter.quantize.texts import VARIANTS, CalibrationError, TokenBatch
from mlxbert.core import BertCore
from mlxbert.quantization import QuantizationConfig

Progress = Callable[[str, int, int], None]
MakeBatches = Callable[..., list[TokenBatch]]

# One text in four is held back from the choice of bits; and where a cosine is to be reached, from that of codes.
_HELD_BACK = 4
_ATTEMPTS = 4

# Variants of each text in a trial: enough to tell allotments apart, and quick.
TRIED_VARIANTS = 1


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

    core: BertCore
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
