"""The command line that repeats a run, made of its record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from mlxbert.factory.competition import CompetitionError, get_competition
from mlxbert.factory.text_columns import RowText
from mlxbert.runs.files import RunError
from mlxbert.runs.frames import FRAME
from mlxbert.runs.head_options import head_options, labels
from mlxbert.runs.record import RunRecord
from mlxbert.runs.settings import RunSettings, competition_numbers
from mlxbert.training.config import TrainingConfig

# Settings that have options of their own form, or none: a competition brings its submission with it.
_SPECIAL = ("target", "text", "classes", "head", "ignore", "submission", "drop_missing", "escape_formulas")


def repeating_command(record: RunRecord, out: str) -> str:
    """Return the shell line of `mlxbert train` that repeats a run into `out`, an option a line.

    Where no command line can say it (a run on a frame, a label that only looks like a number), it is the call of
    `mlxbert.train` in Python.
    """
    try:
        words = list(_words(record, out))
    except _NoWordsError:
        return _call(record, out)
    lines, start = [], 0
    for place in [i for i, word in enumerate(words) if i > 2 and _is_flag(words, i)]:
        lines.append(words[start:place])
        start = place
    lines.append(words[start:])
    return " \\\n  ".join(shlex.join(line) for line in lines)


class _NoWordsError(Exception):
    """A setting that no command line says."""


class _Flag(str):
    """The name of an option, to tell it from a value that begins with dashes too."""


def _is_flag(words: list[str], place: int) -> bool:
    return isinstance(words[place], _Flag)


def _words(record: RunRecord, out: str) -> Iterator[str]:
    path = record.data.path
    if path is None:
        raise _NoWordsError
    yield from ("mlxbert", "train", f"./{path}" if path.startswith("-") else path)
    settings, config = _beside_competition(record)
    for name, value in settings.items():
        yield from _setting(name, value)
    for name, value in config.items():
        flag = _Flag(f"--{name.replace('_', '-')}")
        if name == "seeds":
            for seed in value:
                yield from (_Flag("--seed"), str(seed))
        elif isinstance(value, bool):
            yield flag if value else _Flag(f"--no-{flag[2:]}")
        elif value is None:
            raise _NoWordsError
        else:
            yield from (flag, str(value))
    yield from (_Flag("-o"), out)


def _beside_competition(record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings and numbers that differ from the defaults, or from what the run's competition brings."""
    settings, config = record.settings, record.config
    usual: dict[str, Any] = {one.name: one.default for one in fields(RunSettings) if one.default is not MISSING} | {
        "head": {}
    }
    numbers = TrainingConfig()
    if settings.competition is not None:
        try:
            ready = get_competition(settings.competition)
        except CompetitionError:
            raise _NoWordsError from None
        brought = RunSettings.for_competition(ready)
        usual = {one.name: getattr(brought, one.name) for one in fields(RunSettings)} | {"competition": None}
        numbers = TrainingConfig.make(competition_numbers(ready))
    given = {
        one.name: getattr(settings, one.name)
        for one in fields(RunSettings)
        if one.name not in usual or getattr(settings, one.name) != usual[one.name]
    }
    own = {
        one.name: getattr(config, one.name)
        for one in fields(TrainingConfig)
        if getattr(config, one.name) != getattr(numbers, one.name)
    }
    return given, own


def _setting(name: str, value: Any) -> Iterator[str]:
    if name not in _SPECIAL:
        if value is None or value == FRAME:
            raise _NoWordsError
        yield from (_Flag(f"--{name.replace('_', '-')}"), str(value))
    elif name in ("target", "ignore"):
        for column in value:
            yield from (_Flag(f"--{name}"), column)
    elif name == "text":
        yield from _text(value)
    elif name == "classes":
        words = [str(label) for label in value or ()]
        # 1 and 1.0 are equal and not the same label: compared as they are written.
        if repr(labels(words)) != repr(value):
            raise _NoWordsError
        for word in words:
            yield from (_Flag("--class"), word)
    elif name == "head":
        yield from _head(value)
    elif name in ("drop_missing", "escape_formulas") and value:
        yield _Flag(f"--{name.replace('_', '-')}")
    else:
        raise _NoWordsError


def _text(text: RowText | None) -> Iterator[str]:
    if text is None or text.missing != RowText("a").missing:
        raise _NoWordsError
    for flag, part in (("--text", text.first), ("--pair", text.second)):
        if isinstance(part, tuple) and len(part) == 1:
            raise _NoWordsError  # a list of one column; one --text is the column as it is
        for word in () if part is None else (part,) if isinstance(part, str) else part:
            yield from (_Flag(flag), word)


def _head(options: Any) -> Iterator[str]:
    for name, value in options.items():
        plain = isinstance(value, str) and head_options([f"{name}={value}"])[name] == value
        word = f"{name}={value if plain else json.dumps(value, ensure_ascii=False)}"
        try:
            same = head_options([word]) == {name: value}
        except RunError:
            same = False
        if not same:
            raise _NoWordsError
        yield from (_Flag("--head"), word)


def _call(record: RunRecord, out: str) -> str:
    """The call of `mlxbert.train`; what a competition brings is written out."""
    given = {
        one.name: getattr(record.settings, one.name)
        for one in fields(RunSettings)
        if one.name not in ("submission", "competition")
    }
    defaults = {one.name: one.default for one in (*fields(RunSettings), *fields(TrainingConfig))}
    values = {**given, **{one.name: getattr(record.config, one.name) for one in fields(TrainingConfig)}, "out": out}
    data = "frame" if record.data.path is None else repr(record.data.path)
    said = [
        f"{name}={'frame' if value == FRAME else repr(value)}"
        for name, value in values.items()
        if value not in (defaults.get(name), {}, ())
    ]
    return "mlxbert.train(\n    " + ",\n    ".join([data, *said]) + ",\n)"
