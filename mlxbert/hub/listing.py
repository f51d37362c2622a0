"""Which commit a revision is, and which files it has: from the Hub, or from its cache when the Hub is out of reach."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, http_backoff

COMMIT = re.compile(r"[0-9a-f]{40}")
# A listing of 100,000 files is 20 MB. What is larger, or comes in more pages, does not come from a Hub.
_ANSWER_BYTES = 64 << 20
_ANSWERS = 5000
_TIMEOUT = 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files of one commit. `unreachable`: why the Hub was not asked, when only the cache was."""

    commit: str
    names: tuple[str, ...]
    unreachable: Exception | None = None


class NotAHubError(Exception):
    """Something answered, but not as a Hub does: a captive portal, a proxy's page, a wrong HF_ENDPOINT."""


# What the client raises for an answer that lacks a part, or has something else in its place.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


def is_commit(value: object) -> bool:
    """Whether a value is a commit's id: 40 hex digits."""
    return isinstance(value, str) and COMMIT.fullmatch(value) is not None


@contextmanager
def bounded_answers(*, downloads: bool = False) -> Iterator[None]:
    """Within this, no answer of the Hub's API is larger than 64 MB, and none is waited for without an end.

    Args:
        downloads: bound files too, where only small ones are read.

    Raises:
        NotAHubError: inside, for an answer that is larger, or one more after thousands.
    """
    asked = 0

    def wait(request: httpx2.Request) -> None:
        if not any(request.extensions.get("timeout", {}).values()):  # some of the client's requests wait for ever
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), _TIMEOUT)

    def read(response: httpx2.Response) -> None:
        nonlocal asked
        if not downloads and "/api/" not in response.request.url.path:
            return
        asked += 1
        pieces, held = [], 0
        for piece in response.iter_bytes():
            pieces.append(piece)
            held += len(piece)
            if held > _ANSWER_BYTES or asked > _ANSWERS:
                raise NotAHubError("an answer without an end")
        response._content = b"".join(pieces)  # what `Response.read` would put there, whatever the size

    hooks = get_session().event_hooks
    hooks["request"].append(wait)
    hooks["response"].append(read)
    try:
        yield
    finally:
        hooks["request"].remove(wait)
        hooks["response"].remove(read)


def list_files(repo_id: str, revision: str | None) -> Listing:
    """Resolve the revision and list its files, with one request (none for a commit whose list is cached).

    Raises what the client raises, and NotAHubError.
    """
    api = _RevisionInfo()
    if revision is not None and COMMIT.fullmatch(revision):
        commit = revision
        names = _cached_names(repo_id, commit)
        if names is not None:
            return Listing(commit, names)
        api.ask(repo_id, commit)
    else:
        # The client's own way from a name to a commit: it keeps the answer, and falls back to it offline.
        commit = api.resolve_revision(repo_id, revision=revision).resolved
    if api.names is not None:
        return Listing(commit, api.names)
    if not is_commit(commit):  # a damaged cache: the caller says so
        return Listing(commit, (), api.unreachable)
    names = _cached_names(repo_id, commit) or _names_below(cached_folder(repo_id, commit))
    if names is None or api.unreachable is None:
        raise api.unreachable or NotAHubError("no list of files")
    if commit == revision:  # otherwise resolve_revision has said so
        logger.warning("Could not reach the Hub. Using the cached copy of '%s' at %s.", repo_id, commit)
    return Listing(commit, names, api.unreachable)


def cached_folder(repo_id: str, commit: str) -> Path | None:
    """Where the cached files of a commit are; None when there are none. Asks no network."""
    try:
        # No file matches no pattern: what is left is the client's own look-up of the folder.
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=[], local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _cached_names(repo_id: str, commit: str) -> tuple[str, ...] | None:
    try:
        return tuple(file.path for file in get_cached_repo_tree(repo_id, revision=commit))
    except CachedRepoTreeNotFoundError:
        return None


def _names_below(folder: Path | None) -> tuple[str, ...] | None:
    if folder is None:
        return None
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


class _RevisionInfo(HfApi):
    """The client's API, remembering the file names that came with the commit, or why nothing came.

    Its `resolve_revision` asks `repo_info` for the commit and drops the rest of the answer, names included;
    it also does so without a time limit and without the retries that the client's other requests have.
    """

    def __init__(self) -> None:
        super().__init__(library_name="mlxbert")
        self.names: tuple[str, ...] | None = None
        self.unreachable: Exception | None = None

    def ask(self, repo_id: str, commit: str) -> None:
        """`repo_info`, for a caller who goes on with the cache when the Hub is out of reach."""
        try:
            self.repo_info(repo_id, revision=commit)
        except httpx2.ProxyError:
            raise
        except (httpx2.TransportError, OfflineModeIsEnabled):
            pass  # kept in `unreachable`
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise

    def repo_info(self, repo_id: str, *, revision: str | None = None, **_: Any) -> ModelInfo:
        url = f"{self.endpoint}/api/models/{repo_id}"
        if revision is not None:
            url += f"/revision/{quote(revision, safe='')}"
        try:
            response = http_backoff(
                "GET",
                url,
                headers=build_hf_headers(library_name=self.library_name),
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                max_retries=3,  # the cache may do instead: 7 seconds, not 23
                retry_on_exceptions=(httpx2.ReadError, httpx2.RemoteProtocolError),
            )
            hf_raise_for_status(response)
        except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
            self.unreachable = error
            raise
        try:
            info = ModelInfo(**response.json())
            names = tuple(sibling.rfilename for sibling in info.siblings or ())
        except MALFORMED as error:
            raise NotAHubError(f"{type(error).__name__}: {error}") from error
        if not is_commit(info.sha):  # the client makes paths of it
            raise NotAHubError(f"{info.sha!r} is no commit id")
        if not all(isinstance(name, str) for name in names):
            raise NotAHubError("a file without a name")
        self.names = names
        return info
