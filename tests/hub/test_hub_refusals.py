"""The Hub, read side: each no of the Hub, and each hostile answer, ends in one line and writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxbert.hub import snapshot
from tests.support.hub.exchange import Reply
from tests.support.hub.plugin import Hub
from tests.support.hub.repository import Repository
from tests.support.hub.samples import FILES, NEEDED, REPO, TOKEN, WEIGHTS, assert_holds, failure, needed


class TestRefusals:
    def test_no_such_repository(self, hub: Hub) -> None:
        host = hub.endpoint.removeprefix("http://")
        for repo_id in ("no/such", "nosuch"):
            assert failure(hub, repo_id) == (
                f"model '{repo_id}' does not exist on {host} or is private (nor is there such a path): "
                "check the name; if private: `hf auth login`"
            )

    def test_no_such_repository_with_a_token(self, hub: Hub, hub_token: str) -> None:
        assert failure(hub, "no/such").endswith("check the name; your token may not see it")

    def test_a_private_repository_looks_the_same(self, hub: Hub, hub_repo: Repository) -> None:
        missing = failure(hub, "no/such").replace("no/such", REPO)
        hub_repo.private = True
        assert failure(hub) == missing

    def test_a_token_that_is_not_known(self, hub: Hub, hub_repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert failure(hub).endswith(
            "does not accept the token in HF_TOKEN (401): `hf auth login`, or remove it for public models"
        )
        monkeypatch.delenv("HF_TOKEN")
        hub.home.mkdir(exist_ok=True)
        (hub.home / "token").write_text(TOKEN)
        assert "does not accept the token that is saved on this machine (401): `hf auth login`" in failure(hub)

    @pytest.mark.parametrize("kind", ["auto", "manual"])
    def test_gated(self, hub: Hub, hub_repo: Repository, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        hub_repo.gated = kind
        expected = (
            f"model 'team/bert' is gated: accept its conditions at {hub.endpoint}/team/bert, "
            "then `hf auth login` with the same account"
        )
        assert failure(hub) == expected
        assert [r for r in hub.seen("HEAD") if r.token] == []
        hub.log_in(TOKEN)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert failure(hub) == expected
        hub_repo.granted.add(TOKEN)
        assert_holds(snapshot(REPO, select=needed), NEEDED)

    def test_a_token_without_the_right(self, hub: Hub, hub_repo: Repository, hub_token: str) -> None:
        hub.inject("/api/", status=403, message=f"Forbidden for {hub_token}")
        assert failure(hub) == (
            "the token in HF_TOKEN may not read model 'team/bert' (403): "
            f"give it access at {hub.endpoint}/settings/tokens"
        )

    def test_disabled(self, hub: Hub, hub_repo: Repository) -> None:
        hub_repo.disabled = True
        assert "model 'team/bert' was disabled on 127.0.0.1" in failure(hub)

    @pytest.mark.parametrize("revision", ["v9", "feature/x", "0" * 40])
    def test_no_such_revision(self, hub: Hub, hub_repo: Repository, revision: str) -> None:
        assert failure(hub, revision=revision) == (
            f"model 'team/bert' has no revision '{revision}': "
            f"choose a branch, tag or commit from {hub.endpoint}/team/bert"
        )

    @pytest.mark.parametrize("revision", ["", "/", "../../x", "/etc/passwd", "a..b"])
    def test_what_is_no_revision(self, hub: Hub, hub_repo: Repository, revision: str) -> None:
        assert f"{revision!r} is not a revision: give a branch" in failure(hub, revision=revision)
        assert hub.requests == []

    @pytest.mark.parametrize("repo_id", ["a/b/c", "../a", "a b", ""])
    def test_what_is_no_id(self, hub: Hub, repo_id: str) -> None:
        assert "is not the id of a model on the Hub" in failure(hub, repo_id)
        assert hub.requests == []

    def test_no_such_file(self, hub: Hub, hub_repo: Repository) -> None:
        assert failure(hub, select=lambda names: ["config.json", "model.onnx"]) == (
            f"model 'team/bert' has no such files at revision {hub_repo.branches['main']}:\n  model.onnx"
        )
        assert hub.downloaded() == []

    def test_a_file_that_went_away(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("HEAD .*vocab.txt", status=404, code="EntryNotFound")
        assert "model 'team/bert' has no file 'vocab.txt' any more" in failure(hub)

    def test_nothing_needed(self, hub: Hub, hub_repo: Repository) -> None:
        message = failure(hub, select=lambda names: [])
        assert message.startswith("model 'team/bert' holds nothing that is needed; its files are:\n  config.json\n")

    def test_what_select_raises_passes_through(self, hub: Hub, hub_repo: Repository) -> None:
        def select(names: Sequence[str]) -> list[str]:
            raise LookupError("no weights among " + names[0])

        with pytest.raises(LookupError, match=r"no weights among config.json"):
            snapshot(REPO, select=select)

    def test_another_status_quotes_the_server_without_secrets(
        self, hub: Hub, hub_repo: Repository, hub_token: str
    ) -> None:
        text = f"no {hub_token} and no https://me:secret@x.org/a?token=secret"
        hub.inject("/api/", status=418, message=text)
        assert failure(hub) == (
            f"{hub.endpoint.removeprefix('http://')} refused model 'team/bert' (418 I'm a Teapot): "
            "no <token> and no https://x.org/a"
        )


class TestHostileAnswers:
    @pytest.mark.parametrize(
        "name",
        [
            *("../evil", "a/../../evil", "/tmp/evil", "..", ""),
            *("..\\evil", "C:\\evil", "D:evil", "\\\\host\\evil", "evil\0.txt"),
        ],
    )
    def test_a_name_that_leads_out_of_the_cache(self, hub: Hub, name: str, tmp_path: Path) -> None:
        hub.add(REPO, {**FILES, name: b"evil"})

        def select(names: Sequence[str]) -> Sequence[str]:
            raise AssertionError("the listing must be refused before it is used")

        assert f"model 'team/bert' lists a file outside of itself, {name!r}" in failure(hub, select=select)
        assert hub.downloaded() == []
        assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]

    def test_a_name_that_is_not_in_the_second_listing(self, hub: Hub, hub_repo: Repository) -> None:
        entry = {"type": "file", "oid": "0" * 40, "size": 4, "path": "config.json"}
        hub.inject("/tree/", reply=Reply.json([entry]))
        assert failure(hub, select=lambda names: ["config.json", "vocab.txt"]) == (
            "model 'team/bert' was not downloaded whole; run it again. Missing:\n  vocab.txt"
        )

    def test_a_name_that_appears_in_the_second_listing_only(
        self, hub: Hub, hub_repo: Repository, tmp_path: Path
    ) -> None:
        entries = [
            {"type": "file", "oid": "0" * 40, "size": 4, "path": n} for n in ("../../../../evil", "config.json")
        ]
        hub.inject("/tree/", times=9, reply=Reply.json(entries))
        found = snapshot(REPO, select=lambda names: ["config.json"])
        assert_holds(found, ["config.json"])
        message = failure(hub, revision=found.revision)  # that listing is in the cache now
        assert "lists a file outside of itself, '../../../../evil'" in message
        assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]

    @pytest.mark.parametrize("sha", ["../../../../evil", "main", "A" * 40, 7])
    def test_a_commit_that_is_none(self, hub: Hub, sha: Any, tmp_path: Path) -> None:
        hub.inject("/api/", reply=Reply.json({"id": REPO, "sha": sha, "siblings": [{"rfilename": "config.json"}]}))
        assert "does not answer like a Hugging Face Hub: check HF_ENDPOINT" in failure(hub)
        assert not hub.cache.exists()
        assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(200, {"Content-Type": "text/html"}, b"<html>Please log in to the hotel's network</html>"),
            Reply.json({"error": "?"}),
            Reply.json([]),
            Reply.json({"id": REPO, "siblings": []}),
        ],
    )
    def test_what_is_not_a_hub(self, hub: Hub, reply: Reply) -> None:
        hub.inject("/api/", reply=reply)
        assert failure(hub) == (
            f"{hub.endpoint.removeprefix('http://')} does not answer like a Hugging Face Hub: check HF_ENDPOINT, "
            "or log in to your network"
        )

    def test_a_file_served_without_the_hubs_headers(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("HEAD .*vocab.txt", reply=Reply(200, {}, b"<html>"))
        assert "does not answer like a Hugging Face Hub: check HF_ENDPOINT" in failure(hub)

    def test_a_file_of_another_length(self, hub: Hub, hub_repo: Repository) -> None:
        hub.inject("GET /storage/", reply=Reply(200, {}, WEIGHTS[:100]))
        assert failure(hub) == "A file of model 'team/bert' arrived with a length that is not its own: run it again"
        assert not list(hub.cache.rglob("*.incomplete"))
