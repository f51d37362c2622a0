"""What heads, losses and metrics raise and warn."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HeadError(ValueError):
    """Something the caller can mend: the message names the thing, the place and the fix, in one line."""


class MetricUndefinedWarning(UserWarning):
    """A metric has no value on these rows, or leaves out a part of them that has none; the message says why."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> HeadError:
    """The error for a name that is in no table: it gives the nearest known names, or all of them if none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else f"fix: one of {', '.join(known)}"
    return HeadError(f"there is no {kind} named {name!r}: {fix}")
