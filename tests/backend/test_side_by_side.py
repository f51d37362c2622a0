"""Several batches at the same time, each on a stream of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from threading import get_ident

import mlx.core as mx
import pytest

from mlxbert.backend.device import BlasStatus
from mlxbert.backend.threads import side_by_side, thread_count

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU has one stream")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of threads that mlxbert believes to have."""
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: BlasStatus(True, None, "", request.param))
    return int(request.param)


def build(i: int) -> mx.array:
    x = mx.full((64, 64), float(i))
    return (x @ x).sum()


def test_each_item_is_computed_once(threads: int) -> None:
    here, used, seen = get_ident(), set(), {}
    before = mx.default_stream(mx.cpu)

    def built(i: int) -> mx.array:
        assert thread_count() == 1  # the other threads are busy
        assert get_ident() == here
        used.add(str(mx.default_stream(mx.cpu)))
        return build(i)

    def done(i: int, output: mx.array) -> None:
        assert get_ident() == here
        assert i not in seen
        seen[i] = output.item()

    def items() -> Iterator[int]:
        for i in range(40):
            mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
            yield i

    side_by_side(items(), built, done)
    assert seen == {i: 64.0**3 * i * i for i in range(40)}
    assert len(used) <= threads
    assert (str(before) in used) == (threads == 1)
    assert mx.default_stream(mx.cpu) == before
    assert thread_count() == threads


@pytest.mark.parametrize("place", ["items", "build", "computation", "done"])
def test_the_first_failure_ends_it(threads: int, place: str) -> None:
    taken = []

    def fail(at: str, i: int) -> None:
        if place == at and i == 5:
            raise ValueError("item 5")

    def items() -> Iterator[int]:
        for i in range(1000):
            fail("items", i)
            taken.append(i)
            yield i

    def built(i: int) -> mx.array:
        fail("build", i)
        if place == "computation" and i == 5:
            return mx.load("no such file.npy")  # type: ignore[return-value]
        return build(i)

    with pytest.raises((ValueError, RuntimeError), match=r"^item 5$|no such file"):
        side_by_side(items(), built, lambda i, _output: fail("done", i))
    assert len(taken) < 100
    assert thread_count() == threads
    side_by_side(range(3), build, lambda _i, _output: None)


def test_nothing_to_do(threads: int) -> None:
    side_by_side([], build, lambda _i, _output: pytest.fail("there is no item"))


def test_a_process_that_has_compiled_there_ends_well() -> None:
    code = (
        "import mlx.core as mx\n"
        "from mlxbert.activations import gelu\n"
        "from mlxbert.backend import threads\n"
        "threads.thread_count = lambda: 2\n"
        "def run(count):\n"
        "    threads.side_by_side(range(count), lambda i: gelu(mx.ones((i,))), lambda i, output: print(output.size))\n"
        "import atexit\n"
        "run(8); atexit.register(run, 2)"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, sorted(done.stdout.split()), done.stderr) == (0, sorted("0123456701"), "")
