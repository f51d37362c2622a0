"""What becomes of memory that MLX frees on a Linux CPU: what the system gets back returns page fault by page fault.

MLX's CPU backend takes every array from the C library, which maps anything large anew and unmaps it when it is freed.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

# What MLX keeps on a CPU unless told otherwise, and what one layer of bert-base at 8 × 128 tokens needs, twice over.
_CACHE_DEFAULT, _CACHE = 32 * 2**20, 128 * 2**20
# malloc.h of glibc. Blocks below the first limit come from the heap, whose free top goes back beyond the second.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LIMIT = 2**30
# The same settings from outside, mallopt(3).
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def reuse_buffers() -> None:
    """Let MLX keep 128 MB of freed memory for its next arrays, instead of 32: 3 to 5 % of bert-base's forward pass.

    A limit that the caller has set already stays.
    """
    import mlx.core as mx

    if (before := mx.set_cache_limit(_CACHE)) != _CACHE_DEFAULT:
        mx.set_cache_limit(before)


@cache
def keep_heap() -> bool:
    """Let glibc serve arrays of up to 1 GiB from a heap that keeps up to 1 GiB free.

    What it saves, `python -m benchmarks.tweets` shows beside the same with MALLOC_TRIM_THRESHOLD_=131072 set. For the
    whole process and for good, and so only where a training begins. MLX's own cache, made as large, would keep buffers
    of each batch length beside each other; the heap is one for all. False, with nothing changed, where the environment
    has settings of its own or the C library is another.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Before glibc 2.35 the first limit could not be above 32 MiB: then neither is set.
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _LIMIT) and library.mallopt(_M_TRIM_THRESHOLD, _LIMIT))
