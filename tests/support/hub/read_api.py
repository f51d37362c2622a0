"""The Hub's HTTP API, read side: information, listings and file content, with the Hub's own status codes and
headers.

Where a file came by Xet it is advertised (X-Xet-Hash header, xetHash in listings); where not, a client with hf_xet
installed takes the plain path. A client without hf_xet gets either as LFS.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlencode

from tests.support.hub.accounts import commit_of, visible
from tests.support.hub.exchange import Reply, Request
from tests.support.hub.repository import Blob
from tests.support.hub.routes import API, Route

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer


def model_info(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/models/{repo} and /api/models/{repo}/revision/{rev}; open to all for a gated repository."""
    found = commit_of(hub, request, match, match["rev"] or "main")
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
    found = commit_of(hub, request, match, match["rev"])
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
    found = commit_of(hub, request, match, match["rev"])
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
    repo = visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo

    def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in names.items()]

    heads = {name: sha for name, sha in repo.branches.items() if not name.startswith("refs/")}
    return Reply.json({"branches": listed("heads", heads), "tags": listed("tags", repo.tags), "converts": []})


def resolve(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """HEAD or GET /{repo}/resolve/{rev}/{path}: the content itself, or for LFS a redirect to the storage's origin."""
    found = commit_of(hub, request, match, match["rev"])
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
    if hub.xet and blob.xet is not None:
        headers["X-Xet-Hash"] = blob.xet
        route = f"{hub.endpoint}/api/models/{repo.id}/xet-read-token/{quote(sha, safe='')}"
        headers["Link"] = f'<{route}>; rel="xet-auth"'
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


def _no_entry(sha: str, path: str) -> Reply:
    return Reply.error(404, f"{path} does not exist", "EntryNotFound", X_Repo_Commit=sha)


def _blob_fields(blob: Blob, oid: str) -> dict[str, Any]:
    fields: dict[str, Any] = {oid: blob.oid, "size": len(blob.data)}
    if blob.lfs:
        digest = "oid" if oid == "oid" else "sha256"
        fields["lfs"] = {digest: blob.sha256, "size": len(blob.data), "pointerSize": 134}
        if blob.xet is not None:
            fields["xetHash"] = blob.xet
    return fields


ROUTES: list[Route] = [
    ("GET", re.compile(API + r"(?:/revision/(?P<rev>[^/]+))?$"), model_info),
    ("GET", re.compile(API + r"/tree/(?P<rev>[^/]+)(?P<path>/.*)?$"), tree),
    ("POST", re.compile(API + r"/paths-info/(?P<rev>[^/]+)$"), paths_info),
    ("GET", re.compile(API + r"/refs$"), refs),
    ("GET HEAD", re.compile(r"^/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)$"), resolve),
    ("GET", re.compile(r"^/storage/(?P<sha256>[0-9a-f]{64})$"), storage),
]
