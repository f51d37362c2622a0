from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mlxbert.backend.kernels import kernel_folder


def test_each_process_compiles_its_kernels_in_a_private_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert kernel_folder(0) == tmp_path
    for _ in range(2):  # it is kept for the next training
        assert kernel_folder(2) == tmp_path / f"mlxbert-{os.getuid()}-process2"
        assert kernel_folder(2).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["link", "file"])
def test_what_others_may_have_put_there_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, what: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    foreign = tmp_path / f"mlxbert-{os.getuid()}-process1"
    foreign.symlink_to(tmp_path) if what == "link" else foreign.write_text("")
    assert kernel_folder(1) not in (foreign, tmp_path)
    assert kernel_folder(1).is_dir()
