"""Embeddings in fewer bytes equal sentence-transformers' `quantize_embeddings`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from mlxbert.encode.precision import (
    PRECISIONS,
    PrecisionError,
    PrecisionWarning,
    calibration_ranges,
    quantize,
    stored_dtype,
    stored_width,
)

RANDOM = np.random.default_rng(0)
# 13 numbers: packed bits have a byte that is not full. One dimension is constant, one is 0.
EMBEDDINGS = RANDOM.normal(size=(300, 13)).astype(np.float32)
EMBEDDINGS[:, 3], EMBEDDINGS[:, 4] = 0.25, 0
OTHERS = (3 * RANDOM.normal(size=(120, 13))).astype(np.float32)
RANGES = np.stack([OTHERS.min(axis=0), OTHERS.max(axis=0)])


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "float16"])
@pytest.mark.parametrize("given", [{}, {"ranges": RANGES}, {"calibration": OTHERS}], ids=["", "ranges", "calibration"])
def test_equals_sentence_transformers(precision: Any, given: dict[str, np.ndarray]) -> None:
    got = quantize(EMBEDDINGS, precision, **given)
    named = {"calibration_embeddings" if name == "calibration" else name: value for name, value in given.items()}
    expected = quantize_embeddings(EMBEDDINGS, precision, **named)
    assert isinstance(expected, np.ndarray)
    assert got.dtype == expected.dtype == stored_dtype(precision)
    assert got.shape == (300, stored_width(precision, 13))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_one_embedding_is_the_row_of_many(precision: str) -> None:
    whole = quantize(EMBEDDINGS, precision, ranges=RANGES)
    np.testing.assert_array_equal(quantize(EMBEDDINGS[7], precision, ranges=RANGES), whole[7])
    assert quantize(EMBEDDINGS[:0], precision).shape == (0, whole.shape[1])


def test_float16_rounds() -> None:
    np.testing.assert_array_equal(quantize(EMBEDDINGS, "float16"), EMBEDDINGS.astype(np.float16))


def test_calibration_ranges() -> None:
    ranges = calibration_ranges(OTHERS)
    assert ranges.dtype == np.float32
    np.testing.assert_array_equal(ranges, RANGES)
    with pytest.warns(
        PrecisionWarning, match=r"the ranges come from 99 embeddings only; fix: calibrate on 100 or more"
    ):
        calibration_ranges(OTHERS[:99])


@pytest.mark.parametrize(
    ("precision", "embeddings", "given", "message"),
    [
        ("int9", EMBEDDINGS, {}, "there is no precision named 'int9': did you mean 'int8'"),
        (
            "int8",
            EMBEDDINGS[0],
            {},
            "ranges need two embeddings or more, an array (N, D), not one of shape (13,); fix: ",
        ),
        ("int8", EMBEDDINGS, {"ranges": RANGES[:, :5]}, "ranges have the shape (2, 5), and embeddings of 13 numbers"),
        ("uint8", EMBEDDINGS, {"ranges": RANGES[::-1]}, "or a largest value below the smallest; fix: "),
        ("int8", EMBEDDINGS, {"calibration": OTHERS * np.nan}, "the embeddings for calibration have NaN or infinite"),
        ("binary", EMBEDDINGS.astype(np.int8), {}, "embeddings to quantize are int8; fix: give the float32 ones"),
        ("float16", EMBEDDINGS * 1e5, {}, "embedding 0 has a value above 65504, the largest of float16; fix: "),
        ("binary", np.where(np.arange(300)[:, None] == 5, np.nan, EMBEDDINGS), {}, "embedding 5 has NaN or infinite"),
    ],
)
def test_refused(precision: str, embeddings: np.ndarray, given: dict[str, Any], message: str) -> None:
    with pytest.raises(PrecisionError, match=re.escape(message)):
        quantize(embeddings, precision, **given)
