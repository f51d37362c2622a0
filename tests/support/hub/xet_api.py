"""Xet: the Hub's short-lived tokens, and the content-addressed storage (CAS) on the other origin.

What the protocol at huggingface.co/docs/xet says, but for: BLAKE3 hashes, which the standard library has not, are not
recomputed (a file's SHA-256, which its shard carries, is); no chunk is known for global deduplication (404, as for
a chunk that nobody has uploaded); shards are taken at /v1, to which the client falls back from /v2; there are no
xorb grants (404: the client then sends the xorb itself).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from tests.support.hub.accounts import visible, writable
from tests.support.hub.exchange import Reply, Request
from tests.support.hub.repository import Blob
from tests.support.hub.routes import API, Route
from tests.support.hub.xet_format import FormatError, Term, shard_files, unpack, xorb_chunks

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer


class XetStore:
    """Xorbs and files of the CAS, in memory."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.terms: dict[str, list[Term]] = {}  # file hash -> its pieces
        self.by_sha256: dict[str, Blob] = {}

    def register(self, file_hash: str, terms: list[Term], sha256: str | None) -> None:
        """Take in a file of a shard.

        Raises FormatError where a xorb is not there, or the pieces are not the file that the shard says they are.
        """
        data = bytearray()
        for term in terms:
            if term.xorb not in self.xorbs:
                raise FormatError(f"xorb {term.xorb} was never uploaded")
            xorb = self.xorbs[term.xorb]
            piece = b"".join(unpack(xorb, chunk) for chunk in xorb_chunks(xorb)[term.first : term.last])
            if len(piece) != term.length:
                raise FormatError(f"a piece of {term.length} bytes unpacks to {len(piece)}")
            data += piece
        blob = Blob(bytes(data), lfs=True, xet=file_hash)
        if sha256 is not None and sha256 != blob.sha256:
            raise FormatError("the file's SHA-256 is not the one that the shard says")
        self.terms[file_hash] = terms
        self.by_sha256[blob.sha256] = blob


def token(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/models/{repo}/xet-{read,write}-token/{rev}: the CAS's address and a token for it, in both forms."""
    if not hub.xet:
        return Reply.error(404, "Not Found")
    kind = match["kind"]
    if kind == "write":
        repo = writable(hub, request, match, pull_request="create_pr" in request.query)
    else:
        repo = visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    expires = int(time.time()) + 3600
    headers = {
        "X-Xet-Cas-Url": hub.storage + "/cas",
        "X-Xet-Access-Token": f"xet-{kind}-{hub.signature}",
        "X-Xet-Token-Expiration": str(expires),
    }
    body = {"casUrl": headers["X-Xet-Cas-Url"], "accessToken": headers["X-Xet-Access-Token"], "exp": expires}
    return Reply.json(body, headers=headers)


def post_xorb(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /cas/v1/xorbs/default/{hash}."""
    if (refused := _refused(hub, request, "write")) is not None:
        return refused
    inserted = match["hash"] not in hub.cas.xorbs
    try:
        for chunk in xorb_chunks(request.body):
            unpack(request.body, chunk)
    except FormatError as error:
        return Reply(400, body=str(error).encode())
    hub.cas.xorbs[match["hash"]] = request.body
    return Reply.json({"was_inserted": inserted})


def post_shard(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /cas/v1/shards: after this, the files in it can be committed by their SHA-256."""
    if (refused := _refused(hub, request, "write")) is not None:
        return refused
    try:
        for file_hash, terms, sha256 in shard_files(request.body):
            hub.cas.register(file_hash, terms, sha256)
    except FormatError as error:
        return Reply(400, body=str(error).encode())
    return Reply.json({"result": 1})


def reconstruction(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /cas/v2/reconstructions/{hash}: which bytes of which xorbs make up the file, or the range asked for."""
    if (refused := _refused(hub, request, "read")) is not None:
        return refused
    terms = hub.cas.terms.get(match["hash"])
    if terms is None:
        return Reply(404)
    size = sum(term.length for term in terms)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
    if first >= size:
        return Reply(416)
    listed, xorbs, skipped, at = [], {}, None, 0
    for term in terms:
        xorb = hub.cas.xorbs[term.xorb]
        chunks = xorb_chunks(xorb)
        # Only the chunks that the range touches.
        touched = []
        for number in range(term.first, term.last):
            end = at + chunks[number].length
            if at <= last and end > first:
                skipped = first - at if skipped is None else skipped
                touched.append(number)
            at = end
        if not touched:
            continue
        span = {"start": touched[0], "end": touched[-1] + 1}
        length = sum(chunks[number].length for number in touched)
        listed.append({"hash": term.xorb, "range": span, "unpacked_length": length})
        bytes_ = {"start": chunks[touched[0]].start, "end": chunks[touched[-1]].end - 1}
        url = f"{hub.storage}/xorbs/{term.xorb}?Signature={hub.signature}"
        entry = {"url": url, "ranges": [{"chunks": span, "bytes": bytes_}]}
        held = xorbs.setdefault(term.xorb, [])
        if entry not in held:
            held.append(entry)
    return Reply.json({"offset_into_first_range": skipped or 0, "terms": listed, "xorbs": xorbs})


def get_xorb(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /xorbs/{hash}, a range of it, at a signed address that takes no token."""
    if request.query.get("Signature") != hub.signature:
        return Reply(403)
    data = hub.cas.xorbs.get(match["hash"])
    wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
    if data is None or wanted is None:
        return Reply(404)
    first, last = int(wanted[1]), int(wanted[2])
    return Reply(206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])


def no_chunk(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /cas/v1/chunks/default/{hash}: nothing is deduplicated against other repositories."""
    return _refused(hub, request, "read") or Reply(404)


def telemetry(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /v1/telemetry, at the root of the CAS's origin."""
    return _refused(hub, request, "read") or Reply(200)


def _refused(hub: HubServer, request: Request, scope: str) -> Reply | None:
    """401 without one of the CAS's own tokens, among them the Hub's, which should never get here; 403 to read-only."""
    if request.token == f"xet-write-{hub.signature}":
        return None
    if request.token == f"xet-read-{hub.signature}":
        return Reply(403) if scope == "write" else None
    return Reply(401)


_HASH = r"(?P<hash>[0-9a-f]{64})$"
ROUTES: list[Route] = [
    ("GET", re.compile(API + r"/xet-(?P<kind>read|write)-token/(?P<rev>[^/]+)$"), token),
    ("POST", re.compile(r"^/cas/v1/xorbs/default/" + _HASH), post_xorb),
    ("POST", re.compile(r"^/cas/v1/shards$"), post_shard),
    ("GET", re.compile(r"^/cas/v2/reconstructions/" + _HASH), reconstruction),
    ("GET", re.compile(r"^/cas/v1/chunks/default(?:-merkledb)?/" + _HASH), no_chunk),
    ("POST", re.compile(r"^/(?:cas/)?v1/telemetry$"), telemetry),
    ("GET", re.compile(r"^/xorbs/" + _HASH), get_xorb),
]
