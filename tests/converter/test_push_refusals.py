"""What is never published, and who may not publish: each costs one line with the fix, and nothing is written."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from converter.convert import convert
from converter.publish.leaks import PublishError
from converter.publish.push import gather_evidence
from converter.publish.remote import CheckedFile, _difference
from converter.publish.sending import _operations
from mlxbert.checkpoint import read_config
from mlxbert.files.output_file import FileRecord, manifest_bytes, read_manifest
from tests.support.hub.exchange import Reply
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO, TOKEN, pushed, refusal
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("writer")


@pytest.fixture(autouse=True)
def nothing_written(hub: Hub) -> object:
    yield
    assert not hub.seen("^(POST|PUT) /(?!api/validate-yaml)")


def rewrite(directory: Path, name: str, change: Callable[[dict], dict]) -> None:
    """Change a JSON file, and the manifest with it, as somebody would who means it."""
    data = json.dumps(change(json.loads((directory / name).read_text()))).encode()
    (directory / name).write_bytes(data)
    records = read_manifest(directory) or {}
    (directory / "manifest.json").write_bytes(manifest_bytes({**records, name: FileRecord.of(data)}))


class TestEvidence:
    def test_never_compared(self, hub: Hub, tmp_path: Path) -> None:
        save_tiny(tmp_path / "source")
        convert(tmp_path / "source", tmp_path / "out", verify=False)
        message = refusal(tmp_path / "out")
        assert message == (
            f"{tmp_path}/out: the model was never compared with PyTorch; fix: mlxbert-verify {tmp_path}/out "
            "--reference PATH/TO/source, or publish it all the same with --allow-unverified, which the card will say"
        )
        plan = pushed(tmp_path / "out", allow_unverified=True, dry_run=True).plan
        assert "**Published although no comparison passed**: the model was never compared with PyTorch." in plan.card

    def test_failed(self, verified: Path) -> None:
        def fail(report: dict) -> dict:
            report["points"][0]["max_rel"] = 1.0
            return report  # "passed": true is still in it, and not believed

        rewrite(verified, "parity.json", fail)
        assert "its comparison with PyTorch FAILED (mapping gate, cumulative: embeddings: error 1.0e+00" in refusal(
            verified
        )

    @pytest.mark.parametrize("name", ["model.safetensors", "heads.safetensors"])
    def test_of_other_weights(self, name: str, verified: Path) -> None:
        with (verified / name).open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x00")
        records = {**(read_manifest(verified) or {}), name: FileRecord.of((verified / name).read_bytes())}
        (verified / "manifest.json").write_bytes(manifest_bytes(records))
        assert f"its comparison with PyTorch was of another {name}; fix: mlxbert-verify " in refusal(verified)

    def test_with_what_was_made_from_the_source_and_not_with_it(self, verified: Path) -> None:
        """`convert bert --dtype float16 -o a; convert a --dtype float32 -o b`: b was compared with a alone."""
        named = {"source": "team/bert", "revision": "a" * 40}
        rewrite(verified, "config.json", lambda config: {**config, "mlxbert": {**config["mlxbert"], **named}})
        assert refusal(verified) == (
            f"{verified}: its comparison with PyTorch was with 'tiny', not with the source that it names; fix: "
            f"mlxbert-verify {verified} --reference team/bert, or publish it all the same with --allow-unverified, "
            "which the card will say"
        )
        card = pushed(verified, allow_unverified=True, dry_run=True).plan.card
        assert "**Not proven for the source**, only for another conversion of it: compared element by" in card
        assert "Yes" not in card
        rewrite(verified, "parity.json", lambda report: {**report, "provenance": {**report["provenance"], **named}})
        assert gather_evidence(verified).unverified is None
        older = {**named, "revision": "b" * 40}
        rewrite(verified, "parity.json", lambda report: {**report, "provenance": {**report["provenance"], **older}})
        assert f"was with 'team/bert' at {'b' * 40}, not with the source that it names" in refusal(verified)

    def test_unreadable(self, verified: Path) -> None:
        rewrite(verified, "parity.json", lambda report: {"format_version": 99})
        assert "its comparison with PyTorch cannot be read (parity.json has format version 99" in refusal(verified)

    def test_a_file_changed_since(self, verified: Path) -> None:
        (verified / "vocab.txt").write_text("other\n")
        (verified / "config.json").open("a").write(" ")
        message = refusal(verified)
        assert message.startswith(
            f"{verified}: changed since it was verified; fix: restore the files, or convert again\n"
        )
        assert "  vocab.txt: 6 bytes, the manifest says" in message
        assert "  config.json: " in message

    def test_allowed_unverified_is_not_allowed_changed(self, verified: Path) -> None:
        (verified / "vocab.txt").unlink()
        assert "vocab.txt: missing" in refusal(verified, allow_unverified=True)

    def test_no_manifest(self, verified: Path) -> None:
        (verified / "manifest.json").unlink()
        assert (
            refusal(verified)
            == f"{verified}: manifest.json is missing or not mlxbert's own; fix: convert the model again"
        )

    @pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "a/../../outside.txt"])
    def test_a_manifest_that_reaches_outside(self, name: str, verified: Path) -> None:
        (verified.parent / "outside.txt").write_text("private")
        records = {**(read_manifest(verified) or {}), name: FileRecord.of(b"private")}
        (verified / "manifest.json").write_bytes(manifest_bytes(records))
        assert refusal(verified) == (
            f"{verified}: manifest.json lists a file outside of it, {name!r}; fix: convert the model again"
        )

    def test_not_converted_and_not_there(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "source")
        assert "was never converted; run: mlxbert-convert" in refusal(tmp_path / "source")
        assert "no such directory; fix: mlxbert-convert SRC -o" in refusal(tmp_path / "none")
        (tmp_path / "train.csv").write_text("id,text\n")
        assert "a file; fix: give the directory that mlxbert-convert wrote" in refusal(tmp_path / "train.csv")

    def test_a_run_names_its_models(self, verified: Path, tmp_path: Path) -> None:
        run = tmp_path / "my run"
        (run / "members").mkdir(parents=True)
        (run / "run.json").write_text("{}")
        assert refusal(run) == f"{run}: is a run without a finished model; fix: mlxbert train --resume '{run}'"
        for fold in range(2):
            shutil.copytree(verified, run / f"members/seed0-fold{fold}")
        first, second = (run / f"members/seed0-fold{fold}" for fold in range(2))
        with pytest.raises(PublishError) as caught:
            pushed(run)
        assert str(caught.value) == (
            f"{run}: is a run; fix: push a model of it: mlxbert-push '{first}' --to OWNER/NAME\nIts 2 models:\n"
            f"  {first}\n  {second}"
        )
        shutil.rmtree(second)
        assert refusal(run) == f"{run}: is a run; fix: push a model of it: mlxbert-push '{first}' --to OWNER/NAME"
        assert pushed(first, dry_run=True).status == "dry run"

    def test_what_the_manifest_does_not_list_stays_here(self, verified: Path) -> None:
        (verified / "notes.txt").write_text("private")
        (verified / "README.md").write_text("edited by hand")
        evidence = gather_evidence(verified)
        assert evidence.unlisted == ("notes.txt",)
        assert not {"notes.txt", "README.md"} & set(evidence.records)

    @pytest.mark.parametrize(
        ("value", "what"),
        [
            ("hf_" + "a1B2" * 8, "a Hugging Face token"),
            (TOKEN, "a Hugging Face token"),
            ("/home/alice/models/bert", "a path of this machine, '/home/alice/models/bert'"),
        ],
    )
    def test_a_secret_or_a_path_in_a_file(self, value: str, what: str, verified: Path) -> None:
        rewrite(verified, "tokenizer_config.json" if (verified / "tokenizer_config.json").exists() else "config.json",
                lambda config: {**config, "name_or_path": value})  # fmt: skip
        message = refusal(verified, allow_unverified=True)
        assert "must not be published; fix: convert again from a source without\n" in message
        assert message.endswith(f": {what}")


class TestNames:
    @pytest.mark.parametrize(
        "name", ["a/b--c", "a/b..c", "a/-b", "a/b.", "a/b.git", "a/" + "x" * 97, "a/b c", "a/ü", "a--b/c", "a/", "/b"]
    )
    def test_the_hubs_rules(self, name: str, verified: Path) -> None:
        message = refusal(verified, name)
        assert message.startswith(f"{name!r} ")
        assert "breaks the Hub's rules for names" in message
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        with pytest.raises(HFValidationError):
            validate_repo_id(name)

    @pytest.mark.parametrize("name", ["bert", "a/b/c", ""])
    def test_owner_and_name(self, name: str, verified: Path) -> None:
        assert "does not say whose it is: give OWNER/NAME, such as mlx-community/NAME" in refusal(verified, name)

    def test_a_pull_request_has_no_branch(self, verified: Path) -> None:
        assert "--pr and --revision: " in refusal(verified, pr=True, revision="v2")

    def test_a_head_that_was_trained_here_has_no_default(self, hub: Hub, verified: Path) -> None:
        """Named after its source, it would take the place of the conversion that it was trained from."""
        named = {"source": "google-bert/bert-base-uncased", "revision": "a" * 40, "head": {"name": "binary"}}
        rewrite(verified, "config.json", lambda config: {**config, "mlxbert": {**config["mlxbert"], **named}})
        assert refusal(verified, None, allow_unverified=True, dry_run=True) == (
            "tiny: a model with a head that was trained here has no default name; "
            "fix: --to YOUR_NAME/bert-base-uncased-binary, or another"
        )


class TestRights:
    def test_no_token(self, hub: Hub, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        assert refusal(verified) == (
            "not logged in to the Hub: run `hf auth login`, or set HF_TOKEN, with a token that may write, from "
            f"{hub.endpoint}/settings/tokens"
        )
        assert hub.requests == []

    def test_a_saved_login_will_do(self, hub: Hub, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HF_TOKEN")
        hub.home.mkdir(parents=True, exist_ok=True)
        (hub.home / "token").write_text(TOKEN)
        assert pushed(verified, confirm=lambda plan: False).status == "declined"

    def test_an_unknown_token(self, hub: Hub, verified: Path) -> None:
        hub.accounts.clear()
        message = refusal(verified)
        assert message.startswith(f"127.0.0.1:{hub.port} does not accept the token in HF_TOKEN (401): `hf auth login`")

    def test_a_token_with_a_strange_character(self, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN + "é")
        assert "the token in HF_TOKEN has a character that no token has" in refusal(verified)

    def test_a_read_only_token(self, hub: Hub, verified: Path) -> None:
        hub.log_in(TOKEN, "alice", role="read", orgs=("mlx-community",))
        assert refusal(verified) == (
            "the token in HF_TOKEN is read-only: make one with write access at "
            f"{hub.endpoint}/settings/tokens, then `hf auth login` with it"
        )

    def test_no_rights_in_the_organization(self, hub: Hub, verified: Path) -> None:
        hub.log_in(TOKEN, "bob", role="write")
        assert refusal(verified) == (
            "the token in HF_TOKEN is bob's, who may not write to 'mlx-community': join it at "
            f"{hub.endpoint}/mlx-community, propose the model with --pr, or push to your own with --to bob/tiny-fp32"
        )

    def test_no_network(self, hub: Hub, verified: Path) -> None:
        hub.stop()
        assert refusal(verified) == (
            f"No network: 127.0.0.1:{hub.port} cannot be connected to: check the connection, or set HTTPS_PROXY if "
            "you need one"
        )

    def test_a_captive_portal(self, hub: Hub, verified: Path) -> None:
        hub.inject("/api/whoami-v2", times=99, reply=Reply(body=b"<html>Welcome to the hotel</html>"))
        assert refusal(verified) == (
            f"127.0.0.1:{hub.port} does not answer like a Hugging Face Hub: check HF_ENDPOINT, or log in to your "
            "network"
        )

    def test_offline(self, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert refusal(verified) == f"HF_HUB_OFFLINE is set: unset it to push to '{REPO}'"


class TestAnotherModel:
    def publish(self, hub: Hub, directory: Path, change: Callable[[dict], dict]) -> None:
        rewrite(directory, "config.json", change)
        files = {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
        hub.add(REPO, files)

    @pytest.mark.parametrize(
        ("change", "what"),
        [
            (
                lambda c: c | {"mlxbert": {**c["mlxbert"], "source": "other"}},
                "holds another model, converted from 'other'",
            ),
            (lambda c: c | {"hidden_size": 99}, "holds another model: its hidden_size is 99"),
            (lambda c: c | {"dtype": "float16"}, "holds another model: its dtype is 'float16'"),
            (
                lambda c: c | {"quantization": {"bits": 4, "group_size": 64}},
                "holds a quantized model, and this one is not",
            ),
            (lambda c: {n: v for n, v in c.items() if n != "mlxbert"}, "holds a model that mlxbert did not convert"),
            (
                lambda c: c | {"mlxbert": {**c["mlxbert"], "original_architectures": ["BertForQuestionAnswering"]}},
                "holds another model: its original class is ['BertForQuestionAnswering']",
            ),
            (
                lambda c: c | {"mlxbert": {**c["mlxbert"], "head": {"name": "binary"}}},
                "holds another model: its trained head is 'binary', of another task",
            ),
        ],
    )
    def test_in_the_way(
        self, hub: Hub, verified: Path, verified_once: Path, change: Callable[[dict], dict], what: str
    ) -> None:
        self.publish(hub, verified, change)
        message = refusal(verified_once)
        assert message.startswith(f"'{REPO}' {what}")
        assert message.endswith("; choose another name with --to")

    @pytest.mark.parametrize(
        ("one", "other", "what"),
        [
            (
                {"quantization": {"bits": 8, "group_size": 64}},
                {"quantization": {"bits": 4, "group_size": 64}},
                "another model, in 8bit",
            ),
            (
                {"mlxbert": {"head": {"name": "multiclass", "arguments": {"classes": ["a", "b"]}}}},
                {"mlxbert": {"head": {"name": "multiclass", "arguments": {"classes": ["a", "c"]}}}},
                "its trained head is 'multiclass', of another task",
            ),
        ],
    )
    def test_of_another_packing_or_task(self, one: dict, other: dict, what: str, verified: Path) -> None:
        config = read_config(verified)

        def with_block(more: dict) -> dict:
            return {**config, **more, "mlxbert": {**config["mlxbert"], **more.get("mlxbert", {})}}

        assert what in (_difference(with_block(one), with_block(other)) or "")
        assert _difference(with_block(one), with_block(one)) is None

    def test_a_newer_revision_is_the_same_model(self, verified: Path) -> None:
        config = read_config(verified)
        newer = {**config, "mlxbert": {**config["mlxbert"], "revision": "b" * 40, "converter_version": "9.9"}}
        assert _difference(config, newer) is None

    def test_the_files_of_what_is_there_cannot_be_had(self, hub: Hub, verified: Path, verified_once: Path) -> None:
        self.publish(hub, verified, lambda c: c)
        hub.inject("/resolve/", times=99, status=503)
        message = refusal(verified_once)
        assert message.startswith(f"127.0.0.1:{hub.port} failed (503), and again when tried again")

    def test_a_public_one_and_private_asked_for(self, hub: Hub, verified: Path, verified_once: Path) -> None:
        self.publish(hub, verified, lambda c: c)
        assert refusal(verified_once, private=True) == (
            f"'{REPO}' is public, so nothing in it is private: make it private in its settings, or leave --private out"
        )

    @pytest.mark.parametrize("config", [b"not json", b"[1]", b"{}" + b" " * 5_000_000, b"[" * 99_999])
    def test_a_config_that_says_nothing(self, config: bytes, hub: Hub, verified: Path) -> None:
        hub.add(REPO, {"config.json": config})
        assert (
            refusal(verified) == f"'{REPO}' holds a model that mlxbert did not convert; choose another name with --to"
        )

    def test_weights_without_a_config(self, hub: Hub, verified: Path) -> None:
        hub.add(REPO, {"pytorch_model.bin": b"somebody's"})
        assert refusal(verified) == f"'{REPO}' holds pytorch_model.bin of another model; choose another name with --to"

    def test_nothing_to_propose_to(self, verified: Path) -> None:
        assert refusal(verified, pr=True) == (
            f"'{REPO}' is not there to propose anything to: push without --pr to make it"
        )


def test_a_push_that_is_killed_leaves_nothing_behind(
    hub: Hub, verified: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are sent from where they lie: publishing 400 MB takes no room, and no folder is made for it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    plan = pushed(verified, dry_run=True).plan
    file = CheckedFile(verified / "vocab.txt", (read_manifest(verified) or {})["vocab.txt"])
    file_operation, bytes_operation, deletion = _operations(
        replace(plan, remove=("old.txt",)), {"a/b.bin": file, "c": b"bytes"}
    )
    assert file_operation.path_or_fileobj == str(verified / "vocab.txt")
    assert bytes_operation.path_or_fileobj == b"bytes"
    assert (deletion.path_in_repo, deletion.is_folder) == ("old.txt", False)
