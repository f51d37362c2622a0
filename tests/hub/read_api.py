"""The Hub's HTTP API, read side: information, listings and file content, with the Hub's own status codes and
headers.

Xet is not advertised (no X-Xet-Hash header, no xetHash in listings): that, and not an environment variable,
is what makes a client with hf_xet installed take the plain path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlencode

from tests.hub.exchange import Reply, Request
from tests.hub.repository import Blob, Repository

if TYPE_CHECKING:
    from tests.hub.server import HubServer

Route = tuple[str, re.Pattern[str], Callable[["HubServer", Request, re.Match[str]], Reply]]

_API = r"^/api/models/(?P<repo>[^/]+(?:/(?!(?:revision|tree|paths-info|refs)(?:/|$))[^/]+)?)"


def model_info(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/models/{repo} and /api/models/{repo}/revision/{rev}; open to all for a gated repository."""
    found = _commit(hub, request, match, match["rev"] or "main")
    if isinstance(found, Reply):
        return found
    repo, sha = found
    files = repo.commits[sha]
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in files]
    if request.query.get("blobs"):
        siblings = [{"rfilename": path, **_blob_fields(blob, "blobId")} for path, blob in files.items()]
    return Reply.json(
        {
            "_id": sha[:24],
            "id": repo.id,
            "modelId": repo.id,
            "author": repo.id.partition("/")[0],
            "sha": sha,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
            "private": repo.private,
            "gated": repo.gated,
            "disabled": repo.disabled,
            "tags": [],
            "siblings": siblings,
        }
    )


def tree(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/models/{repo}/tree/{rev}[/{folder}], a page at a time."""
    found = _commit(hub, request, match, match["rev"])
    if isinstance(found, Reply):
        return found
    repo, sha = found
    folder = unquote(match["path"] or "").strip("/")
    prefix = folder + "/" if folder else ""
    below = {path: blob for path, blob in repo.commits[sha].items() if path.startswith(prefix)}
    if folder and not below:
        return _no_entry(sha, folder)
    recursive = request.query.get("recursive", "").lower() == "true"
    entries: dict[str, dict[str, Any]] = {}
    for path, blob in sorted(below.items()):
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            name = prefix + "/".join(parts[:depth])
            if recursive or depth == 1:
                entries[name] = {"type": "directory", "oid": sha, "size": 0, "path": name}
        if recursive or len(parts) == 1:
            entries[path] = {"type": "file", "path": path, **_blob_fields(blob, "oid")}
    listed = list(entries.values())
    start = int(request.query.get("cursor", 0))
    stop = start + hub.page_size
    headers = {}
    if stop < len(listed):
        query = urlencode({**request.query, "cursor": stop})
        headers["Link"] = f'<{hub.endpoint}{request.path}?{query}>; rel="next"'
    return Reply.json(listed[start:stop], headers=headers)


def paths_info(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/models/{repo}/paths-info/{rev}: those of the paths that exist."""
    found = _commit(hub, request, match, match["rev"])
    if isinstance(found, Reply):
        return found
    repo, sha = found
    if request.headers.get("content-type", "").startswith("application/json"):
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode())["paths"]
    files = repo.commits[sha]
    return Reply.json([{"type": "file", "path": p, **_blob_fields(files[p], "oid")} for p in paths if p in files])


def refs(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/models/{repo}/refs."""
    repo = _visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo

    def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in names.items()]

    return Reply.json({"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []})


def resolve(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """HEAD or GET /{repo}/resolve/{rev}/{path}: the content itself, or for LFS a redirect to the storage's origin."""
    found = _commit(hub, request, match, match["rev"])
    if isinstance(found, Reply):
        return found
    repo, sha = found
    url = f"{hub.endpoint}/{repo.id}"
    if repo.gated and request.token not in repo.granted:
        if request.token is None:
            message = f"Access to model {repo.id} is restricted. You must have access to it and be authenticated"
            return Reply.error(401, f"{message} to access it. Please log in.", "GatedRepo")
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        return Reply.error(403, f"{message} Visit {url} to ask for access.", "GatedRepo")
    path = unquote(match["path"])
    blob = repo.commits[sha].get(path)
    if blob is None:
        return _no_entry(sha, path)
    headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if not blob.lfs:
        return content(request, blob, {**headers, "Content-Type": "text/plain; charset=utf-8"})
    headers["X-Linked-Size"] = str(len(blob.data))
    headers["X-Linked-ETag"] = f'"{blob.sha256}"'
    return Reply(302, {**headers, "Location": f"{hub.storage}/storage/{blob.sha256}?Signature={hub.signature}"})


def storage(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /storage/{sha256} on the other origin: signed, and refusing, as S3 does, a token."""
    if not request.host.startswith("localhost:") or request.query.get("Signature") != hub.signature:
        return Reply(403, body=b"SignatureDoesNotMatch")
    if "authorization" in request.headers:
        return Reply(400, body=b"Only one auth mechanism allowed")
    for repo in hub.repositories.values():
        for files in repo.commits.values():
            for blob in files.values():
                if blob.lfs and blob.sha256 == match["sha256"]:
                    return content(request, blob, {"Accept-Ranges": "bytes"})
    return Reply(404, body=b"NoSuchKey")


def content(request: Request, blob: Blob, headers: dict[str, str]) -> Reply:
    """The bytes, or the part of them that `Range` asks for."""
    headers = {**headers, "ETag": f'"{blob.etag}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Reply(304, headers)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted is None:
        return Reply(200, headers, blob.data)
    size = len(blob.data)
    first, last = int(wanted[1]), min(int(wanted[2] or size - 1), size - 1)
    if first > last:
        return Reply(416, {**headers, "Content-Range": f"bytes */{size}"})
    return Reply(206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}, blob.data[first : last + 1])


def _visible(hub: HubServer, request: Request, match: re.Match[str]) -> Repository | Reply:
    """The repository if the request may know that it exists.

    Without a token the Hub answers 401 for one that does not exist, so as not to tell it from a private one.
    """
    if request.token is not None and request.token not in hub.tokens:
        return Reply.error(401, "Invalid credentials in Authorization header")
    asked = unquote(match["repo"])
    if (canonical := hub.renamed.get(asked)) is not None:
        query = f"?{urlencode(request.query)}" if request.query else ""
        return Reply(307, {"Location": request.path.replace(match["repo"], canonical, 1) + query})
    repo = hub.repositories.get(asked)
    if repo is None or (repo.private and request.token not in repo.readers):
        if request.token is None:
            return Reply.error(401, "Invalid username or password.")
        return Reply.error(404, "Repository not found", "RepoNotFound")
    if repo.disabled:
        return Reply.error(403, "Access to this resource is disabled.")
    return repo


def _commit(hub: HubServer, request: Request, match: re.Match[str], rev: str) -> tuple[Repository, str] | Reply:
    repo = _visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    sha = repo.resolve(unquote(rev))
    if sha is None:
        return Reply.error(404, f"Invalid rev id: {unquote(rev)}", "RevisionNotFound")
    return repo, sha


def _no_entry(sha: str, path: str) -> Reply:
    return Reply.error(404, f"{path} does not exist", "EntryNotFound", X_Repo_Commit=sha)


def _blob_fields(blob: Blob, oid: str) -> dict[str, Any]:
    fields: dict[str, Any] = {oid: blob.oid, "size": len(blob.data)}
    if blob.lfs:
        digest = "oid" if oid == "oid" else "sha256"
        fields["lfs"] = {digest: blob.sha256, "size": len(blob.data), "pointerSize": 134}
    return fields


ROUTES: list[Route] = [
    ("GET", re.compile(_API + r"(?:/revision/(?P<rev>[^/]+))?$"), model_info),
    ("GET", re.compile(_API + r"/tree/(?P<rev>[^/]+)(?P<path>/.*)?$"), tree),
    ("POST", re.compile(_API + r"/paths-info/(?P<rev>[^/]+)$"), paths_info),
    ("GET", re.compile(_API + r"/refs$"), refs),
    ("GET HEAD", re.compile(r"^/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)$"), resolve),
    ("GET", re.compile(r"^/storage/(?P<sha256>[0-9a-f]{64})$"), storage),
]
