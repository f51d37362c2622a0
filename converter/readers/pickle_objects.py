"""What a pickle's operations work on, once nothing in it can run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

MAX_PICKLE_BYTES = 256 << 20
_MAX_LINE = 1 << 20


class MalformedPickle(ValueError):  # noqa: N818 - it says what the pickle is
    """The stream is no pickle that this machine can follow; the message says why."""


@dataclass(frozen=True)
class Global:
    """A module's attribute that a pickle names; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Placeholder:
    """What stands in the place of an object of a class that is not known: inert, and says what it was."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict)
    state: Any = None


class PickleWindow:
    """The stream as pickletools needs it, with every read bounded."""

    def __init__(self, file: BinaryIO, limit: int = MAX_PICKLE_BYTES) -> None:
        self._file = file
        self._left = limit

    def read(self, count: int) -> bytes:
        """Read like a file, though never past the limit."""
        if count < 0 or count > self._left:
            raise MalformedPickle("it wants more bytes than a checkpoint's pickle has")
        self._left -= count
        parts = []
        while count:  # in steps: the file may be far shorter than the pickle claims
            part = self._file.read(min(count, 1 << 20))
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def readline(self) -> bytes:
        """Read a line of at most 1 MiB."""
        line = self._file.readline(_MAX_LINE)
        self._left -= len(line)
        return line


class _OddKey:
    """A dictionary key that is not a plain scalar: kept by identity, never hashed by its contents."""


def safe_key(key: Any) -> Any:
    """The key where its hash is cheap, else a stand-in (nested tuples take exponential time to hash)."""
    scalar = key is None or isinstance(key, str | int | float | bytes | Global)
    return key if scalar else _OddKey()
