"""What went wrong on the way to the Hub, in one line with the fix.

Messages are built from our own words, the repository's id and a host name; the client's texts quote URLs, and
a server's may quote anything, so neither is passed on unless cleaned.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
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

from mlxbert.errors import first_ten
from mlxbert.hub import HubError
from mlxbert.hub.listing import MALFORMED, NotAHubError

FAILURES = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    RevisionResolutionError,
    NotAHubError,
    OIDCError,
    OSError,
    RuntimeError,  # hf_xet's errors that have no class of their own
    *MALFORMED,  # a ValueError: also the client's own checks of names and headers
)


@dataclass(frozen=True)
class Subject:
    """What was asked for; as text, what a message calls it."""

    repo_id: str
    revision: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.what} '{self.repo_id}'"


def check_token() -> None:
    """Refuse a token that cannot be sent in a header: the HTTP client's own error would quote it.

    Raises HubError.
    """
    if constants.is_offline_mode():  # then none is sent, and to have one may take the network
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


# Most often a mistyped path is what brought the user to the Hub.
_NO_PATH = "; if a path was meant: there is no '{}' here"


def explain(error: BaseException, subject: Subject, *, missing: Sequence[str] = ()) -> HubError:
    """The HubError for what the client raised; `missing` are the files that were still to be downloaded."""
    if isinstance(error, (RevisionResolutionError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        error = error.__cause__  # "not in the cache either, and this is why"
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(_offline(subject, missing))
    if isinstance(error, HfHubHTTPError):
        return HubError(_answered(error, subject))
    if isinstance(error, (httpx2.HTTPError, httpx2.InvalidURL)):
        if not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            return HubError(_unreachable(error, subject))
        message = _unreachable(error, subject)
        mistyped = subject.what == "model" and message.startswith("No network")  # a push names its repository
        hint = _NO_PATH.format(subject.repo_id) if mistyped else ""
        return HubError(message + (_lacking(subject, missing) or hint))
    if isinstance(error, (NotAHubError, FileMetadataError)) or is_malformed(error):
        return HubError(
            f"{host_name()} does not answer like a Hugging Face Hub: check HF_ENDPOINT, or log in to your network"
        )
    return HubError(_local(error, subject))


def is_malformed(error: BaseException) -> bool:
    """Whether the client could not make anything of an answer: one that is no JSON, or of another shape."""
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
    """What the cache has not; nothing when nothing is known to be needed."""
    if not missing:
        return ""
    return f"; these files of {subject} are not in the cache:\n{first_ten(missing)}"


def _answered(error: HfHubHTTPError, subject: Subject) -> str:
    """The Hub said no."""
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
    """No answer, or none to the end."""
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
    """This machine, or the storage's client."""
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
    """HF_ENDPOINT without a user name and password that may be in it."""
    url = urlsplit(constants.ENDPOINT)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"


def host_name() -> str:
    """The Hub's host, for messages."""
    return urlsplit(endpoint()).netloc or "HF_ENDPOINT"


def _asked(error: Any) -> str:
    """The host that was asked: the Hub, or where it keeps large files (which a firewall may know nothing of)."""
    try:
        request = error.response.request if isinstance(error, HfHubHTTPError) else error.request
    except (AttributeError, RuntimeError):  # httpx2's way to say that it never came to a request
        return host_name()
    return str(request.url.netloc, "ascii")


def token_source() -> str:
    """Where the token comes from, for messages."""
    return "the token in HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token that is saved on this machine"


def _named(status: int) -> str:
    known = status in HTTPStatus.__members__.values()
    return f"{status} {HTTPStatus(status).phrase}" if known else str(status)


def clean(text: str) -> str:
    """The first line of somebody else's text, without what may be secret in it."""
    lines = text.strip().splitlines() or ["no reason given"]
    line = re.sub(r"(https?://)[^/\s@]*@", r"\1", lines[0])
    line = re.sub(r"(https?://[^\s?]+)\?\S*", r"\1", line)
    line = re.sub(r"\bhf_\w+|\bBearer \S+", "<token>", line)
    with contextlib.suppress(OSError, ValueError, OIDCError):  # no token that can be had is none to hide
        line = line.replace(get_token() or "\n", "<token>")
    return line
