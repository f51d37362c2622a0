"""Publish to the test Hub with the real client, by LFS and by Xet, and load what was published."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from huggingface_hub import HfApi

import mlxbert
from converter.publish.push import push
from converter.publish.sending import Sending
from mlxbert.files.output_file import FileRecord, manifest_bytes, manifest_problems, read_manifest
from tests.support.card_samples import QUANTIZATION
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO, TOKEN, assert_published, pushed

pytestmark = pytest.mark.usefixtures("writer", "transfer")


def rewrite(directory: Path, files: dict[str, Any]) -> None:
    """Change JSON files, and the manifest with them."""
    records = read_manifest(directory) or {}
    for name, value in files.items():
        (directory / name).write_text(json.dumps(value))
        records[name] = FileRecord.of((directory / name).read_bytes())
    (directory / "manifest.json").write_bytes(manifest_bytes(records))


def test_a_new_repository(hub: Hub, verified: Path) -> None:
    result = pushed(verified)
    repo = hub.repositories[REPO]
    assert result.status == "pushed"
    assert result.commit == repo.branches["main"]
    assert result.url == f"{hub.endpoint}/{REPO}"
    assert_published(repo, verified)
    assert len(repo.commits) == 2
    assert repo.titles[result.commit] == "Add tiny-fp32, converted by mlxbert"
    assert not repo.private


def test_a_password_in_the_endpoint_is_not_shown(hub: Hub, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    plan = pushed(verified, dry_run=True).plan
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint.replace("//", "//alice:secret@"))
    sending = Sending(HfApi(), "alice", {}, {}, plan, False)
    assert sending._result(plan, "pushed", "a" * 40).url == f"{hub.endpoint}/{REPO}"


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: Hub, verified: Path, transfer: str) -> None:
    pushed(verified)
    elsewhere = [request for request in hub.requests if request.host.startswith("localhost:")]
    assert elsewhere
    assert not [request for request in elsewhere if TOKEN in str(request.headers.values())]
    assert bool(hub.cas.xorbs) == (transfer == "xet")
    assert bool(hub.lfs) == (transfer == "lfs")


def test_what_was_published_loads_and_again_offline(
    hub: Hub, verified: Path, transfer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(verified)
    local, _ = mlxbert.load(verified)
    model, tokenizer = mlxbert.load(REPO)
    ids = mx.array([[2, 9, 11, 3]])
    assert mx.array_equal(model(ids).last_hidden_state, local(ids).last_hidden_state)
    assert bool(hub.seen("/cas/v2/reconstructions/")) == (transfer == "xet")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    again, _ = mlxbert.load(REPO)
    assert mx.array_equal(again(ids).last_hidden_state, local(ids).last_hidden_state)
    assert len(hub.requests) == before
    assert tokenizer.vocab_size == 97


def test_what_was_published_is_whole_by_its_own_manifest(hub: Hub, verified: Path, tmp_path: Path) -> None:
    pushed(verified)
    for name, data in hub.repositories[REPO].files.items():
        if name != ".gitattributes":
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes(data)
    assert manifest_problems(tmp_path / "copy") == []


def test_the_same_bytes_make_no_second_commit(hub: Hub, verified: Path) -> None:
    first = pushed(verified)
    seen = len(hub.seen("^POST .*(preupload|commit)/"))
    second = pushed(verified, confirm=lambda plan: pytest.fail("there is nothing to ask"))
    assert (second.status, second.commit) == ("unchanged", first.commit)
    assert len(hub.repositories[REPO].commits) == 2
    assert len(hub.seen("^POST .*(preupload|commit)/")) == seen


def test_only_what_differs_is_sent_and_what_is_gone_is_removed(hub: Hub, verified: Path) -> None:
    pushed(verified)
    repo = hub.repositories[REPO]
    manifest = repo.files["manifest.json"].replace(b'"config.json"', b'"old.safetensors": {}, "config.json"', 1)
    repo.commit({"old.safetensors": b"of an earlier push", "notes.md": b"by hand", "manifest.json": manifest})
    result = pushed(verified)
    assert result.status == "pushed"
    assert result.plan.remove == ("old.safetensors",)
    assert set(result.plan.send) == {"manifest.json"}
    assert "model.safetensors" in result.plan.unchanged
    assert set(repo.files) >= {"notes.md", "model.safetensors"}
    assert "old.safetensors" not in repo.files


def test_a_private_repository_and_a_message(hub: Hub, verified: Path) -> None:
    result = pushed(verified, private=True, message="The first one")
    repo = hub.repositories[REPO]
    assert repo.private
    assert repo.titles[result.commit or ""] == "The first one"


def test_a_branch_is_made_and_written_to(hub: Hub, verified: Path) -> None:
    result = pushed(verified, revision="v2")
    repo = hub.repositories[REPO]
    assert_published(repo, verified, branch="v2")
    assert set(repo.files) == {".gitattributes"}
    assert result.url == f"{hub.endpoint}/{REPO}/tree/v2"
    assert pushed(verified, revision="v2").status == "unchanged"
    mlxbert.load(REPO, revision="v2")


def test_a_pull_request_and_not_a_second_one(hub: Hub, verified: Path) -> None:
    hub.add(REPO, {".gitattributes": b""})
    repo = hub.repositories[REPO]
    first = pushed(verified, pr=True)
    assert first.url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert_published(repo, verified, branch="refs/pr/1")
    assert set(repo.files) == {".gitattributes"}
    second = pushed(verified, pr=True)
    assert (second.status, second.commit) == ("unchanged", first.commit)
    assert len(repo.pull_requests) == 1


def test_a_pull_request_needs_no_rights_there(hub: Hub, verified: Path) -> None:
    hub.add("google-bert/tiny", {".gitattributes": b""})
    assert pushed(verified, "google-bert/tiny", pr=True).status == "pushed"


def test_large_files_in_parts(hub: Hub, verified: Path, transfer: str) -> None:
    hub.part_size = 10_000
    pushed(verified)
    assert_published(hub.repositories[REPO], verified)
    if transfer == "lfs":
        assert len(hub.seen(r"^PUT /lfs/.*/\d+$")) > 5
        assert hub.seen("^POST /api/complete_multipart/")


def test_declined_is_nothing_sent(hub: Hub, verified: Path) -> None:
    asked = []
    result = pushed(verified, confirm=lambda plan: bool(asked.append(plan)))
    assert result.status == "declined"
    assert asked[0].new
    assert REPO not in hub.repositories
    assert not hub.seen("^(POST|PUT) ")


def test_a_dry_run_asks_no_network(hub: Hub, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    result = push(verified, dry_run=True)
    assert result.status == "dry run"
    assert result.plan.repo_id == REPO
    assert result.plan.send["model.safetensors"] == (verified / "model.safetensors").stat().st_size
    assert "# tiny-fp32\n" in result.plan.card
    assert hub.requests == []


def test_the_card_that_goes_with_it(hub: Hub, verified: Path) -> None:
    pushed(verified)
    card = hub.repositories[REPO].files["README.md"].decode()
    assert "license: apache-2.0\nlanguage:\n- en\npipeline_tag: fill-mask\n" in card
    assert f'mlxbert.load("{REPO}")' in card
    assert "PATH_OF_THIS_DIRECTORY" not in card
    assert re.search(r"- `model\.safetensors`: sha256 `[0-9a-f]{64}`", card)
    assert str(verified.parent) not in card


def test_a_license_that_is_not_known_is_said_in_the_card_and_nowhere_else(
    hub: Hub, verified: Path, recwarn: pytest.WarningsRecorder
) -> None:
    config = json.loads((verified / "config.json").read_text())
    del config["mlxbert"]["source_card"]
    rewrite(verified, {"config.json": config})
    pushed(verified)
    assert not [warning for warning in recwarn if "metadata" in str(warning.message)]
    card = hub.repositories[REPO].files["README.md"].decode()
    assert "The license of the source is unknown" in card


def test_a_quantized_directory(hub: Hub, verified: Path) -> None:
    """Only what is said of it: the weights in this sample are not really quantized."""
    config = json.loads((verified / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4, "embeddings.word_embeddings": {"group_size": 64, "bits": 6}}
    parity = json.loads((verified / "parity.json").read_text())
    parity["quantization"] = QUANTIZATION
    rewrite(verified, {"config.json": config, "parity.json": parity})
    result = push(verified, progress=False)
    assert result.plan.repo_id == "mlx-community/tiny-mixed-5.0bit"
    card = hub.repositories[result.plan.repo_id].files["README.md"].decode()
    assert "## What quantization cost\n\n22,713,216 parameters in 14.2 MB of weights:\n5.00 bits per weight" in card
    assert "import AutoModel" not in card
    assert "| transformers (AutoModel) | **no**: it does not read MLX's quantization |" in card


def test_what_the_card_says_to_do_works(hub: Hub, verified: Path) -> None:
    pushed(verified)
    card = hub.repositories[REPO].files["README.md"].decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2  # it has no pooler, so mlx-embeddings cannot load it
    assert "from transformers import AutoModel, AutoTokenizer\n" in blocks[1]  # as tests/test_compatibility.py does
    namespace: dict[str, object] = {}
    exec(blocks[0], namespace)
    assert namespace["output"].last_hidden_state.shape[-1] == 48  # type: ignore[attr-defined]
    head = re.search(r"`(model, tokenizer = mlxbert\.load_with_head\(.*?\))`", card)
    assert head is not None
    exec(head[1], namespace)
