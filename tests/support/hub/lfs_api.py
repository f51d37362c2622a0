"""Git-LFS as the Hub speaks it: the batch, one part or several to the storage's origin, and the check at the end.

As on S3, what is uploaded is kept under the name that the client gave it, and nobody recomputes its SHA-256; what the
tree then lists is the SHA-256 of the bytes that are there.
"""

from __future__ import annotations

import hashlib
import json
import re
from math import ceil
from typing import TYPE_CHECKING, Any

from tests.support.hub.accounts import writable
from tests.support.hub.exchange import Reply, Request
from tests.support.hub.routes import Route

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer

_REPO = r"^/(?P<repo>[^/]+/[^/]+)\.git/info/lfs"


def batch(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /{repo}.git/info/lfs/objects/batch: where to upload what the Hub has not yet."""
    repo = writable(hub, request, match, pull_request=True)
    if isinstance(repo, Reply):
        return repo
    objects = []
    for asked in json.loads(request.body)["objects"]:
        answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        held = hub.stored(asked["oid"])
        if held is None or held.sha256 != asked["oid"]:
            verify = {"href": f"{hub.endpoint}/{repo.id}.git/info/lfs/verify"}
            answer["actions"] = {"upload": _upload(hub, asked["oid"], asked["size"]), "verify": verify}
        objects.append(answer)
    return Reply.json({"transfer": "basic", "objects": objects}, headers={"Content-Type": _TYPE})


def put(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """PUT /lfs/{oid}[/{part}] on the other origin: signed, and refusing, as S3 does, a token."""
    if not request.host.startswith("localhost:") or request.query.get("Signature") != hub.signature:
        return Reply(403, body=b"SignatureDoesNotMatch")
    if "authorization" in request.headers:
        return Reply(400, body=b"Only one auth mechanism allowed")
    if match["part"] is None:
        hub.lfs[match["oid"]] = request.body
    else:
        hub.parts.setdefault(match["oid"], {})[int(match["part"])] = request.body
    return Reply(200, {"ETag": _etag(request.body)})


def complete(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/complete_multipart/{oid}: put the parts together, where each is the one that was uploaded."""
    if request.query.get("Signature") != hub.signature:
        return Reply.error(403, "The upload's signature is wrong")
    parts = hub.parts.get(match["oid"], {})
    named = {part["partNumber"]: part["etag"] for part in json.loads(request.body)["parts"]}
    if named != {number: _etag(data) for number, data in parts.items()}:
        return Reply.error(400, "InvalidPart")
    hub.lfs[match["oid"]] = b"".join(parts[number] for number in sorted(parts))
    return Reply.json({"success": True})


def verify(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /{repo}.git/info/lfs/verify: is it there, at its size?"""
    asked = json.loads(request.body)
    held = hub.lfs.get(asked["oid"])
    if held is None or len(held) != asked["size"]:
        return Reply.error(400, "The object is not there, or of another size")
    return Reply(200)


_TYPE = "application/vnd.git-lfs+json"


def _upload(hub: HubServer, oid: str, size: int) -> dict[str, Any]:
    signed = f"?Signature={hub.signature}"
    if size <= hub.part_size:
        return {"href": f"{hub.storage}/lfs/{oid}{signed}"}
    parts = range(1, ceil(size / hub.part_size) + 1)
    urls = {f"{number:05}": f"{hub.storage}/lfs/{oid}/{number}{signed}" for number in parts}
    href = f"{hub.endpoint}/api/complete_multipart/{oid}{signed}"
    return {"href": href, "header": {"chunk_size": str(hub.part_size), **urls}}


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


ROUTES: list[Route] = [
    ("POST", re.compile(_REPO + r"/objects/batch$"), batch),
    ("POST", re.compile(_REPO + r"/verify$"), verify),
    ("PUT", re.compile(r"^/lfs/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?$"), put),
    ("POST", re.compile(r"^/api/complete_multipart/(?P<oid>[0-9a-f]{64})$"), complete),
]
