"""The gradient of the word embeddings, by the rows that a batch uses.

The table is the largest parameter, and a batch uses a few hundred of its rows. The gradient of all others is 0. So a
step takes the rows in use out of the table, differentiates by them, and adds, norms and clips only them.

The update of a row without a gradient is AdamW's with g = 0. So the table is updated once with g = 0, and the rows in
use, kept from before, once more with their gradient. Each element goes through the same operations as with a gradient
of the whole table, so both forms give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlxbert.training.optimizer import Arrays

INDEX = "word_index"
"""The input of a training step beside "input_ids": (B, L), the places of the ids in `WordRows.ids`."""


@dataclass(frozen=True)
class WordRows:
    """The rows of the word embeddings that a batch uses.

    Attributes:
        ids: (n,) int32: `count` different ids, increasing, then the first of them again. n depends only on the shape
            of the batch, so that a step is not compiled for every batch.
        count: the number of different ids.
    """

    ids: mx.array
    count: int

    @property
    def used(self) -> mx.array:
        """The different ids, (count,)."""
        return self.ids[: self.count]

    def whole(self, gradient: mx.array, size: int) -> mx.array:
        """Return the gradient (size, D) of the whole table, or of its rows' sums (size,), from that of the rows."""
        table = mx.zeros((size, *gradient.shape[1:]), gradient.dtype)
        table[self.used] = gradient[: self.count]
        return table

    def add(self, table: mx.array, gradient: mx.array) -> mx.array:
        """Return the gradient of the whole table, with that of these rows added."""
        return table.at[self.used].add(gradient[: self.count])

    def replace(self, table: mx.array, rows: mx.array) -> mx.array:
        """Return a table with new values in these rows; MLX writes into `table` if the caller keeps no reference."""
        table[self.used] = rows[: self.count]
        return table


def word_rows(input_ids: mx.array, size: int) -> tuple[WordRows, mx.array]:
    """Return the rows of a table of `size` rows that ids (B, L) use, and the ids' places among them, (B, L)."""
    different, places = np.unique(np.array(input_ids), return_inverse=True)
    ids = np.full(min(input_ids.size, size), different[0], np.int32)
    ids[: len(different)] = different
    return WordRows(mx.array(ids), len(different)), mx.array(places.reshape(input_ids.shape).astype(np.int32))


def squared_rows(gradient: mx.array) -> mx.array:
    """Return Σ g² of each row, (n, D) to (n,).

    Added up in the order of the table's rows, they give the same bits as the whole table, whose other rows are 0.
    """
    return mx.square(mx.contiguous(gradient.astype(mx.float32))).sum(axis=1)


def rows_of(tables: dict[str, mx.array], ids: mx.array) -> Arrays:
    """Return the rows `ids` of each table."""
    return {name: table[ids] for name, table in tables.items()}
