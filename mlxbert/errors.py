"""The base of every error that this project raises on purpose."""

from __future__ import annotations

from collections.abc import Iterable


class MLXBertError(Exception):
    """Something the caller can mend: the message names the thing, the place and the fix.

    Commands print it as it is, without a traceback, and exit with code 2.
    """


class Interrupted(MLXBertError):  # noqa: N818 - an answer, not a fault
    """Ctrl-C was answered: the message says what is saved and how to go on. Commands exit with code 130."""


def first_ten(names: Iterable[str]) -> str:
    """Join names one a line, indented; after ten of them, say how many more there are."""
    names = list(names)
    lines = [f"  {name}" for name in names[:10]]
    if len(names) > 10:
        lines.append(f"  … and {len(names) - 10} more")
    return "\n".join(lines)
