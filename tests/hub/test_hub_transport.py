"""The Hub, read side: drops, retries and a process of its own that knows HF_ENDPOINT alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from mlxbert.hub import snapshot
from tests.support.hub.exchange import Reply
from tests.support.hub.plugin import Hub
from tests.support.hub.repository import Repository
from tests.support.hub.samples import FILES, NEEDED, REPO, WEIGHTS, assert_holds, failure, needed


class TestTransport:
    def test_a_dropped_download_is_resumed(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
        hub.add(REPO, FILES)
        hub.inject("GET /storage/", drop_after=1500)
        found = snapshot(REPO, select=needed)
        assert_holds(found, NEEDED)
        first, second = hub.seen("GET /storage/")
        assert "range" not in first.headers
        assert second.headers["range"] == "bytes=1000-"  # whole chunks are kept
        assert "authorization" not in second.headers
        assert hub.waits == [1]

    def test_a_download_dropped_again_and_again_fails(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("GET /storage/", times=1000, drop_after=10)
        assert failure(hub) == (
            "The connection was dropped while model 'team/bert' was read: run it again, whole files are kept"
        )
        assert len(hub.seen("GET /storage/")) == 6
        assert not list(hub.cache.rglob("*.incomplete"))

    def test_a_reset_connection(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("GET /storage/", drop_after=100, reset=True)
        assert "connection was dropped while model 'team/bert' was read: run it again" in failure(hub)
        hub.requests.clear()
        assert_holds(snapshot(REPO, select=needed), NEEDED)
        assert hub.downloaded() == ["model.safetensors"]  # what had arrived was kept

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
    def test_a_failure_that_passes_is_ridden_out(self, hub: Hub, hub_repo: Repository, status: int) -> None:
        for request in (r"/api/models/team/bert$", "/tree/", "HEAD .*config.json"):
            hub.inject(request, status=status)
        assert_holds(snapshot(REPO, select=needed), NEEDED)
        assert hub.waits[:2] == [1, 1]
        assert len(hub.seen("/tree/")) == 2

    def test_the_hub_says_how_long_to_wait(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("/api/", reply=Reply(429, {"Retry-After": "7"}))
        snapshot(REPO, select=needed)
        assert hub.waits == [8]

    @pytest.mark.parametrize("where", ["/api/models/team/bert$", "/tree/", "HEAD .*safetensors", "GET /storage/"])
    def test_a_failure_that_stays(self, hub: Hub, hub_repo: Repository, where: str) -> None:
        hub.inject(where, times=1000, status=503)
        host = (hub.storage if "storage" in where else hub.endpoint).removeprefix("http://")
        assert failure(hub) == f"{host} failed (503 Service Unavailable), and again when tried again: try later"

    def test_a_storage_that_refuses(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("GET /storage/", reply=Reply(403, body=b"Request has expired"))
        host = hub.storage.removeprefix("http://")
        message = f"{host} refused model 'team/bert' (403): run it again; if that does not help, `hf auth login`"
        assert failure(hub) == message

    def test_too_many_requests(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("/api/", times=1000, status=429)
        assert "(429): wait some minutes; `hf auth login` allows more" in failure(hub)

    def test_a_dropped_answer_is_asked_for_again(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("/api/models/team/bert$", drop_after=5)
        hub.inject("/tree/", drop_after=5)
        assert_holds(snapshot(REPO, select=needed), NEEDED)

    def test_the_etag_spares_a_download(self, hub: Hub, hub_repo: Repository) -> None:
        snapshot(REPO, select=needed)
        hub_repo.commit({"config.json": b"{}"})
        hub.requests.clear()
        found = snapshot(REPO, select=needed)
        assert_holds(found, NEEDED, {**FILES, "config.json": b"{}"})
        assert hub.seen("GET /storage/") == []

    def test_a_flipped_byte_is_not_noticed_by_the_client(self, hub: Hub, hub_repo: Repository) -> None:
        """What the manifest's sha256 is for: the day that this fails, the client checks for itself."""
        hub.inject("GET /storage/", flip=100)
        found = snapshot(REPO, select=needed)
        data = (found.path / "model.safetensors").read_bytes()
        assert [i for i in range(len(data)) if data[i] != WEIGHTS[i]] == [100]


CHILD = """
import json, sys
from mlxbert.hub import HubError, snapshot
heavy = {"torch", "transformers", "huggingface_hub", "httpx2"} & set(sys.modules)
try:
    found = snapshot("team/bert", select=lambda names: [n for n in names if n.endswith((".json", ".safetensors"))])
    report = {"path": str(found.path), "revision": found.revision}
except HubError as error:
    report = {"error": str(error)}
from huggingface_hub import constants
from huggingface_hub.utils._runtime import is_xet_available
print(json.dumps({**report, "heavy": sorted(heavy), "endpoint": constants.ENDPOINT, "xet": is_xet_available()}))
"""


def test_a_fresh_process_needs_only_hf_endpoint(hub: Hub) -> None:
    """Nothing is patched here: 12 MB, dropped after 11, resumed, then offline, then with nothing cached."""
    weights = bytes(range(256)) * 48 * 1024
    hub_repo = hub.add(REPO, {**FILES, "model.safetensors": weights})
    hub.inject("GET /storage/", drop_after=11 * 1024 * 1024)
    child = hub.run(CHILD)
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout)
    assert report["heavy"] == []
    assert report["xet"] is (importlib.util.find_spec("hf_xet") is not None)  # nothing but the headers rules it out
    assert report["endpoint"] == hub.endpoint
    assert report["revision"] == hub_repo.branches["main"]
    assert (Path(report["path"]) / "model.safetensors").read_bytes() == weights
    assert hub.downloaded() == ["1_Pooling/config.json", "config.json", "model.safetensors"]
    assert [request.headers.get("range") for request in hub.seen("GET /storage/")] == [None, "bytes=10485760-"]

    hub.stop()
    offline = json.loads(hub.run(CHILD, HF_HUB_OFFLINE="1").stdout)
    assert offline == report
    empty = json.loads(hub.run(CHILD, HF_HUB_OFFLINE="1", HF_HOME=str(hub.home / "other")).stdout)
    assert "and HF_HUB_OFFLINE is set: unset it to download" in empty["error"]


def test_the_server_itself(hub: Hub) -> None:
    """Routes that `snapshot` does not use, through the client."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    hub_repo = hub.add(REPO, FILES)
    hub_repo.tags["v1"] = hub_repo.branches["main"]
    hub_repo.commit({"x/y/z.txt": b"z"}, branch="dev")
    api = HfApi()
    refs = api.list_repo_refs(REPO)
    assert [(ref.name, ref.target_commit) for ref in refs.branches] == list(hub_repo.branches.items())
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == list(hub_repo.tags.items())
    (info,) = api.get_paths_info(REPO, ["model.safetensors", "absent"], revision="dev")
    blob = hub_repo.commits[hub_repo.branches["dev"]]["model.safetensors"]
    assert isinstance(info, RepoFile)
    assert info.lfs is not None
    assert (info.size, info.blob_id, info.lfs.sha256) == (len(WEIGHTS), blob.oid, blob.sha256)
    assert [entry.path for entry in api.list_repo_tree(REPO, "x", revision="dev")] == ["x/y"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "x/y", revision="dev")] == ["x/y/z.txt"]
    detailed = api.model_info(REPO, files_metadata=True)
    sizes = {sibling.rfilename: sibling.size for sibling in detailed.siblings or []}
    assert sizes == {name: len(data) for name, data in FILES.items()}
    assert api.file_exists(REPO, "vocab.txt")
    assert not api.file_exists(REPO, "absent")
