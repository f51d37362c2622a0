"""Which commit a revision is, and which files it has: from the Hub, or from its cache when the Hub is out of reach."""

from __future__ import annotations

import logging
import re
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
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

_COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The files of one commit. `unreachable`: why the Hub was not asked, when only the cache was."""

    commit: str
    names: tuple[str, ...]
    unreachable: Exception | None = None


class NotAHubError(Exception):
    """Something answered, but not as a Hub does: a captive portal, a proxy's page, a wrong HF_ENDPOINT."""


def list_files(repo_id: str, revision: str | None) -> Listing:
    """Resolve the revision and list its files, with one request (none for a commit whose list is cached).

    Raises what the client raises, and NotAHubError.
    """
    api = _RevisionInfo()
    if revision is not None and _COMMIT.fullmatch(revision):
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
    if _COMMIT.fullmatch(commit) is None:  # a damaged cache: the caller says so
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
        except (ValueError, TypeError, KeyError) as error:
            raise NotAHubError(f"{type(error).__name__}: {error}") from error
        if not isinstance(info.sha, str) or _COMMIT.fullmatch(info.sha) is None:  # the client makes paths of it
            raise NotAHubError(f"{info.sha!r} is no commit id")
        self.names = names
        return info
