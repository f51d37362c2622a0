"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples import packaged_minilm, packaged_mpnet

_SLOWEST_FILES = 10
_seconds: dict[str, float] = {}

pytest_plugins = [
    "tests.support.hub.plugin",
    "tests.support.hub.samples",
    "tests.support.hub.publishing",
    "tests.support.run_samples",
]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the seconds of each file: set-up, call and tear-down of its tests, on all workers."""
    file = report.location[0]
    _seconds[file] = _seconds.get(file, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the files that take the longest, so that the suite stays fast."""
    if len(_seconds) > _SLOWEST_FILES:
        terminalreporter.section(f"slowest {_SLOWEST_FILES} files")
        for file in sorted(_seconds, key=lambda file: -_seconds[file])[:_SLOWEST_FILES]:
            terminalreporter.write_line(f"{_seconds[file]:8.1f} s  {file}")


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The real sentence-transformers/all-MiniLM-L6-v2 as a Hugging Face directory; read-only."""
    try:
        return packaged_minilm.model_directory()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def mpnet_source() -> Path:
    """The real sentence-transformers/all-mpnet-base-v2 as a Hugging Face directory; read-only. For slow tests."""
    try:
        return packaged_mpnet.model_directory()
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
