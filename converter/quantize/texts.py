"""The texts of calibration and those that it never sees: read, checked, and made into batches of token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlxbert.errors import MLXBertError
from mlxbert.files.reading import expand_home, read_text

if TYPE_CHECKING:
    from mlxbert.tokenization.tokenizer import Tokenizer

BUILT_IN = "built-in"
HELD_OUT = ("encyclopedia", "everyday")
"""The two lists of sentences that quality is measured on: `converter/quantize/sentences/heldout_*.txt`."""

# Longer texts add tokens and no variety.
_MAX_LENGTH = 128
_BATCH = 32

# A book would never end: of more texts than this, and of more tokens than have room, every n-th text calibrates.
_MAX_TEXTS = 4096
_STATE_BYTES = 1 << 31
# Hidden states of every batch at once: before and after a step, and the contexts, of either model; float32.
_STATES, _FLOAT = 6, 4

# Variants of each text: a word of it in three is another one, so that calibration meets more than a few hundred
# sentences can say.
VARIANTS = 4
_REPLACED = (0.15, 0.3, 0.5)


class CalibrationError(MLXBertError):
    """A calibration file that cannot be used, or a model without a tokenizer to read it."""


@dataclass(frozen=True)
class TextList:
    """Named texts, one a line of their file; `digest` is the sha256 of it."""

    name: str
    texts: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class TokenBatch:
    """(B, L) int64 ids, and a mask that is 1 for real tokens; one token type."""

    input_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """(B, L) boolean: the real tokens."""
        return self.attention_mask.astype(bool)


def built_in(name: str) -> TextList:
    """A list that ships with the package: "calibration", or one of `HELD_OUT`."""
    file = name if name == "calibration" else f"heldout_{name}"
    text = files("converter.quantize.sentences").joinpath(f"{file}.txt").read_text(encoding="utf-8")
    return _text_list(BUILT_IN if name == "calibration" else name, text)


def calibration_texts(given: str | Path) -> TextList:
    """The calibration texts: "built-in", or a UTF-8 file with one text a line (empty lines do not count).

    Raises:
        CalibrationError: no such file, empty, or not UTF-8; one line.
    """
    if str(given) == BUILT_IN:
        return built_in("calibration")
    path = expand_home(given)
    try:
        text = read_text(path, CalibrationError)
    except OSError as error:
        raise CalibrationError(f"--calibration {path}: {error.strerror}; fix: give a file that can be read") from error
    if text is None:
        raise CalibrationError(f"--calibration {path}: no such file; fix: give one, or {BUILT_IN}")
    if "\0" in text:
        raise CalibrationError(f"--calibration {path}: has null characters, so it is no text; fix: save it as UTF-8")
    found = _text_list(path.name, text)
    if not found.texts:
        raise CalibrationError(f"--calibration {path}: is empty; fix: a few hundred texts, one a line")
    return found


def thinned(
    given: TextList, tokenizer: Tokenizer, *, max_length: int, width: int, variants: int
) -> tuple[tuple[str, ...], list[str]]:
    """Every n-th text, so that calibration has room and ends; and a line that says so where n is not 1.

    Args:
        given: the texts.
        tokenizer: the model's.
        max_length: of a text, in tokens.
        width: of a hidden state.
        variants: of each text, beside it.
    """
    step = -(-len(given.texts) // _MAX_TEXTS)
    encoded = tokenizer.encode(list(given.texts[::step]), max_length=min(_MAX_LENGTH, max_length))
    tokens = (1 + variants) * sum(len(encoding.ids) for encoding in encoded)
    step *= max(1, -(-tokens * width * _STATES * _FLOAT // _STATE_BYTES))
    texts = given.texts[::step]
    if step == 1:
        return texts, []
    share = f"one text in {step} of {given.name}, {len(texts):,} of {len(given.texts):,}"
    return texts, [f"calibration uses {share}: more take too much time or memory"]


def token_batches(
    texts: Sequence[str], tokenizer: Tokenizer, *, max_length: int, variants: int = 0, seed: int = 0
) -> list[TokenBatch]:
    """Texts as batches, shortest first; with `variants` of each, in which random words stand for some of its own.

    Raises:
        CalibrationError: none of the texts has a token.
    """
    limit = min(_MAX_LENGTH, max_length)
    rows = [np.array(encoding.ids, np.int64) for encoding in tokenizer.encode(list(texts), max_length=limit)]
    rows = [row for row in rows if len(row)]
    if not rows:
        raise CalibrationError("calibration: no text has a token; fix: give texts that this tokenizer knows")
    rng = np.random.default_rng(seed)
    # Not the special tokens and single letters that open a vocabulary, where it has words at all.
    lowest = min(1000, tokenizer.vocab_size // 2)
    originals = len(rows)
    for variant in range(variants):
        order = rng.permutation(originals)
        for i in range(originals):
            row, other = rows[i], rows[order[i]]
            if variant % 2:  # halves of two texts: longer, and about more than one thing
                row = np.concatenate([row[: len(row) // 2], other[len(other) // 2 :]])
            inner = rng.random(len(row)) < _REPLACED[variant % len(_REPLACED)]
            inner[[0, -1]] = False
            rows.append(np.where(inner, rng.integers(lowest, tokenizer.vocab_size, len(row)), row)[:limit])
    rows.sort(key=len)
    return batched(rows, tokenizer.pad_token_id or 0)


def batched(rows: Sequence[np.ndarray], pad: int) -> list[TokenBatch]:
    """Rows of ids, shortest first, as batches."""
    return [_batch(rows[start : start + _BATCH], pad) for start in range(0, len(rows), _BATCH)]


def _text_list(name: str, text: str) -> TextList:
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    return TextList(name, lines, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _batch(rows: Sequence[np.ndarray], pad: int) -> TokenBatch:
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pad, np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return TokenBatch(ids, mask)
