"""What the page says of a run's settings and of where it came from, flattened to names and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxbert.report.run_files import ReportedRun

# run.json's parts, in reading order, and what the page calls them; what else it holds follows under its own name.
SECTIONS = {
    "task": "Task",
    "data": "Data",
    "model": "Model",
    "config": "Training",
    "folds": "Folds",
    "submission": "Submission",
    "environment": "Environment",
}
# Said in the page's head or in its own table.
SAID = {"format", "version", "metric", "metrics", "members"}


def sections(run: ReportedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, [(name, value)]) of everything in run.json."""
    rest = {name: value for name, value in run.record.values.items() if name not in SECTIONS and name not in SAID}
    made = [("Run", list(_flat(rest)))]
    made += [(title, list(_flat(run.record.values.get(name)))) for name, title in SECTIONS.items()]
    return [(title, facts) for title, facts in made if facts]


def _flat(values: Any) -> Iterator[tuple[str, str]]:
    for name, value in values.items() if isinstance(values, dict) else ():
        if value not in (None, [], {}):
            yield name, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return str(value)
