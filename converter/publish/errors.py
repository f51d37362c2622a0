"""What went wrong while publishing, in one line with the fix; never with a token in it.

Ask again what the Hub's client asks only once: who I am, what a repository is, a new repository.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from mlxbert.errors import MLXBertError
from mlxbert.hub.errors import (
    FAILURES,
    MALFORMED,
    NotAHubError,
    Subject,
    clean,
    endpoint,
    explain,
    host_name,
    is_malformed,
    token_source,
)

__all__ = ["FAILURES", "PublishError", "explain_push", "is_transient", "moved", "status_of"]

# How `mlxbert.hub.errors` ends its line on a dropped connection, and how that reads for a push.
_READ = "was read: run it again, whole files are kept"
_WRITTEN = "was written: push again, what has arrived is not sent twice"
# hf_xet has one class for every answer that is no success, and the status in its text.
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})[^)]*\), domain: https?://([^/\s]+)")


class PublishError(MLXBertError):
    """The model was not published, or not as it should be: one line with what to do."""


@dataclass(frozen=True)
class _Answer:
    """What the Hub or its storage answered."""

    status: int
    host: str
    text: str

    @property
    def from_storage(self) -> bool:
        return self.host != host_name()


def explain_push(error: BaseException, repo_id: str) -> PublishError:
    """The PublishError for what the client raised while `repo_id` was looked at or written to."""
    error = _innermost(error)
    subject = Subject(repo_id, None, "repository")
    if isinstance(error, OfflineModeIsEnabled):
        return PublishError(f"HF_HUB_OFFLINE is set: unset it to push to '{repo_id}'")
    if (answer := _answer(error)) is not None:
        return PublishError(_answered(answer, repo_id))
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        reasons = "; ".join(line.removeprefix("- ") for line in str(error).splitlines()[1:])
        return PublishError(f"{host_name()} refuses the card's metadata: {clean(reasons)}; nothing was sent")
    if isinstance(error, (httpx2.HTTPError, NotAHubError)) or is_malformed(error):
        return PublishError(str(explain(error, subject)).replace(_READ, _WRITTEN))
    return PublishError(
        f"'{repo_id}': the push failed ({type(error).__name__}): {clean(str(error))[:120]}; fix: push again, "
        "what has arrived is not sent twice"
    )


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub or its storage answered with; None where neither did."""
    answer = _answer(_innermost(error))
    return None if answer is None else answer.status


def is_transient(error: BaseException) -> bool:
    """Whether it is worth another try, or the request may have been carried out all the same.

    412 belongs here: a client that tries a commit again, whose first answer was lost, is told that the branch moved.
    So does a storage's 400: what arrived was not what was sent.
    """
    answer = _answer(_innermost(error))
    if answer is None or answer.status >= 500 or answer.status in (409, 412, 429):
        return True
    return answer.status == 400 and answer.from_storage


def _answer(error: BaseException) -> _Answer | None:
    if isinstance(error, HfHubHTTPError):
        host = str(error.response.request.url.netloc, "ascii")
        return _Answer(error.response.status_code, host, error.server_message or str(error))
    found = _XET_STATUS.search(str(error)) if isinstance(error, (ConnectionError, RuntimeError)) else None
    return _Answer(int(found[1]), found[2], str(error)) if found else None


def _innermost(error: BaseException) -> BaseException:
    """What the client wraps: in "Error while uploading" what went wrong with one file, in "not in the cache" why."""
    while error.__cause__ is not None and (
        isinstance(error, LocalEntryNotFoundError)
        or (isinstance(error, RuntimeError) and str(error).startswith("Error while uploading"))
    ):
        error = error.__cause__
    return error


def _answered(answer: _Answer, repo_id: str) -> str:
    """The Hub, or its storage, said no."""
    status, asked = answer.status, answer.host
    namespace = repo_id.partition("/")[0]
    settings = f"{endpoint()}/settings/tokens"
    if answer.from_storage and status == 400:
        return f"{asked} found that what arrived for '{repo_id}' is not what was sent (400): push again"
    if answer.from_storage and status in (401, 403, 404):
        return f"{asked} refused what was uploaded to '{repo_id}' ({status}): push again; then `hf auth login` anew"
    if status == 401:
        return f"{asked} does not accept {token_source()} (401): `hf auth login` with a token from {settings}"
    if status == 403:
        return (
            f"{token_source()} may not write to '{repo_id}' (403): give it write access to '{namespace}' at "
            f"{settings}, or push to a name of your own with --to"
        )
    if status == 404:
        return f"'{repo_id}' does not exist on {asked}, or your token may not see it: check --to and --revision"
    if status == 409:
        return f"{asked} is busy with another change to '{repo_id}' (409): push again"
    if status == 412:
        return moved(repo_id)
    if status == 413:
        return f"{asked} finds the upload too large (413): see the limits of your account at {endpoint()}/{repo_id}"
    if status == 429:
        return f"{asked} allows no more requests for now (429): wait some minutes, then push again"
    if status >= 500:
        return (
            f"{asked} failed ({status}), and again when tried again: push again later, what arrived is not sent twice"
        )
    return f"{asked} refused the push to '{repo_id}' ({status}): {clean(answer.text)[:120]}"


def moved(repo_id: str) -> str:
    """What to say of somebody else's push in the meantime."""
    return (
        f"'{repo_id}' was pushed to by somebody else meanwhile; nothing of yours was written: look at it, push again"
    )


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
