"""`Dropout`, which a configuration may ask for with probability 1."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from heads.errors import HeadError


class Dropout(nn.Dropout):
    """`mlx.nn.Dropout` for every probability that PyTorch takes, 0 to 1; at inference it changes nothing.

    A probability of 1 sets every value to 0, so nothing can be learned: training with it is refused.
    """

    def __init__(self, p: float):
        super().__init__(0.0)
        if not 0 <= p <= 1:
            raise HeadError(f"dropout must be a number from 0 to 1, not {p!r}")
        self._p_1 = 1 - p

    @property
    def drops(self) -> bool:
        """Whether it changes anything in training mode."""
        return bool(self._p_1 < 1)

    def __call__(self, x: mx.array) -> mx.array:
        """`x` in evaluation mode; in training mode with a share p of its values set to 0, and the others scaled."""
        if self.training:
            self.check_trainable()
        return super().__call__(x)

    def check_trainable(self) -> None:
        """Raise HeadError where every value would be dropped."""
        if self._p_1 <= 0:
            raise HeadError(
                "the model's config.json asks for a dropout of 1, which drops every value, so that nothing can be "
                "learned; fix: mlxbert train --dropout 0.1, or a *dropout* below 1 in its config.json"
            )
