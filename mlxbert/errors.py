"""The base of every error that this project raises on purpose, and how names are listed in one."""

from __future__ import annotations

from collections.abc import Iterable

from heads.errors import MLXBertError, escaped, printable, shortened

__all__ = ["Interrupted", "MLXBertError", "escaped", "first_ten", "printable", "shortened", "shown"]


class Interrupted(MLXBertError):  # noqa: N818 - an answer, not a fault
    """Ctrl-C was answered: the message says what is saved and how to go on. Commands exit with code 130."""


def shown(value: object) -> str:
    """Return a value out of an untrusted file as Python writes it, in one line of at most 200 characters."""
    return printable(repr(value))


def first_ten(names: Iterable[str]) -> str:
    """Join names one a line, indented; after ten of them, say how many more there are."""
    names = list(names)
    lines = [f"  {printable(name, 400)}" for name in names[:10]]
    if len(names) > 10:
        lines.append(f"  … and {len(names) - 10} more")
    return "\n".join(lines)
