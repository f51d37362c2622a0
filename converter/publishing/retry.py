"""Ask again what the Hub's client asks only once: who I am, what a repository is, a new repository."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from converter.publishing.errors import FAILURES, status_of
from mlxbert.hub.listing import MALFORMED, NotAHubError

Answer = TypeVar("Answer")
ATTEMPTS = 3


def retried(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns, asked up to three times where the Hub fails (5xx) or the connection does.

    Only for what may be done twice. The last failure passes through.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return ask()
        except FAILURES as error:
            status = status_of(error)
            if isinstance(error, (*MALFORMED, NotAHubError)) or (status is not None and status < 500):
                raise
        pause(attempt)
    return ask()


def pause(attempt: int) -> None:
    """Wait before the next attempt: one second, then two."""
    time.sleep(attempt)
