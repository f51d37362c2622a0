"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.packaged_minilm import model_directory

pytest_plugins = [
    "tests.support.hub.plugin",
    "tests.support.hub.samples",
    "tests.support.hub.publishing",
    "tests.support.run_samples",
]


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The real sentence-transformers/all-MiniLM-L6-v2 as a Hugging Face directory; read-only."""
    try:
        return model_directory()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are cached below a temporary folder, not in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXBERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A read-only directory, seen by its owner, who is not root."""
    directory = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
    directory.chmod(0o555)
    try:
        yield directory
    finally:
        os.seteuid(user)
        shutil.rmtree(directory)
