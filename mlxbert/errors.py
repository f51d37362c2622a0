"""The base class of this project's errors, and texts for their messages."""

from __future__ import annotations

from collections.abc import Iterable

from heads.errors import (
    Interrupted,
    MLXBertError,
    MLXBertWarning,
    escaped,
    escaped_value,
    last_catch,
    printable,
    readable,
    shortened,
)

__all__ = [
    "Interrupted",
    "MLXBertError",
    "MLXBertWarning",
    "RunError",
    "RunWarning",
    "escaped",
    "escaped_value",
    "first_ten",
    "last_catch",
    "printable",
    "readable",
    "reason",
    "shortened",
    "shown",
]


class HubError(MLXBertError):
    """The Hub cannot be reached or refuses the request; the message has the fix, and never a token."""


class RunError(MLXBertError):
    """A directory that is not a run, an unfinished or changed run, or invalid settings of a run."""


class RunWarning(MLXBertWarning):
    """Something about a training that the user should know: threads, workers, memory."""


def shown(value: object) -> str:
    """Return the `repr` of a value from an untrusted file, in one line of at most 200 characters."""
    return printable(repr(value))


def first_ten(names: Iterable[str]) -> str:
    """Return the first ten names, one a line, indented, and how many more there are."""
    names = list(names)
    lines = [f"  {printable(name, 400)}" for name in names[:10]]
    if len(names) > 10:
        lines.append(f"  … and {len(names) - 10} more")
    return "\n".join(lines)


def reason(error: Exception, *places: object) -> str:
    """Return an error's message on one line, without its fix and without `places`; foreign errors with their class."""
    first, *rest = str(error).splitlines() or [""]
    first = first.partition("; fix:")[0]
    for place in places:
        first = first.removeprefix(f"{place}: ").replace(f"{place}/", "")
    listed = [line.strip() for line in rest if not line.strip().startswith("fix:")]
    kind = "" if isinstance(error, MLXBertError) else f"{type(error).__name__}: "
    return printable(f"{kind}{first}{': ' if listed else ''}{', '.join(listed)}", 300)
