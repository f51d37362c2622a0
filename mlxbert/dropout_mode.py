"""Dropout on where no training is: what Monte-Carlo dropout needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.nn as nn

from heads.base import Head


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
