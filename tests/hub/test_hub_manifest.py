"""`mlxbert.load` from the Hub: what arrives is compared with what was verified, however it travels."""

from __future__ import annotations

import errno
import json
import warnings
from pathlib import Path

import mlx.core as mx
import pytest

import mlxbert
from mlxbert.checkpoint import CheckpointError
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.hub import HubError
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO, pushed
from tests.support.hub.repository import Repository

IDS = mx.array([[2, 9, 11, 3]])
ENDLESS = b'{"format": "mlxbert-manifest", "version": 1, "files": {"a": {"size": Infinity, "sha256": ""}}}'


@pytest.fixture
def published(hub: Hub, writer: str, transfer: str, verified: Path) -> Repository:
    """The tiny model on the Hub, by LFS or by Xet."""
    pushed(verified)
    hub.requests.clear()
    return hub.repositories[REPO]


def message_of(repo_id: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(HubError) as caught:
        mlxbert.load(repo_id, revision)
    assert len(str(caught.value).split("\n")[0]) < 300
    return str(caught.value)


class TestTampered:
    @pytest.mark.parametrize("name", ["config.json", "vocab.txt", "model.safetensors", "heads.safetensors"])
    def test_a_file_changed_since(self, published: Repository, name: str) -> None:
        data = bytearray(published.files[name])
        data[-3] ^= 1
        if name == "config.json":
            data = bytearray(published.files[name].replace(b'"gelu"', b'"relu"'))
        sha = published.commit({name: bytes(data)})
        assert message_of() == (
            f"model '{REPO}' at {sha} is not what its manifest.json says: changed since it was verified; do not use "
            f"it, tell its owner, or give an earlier revision\n  {name}: SHA-256 differs from the manifest's"
        )

    def test_an_earlier_revision_is_still_good(self, published: Repository) -> None:
        good = published.branches["main"]
        published.commit({"vocab.txt": b"other\n"})
        message_of()
        mlxbert.load(REPO, revision=good)

    def test_a_file_that_is_gone_and_one_that_was_added(self, published: Repository) -> None:
        published.commit({"vocab.txt": None, "modules.json": b"[]"})
        message = message_of()
        assert "  vocab.txt: missing" in message
        assert "  modules.json: not in the manifest" in message

    def test_what_is_not_needed_may_change(self, published: Repository) -> None:
        published.commit({"README.md": b"# edited on the web\n", "picture.png": b"png"})
        mlxbert.load(REPO)

    @pytest.mark.parametrize("manifest", [b"{}", b"[" * 100_000, ENDLESS], ids=["empty", "deep", "endless"])
    def test_a_manifest_of_nonsense(self, manifest: bytes, published: Repository) -> None:
        published.commit({"manifest.json": manifest})
        assert message_of().startswith(f"model '{REPO}' has a manifest.json that is not readable: changed since")

    def test_sentence_encoder_and_head_compare_too(self, published: Repository) -> None:
        published.commit({"vocab.txt": b"other\n"})
        for load in (SentenceEncoder.from_pretrained, mlxbert.load_with_head):
            with pytest.raises(HubError, match=r"vocab\.txt: SHA-256 differs"):
                load(REPO)


class TestDamaged:
    def test_a_flipped_byte_on_the_way(self, hub: Hub, published: Repository, transfer: str) -> None:
        # The last bytes of a tensor: neither the client nor safetensors notices.
        hub.inject("^GET /storage/" if transfer == "lfs" else "^GET /xorbs/", flip=-5, times=1)
        assert message_of().startswith(
            f"model '{REPO}' was damaged on its way or in the cache; run it again, it is fetched anew\n"
        )
        model, _ = mlxbert.load(REPO)
        assert mx.isfinite(model(IDS).last_hidden_state).all()

    def test_a_cache_that_rots(self, hub: Hub, published: Repository) -> None:
        before, _ = mlxbert.load(REPO)
        (blob,) = {path.resolve() for path in hub.cache.rglob("model.safetensors")}
        data = bytearray(blob.read_bytes())
        data[-3] ^= 1
        blob.write_bytes(data)
        assert "was damaged on its way or in the cache" in message_of()
        after, _ = mlxbert.load(REPO)
        assert mx.array_equal(before(IDS).last_hidden_state, after(IDS).last_hidden_state)

    def test_a_cache_that_rots_and_cannot_be_mended(
        self, hub: Hub, published: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mlxbert.load(REPO)
        (blob,) = {path.resolve() for path in hub.cache.rglob("model.safetensors")}
        blob.write_bytes(b"x" + blob.read_bytes()[1:])

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        assert message_of() == (
            f"{blob} is damaged and cannot be removed (Permission denied): delete it, then run it again"
        )

    def test_a_dropped_download(self, hub: Hub, published: Repository, transfer: str) -> None:
        hub.inject("^GET /storage/" if transfer == "lfs" else "^GET /xorbs/", drop_after=900)
        mlxbert.load(REPO)


class TestWithoutManifest:
    def test_loads_with_a_note(self, hub: Hub, verified: Path) -> None:
        files = {p.relative_to(verified).as_posix(): p.read_bytes() for p in verified.rglob("*") if p.is_file()}
        del files["manifest.json"]
        hub.add("team/old", files)
        with pytest.warns(
            UserWarning, match=r"^model 'team/old' has no manifest.json: its files are loaded unchecked$"
        ):
            mlxbert.load("team/old")

    def test_what_another_mlx_tool_wrote(self, hub: Hub, verified: Path) -> None:
        config = json.loads((verified / "config.json").read_text())
        del config["mlxbert"]
        names = ("model.safetensors", "model.safetensors.index.json", "vocab.txt")
        files = {name: (verified / name).read_bytes() for name in names}
        hub.add("mlx-community/theirs", {**files, "config.json": json.dumps(config).encode()})
        with pytest.warns(UserWarning, match="has no manifest"):
            model, _ = mlxbert.load("mlx-community/theirs")
        local, _ = mlxbert.load(verified)
        assert mx.array_equal(model(IDS).last_hidden_state, local(IDS).last_hidden_state)

    @pytest.mark.parametrize(
        "stray", ["bert.pooler.dense.weight", "cls.predictions.bias", "embeddings.LayerNorm.gamma"]
    )
    def test_an_index_of_pytorch_shards_is_no_such_thing(self, hub: Hub, verified: Path, stray: str) -> None:
        config = json.loads((verified / "config.json").read_text())
        del config["mlxbert"]
        index = json.loads((verified / "model.safetensors.index.json").read_text())
        index["weight_map"][stray] = "model.safetensors"
        files = {
            "config.json": json.dumps(config).encode(),
            "model.safetensors.index.json": json.dumps(index).encode(),
        }
        hub.add("team/shards", {**files, "model.safetensors": b"never fetched"})
        with pytest.raises(CheckpointError, match="team/shards was never converted; run: mlxbert-convert team/shards"):
            mlxbert.load("team/shards")
        assert set(hub.downloaded()) == set(files)

    def test_a_manifest_that_holds_costs_no_note(self, published: Repository) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mlxbert.load(REPO)


def test_only_what_is_needed_is_downloaded(hub: Hub, published: Repository) -> None:
    published.commit({"onnx/model.onnx": b"x" * 99, "pytorch_model.bin": b"y" * 99})
    mlxbert.load(REPO)
    (folder,) = {path.parent for path in hub.cache.rglob("config.json")}
    held = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert held <= {
        "config.json",
        "manifest.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "heads.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    }


def test_a_full_disk(published: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    monkeypatch.setattr(file_download, "xet_get", full)
    message = message_of()
    assert message.startswith(f"The disk is full: model '{REPO}' does not fit into ")
    assert message.endswith("free some space, or set HF_HOME to another disk")
