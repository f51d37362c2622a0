"""Compute several parts of a batch at the same time on a CPU.

MLX runs the operations of one stream on one thread. So each part is built on a stream of its own, with OpenBLAS on
one thread while it is evaluated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from functools import cache, partial
from itertools import pairwise
from threading import get_ident, local
from typing import Any, TypeVar

import mlx.core as mx

from mlxbert.backend.device import one_blas_thread, use_fast_blas

# OpenBLAS has no more.
_MOST_THREADS = 64
# Each shard reads all weights: with fewer tokens, that takes longer than the threads save.
_LEAST_TOKENS = 128
# The part of a forward pass on one thread that is not matrix products, which OpenBLAS's threads do not shorten.
_NOT_PRODUCTS = 0.2
T = TypeVar("T")
# While one is computed, the next is built.
_AHEAD = 2
# `inside` is True while `side_by_side` builds.
_state = local()


def thread_count() -> int:
    """Return how many parts are computed at the same time: OpenBLAS's threads on a CPU, else 1.

    Also 1 inside `side_by_side`, where the other threads are busy.
    """
    if getattr(_state, "inside", False):
        return 1
    return use_fast_blas().threads if mx.default_device() == mx.cpu else 1


def begin(array: mx.array) -> None:
    """Start to compute an array of the default stream, while this thread builds what follows.

    It does nothing inside `side_by_side`, where another thread may be computing on that stream, and on a GPU.
    """
    if not getattr(_state, "inside", False) and mx.default_device() == mx.cpu:
        mx.async_eval(array)


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

    Each is evaluated from its own Python thread. `mx.eval` hands out some hundred operations and then waits for one of
    them (`MAX_ACTIVE_TASKS`, transforms.cpp), so of wide graphs, such as those of gradients, the last stream would
    begin when the first is done.
    """
    _evaluate_each([partial(list, [output]) for output in outputs], one_blas=len(outputs) > 1)


def compute(builds: Sequence[Callable[[], Any]]) -> None:
    """Build arrays, or trees of them, and compute them at the same time, with OpenBLAS on one thread.

    Two streams are evaluated from one Python thread. `mx.eval` hands out the operations of narrow graphs, such as
    those of an encoder, level by level (`bfs_max_width`, transforms.cpp), so that both streams have work. A thread for
    each takes 5 to 12 % longer, because the threads that hand out interrupt those that compute.

    Args:
        builds: functions that return what to compute, each on its own stream of `streams`, in their order. A single
            one keeps all threads of OpenBLAS.
    """
    pairs = [builds[i : i + 2] for i in range(0, len(builds), 2)]
    _evaluate_each([partial(_built, pair) for pair in pairs], one_blas=len(builds) > 1)


def _evaluate_each(parts: Sequence[Callable[[], list[Any]]], *, one_blas: bool) -> None:
    """Evaluate what each function returns from its own thread, the first from this one."""
    first, *others = parts
    futures: list[Future[None]] = []
    with one_blas_thread() if one_blas else nullcontext():
        try:
            for part in others:
                futures.append(_submit(mx.eval, part()))
            mx.eval(first())
        finally:
            wait(futures)
    for future in futures:
        future.result()


def _built(builds: Sequence[Callable[[], Any]]) -> list[Any]:
    return [build() for build in builds]


def side_by_side(items: Iterable[T], build: Callable[[T], Any], done: Callable[[T, Any], None]) -> None:
    """Call `done(item, build(item))` for every item; what is built is computed before, on `thread_count` threads.

    The parts do not wait for each other, as the shards of one batch do. Items are taken, built and done on the calling
    thread, so `items` may be a generator with work of its own. Only this thread builds, because of a fault of MLX: it
    aborts the process at its end if another thread called a compiled function, such as an activation, and has just
    ended. Evaluate what `build` reads, such as weights, before: other threads cannot compute it.

    Args:
        items: taken when a thread has at most one to compute.
        build: returns an array, or a tree of them, of the current stream; inside, `thread_count` is 1.
        done: called in the order in which the results are there.

    Raises:
        BaseException: the first that `items`, `build`, `done` or a computation raises; no further item is taken then.
    """
    count = thread_count()
    if count == 1:
        for item in items:
            output = build(item)
            mx.eval(output)
            done(item, output)
        return
    # The default stream is the calling thread's alone, and that thread builds.
    queues = [_Queue(_further_stream(number, get_ident())) for number in range(1, count + 1)]
    running: dict[Future[None], tuple[T, Any]] = {}

    def finish(futures: Iterable[Future[None]]) -> None:
        for future in futures:
            item, output = running.pop(future)
            future.result()
            done(item, output)

    with one_blas_thread():
        try:
            for item in items:
                queue = min(queues, key=_Queue.__len__)
                while len(queue) == _AHEAD:
                    finish(wait(running, return_when=FIRST_COMPLETED).done)
                    queue = min(queues, key=_Queue.__len__)
                _state.inside = True
                try:
                    with mx.stream(queue.stream):
                        output = build(item)
                finally:
                    _state.inside = False
                running[queue.submit(output)] = (item, output)
            while running:
                finish(wait(running, return_when=FIRST_COMPLETED).done)
        finally:
            wait(running)


class _Queue:
    """What one stream computes, one after the other."""

    def __init__(self, stream: mx.Stream):
        self.stream = stream
        self.futures: list[Future[None]] = []

    def __len__(self) -> int:
        self.futures = [future for future in self.futures if not future.done()]
        return len(self.futures)

    def submit(self, output: Any) -> Future[None]:
        """Compute an array, or a tree of them, after what is here."""
        self.futures.append(_submit(_evaluate_after, tuple(self.futures), output))
        return self.futures[-1]


def _evaluate_after(futures: Sequence[Future[None]], output: Any) -> None:
    wait(futures)
    mx.eval(output)


def _submit(function: Callable[..., None], *arguments: Any) -> Future[None]:
    """Call a function on a thread of the pool; on this one when the interpreter ends and starts no thread any more."""
    try:
        return _pool().submit(function, *arguments)
    except RuntimeError:
        function(*arguments)
        future: Future[None] = Future()
        future.set_result(None)
        return future


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
