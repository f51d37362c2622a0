"""docs/tuning.md has the tables of the recorded runs, and the benchmark makes them as it says."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.defaults import (
    COMPARISONS,
    GRIDS,
    NOTES,
    RECORDED,
    SETS,
    SHORT,
    Setting,
    plan_of,
    plans,
    records,
    rows,
    table,
    with_tables,
)

DEFAULT = COMPARISONS["minilm"].default


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
    low, default = Setting(6e-5), DEFAULT
    found = [
        *(record("tweets", seed, 0.7, low) for seed in (0, 1)),
        record("tweets", 0, 0.8, default),
        record("jigsaw", 0, 0.9, low),
        record("jigsaw", 0, 0.6, default),
        record("alexa", 0, 0.5, low),  # no run of the other line: it does not count
        record("tweets", 0, 0.1, low, epochs=3),  # a line without another one
    ]
    first, second = rows("rate", COMPARISONS["minilm"], 1, found)
    assert (first.setting, second.setting) == (low, default)
    assert first.differences == pytest.approx({"tweets": -0.1, "jigsaw": 0.3})
    assert table("rate", COMPARISONS["minilm"], found).splitlines()[2:] == [
        "| 1 | 6.0e-05 | 0.700 ± 0.000 (2) | not run | 0.500 (1) | 0.900 (1) | +0.100, 2 of 4 sets |",
        "| 1 | 3.0e-04 | 0.800 (1) | not run | not run | 0.600 (1) | default |",
    ]


def test_a_table_takes_the_place_of_the_old_one() -> None:
    begin, end = "<!-- python -m benchmarks.defaults --write: {} -->", "<!-- end -->"
    found = [record("tweets", 0, 0.7, setting) for setting in (Setting(6e-5), DEFAULT)]
    text = f"# Tuning\n{begin.format('minilm rate')}\nold\n{end}\n\n{begin.format('minilm head')}\nold\n{end}\nlast\n"
    rates = table("rate", COMPARISONS["minilm"], found)
    assert with_tables(text, found) == (
        f"# Tuning\n{begin.format('minilm rate')}\n{rates}\n{end}\n\n{begin.format('minilm head')}\n{end}\nlast\n"
    )
    with pytest.raises(ValueError, match=r"^tuning\.md has no place for minilm rate; fix: add <!-- python"):
        with_tables("# Tuning\n", found)


def test_every_grid_has_the_defaults_at_its_rate() -> None:
    for name, grid in GRIDS.items():
        assert DEFAULT in grid, name
        values = [getattr(setting, name) for setting in grid]
        assert len(set(values)) == len(values)
    assert len(list(plans("minilm", list(GRIDS), SHORT, [1, 3], [0]))) == 2 * 4 * sum(map(len, GRIDS.values()))
