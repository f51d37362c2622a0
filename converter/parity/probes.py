"""The probes: seeded inputs that both sides of a comparison run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np

from mlxbert.errors import MLXBertError
from mlxbert.models.config_fields import EncoderConfig

Tokenize = Callable[[str, str | None], tuple[list[int], list[int]]]
"""A text, or a pair -> (ids, token type ids) with special tokens, without padding."""

LENGTHS = (1, 7, 128)  # and the longest
# Attention weights of a layer for one text, 256 MB in float32: PyTorch's eager attention holds several copies of them.
_MAX_WEIGHTS = 1 << 26
SENTENCES: tuple[tuple[str, str | None], ...] = (
    ("Hi", None),
    ("The quick brown fox jumps over the lazy dog.", None),
    ("In 1969, the Apollo 11 crew travelled 384,400 km; it took them three days.", None),
    ("Zoë's naïve façade cost €12.50 (≈ £10.70) — café, jalapeño, Ærøskøbing.", None),
    ("東京は日本の首都です。", "Tokyo is the capital of Japan."),
    ("Who wrote the novel?", "It was written in 1925 by an author whose name nobody at the table could remember."),
    ("antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis 🙂", None),
    (
        "A longer passage, so that the batch is ragged: the encoder reads all tokens at once, and each attends to all "
        "others, which is why a mistake in one attention head can reach every position of the output.",
        "A short second text.",
    ),
)


class ProbeError(MLXBertError):
    """The tokenizer gives an id that the model does not have."""


@dataclass(frozen=True)
class Probe:
    """One batch for both sides.

    Attributes:
        name: what it tests, for the report.
        input_ids, attention_mask, token_type_ids: (B, L) int64; the mask is 1 for real tokens.
        padding_invariance: whether each row also runs alone, without padding, and must agree with the batch.
        position_ids: (B, L) int64; None: as the model counts them.
    """

    name: str
    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    padding_invariance: bool = False
    position_ids: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        batch, length = self.input_ids.shape
        return batch, length

    @property
    def keep(self) -> np.ndarray:
        """(B, L) boolean: the real tokens."""
        return self.attention_mask.astype(bool)


def longest_probe(config: EncoderConfig) -> int:
    """Return the length of the longest probe: the model's maximum, or that of `_MAX_WEIGHTS` attention weights."""
    return min(config.max_length, isqrt(_MAX_WEIGHTS // config.num_attention_heads))


def make_probes(config: EncoderConfig, *, seed: int = 0, tokenize: Tokenize | None = None) -> tuple[Probe, ...]:
    """Return random ids at lengths 1, 7, 128 and the longest, masks and padding of all kinds, and sentences.

    The longest is the model's maximum. Where that is too long to run, the rest of its positions are given to short
    probes.

    Args:
        config: has the size of the vocabulary, the number of token types and the longest input.
        seed: seed of ids, types and masks.
        tokenize: the checkpoint's tokenizer; None: there are no sentences.

    Raises:
        ProbeError: the tokenizer gives an id that the model has no embedding for.
    """
    rng = np.random.default_rng(seed)
    longest = longest_probe(config)
    probes = [
        _random(rng, config, length, batch=2 if length < longest else 1)
        for length in sorted({min(length, longest) for length in (*LENGTHS, longest)})
    ]
    probes += [
        _ragged(rng, config, min(7, longest), batch=4),
        _ragged(rng, config, min(512, longest), batch=2),
        _holes(rng, config, min(64, longest), batch=2),
        _padding_anywhere(rng, config, min(16, longest)),
    ]
    if longest < config.max_length and "position_ids" in config.table_rows:
        probes.append(_far_positions(rng, config, longest))
    if tokenize is not None:
        probes.append(_sentences(config, tokenize))
    return tuple(probes)


def _random(rng: np.random.Generator, config: EncoderConfig, length: int, batch: int) -> Probe:
    ids, types = _draw(rng, config, length, batch)
    return Probe(f"random ids, length {length}", ids, np.ones_like(ids), types)


def _ragged(rng: np.random.Generator, config: EncoderConfig, length: int, batch: int) -> Probe:
    """Return right padding as a tokenizer gives it: row 0 is full, the others have random lengths."""
    ids, types = _draw(rng, config, length, batch)
    lengths = rng.integers(1, length, size=batch, endpoint=True)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask == 1, ids, config.pad_token_id or 0)
    return Probe(f"ragged batch, length {length}", ids, mask, types * mask, padding_invariance=True)


def _holes(rng: np.random.Generator, config: EncoderConfig, length: int, batch: int) -> Probe:
    """Return a mask with holes anywhere, position 0 of row 1 included: every element of it counts."""
    ids, types = _draw(rng, config, length, batch)
    mask = rng.integers(0, 2, size=(batch, length))
    mask[:, 0] = [1] + [0] * (batch - 1)
    mask[:, -1] = 1
    return Probe(f"random mask, length {length}", ids, mask, types)


def _padding_anywhere(rng: np.random.Generator, config: EncoderConfig, length: int) -> Probe:
    """Return rows whose padding ids and mask disagree: some encoders count positions from the ids, not from the mask.

    Row 0 is padded at the left, row 1 has padding that the mask keeps, row 2 has a mask that hides real tokens at its
    beginning, row 3 is padding alone, which the mask keeps. Small ids, so that those of all special tokens are there.
    """
    ids, types = _draw(rng, config, length, batch=4)
    ids = ids % min(8, config.vocab_size)
    pad = config.pad_token_id or 0
    start = length // 3
    mask = np.ones_like(ids)
    ids[0, :start], mask[0, :start] = pad, 0
    ids[1, start::2] = pad
    mask[2, :start] = 0
    ids[3] = pad
    return Probe(f"padding anywhere, length {length}", ids, mask, types)


def _far_positions(rng: np.random.Generator, config: EncoderConfig, longest: int) -> Probe:
    """Return positions that the longest probe does not reach: row 0 the last ones, row 1 any of them."""
    length, rows = 128, config.table_rows["position_ids"]
    ids, types = _draw(rng, config, length, batch=2)
    positions = np.stack([np.arange(rows - length, rows), rng.integers(longest, rows, size=length)])
    return Probe(f"far positions, length {length}", ids, np.ones_like(ids), types, position_ids=positions)


def _draw(rng: np.random.Generator, config: EncoderConfig, length: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random ids and types (B, L): row 0 is a single text, as most inputs are; the others have every type."""
    ids = rng.integers(0, config.vocab_size, size=(batch, length))
    count = config.table_rows.get("token_type_ids", 1)
    if batch == 1:  # one part of the row for each type
        return ids, (np.arange(length) * min(count, length) // length)[None]
    types = rng.permuted(np.resize(np.arange(count), (batch, length)), axis=1)
    types[0] = 0
    return ids, types


def _sentences(config: EncoderConfig, tokenize: Tokenize) -> Probe:
    last_type = config.table_rows.get("token_type_ids", 1) - 1
    rows = []
    for text, pair in SENTENCES:
        ids, types = tokenize(text, pair)
        # A model with one token type has one embedding for both texts of a pair.
        rows.append((ids[: config.max_length], [min(kind, last_type) for kind in types[: config.max_length]]))
    probe = padded(f"{len(rows)} sentences and pairs", rows, config.pad_token_id, padding_invariance=True)
    if (probe.input_ids >= config.vocab_size).any():
        raise ProbeError(
            f"tokenizer: it gives id {probe.input_ids.max()}, but the model's vocab_size is {config.vocab_size}; "
            "fix: use the tokenizer that belongs to this checkpoint"
        )
    return probe


def padded(
    name: str,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    pad_token_id: int | None,
    *,
    padding_invariance: bool = False,
) -> Probe:
    """Return rows of ids and token types as a batch, padded at the right."""
    length = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), length), pad_token_id or 0, dtype=np.int64)
    mask, types = np.zeros_like(ids), np.zeros_like(ids)
    for i, (row_ids, row_types) in enumerate(rows):
        count = len(row_ids)
        ids[i, :count], types[i, :count], mask[i, :count] = row_ids, row_types[:count], 1
    return Probe(name, ids, mask, types, padding_invariance)
