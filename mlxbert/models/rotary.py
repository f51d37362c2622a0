"""Rotary positions: queries and keys are turned by angles that grow with the position.

Su et al. 2021, https://arxiv.org/abs/2104.09864; transformers `modeling_rope_utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np


def rotary_table(positions: mx.array, head_size: int, theta: float) -> mx.array:
    """Return cosine and sine of each position's angles, (2, B, 1, L, Dh / 2) float32.

    Frequencies are rounded as transformers rounds them: one rounding more is an error of 4e-4 in the angle of
    position 8191.

    Args:
        positions: (B, L) or (1, L).
        head_size: width of one attention head, Dh.
        theta: the base.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    frequencies = 1 / (theta ** exponents.astype(np.float64)).astype(np.float32)
    angles = positions[..., None].astype(mx.float32) * mx.array(frequencies)  # (B, L, Dh / 2)
    return mx.stack([mx.cos(angles), mx.sin(angles)])[:, :, None]


def rotated(x: mx.array, table: mx.array) -> mx.array:
    """Rotate (…, B, H, L, Dh) by the angles of a `rotary_table`: element i is paired with element i + Dh / 2."""
    cos, sin = table[0], table[1]
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def rope_type(parameters: Any) -> Any:
    """Return the type of rotary positions that a configuration asks for, "default" for plain ones.

    transformers `modeling_rope_utils.py`; `type` is the old name of `rope_type`.
    """
    if not isinstance(parameters, Mapping):
        return "default" if parameters is None else parameters
    types = [parameters[name] for name in ("rope_type", "type") if name in parameters]
    return next((found for found in types if found != "default"), "default")
