"""Batches of token rows: rows of similar length, padded to few lengths, without dropping a row.

Batch k of epoch e depends only on the rows, the seed, e and k. So a run that goes on at (e, k) sees the batches of an
uninterrupted run, without a saved state of the shuffling.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxbert.data.frames import DataError
from mlxbert.data.token_rows import TokenRows

# Lengths are multiples of `_STEP`, and there are at most `_SHAPES`: a step is compiled for every length, and a token
# of padding costs as much as a real one.
_STEP, _SHAPES = 4, 10
# The rows of so many batches, but at most a quarter of an epoch, are sorted by length together: this leaves little
# padding, and batches stay random.
_POOL = 32


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one call of the model; fillers complete the last batch.

    Attributes:
        rows: (B,) int64 numbers of the rows in `TokenRows`; a filler has the number of the first row.
        weights: (B,) float32: 1 for a row, 0 for a filler, which must not count.
        input_ids, token_type_ids, attention_mask: (B, L) int32.
    """

    rows: np.ndarray
    weights: np.ndarray
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def real(self) -> int:
        """The number of rows that are no fillers; they come first."""
        return int(self.weights.sum())

    def inputs(self) -> dict[str, mx.array]:
        """Return the keyword arguments of the model: `model(**batch.inputs())`."""
        return {
            "input_ids": mx.array(self.input_ids),
            "token_type_ids": mx.array(self.token_type_ids),
            "attention_mask": mx.array(self.attention_mask),
        }


def padded_lengths(lengths: np.ndarray, shapes: int = _SHAPES) -> tuple[int, ...]:
    """Return at most `shapes` lengths to pad to, increasing, with the least padding; the last fits the longest row.

    Each is a multiple of 4, except the last if the longest row is cut to an odd limit.

    Raises:
        DataError: no rows, or `shapes` below 1.
    """
    _whole("shapes", shapes)
    if not len(lengths):
        raise DataError("there are no rows to make batches of")
    longest = int(lengths.max())
    ends = [int(end) for end in np.unique(np.minimum(-(-lengths // _STEP) * _STEP, longest))]
    # rows[i]: number of rows of at most ends[i] tokens.
    rows = np.searchsorted(np.sort(lengths), ends, side="right")
    # cost[j]: padded tokens of all rows up to ends[j]; each round adds one length. before[k][j]: the next lower.
    cost = rows * np.array(ends)
    before: list[list[int]] = []
    for _ in range(min(shapes, len(ends)) - 1):
        choices = [[cost[i] + (rows[j] - rows[i]) * ends[j] for i in range(j)] + [cost[j]] for j in range(len(ends))]
        before.append([int(np.argmin(row)) for row in choices])
        cost = np.array([min(row) for row in choices])
    chosen = [len(ends) - 1]
    for table in reversed(before):
        chosen.append(table[chosen[-1]])
    return tuple(ends[i] for i in sorted(set(chosen)))


class TrainingBatches:
    """The batches of every epoch.

    Attributes:
        batch_size: rows a batch, fillers included.
        lengths: to which batches are padded.
    """

    def __init__(
        self, tokens: TokenRows, rows: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, shapes: int = _SHAPES
    ):
        """Plan batches of the rows of `tokens` with these numbers (a fold's), shuffled in each epoch.

        Raises:
            DataError: there are no rows, a number is no row, or a size or seed is impossible.
        """
        self._tokens, self._rows = tokens, _numbers(tokens, rows)
        _whole("batch_size", batch_size)
        _whole("seed", seed, 0)
        self.batch_size = min(batch_size, len(self._rows))
        self._seed = seed
        self.lengths = padded_lengths(tokens.lengths[self._rows], shapes)
        self._plan: tuple[int, list[np.ndarray]] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch, with the last one, which fillers may complete."""
        return -(-len(self._rows) // self.batch_size)

    def batch(self, epoch: int, k: int) -> Batch:
        """Return batch `k` of `epoch`, both from 0.

        Raises:
            DataError: there is no such batch.
        """
        if not 0 <= k < len(self) or epoch < 0:
            raise DataError(f"there is no batch {k} of epoch {epoch}; an epoch has {len(self)}, from 0")
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._epoch(epoch))
        return _batch(self._tokens, self._plan[1][k], self.batch_size, self.lengths)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start` on."""
        for k in range(start, len(self)):
            yield self.batch(epoch, k)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the row numbers of each batch of an epoch."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, epoch])))
        order = rng.permutation(self._rows)
        lengths = self._tokens.lengths
        pool = self.batch_size * max(1, min(_POOL, len(self) // 4))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


class PredictionBatches:
    """Each row once, the longest first, so that too little memory shows at once; `restore` restores the order.

    Attributes:
        batch_size: rows a batch, fillers included.
        lengths: to which batches are padded.
    """

    def __init__(
        self,
        tokens: TokenRows,
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        batch_size: int,
        lengths: Sequence[int] | None = None,
        shapes: int = _SHAPES,
    ):
        """Plan batches of the rows of `tokens` with these numbers.

        Args:
            tokens: all rows.
            rows: numbers, in the order that `restore` gives; None: all.
            batch_size: rows a batch.
            lengths: to pad to, increasing (those of the training, so that nothing is compiled anew); longer rows get
                one more length; None: `shapes` new ones.
            shapes: number of lengths without `lengths`.

        Raises:
            DataError: there are no rows, a number is no row, or a size is impossible.
        """
        self._tokens = tokens
        self._rows = _numbers(tokens, np.arange(len(tokens)) if rows is None else rows)
        _whole("batch_size", batch_size)
        row_lengths = tokens.lengths[self._rows]
        if lengths is None:
            self.batch_size = min(batch_size, len(self._rows))
            self.lengths = padded_lengths(row_lengths, shapes)
        else:
            self.batch_size = batch_size
            longest = int(row_lengths.max())
            more = {min(-(-longest // _STEP) * _STEP, tokens.limit)} if longest > max(lengths) else set()
            self.lengths = tuple(sorted({*lengths, *more}))
        self._order = np.argsort(-row_lengths, kind="stable")

    def __len__(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self.batch_size):
            rows = self._rows[self._order[start : start + self.batch_size]]
            yield _batch(self._tokens, rows, self.batch_size, self.lengths)

    def restore(self, outputs: Iterable[np.ndarray]) -> np.ndarray:
        """Return the batches' outputs, each (B, …) with fillers, as one (N, …) array in the order of the given rows.

        Raises:
            DataError: the number of outputs is not that of the batches, or one has another length.
        """
        parts = list(outputs)
        if [len(part) for part in parts] != [self.batch_size] * len(self):
            raise DataError(
                f"{len(parts)} outputs of {', '.join(map(str, sorted({len(part) for part in parts})))} rows for "
                f"{len(self)} batches of {self.batch_size}; fix: one output a batch, fillers included"
            )
        sorted_outputs = np.concatenate(parts)[: len(self._rows)]
        restored = np.empty_like(sorted_outputs)
        restored[self._order] = sorted_outputs
        return restored


def _batch(tokens: TokenRows, rows: np.ndarray, batch_size: int, lengths: Sequence[int]) -> Batch:
    real = len(rows)
    L = lengths[int(np.searchsorted(lengths, tokens.lengths[rows].max()))]
    rows = np.concatenate([rows, np.full(batch_size - len(rows), rows[0])])
    ids = np.full((batch_size, L), tokens.pad_id, np.int32)
    types, mask = np.zeros((batch_size, L), np.int32), np.zeros((batch_size, L), np.int32)
    for i, row in enumerate(rows):
        start, stop = tokens.starts[row], tokens.starts[row + 1]
        n = stop - start
        ids[i, :n], types[i, :n], mask[i, :n] = tokens.ids[start:stop], tokens.type_ids[start:stop], 1
    weights = (np.arange(batch_size) < real).astype(np.float32)
    return Batch(rows, weights, ids, types, mask)


def _numbers(tokens: TokenRows, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(rows, np.int64)
    if numbers.ndim != 1 or not len(numbers):
        raise DataError("there are no rows to make batches of")
    if numbers.min() < 0 or numbers.max() >= len(tokens):
        raise DataError(f"rows {numbers.min()} to {numbers.max()} are asked for; there are 0 to {len(tokens) - 1}")
    return numbers


def _whole(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} must be a whole number from {least} on, not {value!r}")
