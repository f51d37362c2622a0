"""No key, token or private file leaves the machine with a model: each format is found wherever it lies, no word is."""

from __future__ import annotations

import json
import os
import random
import re
import string
from pathlib import Path

import pytest

from converter.convert import convert
from converter.export.checkpoint import export
from converter.publish.leaks import PublishError, refuse_leaks, secrets_in
from mlxbert.files.output_file import FileRecord, manifest_bytes, read_manifest
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import pushed, refusal

BASE62 = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8s9T0"
SECRETS = {
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n": "a private key",
    "-----BEGIN RSA PRIVATE KEY-----": "a private key",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----": "a private key",
    "-----BEGIN PRIVATE KEY-----": "a private key",
    "PuTTY-User-Key-File-3: ssh-ed25519": "a private key",
    f"hf_{BASE62[:34]}": "a Hugging Face token",
    f"ghp_{BASE62[:36]}": "a GitHub token",
    f"github_pat_{BASE62[:22]}_{BASE62}": "a GitHub token",
    f"glpat-{BASE62[:20]}": "a GitLab token",
    "xoxb-1234567890-1234567890-" + BASE62[:24]: "a Slack token",
    f"sk-{BASE62}": "an API key",
    f"sk-proj-{BASE62}_{BASE62}": "an API key",
    f"sk-ant-api03-{BASE62}": "an API key",
    "AKIAIOSFODNN7EXAMPLE": "a cloud key",
    f"AIza{BASE62[:35]}": "a cloud key",
    f"npm_{BASE62[:36]}": "an npm token",
    f"pypi-AgEIcHlwaS5vcmc{BASE62}": "a PyPI token",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.dozjgNryP4J3jVmNHl0w5N": "a signed token (JWT)",
    '{"username":"alice","key":"' + "0123456789abcdef" * 2 + '"}': "a Kaggle key",
    "machine api.example.org\n  login alice\n  password s3cret": "a password",
    "https://alice:s3cret@example.org/x": "a password",
    f"Authorization: Bearer {BASE62}": "a token",
}


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_a_secret_is_found_in_every_kind_of_file_and_not_quoted(secret: str, tmp_path: Path) -> None:
    what = SECRETS[secret]
    files = {
        "vocab.txt": f"[PAD]\n{secret}\nthe".encode(),
        "tokenizer.json": json.dumps({"model": {"vocab": {"the": 0, secret: 1}}}).encode(),
        "merges.txt": f"t h\n{secret}".encode(),
        "notes": secret.encode("utf-16"),
        "spiece.model": b"\x00\x01\xff" + secret.encode() + b"\xfe",
        "config.json": json.dumps({"task_specific_params": {"a": [secret]}}).encode(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PublishError) as caught:
            refuse_leaks(tmp_path, [name])
        assert f"  {name}: {what}" in str(caught.value)
        assert secret not in str(caught.value)


def test_a_secret_in_the_header_of_a_weight_file(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {"by": f"hf_{BASE62}"}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PublishError, match=r"model\.safetensors: a Hugging Face token$"):
        refuse_leaks(tmp_path, ["model.safetensors"])


def test_a_secret_behind_escapes(tmp_path: Path) -> None:
    for text in (r'{"a": "\u0068f_' + BASE62 + '"}', json.dumps({"a": f"one\nhf_{BASE62}"})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(PublishError, match=r"config\.json: a Hugging Face token$"):
            refuse_leaks(tmp_path, ["config.json"])


def test_words_are_no_secrets(minilm_source: Path) -> None:
    """A real vocabulary, and 20,000 words made of the letters, marks and beginnings that secrets have."""
    for name in ("vocab.txt", "tokenizer.json"):
        assert secrets_in((minilm_source / name).read_text(encoding="utf-8")) == []
    rng = random.Random(0)
    parts = [
        "hf_",
        "ghp_",
        "sk-",
        "xoxb-",
        "AKIA",
        "eyJ",
        "npm_",
        "pypi-",
        "key",
        "password",
        "machine",
        "login",
        "://",
    ]
    parts += ["PRIVATE KEY", "Bearer", "##ing", "▁the", "Ġhello", "BEGIN", "-----", ".", ":", "@", "token"]
    letters = string.ascii_letters + string.digits
    words = [
        rng.choice(parts) + "".join(rng.choices(letters, k=rng.randrange(12))) + rng.choice(["", "-", "_", ":", "/"])
        for _ in range(20_000)
    ]
    assert secrets_in("\n".join(words)) == []
    assert secrets_in(json.dumps({word: number for number, word in enumerate(words)})) == []


@pytest.mark.usefixtures("writer")
class TestPush:
    @pytest.fixture(autouse=True)
    def _nothing_written(self, hub: Hub) -> object:
        yield
        assert not hub.seen("^(POST|PUT) /(?!api/validate-yaml)")

    def listed(self, directory: Path, name: str) -> None:
        """Put a file into the manifest, as somebody would who means it to go."""
        data = (directory / name).read_bytes()
        records = {**(read_manifest(directory) or {}), name: FileRecord.of(data)}
        (directory / "manifest.json").write_bytes(manifest_bytes(records))

    def test_a_link_to_a_private_file_is_not_sent(self, verified: Path, tmp_path: Path) -> None:
        (tmp_path / "id_rsa").write_text("no format that anybody knows")
        (verified / "vocab.txt").unlink()
        (verified / "vocab.txt").symlink_to(tmp_path / "id_rsa")
        self.listed(verified, "vocab.txt")
        assert refusal(verified, allow_unverified=True) == (
            f"{verified}: links are not published, for they may lead to private files; fix: replace each by the file "
            f"itself, if that is meant\n  vocab.txt -> {tmp_path}/id_rsa"
        )

    def test_nor_is_a_file_behind_a_linked_folder(self, verified: Path, tmp_path: Path) -> None:
        (tmp_path / "private").mkdir()
        (tmp_path / "private/config.json").write_text("{}")
        (verified / "1_Pooling").symlink_to(tmp_path / "private")
        self.listed(verified, "1_Pooling/config.json")
        assert f"\n  1_Pooling -> {tmp_path}/private" in refusal(verified, allow_unverified=True)

    @pytest.mark.parametrize("name", ["manifest.json", "vocab.txt", "config.json", "parity.json"])
    def test_a_pipe_does_not_hang(self, verified: Path, name: str) -> None:
        (verified / name).unlink()
        os.mkfifo(verified / name)
        assert re.search(rf"{name}: (is a pipe, )?not a regular file", refusal(verified, allow_unverified=True))

    def test_a_key_in_a_vocabulary(self, verified: Path) -> None:
        (verified / "vocab.txt").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1r\n")
        self.listed(verified, "vocab.txt")
        assert refusal(verified, allow_unverified=True).endswith(
            "must not be published; fix: convert again from a source without\n  vocab.txt: a private key"
        )

    def test_a_model_without_any(self, verified: Path) -> None:
        assert pushed(verified, dry_run=True).status == "dry run"


def test_convert_and_export_copy_no_secret(verified: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    export(verified, source)
    words = (source / "vocab.txt").read_text().splitlines()
    for name, content in {
        "vocab.txt": "\n".join([f"ghp_{BASE62}", *words[1:]]),
        "special_tokens_map.json": json.dumps({"unk_token": f"ghp_{BASE62}"}),
    }.items():
        before = (source / name).read_bytes() if (source / name).exists() else None
        (source / name).write_text(content)
        with pytest.raises(PublishError) as caught:
            convert(source, tmp_path / "out", verify=False)
        assert str(caught.value) == (
            f"{source}: secrets would be copied into the model; fix: take them out of the source\n"
            f"  {name}: a GitHub token"
        )
        assert not (tmp_path / "out").exists()
        (source / name).unlink() if before is None else (source / name).write_bytes(before)
    (verified / "vocab.txt").write_text(f"ghp_{BASE62}")
    with pytest.raises(PublishError, match=r"vocab\.txt: a GitHub token$"):
        export(verified, tmp_path / "back")
