"""Dropout whose masks, in a training step, belong to the rows of the batch.

Outside of a training step a `Dropout` in training mode draws from MLX's global random stream, as `mlx.nn.Dropout`
does. A training step may compute a batch in shards, on several threads or in several processes. So inside `by_rows`
the mask of a row is a function of three numbers alone: the key of the batch, the number of the row in the whole
batch, and the place of the dropout, counted from 0 over the forward pass. However the batch is split, each row keeps
its mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import mlx.core as mx
import mlx.nn as nn

from heads.errors import HeadError

# The number in place of a row's, for arrays that all rows share. No batch has so many rows.
_NO_ROW = 2**32 - 1


class RowKeys:
    """The keys of the masks of some rows of a batch.

    The key of a mask is `key` + (place, number of the row), modulo 2³² each. MLX's generator, Threefry, makes
    independent bits from such neighbours: Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405.

    Attributes:
        key: (2,) uint32, a random key of the batch.
        numbers: (B,) uint32, the numbers of these rows in the whole batch.
        place: of the next dropout.
        per_row: whether every row gets its own mask; else one mask is that of all rows, in all shards.
    """

    def __init__(self, key: mx.array, numbers: mx.array, place: int = 0):
        self.key, self.numbers, self.place = key, numbers, place
        self.per_row = True

    def mask(self, keep: float, shape: tuple[int, ...]) -> mx.array:
        """Return the boolean mask of the next dropout, True with probability `keep`.

        Args:
            keep: from 0 to 1.
            shape: of the mask; with `per_row` the first axis is B, or B times the number of texts of a row.

        Raises:
            HeadError: the first axis is not that of the batch.
        """
        rows, per_row = len(self.numbers), self.per_row
        if per_row and (not shape or shape[0] % rows):
            raise HeadError(
                f"dropout of an array {tuple(shape)} in a batch of {rows} rows: its first axis is not that of the "
                "batch; fix: drop where it is, or inside heads.dropout.shared_by_rows() if all rows share the array"
            )
        numbers = self.numbers if per_row else mx.array([_NO_ROW], mx.uint32)
        of_one = (shape[0] // rows, *shape[1:]) if per_row else shape
        places = mx.broadcast_to(self.key[0] + mx.array(self.place, mx.uint32), numbers.shape)
        self.place += 1
        keys = mx.stack([places, self.key[1] + numbers], axis=1)  # (B, 2)
        masks: mx.array = mx.vmap(lambda key: mx.random.bernoulli(keep, of_one, key=key))(keys)  # (B, …)
        return masks.reshape(shape)


_current: ContextVar[RowKeys | None] = ContextVar("row_keys", default=None)


def current_keys() -> RowKeys | None:
    """Return the keys of the innermost `by_rows`; None outside."""
    return _current.get()


@contextmanager
def by_rows(keys: RowKeys) -> Iterator[None]:
    """Let every `Dropout` that is called inside, on this thread, take its mask from `keys`."""
    token = _current.set(keys)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def shared_by_rows() -> Iterator[None]:
    """Inside, arrays that all rows of a batch share are dropped: they get the same mask in all shards."""
    keys = current_keys()
    if keys is None:
        yield
        return
    before, keys.per_row = keys.per_row, False
    try:
        yield
    finally:
        keys.per_row = before


class Dropout(nn.Dropout):
    """`mlx.nn.Dropout` with a mask for each row inside `by_rows`; it changes nothing at inference.

    It also accepts a probability of 1, as PyTorch does. That sets every value to 0, so that nothing can be learned:
    training with it raises HeadError.
    """

    def __init__(self, p: float = 0.5):
        super().__init__(0.0)
        if not 0 <= p <= 1:
            raise HeadError(f"dropout must be a number from 0 to 1, not {p!r}")
        self._p_1 = 1 - p

    @property
    def drops(self) -> bool:
        """Whether it changes anything in training mode."""
        return bool(self._p_1 < 1)

    def __call__(self, x: mx.array) -> mx.array:
        """Return `x` in evaluation mode; in training mode set a share p of its values to 0 and scale the others."""
        if not self.training or not self.drops:
            return x
        if self._p_1 <= 0:
            raise HeadError(
                "the model's config.json asks for a dropout of 1, which drops every value, so that nothing can be "
                "learned; fix: mlxbert train --dropout 0.1, or a *dropout* below 1 in its config.json"
            )
        keys = current_keys()
        if keys is None:
            return super().__call__(x)
        return (keys.mask(self._p_1, x.shape) * x) * (1 / self._p_1)
