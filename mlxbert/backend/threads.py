"""Compute several parts of a batch at the same time on a CPU.

MLX runs the operations of one stream on one thread. So each part is built on a stream of its own, and evaluated from a
Python thread of its own, with OpenBLAS on one thread meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache, partial
from itertools import pairwise
from threading import get_ident
from typing import Any

import mlx.core as mx

from mlxbert.backend.device import one_blas_thread, use_fast_blas

# OpenBLAS has no more.
_MOST_THREADS = 64
# Each shard reads all weights: with fewer tokens, that takes longer than the threads save.
_LEAST_TOKENS = 256
# The part of a forward pass on one thread that is not matrix products, which OpenBLAS's threads do not shorten.
_NOT_PRODUCTS = 0.2


def thread_count() -> int:
    """Return how many parts are computed at the same time: OpenBLAS's threads on a CPU, else 1."""
    return use_fast_blas().threads if mx.default_device() == mx.cpu else 1


def streams(most: int) -> list[mx.Stream]:
    """Return the default stream, and one more for each further thread of `thread_count`, up to `most` in all."""
    default = mx.default_stream(mx.default_device())
    return [default, *(_further_stream(number, get_ident()) for number in range(1, min(thread_count(), most)))]


def shares(rows: int, tokens: int, threads: int) -> list[slice]:
    """Return the rows of each shard of a forward pass, of equal size where possible.

    A single one if the batch is small, or if OpenBLAS's threads are faster than so few shards.

    Args:
        rows: of the batch.
        tokens: of all rows, with padding.
        threads: at most so many shards.
    """
    count = min(threads, rows, tokens // _LEAST_TOKENS)
    if count * (_NOT_PRODUCTS + (1 - _NOT_PRODUCTS) / threads) <= 1:
        return [slice(0, rows)]
    ends = [rows * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def is_traced() -> bool:
    """Return whether a transformation of MLX (`mx.grad`, `mx.compile`, `mx.vmap`, …) runs on this thread.

    Then nothing may be computed on another thread: there MLX does not know of the transformation and drops the graph,
    so that gradients would be zero in silence.
    """
    try:
        array = _traced_array()
    except RuntimeError:  # the interpreter ends, and there are no threads any more
        return True
    return array is None or _counts_as_traced(array)


def evaluate(outputs: Sequence[Any]) -> None:
    """Compute arrays, or trees of them, at the same time; each must be on its own stream, the first on this thread's.

    As `compute`, for outputs that are built already.
    """
    compute([partial(_given, output) for output in outputs])


def compute(builds: Sequence[Callable[[], Any]]) -> None:
    """Build arrays, or trees of them, and compute them at the same time, with OpenBLAS on one thread.

    Each is evaluated from its own Python thread, and begins while the next is built. `mx.eval` hands out some hundred
    operations and then waits for one of them (`MAX_ACTIVE_TASKS`, transforms.cpp), so from one thread the last stream
    would begin when the first is done.

    Args:
        builds: functions that return what to compute, each on its own stream of `streams`; the first is called last.
            A single one keeps all threads of OpenBLAS.
    """
    first, *others = builds
    if not others:
        mx.eval(first())
        return
    futures: list[Future[None]] = []
    with one_blas_thread():
        try:
            for build in others:
                output = build()
                try:
                    futures.append(_pool().submit(mx.eval, output))
                except RuntimeError:  # the interpreter ends, and there are no threads any more
                    mx.eval(output)
            mx.eval(first())
        finally:
            wait(futures)
    for future in futures:
        future.result()


def _given(output: Any) -> Any:
    return output


@cache
def _further_stream(number: int, owner: int) -> mx.Stream:
    """Return the same stream for all calls of the thread `owner`, because MLX never ends a stream's thread.

    On an "unsafe" stream any thread may evaluate, but only one at a time.
    """
    return mx.new_thread_unsafe_stream(mx.cpu)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="mlxbert")


@cache
def _traced_array() -> mx.array | None:
    """Return an array that counts as traced inside every transformation, and as any other outside.

    MLX has no function that tells whether a transformation runs. But what is made from the arguments of one keeps
    MLX's mark if the result does not depend on it, and the mark counts inside any other. None if that has changed.
    """
    made: list[mx.array] = []

    def make(x: mx.array) -> mx.array:
        made.append(x + 1)
        return x

    def test(x: mx.array) -> mx.array:
        works.append(_counts_as_traced(made[0]))
        return x

    def run() -> None:
        mx.grad(make)(mx.array(0.0))
        mx.eval(made)
        works.append(not _counts_as_traced(made[0]))
        mx.grad(test)(mx.array(0.0))

    works: list[bool] = []
    _pool().submit(run).result()  # on another thread, outside the caller's transformation
    return made[0] if all(works) else None


def _counts_as_traced(array: mx.array) -> bool:
    try:
        mx.async_eval(-array)  # refuses what is traced
    except ValueError:
        return True
    return False


def _forget_threads() -> None:
    """Make pool and streams anew after a fork, which no thread survives."""
    for made_once in (_further_stream, _pool, _traced_array):
        made_once.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
