"""Settings as words of a command line, and the command line that repeats a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from heads.labels import Label
from mlxbert.adapters.settings import LoRA
from mlxbert.data.competitions import CompetitionError, get_competition
from mlxbert.data.text_columns import RowText
from mlxbert.runs.files import RunError
from mlxbert.runs.inputs import FRAME
from mlxbert.runs.record import RunRecord
from mlxbert.runs.settings import RunSettings, arguments, competition_numbers, default_of, flag_of
from mlxbert.training.config import TrainingConfig


def head_options(words: Sequence[str]) -> dict[str, Any]:
    """Read options of a head: "objective=focal", "horizon=12", "log_targets=true", "calendar=[\"year\"]".

    Raises:
        RunError: a word without "=", or a name twice.
    """
    options: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise RunError(f"--head {word!r}: give NAME=VALUE, such as objective=focal")
        if name in options:
            raise RunError(f"--head {name} is given twice; fix: leave one out")
        parsed = _value(value)
        options[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return options


def labels(words: Sequence[str]) -> tuple[Label, ...] | None:
    """Read labels: numbers if all of them are numbers, else words; None: there are none."""
    if not words:
        return None
    parsed = [_value(word) for word in words]
    # JSON's NaN is a float; as a label it is a word.
    numbers = all(
        isinstance(label, int | float) and not isinstance(label, bool) and label == label for label in parsed
    )
    return tuple(parsed) if numbers else tuple(words)


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def repeating_command(record: RunRecord, out: str) -> str:
    """Return the command of `mlxbert train` that repeats a run into `out`, with one option per line.

    If no command line can do it (a run on a frame, a label that only looks like a number), return the call of
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
    """A setting that no command line can give."""


class _Flag(str):
    """The name of an option; a separate type, because a value may begin with dashes, too."""


def _is_flag(words: list[str], place: int) -> bool:
    return isinstance(words[place], _Flag)


def _words(record: RunRecord, out: str) -> Iterator[str]:
    path = record.data.path
    if path is None:
        raise _NoWordsError
    yield from ("mlxbert", "train", f"./{path}" if path.startswith("-") else path)
    changed = _beside_competition(record)
    for argument in arguments():
        if argument.name in changed:
            yield from _option(_Flag(flag_of(argument)), argument.name, changed[argument.name])
    yield from (_Flag("-o"), out)


def _beside_competition(record: RunRecord) -> dict[str, Any]:
    """Return the arguments that differ from the defaults, or from the settings of the run's competition."""
    defaults: dict[str, Any] = {argument.name: default_of(argument) for argument in arguments()}
    settings = {argument.name: _value_of(record, argument.name) for argument in arguments()}
    if record.settings.competition is not None:
        try:
            ready = get_competition(record.settings.competition)
        except CompetitionError:
            raise _NoWordsError from None
        brought = RunSettings.for_competition(ready)
        if record.settings.submission != brought.submission:
            raise _NoWordsError
        numbers = TrainingConfig.make(competition_numbers(ready))
        defaults = {name: getattr(brought if hasattr(brought, name) else numbers, name) for name in defaults}
        defaults["competition"] = None
    elif record.settings.submission is not None:
        raise _NoWordsError
    return {name: value for name, value in settings.items() if value != defaults[name]}


def _value_of(record: RunRecord, name: str) -> Any:
    return getattr(record.settings if hasattr(record.settings, name) else record.config, name)


def _option(flag: _Flag, name: str, value: Any) -> Iterator[str]:
    """Return the words of one argument.

    Raises:
        _NoWordsError: no command line can give this value.
    """
    if name == "text":
        yield from _text(value)
    elif name == "classes":
        words = [str(label) for label in value or ()]
        # 1 and 1.0 are equal, but not the same label: compare them as they are written.
        if repr(labels(words)) != repr(value):
            raise _NoWordsError
        for word in words:
            yield from (flag, word)
    elif name == "head":
        yield from _head(value)
    elif isinstance(value, tuple):
        for part in value:
            yield from (flag, str(part))
    elif name in ("drop_missing", "escape_formulas"):
        if not value:
            raise _NoWordsError
        yield flag
    elif isinstance(value, bool):
        yield flag if value else _Flag(f"--no-{flag[2:]}")
    elif value is None or value == FRAME:
        raise _NoWordsError
    else:
        yield from (flag, str(value))


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
    """Return the call of `mlxbert.train`, with the settings of a competition written out."""
    values = {argument.name: _value_of(record, argument.name) for argument in arguments()} | {"out": out}
    defaults = {argument.name: default_of(argument) for argument in arguments()}
    data = "frame" if record.data.path is None else repr(record.data.path)
    words = [
        f"{name}={'frame' if value == FRAME else repr(str(value) if isinstance(value, LoRA) else value)}"
        for name, value in values.items()
        if name != "competition" and value not in (defaults.get(name), {}, ())
    ]
    return "mlxbert.train(\n    " + ",\n    ".join([data, *words]) + ",\n)"
