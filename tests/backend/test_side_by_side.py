"""Whole batches at the same time, each on a thread and a stream of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from threading import get_ident

import mlx.core as mx
import pytest

from mlxbert.backend.device import BlasStatus
from mlxbert.backend.threads import side_by_side, streams

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU has one stream")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of threads that mlxbert believes to have."""
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: BlasStatus(True, None, "", request.param))
    return int(request.param)


def test_each_item_is_computed_once(threads: int) -> None:
    inside = False
    seen: dict[int, list[float]] = {}

    def items() -> Iterator[int]:
        nonlocal inside
        for i in range(40):
            assert not inside
            inside = True
            mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
            inside = False
            yield i

    def compute(i: int) -> None:
        x = mx.full((64, 64), float(i))
        seen.setdefault(i, []).append((x @ x).sum().item())

    side_by_side(items(), compute)
    assert seen == {i: [64.0**3 * i * i] for i in range(40)}


def test_a_thread_has_one_stream(threads: int) -> None:
    found: dict[int, list[mx.Stream]] = {}
    before = streams()
    assert len(before) == threads

    def compute(_item: int) -> None:
        if threads > 1:
            assert streams() == [mx.default_stream(mx.default_device())]
        found[get_ident()] = streams()
        mx.eval(mx.ones((256, 256)) @ mx.ones((256, 256)))

    side_by_side(range(60), compute)
    if threads > 1:
        used = [one[0] for one in found.values()]
        assert all(a != b for a, b in combinations(used, 2))
    assert streams() == before


@pytest.mark.parametrize("place", ["items", "compute"])
def test_the_first_failure_ends_it(threads: int, place: str) -> None:
    taken = []

    def items() -> Iterator[int]:
        for i in range(1000):
            if place == "items" and i == 5:
                raise ValueError("item 5")
            taken.append(i)
            yield i

    def compute(i: int) -> None:
        if place == "compute" and i == 5:
            raise ValueError("item 5")
        mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))

    with pytest.raises(ValueError, match=r"^item 5$"):
        side_by_side(items(), compute)
    assert len(taken) < 100
    assert len(streams()) == threads
    side_by_side(range(3), lambda _item: None)


def test_nothing_to_do(threads: int) -> None:
    side_by_side([], lambda _item: pytest.fail("there is no item"))
