"""The Hub, read side: what the cache does without it, and the network's and the machine's own troubles."""

from __future__ import annotations

import errno
import re
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxbert.hub import HubError, Snapshot, snapshot
from tests.support.hub.plugin import Hub
from tests.support.hub.repository import Repository
from tests.support.hub.samples import FILES, NEEDED, REPO, TOKEN, assert_holds, everything, failure, needed


def set_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1 at the start of the process would."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


class TestOffline:
    @pytest.fixture
    def cached(self, hub: Hub, hub_repo: Repository) -> Snapshot:
        found = snapshot(REPO, select=needed)
        hub_repo.tags["v1"] = found.revision
        hub.requests.clear()
        return found

    @pytest.mark.parametrize("revision", [None, "main", "commit"])
    def test_the_cache_is_enough(
        self, hub: Hub, cached: Snapshot, revision: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_offline(monkeypatch)
        revision = cached.revision if revision == "commit" else revision
        asked: list[Sequence[str]] = []

        def select(names: Sequence[str]) -> list[str]:
            asked.append(names)
            return needed(names)

        assert snapshot(REPO, revision=revision, select=select) == cached
        assert sorted(asked[0]) == sorted(FILES)  # all that the commit has: the same choice as online
        assert hub.requests == []

    def test_what_the_cache_lacks(self, hub: Hub, cached: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
        set_offline(monkeypatch)
        lacking = "model 'team/bert' are not in the cache:\n  README.md\n  pytorch_model.bin\n  tf_model.h5"
        expected = f"HF_HUB_OFFLINE is set: unset it once to download the rest; these files of {lacking}"
        assert failure(hub, select=lambda names: sorted(names)) == expected
        assert failure(hub, revision=cached.revision, select=lambda names: sorted(names)) == expected

    @pytest.mark.parametrize("revision", ["v1", "0" * 40])
    def test_a_revision_that_is_not_cached(
        self, hub: Hub, cached: Snapshot, revision: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        set_offline(monkeypatch)
        assert failure(hub, revision=revision) == (
            f"model 'team/bert' at revision '{revision}' is not in {hub.cache} and HF_HUB_OFFLINE is set: "
            "unset it to download"
        )

    def test_never_downloaded(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        set_offline(monkeypatch)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        assert failure(hub) == (
            f"model 'team/bert' is not in {hub.cache} and TRANSFORMERS_OFFLINE is set: unset it to download"
        )

    def test_the_network_is_down(self, hub: Hub, cached: Snapshot, caplog: pytest.LogCaptureFixture) -> None:
        hub.stop()
        assert snapshot(REPO, select=needed) == cached
        (said,) = caplog.messages
        assert said.startswith("Could not reach the Hub (")
        assert said.endswith("). Using cached commit hash for 'team/bert'.")
        assert hub.waits == []

    def test_the_network_is_down_and_the_cache_lacks_something(self, hub: Hub, cached: Snapshot) -> None:
        hub.stop()
        host = hub.endpoint.removeprefix("http://")
        assert failure(hub, select=lambda names: ["README.md"]) == (
            f"No network: {host} cannot be connected to: check the connection, or set HTTPS_PROXY if you need one; "
            "these files of model 'team/bert' are not in the cache:\n  README.md"
        )

    @pytest.mark.parametrize("fault", [{"status": 503}, {"drop_after": 5}])
    def test_the_hub_is_down(self, hub: Hub, cached: Snapshot, fault: dict[str, int]) -> None:
        hub.inject("/api/", times=1000, **fault)  # type: ignore[arg-type]
        assert snapshot(REPO, select=needed) == cached
        assert hub.waits == [1, 2, 4]

    def test_a_refusal_is_not_hidden_by_the_cache(self, hub: Hub, cached: Snapshot, hub_repo: Repository) -> None:
        hub_repo.private = True
        assert "does not exist on" in failure(hub)

    @pytest.mark.parametrize("revision", [None, "commit"])
    def test_files_that_another_program_cached(
        self, hub: Hub, hub_repo: Repository, revision: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        """transformers fetches file by file: then no listing is kept, and the names are those of the files."""
        from huggingface_hub import hf_hub_download

        for name in NEEDED:
            path = hf_hub_download(REPO, name)
        commit = hub_repo.branches["main"]
        hub.stop()
        hub.waits.clear()
        found = snapshot(REPO, revision=revision and commit, select=everything)
        assert found.revision == commit
        assert Path(path).is_relative_to(found.path)
        assert_holds(found, NEEDED)
        assert hub.waits == []
        (said,) = caplog.messages
        assert re.fullmatch(r"Could not reach the Hub.*\. Using .*'team/bert'.*\.", said)
        with pytest.raises(HubError, match="has no such files at revision"):
            snapshot(REPO, revision=revision and commit, select=lambda names: ["tf_model.h5"])

    def test_no_network_at_all(self, hub: Hub) -> None:
        hub.stop()
        host = hub.endpoint.removeprefix("http://")
        expected = (
            f"No network: {host} cannot be connected to: check the connection, or set HTTPS_PROXY if you need one; "
            "if a path was meant: there is no 'team/bert' here"
        )
        assert failure(hub) == expected
        assert failure(hub, revision="0" * 40) == expected


class TestNoWay:
    """The network's and the machine's own troubles."""

    def test_a_host_that_is_not_found(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        import socket

        def nowhere(*args: Any, **kwargs: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", nowhere)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"https://me:{TOKEN}@hub.invalid")
        assert failure(hub) == (
            "No network: hub.invalid is not found: check the connection, or set HTTPS_PROXY if you need one; "
            "if a path was meant: there is no 'team/bert' here"
        )

    @pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example"])
    def test_an_endpoint_that_is_no_address(self, hub: Hub, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        assert failure(hub) == "HF_ENDPOINT is not a web address: it should read like https://huggingface.co"

    def test_a_silent_server(self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        import threading

        release = threading.Event()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
        hub.inject("/api/", before=release.wait)
        try:
            assert "does not answer in time: try again, or with HF_HUB_ETAG_TIMEOUT=60" in failure(hub)
        finally:
            release.set()

    def test_a_proxy_that_refuses(self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        import httpx2

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise httpx2.ProxyError(f"407 http://me:{TOKEN}@proxy")

        monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", refuse)
        assert failure(hub).endswith("refused: check HTTPS_PROXY and NO_PROXY")
        assert failure(hub, revision="0" * 40).endswith("refused: check HTTPS_PROXY and NO_PROXY")

    def test_a_certificate_that_is_not_trusted(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        import httpx2

        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise httpx2.ConnectError("[SSL]") from ssl.SSLCertVerificationError("self-signed")

        monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", refuse)
        assert failure(hub).endswith("is not trusted: set SSL_CERT_FILE to your network's certificates")

    @pytest.mark.parametrize("token", ["hf_\x01AbCd", "hf_AbCd EfGh", "hf_Ab…Cd"])
    def test_a_token_that_cannot_be_sent(self, hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", token)
        message = failure(hub)
        assert (
            message == "the token in HF_TOKEN has a character that no token has: copy it anew, or run `hf auth login`"
        )
        assert hub.requests == []

    def test_a_saved_token_that_cannot_be_read(self, hub: Hub) -> None:
        (hub.home / "token").mkdir(parents=True)
        message = f"{hub.home / 'token'} cannot be read (IsADirectoryError): mend it, or `hf auth login` anew"
        assert failure(hub) == message

    def test_a_damaged_reference_in_the_cache(
        self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        snapshot(REPO, select=needed)
        (reference,) = hub.cache.glob("*/refs/main")
        reference.write_text("")
        set_offline(monkeypatch)
        assert failure(hub) == (
            "model 'team/bert' is at '' in the cache, which is no commit id: delete it with `hf cache rm`"
        )

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_the_disk_is_full(
        self, hub: Hub, hub_repo: Repository, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill_the_disk(monkeypatch, OSError(number, "Full"))
        assert failure(hub) == (
            f"The disk is full: model 'team/bert' does not fit into {hub.cache}: free some space, "
            "or set HF_HOME to another disk"
        )
        assert not list(hub.cache.rglob("*.incomplete"))
        monkeypatch.undo()

    def test_the_disk_is_full_says_xet(self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_the_disk(monkeypatch, RuntimeError("I/O error: No space left on device (os error 28)"))
        assert failure(hub).startswith("The disk is full: model 'team/bert'")

    def test_xet_without_an_answer(self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_the_disk(monkeypatch, ConnectionError("CAS"))
        assert failure(hub).startswith("The connection was dropped while model 'team/bert' was read")

    def test_anything_else_is_named(self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        fill_the_disk(monkeypatch, RuntimeError(f"Odd: Bearer {TOKEN}\nsecond line"))
        assert failure(hub) == "model 'team/bert' could not be downloaded (RuntimeError): Odd: <token>"

    def test_a_cache_that_cannot_be_written(self, hub: Hub, hub_repo: Repository) -> None:
        hub.home.mkdir()
        hub.cache.write_text("a file where the directory should be")
        assert failure(hub) == (
            f"The cache {hub.cache} cannot be written: make it yours, or set HF_HOME to a directory that is"
        )


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let every download of content fail with `error` once 100 bytes are written."""
    from huggingface_hub import file_download

    download: Callable[..., None] = file_download.http_get

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            self.file.write(data[:100])
            if len(data) > 100:
                raise error
            return len(data)

    monkeypatch.setattr(file_download, "http_get", lambda url, file, **settings: download(url, Full(file), **settings))
