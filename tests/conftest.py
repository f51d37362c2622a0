"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.packaged_minilm import model_directory

pytest_plugins = ["tests.hub.plugin", "tests.hub.samples", "tests.hub.publishing"]


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The real sentence-transformers/all-MiniLM-L6-v2 as a Hugging Face directory; read-only."""
    try:
        return model_directory()
    except FileNotFoundError as error:
        pytest.skip(str(error))
