"""Answers of the Hub that are of another shape, have no end, or name what no file is called: a line each."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mlxbert.hub import snapshot
from tests.support.hub.exchange import Reply
from tests.support.hub.plugin import Hub
from tests.support.hub.publishing import REPO as PUSHED
from tests.support.hub.publishing import pushed, refusal
from tests.support.hub.samples import FILES, REPO, failure

NOT_A_HUB = "does not answer like a Hugging Face Hub: check HF_ENDPOINT, or log in to your network"
SHA = "a" * 40
MODEL: dict[str, Any] = {"id": REPO, "sha": SHA, "private": False, "siblings": [{"rfilename": "config.json"}]}
ENTRY: dict[str, Any] = {"type": "file", "path": "config.json", "size": 4, "oid": "0" * 40}
ANYTHING = [None, 7, "x", [], [7], {}, {"a": 1}]


def refused_each(hub: Hub, where: str, answers: Iterable[Any], ask: Callable[[], str], end: str = NOT_A_HUB) -> None:
    """Each of these values in place of an answer ends in the line."""
    for answer in answers:
        hub.heal()
        hub.inject(where, times=99, reply=answer if isinstance(answer, Reply) else Reply.json(answer))
        assert ask().endswith(end), answer


def endless() -> Reply:
    """100 kB that inflate to 100 MB of JSON."""
    packer = zlib.compressobj(1, wbits=31)
    body = packer.compress(b"[" + b" " * (100 << 20)) + packer.flush()
    return Reply(200, {"Content-Type": "application/json", "Content-Encoding": "gzip"}, body)


class TestDownload:
    def test_a_listing_of_another_shape(self, hub: Hub) -> None:
        siblings = [{**MODEL, "siblings": value} for value in (7, "x", [7], [{}], [[]], [{"rfilename": None}])]
        commits = [{**MODEL, "sha": value} for value in (None, [], {}, "a" * 39)]
        replies = [Reply(body=b"[" * 200_000), Reply(body=b"\xff\xfe"), endless()]
        refused_each(hub, "/api/", [*ANYTHING, *siblings, *commits, *replies], lambda: failure(hub))

    @pytest.mark.parametrize("name", ["a\x1b]0;x\x07", "a\nb", "a\u202etxt.gpj"])
    def test_a_name_that_no_file_has(self, hub: Hub, name: str) -> None:
        hub.add(REPO, {**FILES, name: b""})
        message = failure(hub)
        assert message.startswith("model 'team/bert' lists a name that no file has, 'a")
        assert message.isprintable()

    def test_a_name_that_comes_twice(self, hub: Hub) -> None:
        twice = [{"rfilename": "config.json"}] * 2
        hub.inject("/api/", reply=Reply.json({**MODEL, "siblings": twice}))
        assert failure(hub) == (
            "model 'team/bert' lists a name twice, 'config.json': do not trust it, nothing was read"
        )

    def test_a_file_may_be_larger_than_an_answer(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlxbert.hub_client as listing

        monkeypatch.setattr(listing, "_ANSWER_BYTES", 2000)
        hub.add(REPO, {"config.json": b"{}", "vocab.txt": b"x" * 5000})
        found = snapshot(REPO, select=lambda names: [name for name in names if name == "vocab.txt"])
        assert (found.path / "vocab.txt").stat().st_size == 5000


@pytest.mark.usefixtures("writer")
class TestPush:
    def test_who_asks(self, hub: Hub, verified: Path) -> None:
        answers = [{"name": 7}, {"name": "../a"}, {"name": "alice", "orgs": 7}, {"name": "alice", "orgs": {"a": 1}}]
        refused_each(hub, "/api/whoami-v2", [*ANYTHING, *answers], lambda: refusal(verified))

    def test_what_the_repository_is(self, hub: Hub, verified: Path) -> None:
        answers = [{**MODEL, "sha": None}, {**MODEL, "sha": 7}, {**MODEL, "sha": "x"}, {**MODEL, "private": "no"}]
        refused_each(hub, f"GET /api/models/{PUSHED}$", [*ANYTHING, *answers], lambda: refusal(verified))

    def test_what_is_in_the_repository(self, hub: Hub, verified: Path) -> None:
        hub.add(PUSHED, {".gitattributes": b""})
        answers: list[Any] = [7, "x", [7], ["x"], [None], [[]], [{}], [{"type": "file"}]]
        for name, values in {"size": (None, "4", []), "oid": (None, 7), "path": (None, 7)}.items():
            answers += [[{**ENTRY, name: value}] for value in values]
        lfs = (7, "x", [1], {"size": 4}, {"size": 4, "oid": 7, "pointerSize": 1})
        answers += [[{**ENTRY, "lfs": value}] for value in lfs]
        refused_each(hub, "/tree/", answers, lambda: refusal(verified))

    def test_a_name_in_the_repository(self, hub: Hub, verified: Path) -> None:
        hub.add(PUSHED, {".gitattributes": b""})
        names = ["../x", "/x", "a\\b", "", "a\x1b[2J"]
        answers = [*([{**ENTRY, "path": name}] for name in names), [ENTRY, ENTRY]]
        refused_each(hub, "/tree/", answers, lambda: refusal(verified), "do not trust it, nothing was read")

    @pytest.mark.parametrize("where", ["/api/whoami-v2", f"GET /api/models/{PUSHED}", "/tree/", "GET .*/resolve/"])
    def test_an_answer_without_an_end(self, hub: Hub, verified: Path, where: str) -> None:
        hub.add(PUSHED, {"config.json": b"{}"})
        hub.inject(where, times=9, reply=endless())
        assert refusal(verified)

    def test_pages_without_an_end(self, hub: Hub, verified: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import mlxbert.hub_client as listing

        monkeypatch.setattr(listing, "_ANSWERS", 20)
        hub.add(PUSHED, {".gitattributes": b""})
        link = {"Link": f'<{hub.endpoint}/api/models/{PUSHED}/tree/{SHA}?page=2>; rel="next"'}
        hub.inject("/tree/", times=999, reply=Reply.json([], headers=link))
        assert refusal(verified).endswith(NOT_A_HUB)
        assert len(hub.seen("/tree/")) < 30

    def test_a_repository_that_is_made(self, hub: Hub, verified: Path) -> None:
        refused_each(hub, "POST /api/repos/create", ANYTHING, lambda: refusal(verified))

    def test_a_commit(self, hub: Hub, verified: Path) -> None:
        answers = [*ANYTHING, {"commitOid": 7, "success": True}]
        refused_each(hub, "POST .*/commit/", answers, lambda: refusal(verified))

    def test_pull_requests(self, hub: Hub, verified: Path) -> None:
        hub.add(PUSHED, {".gitattributes": b""})
        answers = [*ANYTHING, {"count": 1, "start": 0, "discussions": [{"num": "x"}]}, {"count": "x"}]
        refused_each(hub, "GET .*/discussions", answers, lambda: refusal(verified, pr=True))

    def test_a_good_hub_is_none_of_these(self, hub: Hub, verified: Path) -> None:
        assert pushed(verified).status == "pushed"
