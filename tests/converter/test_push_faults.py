"""Everything that can go wrong on the way, by LFS and by Xet: told in one line, or mended, and never half believed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO, assert_published, pushed, refusal
from tests.support.hub.repository import GITATTRIBUTES, Repository

pytestmark = pytest.mark.usefixtures("writer", "transfer")

COMMIT = "^POST /api/models/.*/commit/"


def upload_of(transfer: str) -> str:
    """The request that carries the weights."""
    return "^PUT /lfs/" if transfer == "lfs" else "^POST /cas/v1/xorbs/"


class TestCommit:
    def test_an_answer_that_got_lost_is_recognized(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject(COMMIT, lose=True)
        result = pushed(verified)
        repo = hub.repositories[REPO]
        assert result.status == "recognised"
        assert result.commit == repo.branches["main"]
        assert len(repo.commits) == 2
        assert_published(repo, verified)
        assert len(hub.seen(COMMIT)) == 1

    def test_so_is_that_of_a_pull_request(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.add(REPO, {".gitattributes": b""})
        hub.inject(COMMIT, lose=True)
        result = pushed(verified, pr=True)
        assert result.url == f"{hub.endpoint}/{REPO}/discussions/1"
        assert len(hub.repositories[REPO].pull_requests) == 1
        assert_published(hub.repositories[REPO], verified, branch="refs/pr/1")

    def test_a_push_by_somebody_else_in_between(self, hub: Hub, verified: Path) -> None:
        theirs = {"notes.md": b"theirs"}
        hub.inject(COMMIT, before=lambda: hub.repositories[REPO].commit(theirs))
        message = refusal(verified)
        assert message == (
            f"'{REPO}' was pushed to by somebody else meanwhile; nothing of yours was written: look at it, push again"
        )
        files = hub.repositories[REPO].files
        assert set(files) == {".gitattributes", "notes.md"}
        assert pushed(verified).status == "pushed"

    def test_a_listing_that_fails_after_the_commit(self, hub: Hub, verified: Path) -> None:
        begun = Repository(REPO).commit({".gitattributes": GITATTRIBUTES}, message="initial commit")
        hub.inject(f"/tree/(?!{begun})", times=99, status=503)
        message = refusal(verified)
        commit = hub.repositories[REPO].branches["main"]
        assert message.startswith(
            f"'{REPO}' has commit {commit} with your files, but what arrived could not be compared: push again, which "
            f"compares it (127.0.0.1:{hub.port} failed (503)"
        )
        hub.heal()
        assert pushed(verified).status == "unchanged"

    def test_a_failure_that_passes(self, hub: Hub, verified: Path) -> None:
        hub.inject(COMMIT, status=503)
        assert pushed(verified).status == "pushed"
        assert len(hub.repositories[REPO].commits) == 2

    def test_a_failure_that_stays(self, hub: Hub, verified: Path) -> None:
        hub.inject(COMMIT, times=99, status=502)
        assert refusal(verified) == (
            f"127.0.0.1:{hub.port} failed (502), and again when tried again: push again later, "
            "what arrived is not sent twice"
        )
        assert set(hub.repositories[REPO].files) == {".gitattributes"}

    @pytest.mark.parametrize(
        ("status", "text"),
        [
            (401, "does not accept the token in HF_TOKEN (401)"),
            (403, "may not write to 'mlx-community/tiny-fp32' (403): give it write access to 'mlx-community'"),
            (404, "does not exist on"),
            (409, "is busy with another change"),
            (413, "finds the upload too large (413)"),
            (429, "allows no more requests for now (429)"),
            (400, "refused the push to 'mlx-community/tiny-fp32' (400): Injected"),
        ],
    )
    def test_a_refusal(self, hub: Hub, verified: Path, status: int, text: str) -> None:
        hub.inject(COMMIT, times=99, status=status)
        assert text in refusal(verified)


class TestChangedMeanwhile:
    def test_while_it_was_asked(self, hub: Hub, verified: Path) -> None:
        def spoil(plan: object) -> bool:
            (verified / "model.safetensors").write_bytes(b"other weights")
            return True

        assert refusal(verified, confirm=spoil) == (
            f"{verified}/model.safetensors: changed while it was being published; nothing was sent: push again"
        )
        assert hub.repositories == {}

    def test_on_the_way(self, hub: Hub, verified: Path) -> None:
        vocabulary = (verified / "vocab.txt").read_bytes()
        hub.inject("/preupload/", before=lambda: (verified / "vocab.txt").write_bytes(vocabulary.swapcase()))
        message = refusal(verified)
        assert "is not what was sent; do not use it, push again\n  vocab.txt" in message

    @pytest.mark.parametrize("files", [{"README.md": b"# Theirs"}, {"model.safetensors": b"theirs"}])
    def test_somebody_makes_the_repository_first(self, files: dict[str, bytes], hub: Hub, verified: Path) -> None:
        def meanwhile(plan: object) -> bool:
            hub.add(REPO, files)
            return True

        assert refusal(verified, confirm=meanwhile) == (
            f"'{REPO}' was pushed to by somebody else meanwhile; nothing of yours was written: look at it, push again"
        )
        assert hub.repositories[REPO].files == files

    def test_somebody_makes_a_public_one_first(self, hub: Hub, verified: Path) -> None:
        def meanwhile(plan: object) -> bool:
            hub.add(REPO, {".gitattributes": b""})
            return True

        assert refusal(verified, private=True, confirm=meanwhile).startswith(f"'{REPO}' is public, so nothing in it")
        assert set(hub.repositories[REPO].files) == {".gitattributes"}


class TestUpload:
    def test_a_connection_dropped_on_the_way(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject(upload_of(transfer), cut_sent=1000)
        assert pushed(verified).status == "pushed"
        assert_published(hub.repositories[REPO], verified)

    def test_dropped_again_and_again(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject(upload_of(transfer), times=99, cut_sent=1000)
        message = refusal(verified)
        assert "push again, what has arrived is not sent twice" in message
        assert set(hub.repositories[REPO].files) == {".gitattributes"}

    def test_a_flipped_byte(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject(upload_of(transfer) + (".*" if transfer == "lfs" else ""), flip_sent=700, times=99)
        message = refusal(verified)
        if transfer == "lfs":  # nobody notices but we
            assert message.startswith(f"'{REPO}': what arrived at commit ")
            assert ".safetensors" in message
        else:  # the storage itself compares
            assert message == (
                f"localhost:{hub.port} found that what arrived for '{REPO}' is not what was sent (400): push again"
            )
            assert set(hub.repositories[REPO].files) == {".gitattributes"}

    def test_and_the_next_push_mends_it(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject(upload_of(transfer), flip_sent=700)
        if transfer == "lfs":
            refusal(verified)
        assert pushed(verified).status == "pushed"
        assert_published(hub.repositories[REPO], verified)

    def test_a_storage_that_refuses(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject(upload_of(transfer), times=99, status=403)
        message = refusal(verified)
        assert "403" in message
        assert set(hub.repositories[REPO].files) == {".gitattributes"}

    def test_no_token_for_the_storage(self, hub: Hub, verified: Path, transfer: str) -> None:
        hub.inject("xet-write-token|/objects/batch", times=99, status=403)
        assert "403" in refusal(verified)


class TestBefore:
    @pytest.mark.parametrize(
        "route", ["/api/whoami-v2", "/api/repos/create", "GET /api/models/", "/tree/", "/preupload/", "/validate-yaml"]
    )
    def test_a_failure_that_passes_is_ridden_out(self, hub: Hub, verified: Path, route: str) -> None:
        hub.inject(route, status=503)
        assert pushed(verified).status == "pushed"
        assert len(hub.repositories[REPO].commits) == 2

    def test_a_new_repository_whose_answer_got_lost(self, hub: Hub, verified: Path) -> None:
        hub.inject("/api/repos/create", lose=True)
        assert pushed(verified).status == "pushed"
        assert len(hub.seen("/api/repos/create")) == 2

    def test_no_right_to_make_it(self, hub: Hub, verified: Path) -> None:
        hub.inject("/api/repos/create", status=403, message="You don't have the rights")
        assert "may not write to 'mlx-community/tiny-fp32' (403)" in refusal(verified)

    def test_a_card_that_the_hub_refuses(self, hub: Hub, verified: Path) -> None:
        from tests.support.hub.exchange import Reply

        answer = Reply.json({"errors": [{"message": '"license" must be one of [mit]'}], "warnings": []}, 400)
        hub.inject("/validate-yaml", reply=answer)
        assert refusal(verified) == (
            f'127.0.0.1:{hub.port} refuses the card\'s metadata: "license" must be one of [mit]; nothing was sent'
        )

    def test_a_listing_that_is_refused(self, hub: Hub, verified: Path) -> None:
        pushed(verified)
        hub.inject("/tree/", times=99, status=429)
        assert "allows no more requests for now (429)" in refusal(verified)
