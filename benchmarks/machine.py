"""What a benchmark ran on: a number means nothing without it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(*packages: str) -> str:
    """The processor, the cores that this process may use, the system, and the versions of `packages`, on one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    versions = "".join(f", {package} {version(package)}" for package in packages)
    return (
        f"{model or platform.processor() or platform.machine()}, {cores()} cores, {platform.platform()}, "
        f"Python {platform.python_version()}{versions}"
    )


def load() -> str:
    """How busy the machine is with other things; a benchmark is to be read with it."""
    return f"load average {os.getloadavg()[0]:.1f} on {cores()} cores"
