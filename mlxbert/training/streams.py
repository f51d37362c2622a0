"""The threads of a step on the CPU: MLX runs the operations of one stream on one thread.

So a batch is computed in shards and the weights are updated in parts, each on a stream of its own. Norm and update
treat every parameter by itself: where it is computed changes no bit of it. A shard's products and sums are of its own
rows, so that their number does: a run's threads are recorded, and a resume asks for the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from threading import get_ident
from typing import Any

import mlx.core as mx

from mlxbert.backend import one_blas_thread, use_fast_blas

# Every shard has gradients of its own, as large as the weights.
_MOST = 8
# The loops of norm and update wait for memory, and more threads wait no less.
_MOST_PARTS = 2


@dataclass(frozen=True)
class Part:
    """Some of the parameters, and the stream that they are computed on."""

    stream: mx.Stream
    names: tuple[str, ...]


def streams() -> list[mx.Stream]:
    """The default stream, and on a CPU with OpenBLAS one more for each further thread of it, up to 8 in all."""
    device = mx.default_device()
    threads = min(use_fast_blas().threads, _MOST) if device == mx.cpu else 1
    return [mx.default_stream(device), *(_further_stream(number, get_ident()) for number in range(1, threads))]


def parts(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    """Parameters with these numbers of elements, dealt to two of `streams`: the largest first."""
    chosen = streams()[:_MOST_PARTS]
    names: list[list[str]] = [[] for _ in chosen]
    load = [0] * len(chosen)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = load.index(min(load))
        names[least].append(name)
        load[least] += sizes[name]
    return tuple(Part(stream, tuple(own)) for stream, own in zip(chosen, names, strict=True) if own)


def take(names: Sequence[str], arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """The arrays of these names, no longer in `arrays`: what nobody holds on to, MLX updates in place."""
    return {name: arrays.pop(name) for name in names if name in arrays}


def evaluate(outputs: Sequence[Any]) -> None:
    """Compute arrays, or trees of them, at the same time; each is to be on a stream of its own.

    From a Python thread each: `mx.eval` hands out some hundred operations and then waits for one of them
    (`MAX_ACTIVE_TASKS`, transforms.cpp), so that from one thread the last stream would begin when the first is done.
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


@cache
def _further_stream(number: int, owner: int) -> mx.Stream:
    """One for all steps of the thread `owner`: MLX keeps a stream's own thread for good.

    "Unsafe" is one that any thread may evaluate on, and no two at once.
    """
    return mx.new_thread_unsafe_stream(mx.cpu)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST - 1, thread_name_prefix="mlxbert-step")
