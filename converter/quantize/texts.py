"""The calibration texts and the held-out texts: read, checked, and turned into batches of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import expand_home, read_text, sha256_hex

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
    text = files("converter.quantize").joinpath("sentences", f"{file}.txt").read_text(encoding="utf-8")
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
