"""What the numbers were measured on, in one line: a figure without its machine says nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mlxbert.backend.processor import cpu_limit

# By these, libraries choose their kernels.
_KERNELS = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
)


def machine(*more: str) -> str:
    """Processor, cores, system, Python, the versions of what is measured (`more` packages too), and what is set.

    An environment variable that chooses the kernels of a library is named: it changes the numbers.
    """
    packages = ("mlx", "torch", "transformers", "mlx-embeddings", "scipy-openblas32", "numpy", *more)
    settings = [f"{name}={os.environ[name]}" for name in _KERNELS if name in os.environ]
    return f"{_processor()}, {cores()} cores, {platform.system()} {platform.machine()}, " + ", ".join(
        [f"Python {platform.python_version()}", *filter(None, map(_version, packages)), *settings]
    )


def cores() -> int:
    """The cores that this process may use, by its affinity and the limit of its container."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(found, cpu_limit() or found)


def load() -> str:
    """How busy the machine is with other things; a benchmark is to be read with it."""
    return f"load average {os.getloadavg()[0]:.1f} on {cores()} cores"


def _processor() -> str:
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None
