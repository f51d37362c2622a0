"""Ask the Hub through its client: list the files of a revision, limit the answers, and explain failures in one line.

The listing comes from the Hub, or from the client's cache when the Hub cannot be reached. Messages
quote only the repository's id and a host name: the client's texts quote URLs, and a server's may quote anything, so
neither is shown without `clean`.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import httpx2
from huggingface_hub import HfApi, ModelInfo, constants, get_cached_repo_tree, get_token, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    OIDCError,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, http_backoff

from mlxbert.errors import HubError, first_ten

_COMMIT = re.compile(r"[0-9a-f]{40}")
# A listing of 100,000 files is 20 MB: a Hub sends no larger answer, and no more pages.
_ANSWER_BYTES = 64 << 20
_ANSWERS = 5000
_TIMEOUT = 60

logger = logging.getLogger(__name__)

# Errors of the client for an answer in which a part is missing or has another type.
MALFORMED = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)


class NotAHubError(Exception):
    """The answer does not come from a Hub: a captive portal, a proxy's page, a wrong HF_ENDPOINT."""


FAILURES = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    RevisionResolutionError,
    NotAHubError,
    OIDCError,
    OSError,
    RuntimeError,  # hf_xet's errors without a class of their own
    *MALFORMED,  # a ValueError: also the client's own checks of names and headers
)
"""Errors of a request to the Hub; `explain` turns each into a `HubError`."""


@dataclass(frozen=True)
class Listing:
    """The files of one commit.

    Attributes:
        commit: its id.
        names: of its files.
        unreachable: why the Hub could not be asked; None when it was asked.
    """

    commit: str
    names: tuple[str, ...]
    unreachable: Exception | None = None


def is_commit(value: object) -> bool:
    """Return whether a value is the id of a commit: 40 hex digits."""
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


@contextmanager
def bounded_answers(*, downloads: bool = False) -> Iterator[None]:
    """Limit, inside, each answer of the Hub's API to 64 MB and each wait to a minute: the server may be hostile.

    Args:
        downloads: limit files too, where only small ones are read.

    Raises:
        NotAHubError: inside, for an answer that is larger, or for too many answers.
    """
    answers = 0

    def wait(request: httpx2.Request) -> None:
        if not any(request.extensions.get("timeout", {}).values()):  # the client sends some without a time limit
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), _TIMEOUT)

    def read(response: httpx2.Response) -> None:
        nonlocal answers
        if not downloads and "/api/" not in response.request.url.path:
            return
        answers += 1
        pieces, length = [], 0
        for piece in response.iter_bytes():
            pieces.append(piece)
            length += len(piece)
            if length > _ANSWER_BYTES or answers > _ANSWERS:
                raise NotAHubError("an answer without an end")
        response._content = b"".join(pieces)  # as `Response.read` does, which has no limit

    hooks = get_session().event_hooks
    hooks["request"].append(wait)
    hooks["response"].append(read)
    try:
        yield
    finally:
        hooks["request"].remove(wait)
        hooks["response"].remove(read)


def list_files(repo_id: str, revision: str | None) -> Listing:
    """Resolve a revision and list its files, with one request (none for a commit whose list is cached).

    Own code, because `snapshot_download(dry_run=True)` lists no files when the Hub cannot be reached.

    Raises:
        FAILURES: the Hub cannot be asked, and the cache cannot replace it.
    """
    api = _RevisionInfo()
    if revision is not None and is_commit(revision):
        commit = revision
        names = _cached_names(repo_id, commit)
        if names is not None:
            return Listing(commit, names)
        api.ask(repo_id, commit)
    else:
        # The client's resolution of a name to a commit stores the answer, and uses it when offline.
        commit = api.resolve_revision(repo_id, revision=revision).resolved
    if api.names is not None:
        return Listing(commit, api.names)
    if not is_commit(commit):  # a damaged cache; the caller reports it
        return Listing(commit, (), api.unreachable)
    names = _cached_names(repo_id, commit) or _names_below(cached_folder(repo_id, commit))
    if names is None or api.unreachable is None:
        raise api.unreachable or NotAHubError("no list of files")
    if commit == revision:  # otherwise resolve_revision has logged it
        logger.warning("Could not reach the Hub. Using the cached copy of '%s' at %s.", repo_id, commit)
    return Listing(commit, names, api.unreachable)


def cached_folder(repo_id: str, commit: str) -> Path | None:
    """Return the folder of a commit's cached files, None without one; the network is not used."""
    try:
        # An empty list selects nothing: the client only looks up the folder.
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
    """The client's API; it also stores the file names that came with the commit, or why there was no answer.

    The client's `resolve_revision` takes only the commit from `repo_info`, not the names. Its request has neither a
    time limit nor the retries of the client's other requests; `http_backoff` has both.
    """

    def __init__(self) -> None:
        super().__init__(library_name="mlxbert")
        self.names: tuple[str, ...] | None = None
        self.unreachable: Exception | None = None

    def ask(self, repo_id: str, commit: str) -> None:
        """Call `repo_info`; if the Hub cannot be reached, set `unreachable` and return, so that the cache is used."""
        try:
            self.repo_info(repo_id, revision=commit)
        except httpx2.ProxyError:
            raise
        except (httpx2.TransportError, OfflineModeIsEnabled):
            pass  # `repo_info` has set `unreachable`
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
                max_retries=3,  # 7 seconds, not 23: the cache may serve instead
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
        if not is_commit(info.sha):  # the client uses it in paths
            raise NotAHubError(f"{info.sha!r} is no commit id")
        if not all(isinstance(name, str) for name in names):
            raise NotAHubError("a file without a name")
        self.names = names
        return info


@dataclass(frozen=True)
class Subject:
    """The repository of a request; `str` gives its name in messages."""

    repo_id: str
    revision: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.what} '{self.repo_id}'"


def check_token() -> None:
    """Refuse a token that cannot be sent in a header, because the HTTP client's own error would quote it.

    Raises:
        HubError: the token has a character that no token has, or cannot be read.
    """
    if constants.is_offline_mode():  # no token is sent then, and getting one may need the network
        return
    try:
        token = get_token()
    except OIDCError as error:
        raise HubError(f"HF_OIDC_RESOURCE is set, but no token came of it: {clean(str(error))}") from None
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8
        kind = type(error).__name__
        raise HubError(
            f"{constants.HF_TOKEN_PATH} cannot be read ({kind}): mend it, or `hf auth login` anew"
        ) from None
    if token is not None and re.fullmatch(r"[!-~]+", token) is None:
        raise HubError(f"{token_source()} has a character that no token has: copy it anew, or run `hf auth login`")


# A mistyped path is the most frequent reason to ask the Hub for a model.
_NO_PATH = "; if a path was meant: there is no '{}' here"


def explain(error: BaseException, subject: Subject, *, missing: Sequence[str] = ()) -> HubError:
    """Return the HubError for an error of the client; `missing` names the files that are not downloaded yet."""
    if isinstance(error, (RevisionResolutionError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        error = error.__cause__  # the client wraps the reason in an error about the cache
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(_offline(subject, missing))
    if isinstance(error, HfHubHTTPError):
        return HubError(_answered(error, subject))
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):
        if not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            return HubError(_unreachable(error, subject))
        message = _unreachable(error, subject)
        mistyped = subject.what == "model" and message.startswith("No network")  # a push never has a path here
        hint = _NO_PATH.format(subject.repo_id) if mistyped else ""
        return HubError(message + (_lacking(subject, missing) or hint))
    if isinstance(error, (NotAHubError, FileMetadataError)) or is_malformed(error):
        return HubError(
            f"{host_name()} does not answer like a Hugging Face Hub: check HF_ENDPOINT, or log in to your network"
        )
    return HubError(_local(error, subject))


def is_malformed(error: BaseException) -> bool:
    """Return whether the client could not read an answer: it is not JSON, or has an unexpected form."""
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return True
    return isinstance(error, MALFORMED) and not isinstance(error, ValueError)


def _offline(subject: Subject, missing: Sequence[str]) -> str:
    variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    if not missing:
        at = f" at revision '{subject.revision}'" if subject.revision else ""
        return f"{subject}{at} is not in {constants.HF_HUB_CACHE} and {variable} is set: unset it to download"
    return f"{variable} is set: unset it once to download the rest" + _lacking(subject, missing)


def _lacking(subject: Subject, missing: Sequence[str]) -> str:
    """Return the end of a message that lists the missing files; empty if none is known."""
    if not missing:
        return ""
    return f"; these files of {subject} are not in the cache:\n{first_ten(missing)}"


def _answered(error: HfHubHTTPError, subject: Subject) -> str:
    """Return the message for an error status."""
    status = error.response.status_code
    page = f"{endpoint()}/{subject.repo_id}"
    host = _asked(error)
    authorized = "authorization" in error.response.request.headers
    if isinstance(error, GatedRepoError):
        return f"{subject} is gated: accept its conditions at {page}, then `hf auth login` with the same account"
    if isinstance(error, RevisionNotFoundError):
        return f"{subject} has no revision '{subject.revision or 'main'}': choose a branch, tag or commit from {page}"
    if isinstance(error, RemoteEntryNotFoundError):
        name = unquote(error.response.request.url.path).partition("/resolve/")[2].partition("/")[2]
        return f"{subject} has no file '{name}' any more at the revision that was listed: run it again"
    if isinstance(error, DisabledRepoError):
        return f"{subject} was disabled on {host_name()}: see {page}"
    if status == 401 and authorized:
        return f"{host_name()} does not accept {token_source()} (401): `hf auth login`, or remove it for public models"
    if status in (401, 404):
        login = "your token may not see it" if authorized else "if private: `hf auth login`"
        where = f"on {host_name()} or is private (nor is there such a path)"
        return f"{subject} does not exist {where}: check the name; {login}"
    if status == 403:
        if authorized:
            return f"{token_source()} may not read {subject} (403): give it access at {endpoint()}/settings/tokens"
        return f"{host} refused {subject} (403): run it again; if that does not help, `hf auth login`"
    if status == 429:
        return f"{host} allows no more requests for now (429): wait some minutes; `hf auth login` allows more"
    if status >= 500:
        return f"{host} failed ({_named(status)}), and again when tried again: try later"
    return f"{host} refused {subject} ({_named(status)}): {clean(error.server_message or str(error))}"


def _unreachable(error: BaseException, subject: Subject) -> str:
    """Return the message for a request without a complete answer."""
    causes = list(_chain(error))
    host = _asked(error)
    if isinstance(error, httpx2.ProxyError):
        return f"The proxy on the way to {host} refused: check HTTPS_PROXY and NO_PROXY"
    if isinstance(error, (httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return f"HF_ENDPOINT is not a web address: it should read like {constants.HUGGINGFACE_CO_URL_HOME.rstrip('/')}"
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return f"The certificate of {host} is not trusted: set SSL_CERT_FILE to your network's certificates"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return f"No network: {host} is not found: check the connection, or set HTTPS_PROXY if you need one"
    if isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
        return f"No network: {host} cannot be connected to: check the connection, or set HTTPS_PROXY if you need one"
    if isinstance(error, httpx2.TimeoutException):
        return f"{host} does not answer in time: try again, or with HF_HUB_ETAG_TIMEOUT=60 HF_HUB_DOWNLOAD_TIMEOUT=60"
    return f"The connection was dropped while {subject} was read: run it again, whole files are kept"


def _local(error: BaseException, subject: Subject) -> str:
    """Return the message for a failure on this machine, or in the storage's client."""
    cache = constants.HF_HUB_CACHE
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:  # the text: hf_xet's
        return (
            f"The disk is full: {subject} does not fit into {cache}: free some space, or set HF_HOME to another disk"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return f"The cache {cache} cannot be written: make it yours, or set HF_HOME to a directory that is"
    if "Consistency check failed" in text:
        return f"A file of {subject} arrived with a length that is not its own: run it again"
    if isinstance(error, ConnectionError):
        return f"The connection was dropped while {subject} was read: run it again, whole files are kept"
    return f"{subject} could not be downloaded ({type(error).__name__}): {clean(text)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def endpoint() -> str:
    """Return HF_ENDPOINT without the user name and the password that may be in it."""
    url = urlsplit(constants.ENDPOINT)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def host_name() -> str:
    """Return the Hub's host name, for messages."""
    return urlsplit(endpoint()).netloc or "HF_ENDPOINT"


def _asked(error: Any) -> str:
    """Return the host of the request: the Hub's, or that of its storage, which a firewall may block."""
    try:
        request = error.response.request if isinstance(error, HfHubHTTPError) else error.request
    except (AttributeError, RuntimeError):  # httpx2 raises these where no request was sent
        return host_name()
    return str(request.url.netloc, "ascii")


def token_source() -> str:
    """Return where the token comes from, for messages."""
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token that is saved on this machine"


def _named(status: int) -> str:
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def clean(text: str) -> str:
    """Return the first line of a foreign text, without possible secrets."""
    lines = text.strip().splitlines() or ["no reason given"]
    line = re.sub(r"(https?://)[^/\s@]*@", r"\1", lines[0])
    line = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", line)
    line = re.sub(r"\bhf_\w+|\bBearer \S+", "<token>", line)
    with suppress(OSError, ValueError, OIDCError):  # without a token there is none to hide
        line = line.replace(get_token() or "\n", "<token>")
    return line
