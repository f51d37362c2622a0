"""Where something ran: versions, device, BLAS, threads. Never a host, a user or a path."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import mlx.core as mx

from mlxbert.backend import use_fast_blas


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Package to version, of those that are not installed "not installed"."""
    facts = {}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "a checkout" if package == "mlxbert" else "not installed"
    return facts


def device_name() -> str:
    """MLX's default device: "cpu", or "gpu" with its name."""
    device = mx.default_device()
    if device.type == mx.DeviceType.cpu:
        return "cpu"
    name = mx.device_info().get("device_name", "")
    return f"gpu ({name})" if name else "gpu"


def blas_name() -> str:
    """What multiplies float32 matrices on a CPU, with its version and threads."""
    status = use_fast_blas()
    # The reason names OpenBLAS's version and the threads; a reason why not may name a path, and is left out.
    return status.reason if status.active else "MLX's own"


def blas_threads() -> int:
    """Threads of the BLAS that multiplies on a CPU; MLX's own has one. How sums are split depends on it."""
    return use_fast_blas().threads
