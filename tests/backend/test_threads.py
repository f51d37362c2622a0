"""Parts that are computed at the same time: streams, threads, and what may not be computed on another thread."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from threading import Thread
from typing import Any

import mlx.core as mx
import pytest

from mlxbert.backend import threads
from mlxbert.backend.device import BlasStatus, one_blas_thread, use_fast_blas
from mlxbert.backend.threads import compute, evaluate, is_traced, shares, streams, thread_count

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU computes a batch whole")


def use_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    status = BlasStatus(True, use_fast_blas().library, "", count)
    monkeypatch.setattr(threads, "use_fast_blas", lambda: status)


def test_a_stream_for_each_thread_of_openblas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count() == use_fast_blas().threads
    use_threads(monkeypatch, 4)
    found = streams(8)
    assert found[0] == mx.default_stream(mx.cpu)
    assert len({str(stream) for stream in found}) == len(found) == 4
    assert streams(2) == found[:2]
    of_another: list[mx.Stream] = []
    thread = Thread(target=lambda: of_another.extend(streams(8)))
    thread.start()
    thread.join()
    assert not {str(stream) for stream in of_another[1:]} & {str(stream) for stream in found}
    monkeypatch.setattr(mx, "default_device", lambda: mx.gpu)
    assert thread_count() == 1


@pytest.mark.parametrize(
    ("rows", "length", "count", "sizes"),
    [
        (8, 128, 2, [4, 4]),
        (9, 64, 2, [4, 5]),
        (7, 32, 2, [7]),  # 224 tokens, and a shard has at least 128
        (1, 512, 2, [1]),
        (8, 512, 1, [8]),
        (7, 512, 3, [2, 2, 3]),
        (2, 512, 8, [2]),  # OpenBLAS's eight threads are faster than two shards
        (8, 512, 64, [1] * 8),
    ],
)
def test_a_batch_is_split_where_it_is_worth_it(rows: int, length: int, count: int, sizes: list[int]) -> None:
    found = shares(rows, rows * length, count)
    assert [part.stop - part.start for part in found] == sizes
    assert [row for part in found for row in range(rows)[part]] == list(range(rows))


@pytest.mark.parametrize("transform", [mx.grad, mx.value_and_grad, mx.compile, mx.vmap], ids=lambda f: f.__name__)
def test_every_transformation_is_noticed(transform: Callable[..., Any]) -> None:
    seen = []

    def function(x: mx.array) -> mx.array:
        seen.append(is_traced())
        return mx.checkpoint(inner)(x) if transform is mx.grad else x

    def inner(x: mx.array) -> mx.array:
        seen.append(is_traced())
        return x * 2

    for _ in range(2):
        assert not is_traced()
        mx.eval(transform(function)(mx.ones((2,)) if transform is mx.vmap else mx.array(1.0)))
    assert all(seen)
    assert seen
    with pytest.raises(ZeroDivisionError):
        mx.grad(lambda x: x / 0 if 1 / 0 else x)(mx.array(1.0))
    assert not is_traced()


def test_the_first_question_may_come_inside_a_transformation() -> None:
    seen = []

    def function(x: mx.array) -> mx.array:
        threads._traced_array.cache_clear()
        seen.append(is_traced())
        return x

    mx.jvp(function, [mx.array(1.0)], [mx.array(1.0)])
    mx.vjp(function, [mx.array(1.0)], [mx.array(1.0)])
    assert seen == [True, True]
    assert not is_traced()


def test_nothing_is_computed_apart_if_mlx_marks_no_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_counts_as_traced", lambda _array: False)
    threads._traced_array.cache_clear()
    assert is_traced()
    threads._traced_array.cache_clear()


def test_products_are_of_one_thread_while_parts_are_computed_and_of_all_after() -> None:
    status = use_fast_blas()
    if status.library is None:
        pytest.skip("MLX keeps its own BLAS here")
    count = ctypes.CDLL(status.library).scipy_openblas_get_num_threads
    assert count() == status.threads
    with one_blas_thread():
        assert count() == 1
        with one_blas_thread():  # another caller
            assert count() == 1
        assert count() == 1
    assert count() == status.threads
    with pytest.raises(RuntimeError, match="no Stream"):  # the default stream is this thread's alone
        evaluate([mx.exp(mx.ones((2,))), mx.exp(mx.ones((2,)))])
    with pytest.raises(ZeroDivisionError):
        compute([lambda: mx.ones((2,)), lambda: 1 / 0])
    assert count() == status.threads


def test_a_forked_child_has_all_threads_for_products_though_its_parent_was_inside() -> None:
    """Inside on the thread that forks, and on another one, which the child does not have."""
    code = """
import ctypes, os, threading
from mlxbert.backend.device import one_blas_thread, use_fast_blas
status = use_fast_blas()
count = ctypes.CDLL(status.library).scipy_openblas_get_num_threads
def child(check):
    if (pid := os.fork()) == 0:
        try:
            check()
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def all_threads():
    assert count() == status.threads, count()
def again():
    with one_blas_thread():
        assert count() == 1
    all_threads()
inside, leave = threading.Event(), threading.Event()
def other():
    with one_blas_thread():
        inside.set()
        leave.wait()
thread = threading.Thread(target=other)
thread.start()
inside.wait()
child(lambda: (all_threads(), again()))
leave.set()
thread.join()
def leaving(block):
    block.__exit__(None, None, None)
    all_threads()
    again()
with (block := one_blas_thread()):
    child(lambda: leaving(block))
"""
    if use_fast_blas().library is None:
        pytest.skip("MLX keeps its own BLAS here")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_a_process_that_computed_apart_ends_well() -> None:
    code = (
        "import mlx.core as mx; from mlxbert.backend.threads import evaluate\n"
        "extra = mx.new_thread_unsafe_stream(mx.cpu)\n"
        "a = mx.ones((300, 300)); mx.eval(a); b = mx.matmul(a, a, stream=extra); evaluate([mx.exp(a) @ a, b])\n"
        "print(b.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(300, 300)\n", "")
