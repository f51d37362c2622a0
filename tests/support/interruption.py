"""Stop a conversion at its N-th contact with the file system, for any N.

Every call of the `os` functions that change files is a few numbered points: before it, after it, and for a write
also with half of its bytes written. Counting them in an undisturbed run gives all the places where a run can end.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mlxbert.files import output_directory as recovery

CALLS = ("open", "write", "fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


class Points:
    """Counts points; at number `at`, calls `stop`. `names` says what each one was."""

    def __init__(self, stop: Callable[[], object] | None = None, at: int | None = None) -> None:
        self.names: list[str] = []
        self._stop = stop
        self._at = at

    def pass_by(self, name: str) -> None:
        self.names.append(name)
        if self._stop is not None and len(self.names) - 1 == self._at:
            self._stop()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        name = call.__name__

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(f"before {name}")
            if name == "write":
                descriptor, data = args
                half = len(data) // 2
                written = call(descriptor, data[:half]) if half else 0
                self.pass_by("half a write")
                result = written + call(descriptor, data[half:])
            else:
                result = call(*args, **kwargs)
            self.pass_by(f"after {name}")
            return result

        return counted


@contextmanager
def counted_points(points: Points) -> Iterator[Points]:
    """Within this, every file-changing call of `os` (taking a lock and exchanging too) passes by `points`."""
    patches = {name: points.around(getattr(os, name)) for name in CALLS}
    with (
        mock.patch.multiple(os, **patches),
        mock.patch.object(fcntl, "flock", points.around(fcntl.flock)),
        mock.patch.object(recovery, "exchange", points.around(recovery.exchange)),
    ):
        yield points


@contextmanager
def no_exchange() -> Iterator[None]:
    """Within this, the system cannot exchange two directories: a file system that does not know how, an old kernel."""

    def exchange(one: Path, other: Path) -> bool:
        return False

    with mock.patch.object(recovery, "exchange", exchange):
        yield
