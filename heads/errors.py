"""Base class of every error that this project raises on purpose, and the line that a command prints for any error."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

# The longest name of a file, tensor or column in an error or a table; the middle of a longer one is left out.
MAX_SHOWN = 200
# Environment variable that makes a command print where an unforeseen error was raised.
TRACEBACK = "MLXBERT_TRACEBACK"
_LONG_WORD = re.compile(rf"\S{{{MAX_SHOWN + 1},}}")


def _escape(character: str) -> str:
    # Cc: ESC, CR, BEL, C1. Cf: marks that turn the direction of what follows. Cs: lone surrogates. Zl, Zp: line ends.
    if character.isprintable() or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return ascii(character)[1:-1]


def escaped(text: str) -> str:
    """Return `text` with escapes in place of control characters, except the newline: ``\\x1b``, ``\\u202e``.

    Text from a file or a server must not control the terminal that shows it.
    """
    if text.isprintable():
        return text
    return "".join(character if character == "\n" else _escape(character) for character in text)


def escaped_value(value: Any) -> Any:
    """Return a value for an HTML template: text with its control characters escaped, other values unchanged."""
    return escaped(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    """Return `text` with at most `limit` characters; the middle is left out."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[: limit - 1 - half]}…{text[len(text) - half :]}"


def printable(name: object, limit: int = MAX_SHOWN) -> str:
    """Return a name from an untrusted file as one line of at most `limit` characters without control characters."""
    text = str(name)
    # Shorten first: a hostile name may be very long. Then again, because an escape is longer than its character.
    return shortened(escaped(shortened(text, limit)).replace("\n", "\\n"), limit)


def readable(text: str) -> str:
    """Return a message or a plain line of a table for a terminal: escaped, with long words shortened."""
    return _LONG_WORD.sub(lambda word: shortened(word[0]), escaped(text))


class MLXBertError(Exception):
    """An error that the caller can fix: the message names the thing, the place and the fix.

    Commands print it without a traceback, and exit with code 2. The message is safe to print: control characters are
    escaped, and words of more than 200 characters are shortened in the middle.
    """

    def __str__(self) -> str:
        return readable(super().__str__())


class Interrupted(MLXBertError):  # noqa: N818 - not a fault
    """Ctrl-C stopped the work: the message says what is saved and how to go on. Commands exit with code 130."""


class MLXBertWarning(UserWarning):
    """Base class of the project's warnings; the text is safe to print, as that of `MLXBertError`."""

    def __str__(self) -> str:
        return readable(super().__str__())


class HeadError(MLXBertError, ValueError):
    """A wrong option, target or metric of a head; a `ValueError`, too."""


class MetricUndefinedWarning(MLXBertWarning):
    """A metric has no value on these rows, or leaves out columns that have none; the message gives the reason."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> HeadError:
    """Return the error for an unknown name; it gives the nearest known names, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"fix: one of {', '.join(known)}"
    return HeadError(f"there is no {kind} named {name!r}: {fix}")


@contextmanager
def last_catch(command: str, passing: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Print every error inside as one line on standard error and exit; print every warning as one line.

    Exit codes: 2 for an error of the caller or of this project; 130 after Ctrl-C. With the environment variable
    MLXBERT_TRACEBACK the traceback is shown first.

    Args:
        command: the start of the lines.
        passing: exceptions of the command-line parser, which pass through.

    Raises:
        SystemExit: instead of any other exception.
    """

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        # Without the place in the code, which does not help the user of a command.
        say(f"{command}: warning: {message}")

    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            yield
    except passing:
        raise
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        line, code = _answer(command, error)
        if os.environ.get(TRACEBACK):
            say("".join(traceback.format_exception(error)).rstrip())
        say(line)
        raise SystemExit(code) from None


def say(line: str) -> None:
    """Print a line on standard error, escaped; do nothing if standard error is closed."""
    with suppress(OSError, ValueError):  # a closed pipe, a closed file
        print(readable(line), file=sys.stderr, flush=True)


def _answer(command: str, error: BaseException) -> tuple[str, int]:
    """Return the line that a command prints for an exception, and its exit code."""
    if isinstance(error, Interrupted):
        return f"{command}: {error}", 130
    if isinstance(error, KeyboardInterrupt):
        return f"\n{command}: interrupted; nothing half-written was left", 130
    if isinstance(error, MLXBertError):
        return f"{command}: error: {error}", 2
    if isinstance(error, BrokenPipeError):
        return f"{command}: error: nobody reads the output any more; fix: write it to a file", 2
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "malloc" in str(error)):
        return f"{command}: error: out of memory; fix: shorter texts, a smaller batch, a machine with more memory", 2
    if isinstance(error, OSError) and error.strerror:
        place = f"{printable(error.filename)}: " if error.filename is not None else ""
        fix = "check the path, its permissions and the room on its disk"
        return f"{command}: error: {place}{error.strerror}; fix: {fix}", 2
    what = printable(f"{type(error).__name__}: {error}")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""  # noqa: PTH119
    return f"{command}: could not run: {what}{where}; fix: this is a bug, report it with what {TRACEBACK}=1 shows", 2
