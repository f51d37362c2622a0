"""The Hub, read side: what is an id, and what is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlxbert.hub import is_repo_id, snapshot
from tests.support.hub.plugin import Hub
from tests.support.hub.repository import Repository
from tests.support.hub.samples import FILES, NEEDED, REPO, assert_holds, everything, needed


class TestRepoId:
    @pytest.mark.parametrize("text", ["bert-base-uncased", "google/bert_uncased_L-2", "a/b.c", "123", "_x", "x" * 96])
    def test_is_an_id(self, text: str) -> None:
        assert is_repo_id(text)

    @pytest.mark.parametrize(
        "text",
        [
            *(
                "",
                ".",
                "..",
                "/a",
                "./a",
                "../a",
                "~/a",
                "a/",
                "a/b/c",
                "a\\b",
                "a b",
                "C:\\bert",
                "a:b",
                "org/name\n",
            ),
            *("a--b", "a..b", "a.git", "é", "x" * 97, "a-", "a.", "-a", ".a", "a/.b"),
            *("model.safetensors", "out/pytorch_model.bin"),
        ],
    )
    def test_is_no_id(self, text: str) -> None:
        assert not is_repo_id(text)

    def test_what_exists_is_a_path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert is_repo_id("out/bert")
        (tmp_path / "out" / "bert").mkdir(parents=True)
        assert not is_repo_id("out/bert")
        assert not is_repo_id("out")

    @pytest.mark.parametrize(
        "text", ["a", "a/b", "a/b/c", "a--b", "-a", "a-", "a/-b", "a.git", "x" * 97, "é", "a\n", "_"]
    )
    def test_agrees_with_the_client(self, text: str) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(text)
            valid = True
        except HFValidationError:
            valid = False
        assert is_repo_id(text) is valid


class TestDownload:
    def test_only_the_needed_files_are_fetched(self, hub: Hub, hub_repo: Repository) -> None:
        asked: list[Sequence[str]] = []

        def select(names: Sequence[str]) -> list[str]:
            asked.append(names)
            return needed(names)

        found = snapshot(REPO, select=select)
        assert found.revision == hub_repo.branches["main"]
        assert found.repo_id == REPO
        assert sorted(asked[0]) == sorted(FILES)
        assert len(asked) == 1
        assert hub.downloaded() == NEEDED
        assert_holds(found, NEEDED)
        assert sorted(p.relative_to(found.path).as_posix() for p in found.path.rglob("*") if p.is_file()) == NEEDED
        assert found.path.is_relative_to(hub.cache.resolve())

    def test_a_second_time_asks_for_the_commit_alone(self, hub: Hub, hub_repo: Repository) -> None:
        first = snapshot(REPO, select=needed)
        hub.requests.clear()
        assert snapshot(REPO, select=needed) == first
        assert [str(request) for request in hub.requests] == [f"GET /api/models/{REPO}"]

    def test_a_known_commit_asks_nothing(self, hub: Hub, hub_repo: Repository) -> None:
        first = snapshot(REPO, select=needed)
        hub.requests.clear()
        assert snapshot(REPO, revision=first.revision, select=needed) == first
        assert hub.requests == []

    def test_more_is_needed_later(self, hub: Hub, hub_repo: Repository) -> None:
        snapshot(REPO, select=needed)
        hub.requests.clear()
        found = snapshot(REPO, select=everything)
        assert hub.downloaded() == sorted(set(FILES) - set(NEEDED))
        assert_holds(found, list(FILES))

    def test_branch_tag_and_commit(self, hub: Hub, hub_repo: Repository) -> None:
        first = hub_repo.branches["main"]
        hub_repo.tags["v1"] = first
        second = hub_repo.commit({"config.json": b"{2}"})
        third = hub_repo.commit({"config.json": b"{3}"}, branch="refs/pr/1")
        for revision, commit, text in [
            ("v1", first, FILES["config.json"]),
            (first, first, FILES["config.json"]),
            ("main", second, b"{2}"),
            (None, second, b"{2}"),
            (second[:8], second, b"{2}"),
            ("refs/pr/1", third, b"{3}"),
        ]:
            found = snapshot(REPO, revision=revision, select=needed)
            assert found.revision == commit
            assert (found.path / "config.json").read_bytes() == text

    def test_a_push_in_between_is_not_mixed_in(self, hub: Hub, hub_repo: Repository) -> None:
        commit = hub_repo.branches["main"]
        pushes = iter(range(100))

        def push() -> None:
            hub_repo.commit({"config.json": b"{%d}" % next(pushes), "model.safetensors": b"other", "vocab.txt": None})
            hub_repo.commit({"vocab.txt": b"other"})

        hub.inject(r"tree|resolve", times=1000, before=push)
        found = snapshot(REPO, select=needed)
        assert next(pushes) == 2 * len(NEEDED)  # the tree, a HEAD for each, a GET for each that is not LFS
        assert found.revision == commit
        assert_holds(found, NEEDED)
        assert {match.path.split("/resolve/")[1][:40] for match in hub.seen(" /team/bert/resolve/")} == {commit}

    def test_lfs_comes_from_another_origin_without_the_token(
        self, hub: Hub, hub_repo: Repository, hub_token: str
    ) -> None:
        hub_repo.private = True
        hub_repo.readers.add(hub_token)
        found = snapshot(REPO, select=needed)
        assert_holds(found, NEEDED)
        (stored,) = hub.seen("GET /storage/")
        assert stored.host.startswith("localhost:")
        assert "authorization" not in stored.headers
        others = [request for request in hub.requests if request is not stored]
        assert {request.token for request in others} == {hub_token}
        assert {request.host.partition(":")[0] for request in others} == {"127.0.0.1"}

    def test_an_old_name_leads_to_the_new_one(self, hub: Hub) -> None:
        files = {**FILES, "config.json": b"google"}
        hub.add("google-bert/bert-base-uncased", files)
        hub.renamed["bert-base-uncased"] = "google-bert/bert-base-uncased"
        found = snapshot("bert-base-uncased", select=needed)
        assert_holds(found, NEEDED, files)
        hub.stop()
        assert snapshot("bert-base-uncased", select=needed) == found

    def test_pages_and_odd_names(self, hub: Hub) -> None:
        hub.page_size = 3
        files = {f"a/{i}/ü [x]*?#%41 {i}.txt": b"%d" % i for i in range(10)} | {"a/1/ü x .txt": b"no"}
        hub.add(REPO, files)
        wanted = sorted(name for name in files if "[x]" in name)
        found = snapshot(REPO, select=lambda names: [name for name in names if "[x]" in name])
        assert len(hub.seen("/tree/")) == 8  # 11 files and 11 folders
        assert hub.downloaded() == wanted
        assert_holds(found, wanted, files)

    @pytest.mark.parametrize(("wanted", "shown"), [(True, True), (False, False)])
    def test_progress_bars_on_a_terminal_when_wanted(
        self, hub: Hub, hub_repo: Repository, wanted: bool, shown: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        snapshot(REPO, select=needed, progress=wanted)
        assert ("Fetching 4 files" in capsys.readouterr().err) is shown

    def test_no_progress_bars_in_a_log_file(self, hub: Hub, hub_repo: Repository, capsys: Any) -> None:
        snapshot(REPO, select=needed)
        assert capsys.readouterr().err == ""
