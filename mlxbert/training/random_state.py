"""MLX's global random state as numbers, to be kept, split and set again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx


def split_state(count: int) -> list[int]:
    """`count` independent numbers for `mx.random.seed`, made of the global state and nothing else."""
    state: Any = mx.random.state
    return [seed_of(key) for key in cast(Any, mx.random.split(state[0], count).tolist())]


def seed_of(key: Sequence[int]) -> int:
    """The number of which `mx.random.seed` makes this key: its two words of 32 bits."""
    high, low = (int(word) for word in key)
    return (high << 32) | low
