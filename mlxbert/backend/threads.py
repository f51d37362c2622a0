"""Compute several batches, or several parts of a batch, at the same time on a CPU.

MLX runs the operations of one stream on one thread. So each part is built on a stream of its own, and evaluated from a
Python thread of its own, with OpenBLAS on one thread meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Event, Lock, get_ident, local
from typing import Any, TypeVar

import mlx.core as mx

from mlxbert.backend.device import one_blas_thread, use_fast_blas

# In training every shard has its own gradients, as large as the weights.
_MOST_STREAMS = 8
T = TypeVar("T")
_END: Any = object()
# `inside` is True in a thread of `side_by_side`.
_state = local()


def streams() -> list[mx.Stream]:
    """Return the default stream, and on a CPU with OpenBLAS one more for each further thread of it, up to 8 in all.

    Inside `side_by_side` it is the one stream of the calling thread: the others are busy.
    """
    device = mx.default_device()
    if getattr(_state, "inside", False):
        return [mx.default_stream(device)]
    threads = min(use_fast_blas().threads, _MOST_STREAMS) if device == mx.cpu else 1
    return [mx.default_stream(device), *(_further_stream(number, get_ident()) for number in range(1, threads))]


def evaluate(outputs: Sequence[Any]) -> None:
    """Compute arrays, or trees of them, at the same time; each must be on its own stream.

    Each is evaluated from its own Python thread. `mx.eval` hands out some hundred operations and then waits for one of
    them (`MAX_ACTIVE_TASKS`, transforms.cpp), so from one thread the last stream would begin when the first is done.
    """
    first, *others = outputs
    if not others:
        mx.eval(first)
        return
    with one_blas_thread():
        futures = [_pool().submit(mx.eval, output) for output in others]
        try:
            mx.eval(first)
        finally:
            wait(futures)
    for future in futures:
        future.result()


def side_by_side(items: Iterable[T], compute: Callable[[T], None]) -> None:
    """Call `compute(item)` for every item, on as many threads as there are `streams`, each with its own stream.

    An item is taken when a thread is free, and by one thread at a time, so `items` may be a generator with work of its
    own. The threads do not wait for each other, as the shards of one batch do. `compute` has to evaluate what it
    builds.

    Raises:
        BaseException: the first that `items` or `compute` raises; no further item is taken then.
    """
    chosen = streams()
    if len(chosen) == 1:
        for item in items:
            compute(item)
        return
    iterator, lock, stop = iter(items), Lock(), Event()

    def work(stream: mx.Stream) -> None:
        _state.inside = True
        try:
            with mx.stream(stream):
                while True:
                    with lock:
                        item = _END if stop.is_set() else next(iterator, _END)
                    if item is _END:
                        return
                    compute(item)
        except BaseException:
            stop.set()
            raise
        finally:
            _state.inside = False

    with one_blas_thread():
        futures = [_pool().submit(work, stream) for stream in chosen[1:]]
        try:
            work(chosen[0])
        finally:
            # Those that have not begun, because other callers have the threads, have nothing to do any more.
            wait([future for future in futures if not future.cancel()])
    for future in futures:
        if not future.cancelled():
            future.result()


@cache
def _further_stream(number: int, owner: int) -> mx.Stream:
    """Return the same stream for all calls of the thread `owner`, because MLX never ends a stream's thread.

    On an "unsafe" stream any thread may evaluate, but only one at a time.
    """
    return mx.new_thread_unsafe_stream(mx.cpu)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_STREAMS - 1, thread_name_prefix="mlxbert-step")
