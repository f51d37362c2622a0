"""The test Hub's server: recording, faults and the wire. What it answers is in the `*_api` modules."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import parse_qsl, urlsplit

from tests.support.hub import lfs_api, read_api, write_api, xet_api
from tests.support.hub.accounts import Account
from tests.support.hub.exchange import Fault, Reply, Request
from tests.support.hub.repository import Blob, Repository


class HubServer:
    """A Hub on 127.0.0.1, at a free port, while its `with` block lasts.

    LFS and Xet content is served under the name `localhost`: to a client that is another origin, so its token must
    not go there.
    """

    page_size = 1000
    part_size = 1 << 30  # larger LFS files are uploaded in parts of this many bytes
    xet = True  # whether it has Xet storage at all
    signature = "c2lnbmVk"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}  # old or short id -> the one it redirects to
        self.accounts: dict[str, Account] = {}  # whose each token is
        self.lfs: dict[str, bytes] = {}  # what was uploaded, by the SHA-256 that the client said it has
        self.parts: dict[str, dict[int, bytes]] = {}
        self.cas = xet_api.XetStore()
        self.requests: list[Request] = []
        self.failures: list[str] = []  # tracebacks of this server's own defects
        self.routes = [*write_api.ROUTES, *lfs_api.ROUTES, *xet_api.ROUTES, *read_api.ROUTES]
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.storage = f"http://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening: from now on a connection is refused, as with the network gone."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            for connection in list(self._open):  # kept alive by the client, and served by threads of their own
                with contextlib.suppress(OSError):  # gone already
                    connection.shutdown(socket.SHUT_RDWR)

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        private: bool = False,
        gated: Literal[False, "auto", "manual"] = False,
    ) -> Repository:
        """Create a repository with `files` on its branch main."""
        repo = self.repositories[repo_id] = Repository(repo_id, private=private, gated=gated)
        repo.commit(files)
        return repo

    def log_in(
        self,
        token: str,
        name: str = "reader",
        *,
        role: Literal["read", "write", "fineGrained"] = "read",
        orgs: tuple[str, ...] = (),
    ) -> None:
        """Make `token` known, as one of the user `name` who may write to `orgs`."""
        self.accounts[token] = Account(name, role, orgs)

    @property
    def tokens(self) -> set[str]:
        """Those that the Hub knows."""
        return set(self.accounts)

    def stored(self, sha256: str) -> Blob | None:
        """What was uploaded, by LFS or by Xet, or is in a repository, under this SHA-256."""
        if sha256 in self.lfs:
            return Blob(self.lfs[sha256], lfs=True)
        return self.cas.by_sha256.get(sha256)

    def inject(
        self,
        pattern: str,
        *,
        times: int = 1,
        status: int | None = None,
        code: str | None = None,
        message: str = "Injected",
        reply: Reply | None = None,
        before: Callable[[], object] | None = None,
        drop_after: int | None = None,
        reset: bool = False,
        flip: int | None = None,
        flip_sent: int | None = None,
        cut_sent: int | None = None,
        lose: bool = False,
    ) -> None:
        """Make the next `times` requests that `pattern` finds in their "METHOD /path" go wrong: see `Fault`."""
        if status is not None:
            reply = Reply.error(status, message, code)
        fault = Fault(re.compile(pattern), times, reply, before, drop_after, reset, flip, flip_sent, cut_sent, lose)
        with self._lock:
            self._faults.append(fault)

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._faults.clear()

    def seen(self, pattern: str) -> list[Request]:
        """The recorded requests whose "METHOD /path" the pattern finds."""
        return [request for request in self.requests if re.search(pattern, str(request))]

    def downloaded(self) -> list[str]:
        """Names of the files that the client went for, sorted (it asks HEAD before it downloads one)."""
        found = (re.search(r"^HEAD /.+?/resolve/[^/]+/(.+)$", str(request)) for request in self.requests)
        return sorted({match[1] for match in found if match is not None})

    def take(self, request: Request) -> Fault | None:
        """Record the request, and say what is to go wrong with it."""
        with self._lock:
            self.requests.append(request)
            fault = next((fault for fault in self._faults if fault.matches(request)), None)
            if fault is not None:
                fault.times -= 1
                if fault.before is not None:
                    fault.before()
        return fault

    def answer(self, request: Request) -> Reply:
        """What to send back."""
        for methods, pattern, route in self.routes:
            match = pattern.search(request.path)
            if match is not None and request.method in methods.split():
                return route(self, request, match)
        return Reply.error(404, f"The test Hub has no {request}")


class _Handler(BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 for one connection."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.hub._open.add(self.connection)

    def finish(self) -> None:
        self.hub._open.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:  # http.server's name
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, headers.get("host", ""), url.path, dict(parse_qsl(url.query)), headers)
        fault = self.hub.take(request)
        length = int(headers.get("content-length", 0))
        if fault is not None and fault.cut_sent is not None:
            self.rfile.read(min(fault.cut_sent, length))
            self._drop(reset=True)
            return
        body = bytearray(self._body(headers, length))
        if fault is not None and fault.flip_sent is not None:
            body[fault.flip_sent] ^= 0xFF
        request.body = bytes(body)
        try:
            reply = fault.reply if fault is not None and fault.reply is not None else self.hub.answer(request)
        except Exception:  # a defect of the test Hub: the fixture fails the test with it
            self.hub.failures.append(f"{request}\n{traceback.format_exc()}")
            reply, fault = Reply.error(500, "The test Hub failed"), None
        if fault is not None and fault.lose:
            self._drop(reset=False)
            return
        try:
            self._send(reply, fault)
        except ConnectionError:  # the client went away, as it may
            self.close_connection = True

    def _body(self, headers: Mapping[str, str], length: int) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(length)
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 (http.server's names)

    def _send(self, reply: Reply, fault: Fault | None) -> None:
        body = bytearray(reply.body)
        if fault is not None and fault.flip is not None:
            body[fault.flip] ^= 0xFF
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault is not None and fault.drop_after is not None:
            self.wfile.write(body[: fault.drop_after])
            self._drop(reset=fault.reset)
        elif self.command != "HEAD":
            self.wfile.write(body)

    def _drop(self, *, reset: bool) -> None:
        """Close in the middle of the body: by FIN, or by RST, as a router that forgot the connection would."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()  # the last reference: only then does close() close
            self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the requests are recorded, not printed."""
