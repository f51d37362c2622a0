"""Read what the processor is, and how much of it this process may use, on Linux."""

from __future__ import annotations

import ctypes
import math
import platform
from pathlib import Path

_CGROUPS, _CGROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def has_sme() -> bool:
    """Return whether the kernel reports Arm's Scalable Matrix Extension (HWCAP2_SME of <asm/hwcap.h>)."""
    if platform.machine() != "aarch64":
        return False
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = (ctypes.c_ulong,), ctypes.c_ulong
    return bool(getauxval(26) & 1 << 23)  # AT_HWCAP2


def cpu_limit(cgroups: Path = _CGROUPS, files: Path = _CGROUP_FILES) -> int | None:
    """Return how many CPUs' time the control groups of this process allow, rounded up; None without a limit.

    Such a limit (docker `--cpus`, a CPU limit of Kubernetes) leaves the processor affinity as it is. A limit of any
    parent counts too. Both versions: https://docs.kernel.org/admin-guide/cgroup-v2.html, `cpu.max`, and
    https://docs.kernel.org/scheduler/sched-bwc.html, `cpu.cfs_quota_us`.
    """
    try:
        lines = cgroups.read_text(errors="replace").splitlines()
    except OSError:
        return None
    shares = []
    for line in lines:
        _, _, named = line.partition(":")
        controllers, colon, group = named.partition(":")
        if not colon or (controllers and "cpu" not in controllers.split(",")):
            continue
        # Version 1 may lie under the names of all controllers together, or under a link for each.
        for root in (files / "cpu", files / controllers) if controllers else (files,):
            # A container sees its own group as the root, also where `cgroups` names it by its path outside.
            places = [root / group.strip("/"), *(root / group.strip("/")).parents]
            shares += [_share(place) for place in places if place.is_relative_to(root)]
    return min((max(math.ceil(share), 1) for share in shares if share is not None), default=None)


def free_memory(meminfo: Path = Path("/proc/meminfo"), files: Path = _CGROUP_FILES) -> int | None:
    """Return the bytes that a new process may use without swapping; None where the system does not say.

    A limit of this process's control group counts, where it is mounted as the root (a container).
    """
    try:
        (line,) = [line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
        free = [int(line.split()[1]) * 1024]
    except (OSError, ValueError, IndexError):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(int((files / limit).read_text()) - int((files / used).read_text()))
        except (OSError, ValueError):  # "max", or no such file
            continue
    return max(min(free), 0)


def _share(group: Path) -> float | None:
    """Return the CPUs' time that one group allows; None if it sets no limit."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError, OverflowError):  # "max", or no such file
        return None
