"""A fresh registry of heads and losses for one test."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from heads import head_registry
from heads import losses as base


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registries as they are, restored afterwards; the next look-up discovers again."""
    head_registry.registered_heads()
    tables = [(table, dict(table)) for table in (head_registry._REGISTRATIONS, base._REGISTERED)]
    modules = set(sys.modules)
    monkeypatch.setattr(head_registry, "_DISCOVERED", [])
    monkeypatch.setattr(head_registry, "_BROKEN", {})
    monkeypatch.setattr(base, "_DISCOVERED", [])
    yield
    for table, before in tables:
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:
        del sys.modules[name]
