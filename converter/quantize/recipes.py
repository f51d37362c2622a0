"""What `--quantize` takes: each name, and the packing that it stands for.

The options of a quantization, checked against each other before anything is read or downloaded.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from converter.quantize.texts import BUILT_IN, TextList, calibration_texts
from mlxbert.quantization import MODES, LayerQuantization, QuantizationConfig, QuantizationError

AUTO, MIXED = "auto", "mixed"
GROUP = 64
FEW_ROWS = 4

# Two groups of nvfp4: MLX unpacks 32 weights at once, and fails on an odd number of 16 (mlx 0.32.4).
_AT_ONCE = 32


class RecipeError(QuantizationError):
    """A recipe that is unknown, or options that contradict it."""


@dataclass(frozen=True)
class Recipe:
    """A named way to quantize.

    Attributes:
        name: what `--quantize` takes.
        default: every layer's packing.
        layers: path of a layer to another one.
        calibrated: whether it is made for calibration, and so calibrates unless told not to.
        can_calibrate: whether its format has scales fine enough for calibration to choose.
    """

    name: str
    default: LayerQuantization
    layers: Mapping[str, LayerQuantization] = field(default_factory=dict)
    calibrated: bool = False

    @property
    def can_calibrate(self) -> bool:
        return self.default.has_biases


def _recipes() -> dict[str, Recipe]:
    affine = MODES["affine"][0]
    recipes = {f"{bits}bit": Recipe(f"{bits}bit", LayerQuantization(bits, GROUP)) for bits in affine}
    for mode in ("mxfp4", "mxfp8", "nvfp4"):
        (bits,), (group,) = MODES[mode]
        recipes[mode] = Recipe(mode, LayerQuantization(bits, group, mode))
    # Half of a small BERT is its word embeddings, and an error in one word's is averaged over a sentence; positions
    # are few, and their error is in every token.
    embeddings = {
        "embeddings.word_embeddings": LayerQuantization(4, GROUP),
        "embeddings.position_embeddings": LayerQuantization(6, GROUP),
    }
    recipes[MIXED] = Recipe(MIXED, LayerQuantization(5, GROUP), embeddings, calibrated=True)
    # The default is what stands in config.json; every layer has an entry of its own.
    recipes[AUTO] = Recipe(AUTO, LayerQuantization(4, GROUP), calibrated=True)
    return recipes


RECIPES = _recipes()


def recipe_named(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        RecipeError: there is none; says which are near, or all.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name.lower(), RECIPES, n=3, cutoff=0.5) or list(RECIPES)
    raise RecipeError(f"--quantize {name}: no such recipe; fix: {' or '.join(near)} (all: {', '.join(RECIPES)})")


def fitted(layer: LayerQuantization, width: int) -> LayerQuantization | None:
    """The packing with a group size that divides rows of `width`: its own, or a smaller one; None: none does."""
    sizes = sorted((size for size in MODES[layer.mode][1] if size <= layer.group_size), reverse=True)
    for size in sizes:
        if width % max(size, _AT_ONCE) == 0:
            return LayerQuantization(layer.bits, size, layer.mode)
    return None


def configure(
    recipe: Recipe, shapes: Mapping[str, tuple[int, int]], layers: Mapping[str, LayerQuantization] | None = None
) -> QuantizationConfig:
    """Which layers a recipe packs, and how.

    Args:
        recipe: the recipe.
        shapes: path of every layer with a matrix to its (rows, width).
        layers: packings that stand above the recipe's own: an allotment.
    """
    chosen = {**recipe.layers, **(layers or {})}
    overrides, skipped = {}, {}
    for path, (rows, width) in shapes.items():
        wanted = chosen.get(path, recipe.default)
        layer = fitted(wanted, width)
        if rows <= FEW_ROWS:
            skipped[path] = f"{rows} rows: nothing to gain"
        elif layer is None:
            skipped[path] = f"rows of {width} divide into no groups of {_sizes(wanted.mode)}"
        # mlx-embeddings and mlx-vlm ask for 64 weights or multiples of them where a layer has no entry of its own.
        elif layer != recipe.default or rows * width % 64:
            overrides[path] = layer
    return QuantizationConfig(recipe.default, overrides, skipped)


def require_packable(recipe: Recipe, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a model of which a recipe would pack nothing, and call that quantized.

    Raises:
        RecipeError: says the widths.
    """
    config = configure(recipe, shapes)
    if all(config.of(path) is None for path in shapes):
        widths = " and ".join(map(str, sorted({width for _, width in shapes.values()})))
        raise RecipeError(
            f"--quantize {recipe.name}: no layer can be packed: rows of {widths} divide into no groups of "
            f"{_sizes(recipe.default.mode)}; fix: --dtype float16 without --quantize"
        )


def _sizes(mode: str) -> str:
    return ", ".join(str(max(size, _AT_ONCE)) for size in MODES[mode][1])


NO_CALIBRATION = "none"

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Target:
    """What `auto` is to reach; one of the three is given.

    Attributes:
        size: bytes of all weight files.
        bits: of storage for each parameter of the encoder, scales included.
        cosine: mean, of sentence embeddings with the float32 model's, on calibration text held back.
    """

    size: int | None = None
    bits: float | None = None
    cosine: float | None = None

    @property
    def words(self) -> str:
        """For people."""
        if self.size is not None:
            return f"at most {self.size / 1e6:.2f} MB of weight files"
        return f"at most {self.bits:g} bits a weight" if self.bits is not None else f"a mean cosine of {self.cosine:g}"


@dataclass(frozen=True)
class QuantizeSettings:
    """How to quantize.

    Attributes:
        recipe: by name.
        calibration: the texts; None: without.
        target: of `auto`.
    """

    recipe: Recipe
    calibration: TextList | None
    target: Target | None


def quantize_settings(
    quantize: str | None,
    *,
    calibration: str | Path | None = None,
    target_size: str | int | None = None,
    target_bits: float | None = None,
    target_cosine: float | None = None,
    dequantize: bool = False,
) -> QuantizeSettings | None:
    """Check the options of `mlxbert-convert`; None: nothing is quantized.

    Raises:
        RecipeError: an unknown recipe, or options that contradict each other; one line.
        CalibrationError: the calibration file cannot be used.
    """
    targets = {"--target-size": target_size, "--target-bits": target_bits, "--target-cosine": target_cosine}
    given = [name for name, value in targets.items() if value is not None]
    if dequantize and (quantize is not None or calibration is not None or given):
        other = "--quantize" if quantize is not None else "--calibration" if calibration is not None else given[0]
        raise RecipeError(f"--dequantize and {other} contradict each other; fix: one of them, or two runs")
    if quantize is None:
        if calibration is not None or given:
            option = "--calibration" if calibration is not None else given[0]
            raise RecipeError(f"{option} is for a quantization; fix: add --quantize {AUTO if given else '4bit'}")
        return None
    recipe = recipe_named(quantize)
    if len(given) > 1:
        raise RecipeError(f"{' and '.join(given)}: one target can be met, not several; fix: leave one")
    if given and recipe.name != AUTO:
        raise RecipeError(f"{given[0]} is for --quantize {AUTO}, not {recipe.name}; fix: --quantize {AUTO}")
    if not given and recipe.name == AUTO:
        raise RecipeError(f"--quantize {AUTO}: nothing to aim at; fix: add {', '.join(targets)} (one of them)")
    return QuantizeSettings(
        recipe,
        _calibration(recipe, calibration),
        _target(target_size, target_bits, target_cosine) if given else None,
    )


def _calibration(recipe: Recipe, given: str | Path | None) -> TextList | None:
    if given is None:
        given = BUILT_IN if recipe.calibrated else NO_CALIBRATION
    if str(given) == NO_CALIBRATION:
        if recipe.name == AUTO:
            raise RecipeError(f"--quantize {AUTO}: measures layers on calibration text; fix: leave --calibration out")
        return None
    if not recipe.can_calibrate:
        raise RecipeError(
            f"--quantize {recipe.name} is rounded, not calibrated: its scales are powers of two or 8-bit floats; "
            "fix: leave --calibration out, or --quantize 4bit"
        )
    return calibration_texts(given)


def _target(size: str | int | None, bits: float | None, cosine: float | None) -> Target:
    if size is not None:
        return Target(size=parse_size(size))
    for name, value, low, high in (("--target-bits", bits, 0, 32), ("--target-cosine", cosine, 0, 1)):
        if value is not None and not (math.isfinite(value) and low < value < high):
            raise RecipeError(f"{name} {value:g}: must lie between {low} and {high}")
    return Target(bits=bits, cosine=cosine)


def parse_size(text: str | int) -> int:
    """Bytes of "14MB", "13.5 MB", "12MiB" or 14000000.

    Raises:
        RecipeError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not (size := round(float(match[1]) * unit)):
        raise RecipeError(f"--target-size {text}: not a size; fix: as in 14MB, 13.5MB or 12MiB")
    return size
