"""The fixture `hub`: a running test Hub that huggingface_hub, here or in a child, takes for the real one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.hub.server import HubServer

_LOCAL = ("127.0.0.1", "localhost", "::1")
_ROOT = Path(__file__).resolve().parents[3]
# hf_xet waits three seconds before it tries again, and its clock is in Rust.
_HASTY_XET = {"HF_XET_CLIENT_RETRY_BASE_DELAY": "5ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}


class Hub(HubServer):
    """The server, and the client's side of it: where its cache is, how long it wanted to wait before retrying."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.cache = home / "hub"
        self.waits: list[float] = []

    def environment(self, **extra: str) -> dict[str, str]:
        """A child's environment: this Hub, an empty home, no token, and a dead proxy for every other host."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
        local = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(self.home), "NO_PROXY": ",".join(_LOCAL)}
        return {**kept, **dead, **local, **_HASTY_XET, "PYTHONPATH": str(_ROOT), **extra}

    def run(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a child, where the client has read HF_ENDPOINT and HF_HOME itself and nothing is patched."""
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=self.environment(**environment), capture_output=True, text=True, timeout=60)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A test Hub, as `connected` makes it; the test fails if the Hub itself failed or another host was looked up."""
    with connected(monkeypatch, tmp_path) as server:
        yield server


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A test Hub that the client in this process talks to, and an empty cache and no token for it.

    huggingface_hub reads its environment variables when it is imported, so here the constants that it made of
    them are set (it looks each of them up at every call); `Hub.run` shows that HF_ENDPOINT alone does the
    same in a fresh process, at half a second each. The client itself runs unmodified but for its clock: waits
    are recorded, not slept. A look-up of any other host's address fails the test.
    """
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http, _xet

    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", ",".join(_LOCAL))
    strangers: list[str] = []
    look_up = socket.getaddrinfo

    def look_up_local(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in _LOCAL:
            strangers.append(str(host))
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up_local)
    # hf_xet reads these when a session begins, and remembers in its cache what an endpoint has already: a port may be
    # had by another test's Hub later.
    for name, value in {**_HASTY_XET, "HF_XET_CACHE": str(tmp_path / "xet")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    with Hub(tmp_path / "hf-home") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HOME", str(server.home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(server.cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(server.home / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(server.home / "stored_tokens"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for module in (constants, sys.modules["huggingface_hub.utils.tqdm"]):
            monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", None)
        clock = SimpleNamespace(**{**vars(time), "sleep": server.waits.append})
        for module in (_http, file_download):
            monkeypatch.setattr(module, "time", clock)
        _http.close_session()  # the next one reads the proxies anew
        yield server
        _http.close_session()
        _xet.abort_xet_session()
    assert server.failures == []
    assert strangers == [], "the test reached for a host that is not this machine"


@pytest.fixture(params=["lfs", "xet"])
def transfer(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """How large files travel: as without hf_xet to a Hub without Xet, and as with both."""
    from huggingface_hub import constants

    hub.xet = request.param == "xet"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not hub.xet)
    return request.param
