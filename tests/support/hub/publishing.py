"""A verified model to publish, somebody who may publish it, and what the tests check of every refusal."""

from __future__ import annotations

import shutil
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from converter.publish.push import PushResult, push
from mlxbert.errors import MLXBertError
from tests.support.hub.plugin import Hub
from tests.support.hub.repository import Repository

TOKEN = "hf_WrItErWrItErWrItErWrItErWrItErWrIt"
REPO = "mlx-community/tiny-fp32"


@pytest.fixture(scope="session")
def verified_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny masked language model, converted and compared with PyTorch; not to be written to."""
    pytest.importorskip("torch")
    from converter.convert import convert
    from tests.support.tiny import save_tiny

    folder = tmp_path_factory.mktemp("publish")
    save_tiny(folder / "tiny", "BertForMaskedLM")
    (folder / "tiny" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# The source's own\n")
    convert(folder / "tiny", folder / "out", verify=True)
    return folder / "out"


@pytest.fixture
def verified(verified_once: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(verified_once, tmp_path / "tiny"))


@pytest.fixture
def writer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """alice, who may write to mlx-community, logged in; waits are recorded, not slept."""
    import converter.publish.remote as retry

    hub.log_in(TOKEN, "alice", role="write", orgs=("mlx-community",))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=hub.waits.append))
    return TOKEN


def pushed(directory: Path, to: str | None = REPO, **options: Any) -> PushResult:
    return push(directory, to, progress=False, **options)


def refusal(directory: Path, to: str | None = REPO, **options: Any) -> str:
    """The message that a push fails with: one line, perhaps with names after it, and no token anywhere."""
    with pytest.raises(MLXBertError) as caught:
        pushed(directory, to, **options)
    return one_line(caught.value, directory)


def one_line(error: MLXBertError, directory: Path) -> str:
    """The message of an error, if it is one to show to people."""
    printed = "".join(traceback.format_exception(error))
    assert TOKEN not in printed
    assert "Signature=" not in printed
    message, *names = str(error).split("\n")
    assert all(name.startswith("  ") for name in names), str(error)
    assert len(message.replace(str(directory), "DIRECTORY")) < 300
    return str(error)


def assert_published(repo: Repository, directory: Path, *, branch: str = "main") -> None:
    """Every file of the manifest is there, byte for byte; and a card and a manifest of its own."""
    from mlxbert.files.output_file import read_manifest

    held = {path: blob.data for path, blob in repo.commits[repo.branches[branch]].items()}
    listed = read_manifest(directory)
    assert listed is not None
    assert set(held) - {".gitattributes"} == {*listed, "manifest.json"}
    for name in set(listed) - {"README.md"}:
        assert held[name] == (directory / name).read_bytes(), name
