"""Dropout as it is wanted: on where no training is, which Monte-Carlo dropout needs, or with another probability."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.nn as nn

from heads.base import Head
from mlxbert.attention import BertSelfAttention
from mlxbert.core import BertCore


@contextmanager
def one_dropout_mask(model: nn.Module, head: Head) -> Iterator[None]:
    """Dropout on in every module, one mask a pass where `head` averages several; afterwards all as it was."""
    modes = [(module, module.training) for module in model.modules()]
    samples = head.dropout_samples
    model.train()
    head.dropout_samples = 1
    try:
        yield
    finally:
        head.dropout_samples = samples
        for module, training in modes:
            module._training = training


def set_dropout(core: BertCore, probability: float) -> None:
    """Let an encoder drop this share of hidden values and attention weights, instead of what its config says.

    Raises:
        ValueError: not from 0 to below 1.
    """
    if not 0 <= probability < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {probability}")
    for module in core.modules():
        if isinstance(module, nn.Dropout):
            module._p_1 = 1 - probability
        if isinstance(module, BertSelfAttention):
            module._has_dropout = probability > 0
