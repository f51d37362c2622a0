"""Damaged answers of a Hub: downloads and publications against the test Hub, one of whose replies is hostile."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.damage import ESCAPE, damaged_bytes, damaged_json
from tests.support.hub.exchange import Reply, Request
from tests.support.hub.plugin import Hub, connected

TOKEN = "hf_WrItErWrItErWrItErWrItErWrItErWrIt"
_HEADERS = ("etag", "x-repo-commit", "x-linked-etag", "x-linked-size", "location", "link", "x-error-message")
_VALUES = ("", "x", '"../../x"', "9" * 40, "-1", "a" * 4000, "http://127.0.0.1:9/x", "<http://127.0.0.1:9>; rel=next")


def damaged_reply(reply: Reply, rng: random.Random) -> Reply:
    """Another status, header, JSON value or body than the honest ones."""
    chance = rng.random()
    if chance < 0.6 and reply.body[:1] in (b"{", b"["):
        return replace(reply, body=json.dumps(damaged_json(json.loads(reply.body), rng)).encode())
    if chance < 0.75:
        return replace(reply, headers={**reply.headers, rng.choice(_HEADERS): rng.choice(_VALUES)})
    if chance < 0.85:
        status = rng.choice((204, 206, 301, 400, 401, 403, 404, 409, 412, 416, 418, 429, 500, 503))
        return Reply.error(status, f"No {ESCAPE!r} {'x' * rng.choice((0, 5000))}")
    return replace(reply, body=damaged_bytes(reply.body, rng))


def target(samples: Path, place: Path, rng: random.Random) -> Callable[[], object]:
    """A repository is loaded, or a directory published, while one answer (or each of a kind) is damaged."""
    downloads = rng.random() < 0.5
    at, seed = rng.randrange(6 if downloads else 14), rng.getrandbits(32)

    def use() -> None:
        with pytest.MonkeyPatch.context() as patch:
            _against_the_hub(patch, samples, place, downloads, at, random.Random(seed))

    return use


def _against_the_hub(
    patch: pytest.MonkeyPatch, samples: Path, place: Path, downloads: bool, at: int, rng: random.Random
) -> None:
    import mlxbert
    from converter.publish import remote as retry
    from converter.publish.push import push

    with connected(patch, place / "out") as hub:
        patch.setattr(retry, "time", type("Clock", (), {"sleep": hub.waits.append}))
        hub.xet = False
        _damage(hub, at, rng)
        directory = samples / "converted" / "float32"
        if downloads:
            files = [one for one in directory.rglob("*") if one.is_file()]
            hub.add("team/bert", {one.relative_to(directory).as_posix(): one.read_bytes() for one in files})
            mlxbert.load("team/bert")
        else:
            hub.log_in(TOKEN, "alice", role="write", orgs=("mlx-community",))
            patch.setenv("HF_TOKEN", TOKEN)
            push(directory, "mlx-community/tiny-fp32", allow_unverified=True, progress=False)


def _damage(hub: Hub, at: int, rng: random.Random) -> None:
    honest, count = hub.answer, 0

    def answer(request: Request) -> Reply:
        nonlocal count
        reply, count = honest(request), count + 1
        return damaged_reply(reply, rng) if count - 1 == at else reply

    hub.answer = answer  # type: ignore[method-assign]
