"""What the page says of a run's settings and of where it came from, flattened to names and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxbert.report.run_files import RunFiles

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
SAID = {"format", "metric", "metrics", "members"}


def sections(run: RunFiles) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, [(name, value)]) of everything in run.json."""
    rest = {name: value for name, value in run.info.items() if name not in SECTIONS and name not in SAID}
    made = [("Run", list(_flat(rest)))]
    made += [(title, list(_flat(run.info.get(name)))) for name, title in SECTIONS.items()]
    return [(title, facts) for title, facts in made if facts]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif value is not None and value != []:
        yield name, _words(value)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return str(value)
