"""The options of a quantization, checked against each other before anything is read or downloaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from converter.quantize.recipes import AUTO, Recipe, RecipeError, recipe_named
from converter.quantize.texts import BUILT_IN, TextList, calibration_texts

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
