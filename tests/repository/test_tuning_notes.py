"""docs/tuning.md has the tables of the recorded runs, and the benchmark makes them as it says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.defaults import (
    GRIDS,
    NOTES,
    PEAK,
    RECORDED,
    SETS,
    Setting,
    plan_of,
    plans,
    records,
    rows,
    table,
    with_tables,
)


def record(data: str, seed: int, score: float, setting: Setting, epochs: int = 1) -> dict[str, Any]:
    plan = {"model": "minilm", "data": data, "epochs": epochs, "seed": seed, **asdict(setting)}
    return {**plan, "metrics": {SETS[data].metric: score}}


def test_the_tables_are_those_of_the_recorded_runs() -> None:
    text = NOTES.read_text(encoding="utf-8")
    assert with_tables(text, records(RECORDED)) == text, "fix: python -m benchmarks.defaults --write"


def test_no_run_is_recorded_twice_and_the_file_is_small() -> None:
    found = [plan_of(line) for line in records(RECORDED)]
    assert len(set(found)) == len(found) > 0
    assert RECORDED.stat().st_size < 100_000


def test_lines_are_compared_on_the_seeds_that_both_have() -> None:
    low, default = Setting(6e-5), Setting(PEAK)
    found = [
        *(record("tweets", seed, 0.7, low) for seed in (0, 1)),
        record("tweets", 0, 0.8, default),
        record("jigsaw", 0, 0.9, low),
        record("jigsaw", 0, 0.6, default),
        record("alexa", 0, 0.5, low),  # no run of the other line: it does not count
        record("tweets", 0, 0.1, low, epochs=3),
    ]
    first, second = rows("rate", "minilm", 1, found)
    assert (first.setting, second.setting) == (low, default)
    assert first.differences == pytest.approx({"tweets": -0.1, "jigsaw": 0.3})
    assert table("rate", "minilm", found).splitlines()[2:] == [
        "| 1 | 6.0e-05 | 0.700 ± 0.000 (2) | not run | 0.500 (1) | 0.900 (1) | +0.100, 2 of 4 sets |",
        "| 1 | 3.0e-04 | 0.800 (1) | not run | not run | 0.600 (1) | default |",
        "| 3 | 6.0e-05 | 0.100 (1) | not run | not run | not run | not compared |",
    ]


def test_notes_without_a_marker_are_refused() -> None:
    with pytest.raises(ValueError, match="not found"):
        with_tables("# Tuning\n", [record("tweets", 0, 0.7, Setting(6e-5))])


def test_every_grid_has_the_defaults_at_its_rate() -> None:
    for name, grid in GRIDS.items():
        assert Setting(PEAK) in grid, name
        values = [getattr(setting, name) for setting in grid]
        assert len(set(values)) == len(values)
    assert len(list(plans("minilm", list(GRIDS), list(SETS), [1, 3], [0]))) == 2 * 4 * sum(map(len, GRIDS.values()))
