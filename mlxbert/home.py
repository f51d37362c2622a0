"""Paths as people write them: `~` in one, and names that no file can have."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from mlxbert.errors import MLXBertError, printable

_FIXES = {
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EACCES: "give one that you may look at, or ask its owner",
    errno.ELOOP: "remove one of the links",
}


class PathError(MLXBertError, ValueError):
    """A path that no command can read or write, whatever lies there."""


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` and `~user` expanded, which a shell leaves alone in `--out=~/x`.

    It is as it was where there is no such user; nothing needs to lie there.

    Raises:
        PathError: the system refuses to look there: a name is too long, a folder on the way may not be entered, links
            lead in a circle.
    """
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError for an unknown user
    try:
        expanded.stat()
    except ValueError:
        raise PathError(f"{printable(expanded)}: no path has a NUL character in it; fix: check the path") from None
    except OSError as error:
        if error.errno in _FIXES:
            raise PathError(f"{printable(expanded)}: {error.strerror}; fix: {_FIXES[error.errno]}") from None
    return expanded
