"""Where a comparison ran: versions, device, float32 multiplication and BLAS. Never a host, a user or a path."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import mlx.core as mx
import numpy as np

from mlxbert.backend import use_fast_blas
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
    facts = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "a checkout" if package == "mlxbert" else "not installed"
    facts["platform"] = f"{platform.system()} {platform.machine()}"
    facts["device"] = _device()
    facts["tf32"] = tf32
    facts["blas"] = _blas()
    return facts


def _device() -> str:
    device = mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return "cpu"
    name = mx.device_info().get("device_name", "")
    return f"gpu ({name})" if name else "gpu"


def _blas() -> str:
    status = use_fast_blas()
    # The reason names OpenBLAS's version and the threads; a reason why not may name a path, and is left out.
    return status.reason if status.active else "MLX's own"
