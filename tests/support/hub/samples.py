"""A model repository to ask for, and what the tests of mlxbert.hub check of every answer."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import pytest

from mlxbert.errors import MLXBertError
from mlxbert.hub import HubError, Snapshot, snapshot
from tests.support.hub.plugin import Hub
from tests.support.hub.repository import Repository

REPO = "team/bert"
WEIGHTS = bytes(range(256)) * 8
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": WEIGHTS,
    "vocab.txt": b"[PAD]\n[UNK]\n",
    "1_Pooling/config.json": b"{}",
    "README.md": b"# BERT\n",
    "pytorch_model.bin": b"the same again",
    "tf_model.h5": b"and again",
}
NEEDED = ["1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"]
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"


@pytest.fixture
def hub_repo(hub: Hub) -> Repository:
    """The repository `REPO` with `FILES`, on the test Hub."""
    return hub.add(REPO, FILES)


@pytest.fixture
def hub_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """A token that the Hub knows, in HF_TOKEN."""
    hub.log_in(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return TOKEN


def needed(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in NEEDED]


def everything(names: Sequence[str]) -> Sequence[str]:
    return names


def failure(hub: Hub, repo_id: str = REPO, **request: Any) -> str:
    """The message that `snapshot` fails with: one line, perhaps with names after it, and no token anywhere."""
    with pytest.raises(HubError) as caught:
        snapshot(repo_id, **{"select": needed, **request})
    assert isinstance(caught.value, MLXBertError)
    printed = "".join(traceback.format_exception(caught.value))
    assert TOKEN not in printed
    message, *names = str(caught.value).split("\n")
    assert all(name.startswith("  ") for name in names)
    assert len(message) < 240
    return str(caught.value)


def assert_holds(found: Snapshot, names: Sequence[str], files: dict[str, bytes] = FILES) -> None:
    assert {name: (found.path / name).read_bytes() for name in names} == {name: files[name] for name in names}
