"""What `--quantize` takes: each name, and the packing that it stands for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

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
