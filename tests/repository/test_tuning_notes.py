"""docs/tuning.md and docs/scale.md have the tables of the recorded runs, and the benchmarks make them as they say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks import memory
from benchmarks.defaults import (
    GRIDS,
    NOTES,
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

DEFAULT = GRIDS["rate"].settings[0]


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
    default, high = DEFAULT, Setting(3e-4)
    found = [
        *(record("tweets", seed, 0.7, high) for seed in (0, 1)),
        record("tweets", 0, 0.8, default),
        record("jigsaw", 0, 0.9, high),
        record("jigsaw", 0, 0.6, default),
        record("alexa", 0, 0.5, high),  # no run of the other line: it does not count
        record("tweets", 0, 0.1, high, epochs=3),  # a line without another one
    ]
    first, second = rows(GRIDS["rate"], 1, found)
    assert (first.setting, second.setting) == (default, high)
    assert second.differences == pytest.approx({"tweets": -0.1, "jigsaw": 0.3})
    assert table(GRIDS["rate"], found).splitlines()[2:] == [
        "| 1 | 6.0e-05 | 0.800 (1) | not run | not run | 0.600 (1) | (base) |",
        "| 1 | 3.0e-04 | 0.700 ± 0.000 (2) | not run | 0.500 (1) | 0.900 (1) | +0.100, 2 of 4 sets |",
    ]


def test_a_table_takes_the_place_of_the_old_one() -> None:
    begin, end = "<!-- python -m benchmarks.defaults --write: {} -->", "<!-- end -->"
    found = [record("tweets", 0, 0.7, setting) for setting in (Setting(3e-4), DEFAULT)]
    text = f"# Tuning\n{begin.format('rate')}\nold\n{end}\n\n{begin.format('head')}\nold\n{end}\nlast\n"
    rates = table(GRIDS["rate"], found)
    assert with_tables(text, found) == (
        f"# Tuning\n{begin.format('rate')}\n{rates}\n{end}\n\n{begin.format('head')}\n{end}\nlast\n"
    )
    with pytest.raises(ValueError, match=r"^tuning\.md has no place for rate; fix: add <!-- python"):
        with_tables("# Tuning\n", found)


def test_the_lines_of_a_grid_differ_in_one_setting() -> None:
    for name, grid in GRIDS.items():
        values = [getattr(setting, grid.varied) for setting in grid.settings]
        assert len(set(values)) == len(values), name
        base = asdict(grid.settings[0])
        assert all({**asdict(setting), grid.varied: base[grid.varied]} == base for setting in grid.settings), name
    runs = list(plans("minilm", list(GRIDS), list(SETS), [1, 3], [0]))
    assert len(runs) == 2 * 4 * sum(len(grid.settings) for grid in GRIDS.values())


def test_the_table_of_memory_is_that_of_the_recorded_cells() -> None:
    cells = memory.recorded()
    text = memory.NOTES.read_text(encoding="utf-8")
    assert memory.table(cells) in text, "fix: python -m benchmarks.memory --write"
    assert memory.verdict(cells) in text
    assert "met" in memory.verdict(cells)
