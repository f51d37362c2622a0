"""What went wrong while publishing, in one line with the fix; never with a token in it."""

from __future__ import annotations

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mlxbert.errors import MLXBertError
from mlxbert.hub.errors import FAILURES, Subject, clean, endpoint, explain, host_name, token_source

__all__ = ["FAILURES", "PublishError", "explain_push", "is_transient", "status_of"]


class PublishError(MLXBertError):
    """The model was not published, or not as it should be: one line with what to do."""


def explain_push(error: BaseException, repo_id: str) -> PublishError:
    """The PublishError for what the client raised while `repo_id` was looked at or written to."""
    error = _innermost(error)
    subject = Subject(repo_id, None, "repository")
    if isinstance(error, OfflineModeIsEnabled):
        return PublishError(f"HF_HUB_OFFLINE is set: unset it to push to '{repo_id}'")
    if isinstance(error, HfHubHTTPError):
        return PublishError(_answered(error, repo_id))
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        reasons = "; ".join(line.removeprefix("- ") for line in str(error).splitlines()[1:])
        return PublishError(f"{host_name()} refuses the card's metadata: {clean(reasons)}; nothing was sent")
    if isinstance(error, httpx2.HTTPError):
        return PublishError(str(explain(error, subject)).replace(_READ, _WRITTEN))
    return PublishError(
        f"'{repo_id}': the upload failed ({type(error).__name__}): {clean(str(error))[:120]}; fix: push again, "
        "what has arrived is not sent twice"
    )


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; None where it did not answer."""
    error = _innermost(error)
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def is_transient(error: BaseException) -> bool:
    """Whether the request may have been carried out all the same: no answer came, or one that says nothing of that.

    412 belongs here: a client that tries a commit again, whose first answer was lost, is told that the branch moved.
    """
    status = status_of(error)
    return status is None or status >= 500 or status in (409, 412, 429)


# How `mlxbert.hub.errors` ends its line on a dropped connection, and how that reads for a push.
_READ = "was read: run it again, whole files are kept"
_WRITTEN = "was written: push again, what has arrived is not sent twice"


def _innermost(error: BaseException) -> BaseException:
    """The client wraps what went wrong with one file in "Error while uploading"."""
    while isinstance(error, RuntimeError) and str(error).startswith("Error while uploading") and error.__cause__:
        error = error.__cause__
    return error


def _answered(error: HfHubHTTPError, repo_id: str) -> str:
    """The Hub, or its storage, said no."""
    status = error.response.status_code
    namespace = repo_id.partition("/")[0]
    settings = f"{endpoint()}/settings/tokens"
    asked = str(error.response.request.url.netloc, "ascii")
    if status == 401:
        return f"{host_name()} does not accept {token_source()} (401): `hf auth login` with a token from {settings}"
    if status == 403 and asked == host_name():
        return (
            f"{token_source()} may not write to '{repo_id}' (403): give it write access to '{namespace}' at "
            f"{settings}, or push to a name of your own with --to"
        )
    if status == 404:
        return f"'{repo_id}' does not exist on {host_name()}, or your token may not see it: check --to and --revision"
    if status == 409:
        return f"{host_name()} is busy with another change to '{repo_id}' (409): push again"
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
    return f"{asked} refused the push to '{repo_id}' ({status}): {clean(error.server_message or str(error))}"


def moved(repo_id: str) -> str:
    """What to say of somebody else's push in the meantime."""
    return (
        f"'{repo_id}' was pushed to by somebody else meanwhile; nothing of yours was written: look at it, push again"
    )
