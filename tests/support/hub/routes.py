"""What a route is, and the pattern of a repository's address in the API."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.support.hub.exchange import Reply, Request

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer

Route = tuple[str, re.Pattern[str], Callable[["HubServer", Request, re.Match[str]], Reply]]
"""Methods, the pattern of the path, and what answers."""

_PARTS = "revision|tree|paths-info|refs|preupload|commit|branch|discussions|xet-read-token|xet-write-token"
API = rf"^/api/models/(?P<repo>[^/]+(?:/(?!(?:{_PARTS})(?:/|$))[^/]+)?)"
