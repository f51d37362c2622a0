"""Every status at every request of a push: it ends in a whole push or in one line, never in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from mlxbert.errors import MLXBertError
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO, assert_published, one_line, pushed

pytestmark = pytest.mark.usefixtures("writer")

STATUSES = (401, 403, 404, 409, 412, 429, 503)
HUB_ROUTES = {
    "whoami": "/api/whoami-v2",
    "model info": "^GET /api/models/[^/]+/[^/]+$",
    "create": "/api/repos/create",
    "tree": "/tree/",
    "validate-yaml": "/validate-yaml",
    "preupload": "/preupload/",
    "commit": "/commit/",
}
LFS_ROUTES = {"batch": "/objects/batch", "upload": "^PUT /lfs/", "verify": "/info/lfs/verify"}
XET_ROUTES = {"token": "/xet-write-token/", "xorb": "/cas/v1/xorbs/", "shard": "/cas/v1/shards"}


def check(hub: Hub, directory: Path, route: str, status: int) -> None:
    """One push with that fault at every such request; then one without."""
    hub.inject(route, times=99, status=status)
    try:
        pushed(directory)
    except MLXBertError as error:
        message = one_line(error, directory)
        held = set(hub.repositories[REPO].files) if REPO in hub.repositories else set()
        assert held <= {".gitattributes"}, message
    hub.heal()
    if REPO not in hub.repositories or "config.json" not in hub.repositories[REPO].files:
        pushed(directory)
    assert_published(hub.repositories[REPO], directory)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("route", [*HUB_ROUTES.values(), *LFS_ROUTES.values()], ids=[*HUB_ROUTES, *LFS_ROUTES])
def test_by_lfs(hub: Hub, verified_once: Path, route: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    check(hub, verified_once, route, status)


# hf_xet waits a while between attempts to get a token, and nothing makes it hurry: two statuses will do there.
XET_CASES = [("token", 403), ("token", 503), *((name, status) for name in ("xorb", "shard") for status in STATUSES)]


@pytest.mark.parametrize(("route", "status"), XET_CASES)
def test_by_xet(hub: Hub, verified_once: Path, route: str, status: int) -> None:
    check(hub, verified_once, XET_ROUTES[route], status)
