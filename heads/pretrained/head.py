"""What the checkpoint's own heads have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from heads.errors import HeadError

Decode = Callable[[mx.array], mx.array]
"""The encoder's word embedding used backwards: (…, D) -> (…, V), without a bias."""


class PretrainedHead(nn.Module):
    """A head as a `BertFor*` class of transformers has it.

    Attributes:
        fields: the names of its outputs, which are transformers' own.
        needs_pooler: whether it reads the pooler's output.
    """

    fields: ClassVar[tuple[str, ...]]
    needs_pooler: ClassVar[bool] = False

    def __call__(self, hidden: mx.array, pooled: mx.array | None, decode: Decode) -> dict[str, mx.array]:
        """Logits by field.

        Args:
            hidden: (B, L, D), the encoder's last hidden state.
            pooled: (B, D), the pooler's output; None for an encoder without one, which a head that needs it refuses.
            decode: the tied decoder of a masked-LM head; other heads do not call it.
        """
        raise NotImplementedError


def require_pooled(pooled: mx.array | None, head: PretrainedHead) -> mx.array:
    """The pooler's output; raises HeadError where there is none."""
    if pooled is None:
        raise HeadError(f"{type(head).__name__} reads the pooler's output: the encoder has none; fix: add a pooler")
    return pooled
