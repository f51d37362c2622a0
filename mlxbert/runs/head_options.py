"""Options of a head and labels as a command line gives them: words that stand for numbers, truth values and lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from heads.labels import Label
from mlxbert.runs.files import RunError


def head_options(words: Sequence[str]) -> dict[str, Any]:
    """ "objective=focal", "horizon=12", "log_targets=true", "calendar=[\"year\"]" by name.

    Raises:
        RunError: a word without "=", or a name twice.
    """
    made: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise RunError(f"--head {word!r}: give NAME=VALUE, such as objective=focal")
        if name in made:
            raise RunError(f"--head {name} is given twice; fix: leave one out")
        parsed = _value(value)
        made[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return made


def labels(words: Sequence[str]) -> tuple[Label, ...] | None:
    """Labels, numbers where all of them are; None: none are given."""
    if not words:
        return None
    parsed = [_value(word) for word in words]
    # JSON's NaN is a float; as a label it is a word.
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and one == one for one in parsed)
    return tuple(parsed) if numbers else tuple(words)


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word
