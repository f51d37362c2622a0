"""Where a comparison ran: versions, device, float32 multiplication and BLAS. Never a host, a user or a path."""

from __future__ import annotations

import os
import platform

import mlx.core as mx
import numpy as np

from mlxbert.environment import blas_name, device_name, package_versions
from mlxbert.errors import MLXBertError

_PACKAGES = ("mlxbert", "mlx", "torch", "transformers", "tokenizers", "numpy")


class InexactFloat32Error(MLXBertError):
    """MLX multiplies float32 at reduced precision in this process, so float32 parity cannot be measured."""


def require_exact_float32() -> str:
    """Turn TF32 off and check, by a product, that it is off; returns a line for the report.

    MLX reads `MLX_ENABLE_TF32` once, at the first product that could use TF32 (`mlx/utils.h`, `enable_tf32`); after
    that, setting it does nothing. Whether it was in time cannot be asked, so it is measured.

    Raises:
        InexactFloat32Error: it was too late.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"
    size = 256  # large enough for every backend's matrix units
    # 1 + 2⁻¹² needs 12 bits after the point: TF32 keeps 10, float32 23; each sum, 256 + 2⁻⁴, is exact in float32.
    product = mx.full((size, size), 1 + 2**-12) @ mx.ones((size, size))
    error = float(np.abs(np.array(product) - size * (1 + 2**-12)).max())
    if error:
        raise InexactFloat32Error(
            f"MLX multiplies float32 at reduced precision (TF32; a product of {size}×{size} is off by {error:g}); "
            "fix: set MLX_ENABLE_TF32=0 before the process starts"
        )
    return "off (MLX_ENABLE_TF32=0; checked by a product)"


def describe(tf32: str) -> dict[str, str]:
    """Name to value, for the report; `tf32` is what `require_exact_float32` returned."""
    facts = {"python": platform.python_version(), **package_versions(_PACKAGES)}
    facts["platform"] = f"{platform.system()} {platform.machine()}"
    facts["device"] = device_name()
    facts["tf32"] = tf32
    facts["blas"] = blas_name()
    return facts
