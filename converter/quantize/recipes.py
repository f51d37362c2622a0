"""The options of a quantization: recipes by name, targets of `auto`, calibration texts and held-out texts.

Everything is checked before a source is read. The texts become batches of token ids here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import expand_home, read_text, sha256_hex
from mlxbert.quantization import MODES, LayerQuantization, QuantizationConfig, QuantizationError

if TYPE_CHECKING:
    from mlxbert.tokenization.tokenizer import Tokenizer

BUILT_IN = "built-in"
HELD_OUT = ("encyclopedia", "everyday")
"""The two lists of sentences that quality is measured on: `converter/quantize/sentences/heldout_*.txt`."""

VARIANTS = 4
"""Variants of each text in a calibration: some hundred sentences alone have too few different words."""

# Longer texts add tokens and no variety.
_MAX_LENGTH = 128
_BATCH = 32
# The share of words that a variant replaces.
_REPLACED = (0.15, 0.3, 0.5)

# With more texts, or with more tokens than have room, only every n-th text calibrates: a whole book would not end.
_MAX_TEXTS = 4096
_STATE_BYTES = 1 << 31
# float32 hidden states of every batch that are in memory together: input, output and inner input of a layer, for each
# of the two models.
_STATES, _FLOAT = 6, 4


class CalibrationError(MLXBertError):
    """A calibration file that cannot be used, or a model without a tokenizer for it."""


@dataclass(frozen=True)
class TextList:
    """A named list of texts; `digest` is their sha256."""

    name: str
    texts: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class TokenBatch:
    """Token ids (B, L) int64 and a mask (B, L) that is 1 for real tokens; every token has type 0."""

    input_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """(B, L) boolean: True for real tokens."""
        return self.attention_mask.astype(bool)


def built_in(name: str) -> TextList:
    """Return a list of this package: "calibration", or one of `HELD_OUT`."""
    file = name if name == "calibration" else f"heldout_{name}"
    text = files("converter.quantize.sentences").joinpath(f"{file}.txt").read_text(encoding="utf-8")
    return _text_list(BUILT_IN if name == "calibration" else name, text)


def calibration_texts(given: str | Path) -> TextList:
    """Return the built-in list for "built-in", else the lines of a UTF-8 file without the empty ones.

    Raises:
        CalibrationError: the file is missing, empty, or not UTF-8; one line.
    """
    if str(given) == BUILT_IN:
        return built_in("calibration")
    path = expand_home(given)
    text = read_text(path, CalibrationError)
    if text is None:
        raise CalibrationError(f"--calibration {path}: no such file; fix: give one, or {BUILT_IN}")
    if "\0" in text:
        raise CalibrationError(f"--calibration {path}: has null characters, so it is no text; fix: save it as UTF-8")
    text_list = _text_list(path.name, text)
    if not text_list.texts:
        raise CalibrationError(f"--calibration {path}: is empty; fix: a few hundred texts, one a line")
    return text_list


def _text_list(name: str, text: str) -> TextList:
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    return TextList(name, lines, sha256_hex("\n".join(lines).encode()))


def thinned(
    given: TextList, tokenizer: Tokenizer, *, max_length: int, width: int, variants: int
) -> tuple[tuple[str, ...], list[str]]:
    """Return every n-th text, so that time and memory are enough, and a note where n is not 1.

    Args:
        given: the texts.
        tokenizer: the tokenizer of the model.
        max_length: tokens of the longest text.
        width: width of a hidden state.
        variants: variants of each text that are calibrated with it.
    """
    step = -(-len(given.texts) // _MAX_TEXTS)
    encodings = tokenizer.encode(list(given.texts[::step]), max_length=min(_MAX_LENGTH, max_length))
    tokens = (1 + variants) * sum(len(encoding.ids) for encoding in encodings)
    step *= max(1, -(-tokens * width * _STATES * _FLOAT // _STATE_BYTES))
    texts = given.texts[::step]
    if step == 1:
        return texts, []
    share = f"one text in {step} of {given.name}, {len(texts):,} of {len(given.texts):,}"
    return texts, [f"calibration uses {share}: more need too much time or memory"]


def token_batches(
    texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int, variants: int = 0, seed: int = 0
) -> list[TokenBatch]:
    """Return the texts and `variants` of each as batches, shortest first; in a variant random words replace some.

    Raises:
        CalibrationError: none of the texts has a token.
    """
    limit = min(_MAX_LENGTH, max_length)
    rows = [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode(list(texts), max_length=limit)]
    rows = [row for row in rows if len(row)]
    if not rows:
        raise CalibrationError("calibration: no text has a token; fix: give texts that this tokenizer knows")
    rng = np.random.default_rng(seed)
    # A vocabulary begins with special tokens and single letters; whole words come later, where it has any.
    first_word = min(1000, tokenizer.vocab_size // 2)
    texts_count = len(rows)
    for variant in range(variants):
        order = rng.permutation(texts_count)
        for i in range(texts_count):
            row, other = rows[i], rows[order[i]]
            if variant % 2:  # halves of two texts: longer, and about two subjects
                row = np.concatenate([row[: len(row) // 2], other[len(other) // 2 :]])
            replaced = rng.random(len(row)) < _REPLACED[variant % len(_REPLACED)]
            replaced[[0, -1]] = False
            rows.append(np.where(replaced, rng.integers(first_word, tokenizer.vocab_size, len(row)), row)[:limit])
    return batched(sorted(rows, key=len), tokenizer.pad_token_id or 0)


def batched(rows: Sequence[np.ndarray], pad_token_id: int) -> list[TokenBatch]:
    """Return rows of ids, shortest first, as padded batches."""
    return [_padded(rows[start : start + _BATCH], pad_token_id) for start in range(0, len(rows), _BATCH)]


def _padded(rows: Sequence[np.ndarray], pad_token_id: int) -> TokenBatch:
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return TokenBatch(ids, mask)


AUTO, MIXED = "auto", "mixed"
NO_CALIBRATION = "none"
GROUP = 64

# A matrix with this many rows or fewer is not packed.
_FEW_ROWS = 4
# Two groups of nvfp4: MLX unpacks 32 weights at once, and fails on an odd number of 16 (mlx 0.32.4).
_WEIGHTS_AT_ONCE = 32
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class RecipeError(QuantizationError):
    """An unknown recipe, options that contradict each other, or a target that no allotment of bits reaches."""


@dataclass(frozen=True)
class Recipe:
    """A named way to quantize.

    Attributes:
        name: the value of `--quantize`.
        default: the packing of every layer.
        tables: packings of the embedding tables that differ from the default; the keys are those of
            `mlxbert.models.base.Architecture.tables`.
        calibrated: whether the recipe calibrates unless the user forbids it.
    """

    name: str
    default: LayerQuantization
    tables: Mapping[str, LayerQuantization] = field(default_factory=dict)
    calibrated: bool = False

    @property
    def can_calibrate(self) -> bool:
        """Whether the scales of the format are fine enough for calibration to choose them."""
        return self.default.has_biases

    def layers(self, table_paths: Mapping[str, str]) -> dict[str, LayerQuantization]:
        """Return the packings that differ from the default by path; `table_paths` are the architecture's tables."""
        return {table_paths[kind]: layer for kind, layer in self.tables.items() if kind in table_paths}


def _recipes() -> dict[str, Recipe]:
    recipes = [Recipe(f"{bits}bit", LayerQuantization(bits, GROUP)) for bits in MODES["affine"][0]]
    for mode in ("mxfp4", "mxfp8", "nvfp4"):
        (bits,), (group,) = MODES[mode]
        recipes.append(Recipe(mode, LayerQuantization(bits, group, mode)))
    # Half of a small BERT is word embeddings, and the error of one word is averaged over its sentence. The position
    # embeddings are few, and their error is in every token.
    tables = {"word": LayerQuantization(4, GROUP), "position": LayerQuantization(6, GROUP)}
    recipes.append(Recipe(MIXED, LayerQuantization(5, GROUP), tables, calibrated=True))
    # `config.json` shows this default, but every layer has an entry of its own.
    recipes.append(Recipe(AUTO, LayerQuantization(4, GROUP), calibrated=True))
    return {recipe.name: recipe for recipe in recipes}


RECIPES = _recipes()


def recipe_named(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        RecipeError: there is none; the message names similar recipes and all recipes.
    """
    if name in RECIPES:
        return RECIPES[name]
    similar = difflib.get_close_matches(name.lower(), RECIPES, n=3, cutoff=0.5) or list(RECIPES)
    raise RecipeError(f"--quantize {name}: no such recipe; fix: {' or '.join(similar)} (all: {', '.join(RECIPES)})")


def fitted(layer: LayerQuantization, width: int) -> LayerQuantization | None:
    """Return the packing with its own group size, or a smaller one, that divides rows of `width`; None: none does."""
    sizes = sorted((size for size in MODES[layer.mode][1] if size <= layer.group_size), reverse=True)
    for size in sizes:
        if width % max(size, _WEIGHTS_AT_ONCE) == 0:
            return LayerQuantization(layer.bits, size, layer.mode)
    return None


def configure(
    default: LayerQuantization,
    shapes: Mapping[str, tuple[int, int]],
    layers: Mapping[str, LayerQuantization] | None = None,
    kept: Mapping[str, str] | None = None,
) -> QuantizationConfig:
    """Decide which layers are packed, and how.

    Args:
        default: the packing of a layer without one of its own.
        shapes: path of every layer with a matrix -> its (rows, width).
        layers: path of a layer -> its own packing.
        kept: path of a layer that is not packed -> the reason.
    """
    overrides, skipped = {}, {}
    for path, (rows, width) in shapes.items():
        wanted = (layers or {}).get(path, default)
        layer = fitted(wanted, width)
        if kept and path in kept:
            skipped[path] = kept[path]
        elif rows <= _FEW_ROWS:
            skipped[path] = f"{rows} rows: nothing to gain"
        elif layer is None:
            skipped[path] = f"rows of {width} divide into no groups of {_group_sizes(wanted.mode)}"
        # mlx-embeddings and mlx-vlm require a multiple of 64 weights where a layer has no entry of its own.
        elif layer != default or rows * width % 64:
            overrides[path] = layer
    return QuantizationConfig(default, overrides, skipped)


def require_packable(recipe: Recipe, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a model of which the recipe packs no layer.

    Raises:
        RecipeError: the message has the widths.
    """
    config = configure(recipe.default, shapes)
    if all(config.of(path) is None for path in shapes):
        widths = " and ".join(map(str, sorted({width for _, width in shapes.values()})))
        raise RecipeError(
            f"--quantize {recipe.name}: no layer can be packed: rows of {widths} divide into no groups of "
            f"{_group_sizes(recipe.default.mode)}; fix: --dtype float16 without --quantize"
        )


def _group_sizes(mode: str) -> str:
    return ", ".join(str(max(size, _WEIGHTS_AT_ONCE)) for size in MODES[mode][1])


@dataclass(frozen=True)
class Target:
    """The target of `auto`: one of three.

    Attributes:
        size: bytes of all weight files.
        bits: storage for each parameter of the encoder, scales included.
        cosine: mean cosine of sentence embeddings with those of the float32 model, on held-back calibration text.
    """

    size: int | None = None
    bits: float | None = None
    cosine: float | None = None

    @property
    def description(self) -> str:
        """The target in words."""
        if self.size is not None:
            return f"at most {self.size / 1e6:.2f} MB of weight files"
        return f"at most {self.bits:g} bits a weight" if self.bits is not None else f"a mean cosine of {self.cosine:g}"


@dataclass(frozen=True)
class QuantizeSettings:
    """How to quantize.

    Attributes:
        recipe: the recipe.
        calibration: the calibration texts; None: round without calibration.
        target: the target of `auto`; None for any other recipe.
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
    """Check the options of `mlxbert-convert`; None: nothing is to be quantized.

    Raises:
        RecipeError: an unknown recipe, or options that contradict each other; one line.
        CalibrationError: the calibration file cannot be used.
    """
    targets = {"--target-size": target_size, "--target-bits": target_bits, "--target-cosine": target_cosine}
    given = [name for name, value in targets.items() if value is not None]
    options = [*(["--calibration"] if calibration is not None else []), *given]
    if dequantize and (quantize is not None or options):
        other = "--quantize" if quantize is not None else options[0]
        raise RecipeError(f"--dequantize and {other} contradict each other; fix: one of them, or two runs")
    if quantize is None:
        if options:
            recipe_name = AUTO if given else "4bit"
            raise RecipeError(f"{options[0]} is for a quantization; fix: add --quantize {recipe_name}")
        return None
    recipe = recipe_named(quantize)
    if len(given) > 1:
        raise RecipeError(f"{' and '.join(given)}: only one target is possible; fix: leave one")
    if given and recipe.name != AUTO:
        raise RecipeError(f"{given[0]} is for --quantize {AUTO}, not {recipe.name}; fix: --quantize {AUTO}")
    if not given and recipe.name == AUTO:
        raise RecipeError(f"--quantize {AUTO}: has no target; fix: add {', '.join(targets)} (one of them)")
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
    """Return the bytes of "14MB", "13.5 MB", "12MiB" or 14000000.

    Raises:
        RecipeError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or not (size := round(float(match[1]) * unit)):
        raise RecipeError(f"--target-size {text}: not a size; fix: as in 14MB, 13.5MB or 12MiB")
    return size
