"""How to install: one place says it, and what it says works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heads import command_line

ROOT = Path(__file__).parents[2]


def test_before_the_first_release_the_checkout_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "RELEASED", False)
    assert command_line.install_fix("cpu", "torch") == 'pip install ".[cpu,torch]" in a checkout of mlxbert'
    assert command_line.install_command() == 'pip install "."'
    monkeypatch.setattr(command_line, "RELEASED", True)
    assert command_line.install_fix("cpu", "torch") == 'pip install "mlxbert[cpu,torch]"'
    assert command_line.install_fix(reinstall=True) == 'pip install --force-reinstall "mlxbert"'


def test_no_other_place_says_how_to_install_mlxbert() -> None:
    """Only packages that are not ours are named by hand."""
    said = re.compile(r"pip install (?:--\S+ )*(?:\\?[\"'])?(?:mlxbert|\.)(?:\W|$)")
    files = [file for part in ("converter", "mlxbert", "heads") for file in (ROOT / part).rglob("*.*")]
    texts = {file: file.read_text("utf-8") for file in files if file.suffix in (".py", ".md", ".html")}
    found = [file for file, text in texts.items() if said.search(text)]
    assert [file.relative_to(ROOT).as_posix() for file in found] == ["heads/command_line.py"]
