"""Hostile inputs by the hundred, seeded; `make fuzz` takes ten thousand of each kind. See `tests/fuzz`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.fuzz.faults import FAULTS
from tests.fuzz.samples import build
from tests.fuzz.targets import ENVIRONMENT, TARGETS
from tests.support.forked import Driver, driver

# How many inputs of each target a test run takes; all of them together are about half a minute.
INPUTS = {
    "checkpoint": 110,
    "header": 100,
    "converted": 120,
    "run": 40,
    "table": 60,
    "cells": 60,
    "output": 24,
    "hub": 40,
    "adapter": 40,
}
SECONDS = 20


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    build(root)
    return root


@pytest.fixture(scope="module")
def worker() -> Iterator[Driver]:
    with driver("tests.fuzz.worker", ENVIRONMENT) as do:
        yield do


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_raw_nothing_outside_nothing_endless(
    target: str, samples: Path, worker: Driver, tmp_path: Path
) -> None:
    job = {
        "samples": str(samples),
        "target": target,
        "fault": None,
        "limit": SECONDS,
    }
    ended = worker({**job, "seeds": [0, INPUTS[target]]})
    assert ended["findings"] == []
    assert ended["done"] + ended["refused"] == INPUTS[target]
    assert ended["done"] > 0, "some damage can be lived with"
    assert ended["refused"] > 0 or target == "cells", "and some is felt"


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, samples: Path, worker: Driver) -> None:
    fault = FAULTS[name]
    job = {
        "samples": str(samples),
        "target": fault.target,
        "fault": name,
        "limit": 3,
    }
    for first in range(fault.first, fault.first + 200, 20):
        ended = worker({**job, "seeds": [first, first + 20]})
        if any(text.startswith(fault.finding) for _, text in ended["findings"]):
            return
    pytest.fail(f"not found in 200 inputs: {ended}")
