"""Base class of the checkpoint's own heads, their dropout, and the check for a pooler."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.errors import HeadError

Decode = Callable[[mx.array], mx.array]
"""Multiplies hidden states by the transposed word embedding: (…, D) -> (…, V), without a bias."""


class PretrainedHead(nn.Module):
    """A head of one of transformers' `BertFor*` classes.

    Attributes:
        fields: the names of its outputs, the same as in transformers.
        needs_pooler: whether the head reads the pooler's output.
    """

    fields: ClassVar[tuple[str, ...]]
    needs_pooler: ClassVar[bool] = False

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Return the logits by field.

        Args:
            hidden: (B, L, D), the encoder's last hidden state.
            pooled: (B, D), the pooler's output; None for an encoder without a pooler. A head that needs it raises.
            decode: the tied decoder of a masked-LM head; other heads do not call it.
        """
        raise NotImplementedError

    def word_logits(self, hidden: mx.array, decode: Decode) -> mx.array:
        """Return a language-model head's scores for every word, (…, D) -> (…, V); no other head has this method."""
        raise NotImplementedError


def require_pooled(pooled: mx.array | None, head: PretrainedHead) -> mx.array:
    """Return the pooler's output; raise HeadError if there is none."""
    if pooled is None:
        raise HeadError(f"{type(head).__name__} reads the pooler's output: the encoder has none; fix: add a pooler")
    return pooled


class Dropout(nn.Dropout):
    """`mlx.nn.Dropout` that also accepts a probability of 1, as PyTorch does; it changes nothing at inference.

    A probability of 1 sets every value to 0, so that nothing can be learned: training with it raises HeadError.
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
        """Return `x` in evaluation mode; in training mode set a share p of its values to 0 and scale the others."""
        if self.training:
            self.check_trainable()
        return super().__call__(x)

    def check_trainable(self) -> None:
        """Raise HeadError if every value would be dropped."""
        if self._p_1 <= 0:
            raise HeadError(
                "the model's config.json asks for a dropout of 1, which drops every value, so that nothing can be "
                "learned; fix: mlxbert train --dropout 0.1, or a *dropout* below 1 in its config.json"
            )
