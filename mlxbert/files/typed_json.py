"""Read JSON of this project's own files into dataclasses: every field is checked against its annotation, in one place.

`run.json`, `scores.json`, `blend.json`, the lines of `metrics.jsonl` and the position in a saved training state are
read with it. A field that the dataclass does not have is left out (a later version may have written it).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mlxbert.errors import MLXBertError, shortened

T = TypeVar("T")

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
_PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}


class _MismatchError(Exception):
    """A field that is missing or of another type; the text names it."""


def from_json(
    kind: type[T], value: Any, *, place: str, fix: str, error: type[MLXBertError], null_is_nan: bool = False
) -> T:
    """Return the instance of a dataclass that a JSON object describes.

    Fields may be str, int, float, bool, None, Literal, tuple[X, ...], Mapping[str, X], dataclasses, unions of these,
    and Any. A field that is absent takes the dataclass's default.

    Args:
        kind: the dataclass.
        value: as `json.loads` gives it.
        place: of the value, such as the file's path: the beginning of every message.
        fix: the end of every message.
        error: the class of the error.
        null_is_nan: read null as NaN where a number is expected, as this project's writers mean it.

    Raises:
        error: a field is missing or of another type (one line: its name, what it must be, what was found), or the
            dataclass itself refuses a value.
    """
    try:
        read: T = _read(kind, value, "", null_is_nan)
    except _MismatchError as mismatch:
        raise error(f"{place}: {mismatch}; {fix}") from None
    return read


def _read(hint: Any, value: Any, name: str, null_is_nan: bool) -> Any:
    if hint is Any:
        return value
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        if _fits(choice, value):
            return _converted(choice, value, name, null_is_nan)
    if value is None and null_is_nan and float in choices:
        return math.nan
    expected = " or ".join(_words(choice) for choice in choices)
    raise _MismatchError(f"{name or 'the content'} must be {expected}, found {_shown(value)}")


def _fits(hint: Any, value: Any) -> bool:
    """Whether the JSON value is of the kind that `hint` reads; what is inside it is looked at later."""
    origin = get_origin(hint)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(hint))
    if hint is int:
        return type(value) is int and abs(value) < 1 << 63
    if hint is float:
        return type(value) is float or (type(value) is int and abs(value) < 1 << 63)
    if hint is str:
        return type(value) is str and _is_unicode(value)
    if hint in (bool, NoneType):
        return type(value) is hint
    if origin in (tuple, list, Sequence):
        return isinstance(value, list)
    return isinstance(value, dict) and all(map(_is_unicode, value))


def _is_unicode(text: str) -> bool:
    """Whether a file can hold the text: JSON can spell lone surrogates, which no encoding has."""
    return text.isascii() or not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


def _converted(hint: Any, value: Any, name: str, null_is_nan: bool) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (tuple, list, Sequence):
        return tuple(_read(inner[0], one, f"{name}[{i}]", null_is_nan) for i, one in enumerate(value))
    if origin in (dict, Mapping):
        return {key: _read(inner[1], one, _inside(name, key), null_is_nan) for key, one in value.items()}
    if not isinstance(hint, type) or not dataclasses.is_dataclass(hint):
        return value
    given = {}
    for field, annotation in _fields(hint):
        if field.name in value:
            given[field.name] = _read(annotation, value[field.name], _inside(name, field.name), null_is_nan)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _MismatchError(f"{_inside(name, field.name)} is missing")
    try:
        return hint(**given)
    except MLXBertError as refusal:
        # The dataclass's own fix is for whoever calls it; of a file the reader's is the right one.
        reason = str(refusal).partition("; fix:")[0]
        raise _MismatchError(f"{name}: {reason}" if name else reason) from None


@cache
def _fields(kind: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """The fields of a dataclass with their annotations as types."""
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind) if field.init)


def _inside(name: str, key: str) -> str:
    return f"{name}.{shortened(key, 60)}" if name else shortened(key, 60)


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if origin in (tuple, list, Sequence):
        return f"a list of {_PLURALS.get(get_args(hint)[0], 'values')}"
    return _NAMES.get(hint, "an object")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return shortened(json.dumps(value, ensure_ascii=isinstance(value, str) and not _is_unicode(value)), 60)
