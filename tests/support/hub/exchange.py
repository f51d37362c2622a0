"""What passes over the wire: the request as it was recorded, the reply, and the faults put between them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote


@dataclass
class Request:
    """One request, kept for assertions. Header names are in lower case; `path` is still percent-encoded.

    `body` is there once it has arrived whole.
    """

    method: str
    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def token(self) -> str | None:
        """The bearer token that came with it."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def __str__(self) -> str:
        return f"{self.method} {unquote(self.path)}"


@dataclass(frozen=True)
class Reply:
    """An answer; `Content-Length` is added when it is sent, and the body left out for HEAD."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    @classmethod
    def error(cls, status: int, message: str, code: str | None = None, **headers: str) -> Reply:
        """The Hub's error form: X-Error-Code, X-Error-Message and the same text as JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if code is not None:
            named["X-Error-Code"] = code
        return cls.json({"error": message}, status, {"X-Error-Message": message, **named})


@dataclass
class Fault:
    """Something that goes wrong with the next `times` requests whose `METHOD /path` the pattern finds.

    Any number may be given of: `reply` (sent instead of the real answer), `before` (called first: say, a push by
    somebody else), `drop_after` (bytes of the answer's body sent before the connection is closed; with `reset`, by
    RST), `flip` (index of the answer's byte inverted), `flip_sent` (index of the request's byte inverted before it
    is taken in), `cut_sent` (bytes of the request's body taken in before the connection is closed, and nothing done),
    `lose` (everything done, but nothing answered).
    """

    pattern: re.Pattern[str]
    times: int = 1
    reply: Reply | None = None
    before: Callable[[], object] | None = None
    drop_after: int | None = None
    reset: bool = False
    flip: int | None = None
    flip_sent: int | None = None
    cut_sent: int | None = None
    lose: bool = False

    def matches(self, request: Request) -> bool:
        return self.times > 0 and self.pattern.search(str(request)) is not None
