"""The base of every error that this project raises on purpose, and what heads, losses and metrics raise and warn."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

# No name of a file, tensor or column in an error or a table is longer than this; the middle is left out.
MAX_SHOWN = 200
_LONG_WORD = re.compile(rf"\S{{{MAX_SHOWN + 1},}}")


def _escape(character: str) -> str:
    # Cc: ESC, CR, BEL, C1. Cf: marks that turn the direction of what follows. Cs: lone surrogates. Zl, Zp: line ends.
    if character.isprintable() or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return ascii(character)[1:-1]


def escaped(text: str) -> str:
    """Return `text` with every control character but the newline written as an escape: ``\\x1b``, ``\\u202e``.

    Text out of a file or a server's answer must not steer the terminal that shows it.
    """
    if text.isprintable():
        return text
    return "".join(character if character == "\n" else _escape(character) for character in text)


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    """Return `text` in at most `limit` characters, the middle left out."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[len(text) - half :]}"


def printable(name: object, limit: int = MAX_SHOWN) -> str:
    """Return a name out of an untrusted file as one line of at most `limit` characters without control characters."""
    text = str(name)
    # Shorten first: a hostile name may be very long. Then again, because an escape is longer than its character.
    return shortened(escaped(shortened(text, limit)).replace("\n", "\\n"), limit)


class MLXBertError(Exception):
    """Something the caller can mend: the message names the thing, the place and the fix.

    Commands print it as it is, without a traceback, and exit with code 2. The message is safe to print: control
    characters are escaped, and words of more than 200 characters are shortened in their middle.
    """

    def __str__(self) -> str:
        return _LONG_WORD.sub(lambda word: shortened(word[0]), escaped(super().__str__()))


class HeadError(MLXBertError, ValueError):
    """Something the caller can mend: the message names the thing, the place and the fix, in one line."""


class MetricUndefinedWarning(UserWarning):
    """A metric has no value on these rows, or leaves out a part of them that has none; the message says why."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> HeadError:
    """The error for a name that is in no table: it gives the nearest known names, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"fix: one of {', '.join(known)}"
    return HeadError(f"there is no {kind} named {name!r}: {fix}")
