"""The wheel has everything: built, unpacked, and every command run from outside the checkout."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.report_samples import write_run
from tests.support.tiny import save_tiny

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "mlxbert-convert": "converter.cli:convert",
    "mlxbert-verify": "converter.cli:verify",
    "mlxbert-export": "converter.cli:export",
    "mlxbert-push": "converter.cli:push",
    "mlxbert": "mlxbert.cli:main",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: a build leaves `build/` in its source, and takes what an earlier one left there into the wheel.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for package in ("converter", "mlxbert", "heads"):
        shutil.copytree(ROOT / package, folder / package)
    pip = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation"]
    command = [*pip, "--wheel-dir", str(folder), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert "absent from the `packages` configuration" not in done.stdout + done.stderr  # a box that users would see
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(unpacked: Path, folder: Path, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    module, function = COMMANDS[command].split(":")
    code = (
        f"import sys; sys.argv[0] = {command!r}; import {module} as module; "
        f"assert module.__file__.startswith({str(unpacked)!r}), module.__file__; module.{function}()"
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_entry_points_are_these(unpacked: Path) -> None:
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    found = configparser.ConfigParser()
    found.read_string(entry_points.read_text())
    assert dict(found["console_scripts"]) == COMMANDS
    added = {name.removeprefix("mlxbert-"): target for name, target in COMMANDS.items() if name != "mlxbert"}
    assert dict(found["mlxbert.commands"]) == added


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, unpacked: Path, tmp_path: Path) -> None:
    done = run(unpacked, tmp_path, command, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.slow
def test_convert_verify_encode_export(unpacked: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForMaskedLM")
    done = run(unpacked, tmp_path, "mlxbert-convert", "source", "--verify")
    assert done.returncode == 0, done.stderr
    assert "VERIFIED" in done.stdout
    reports = ("--html", "parity.html", "--junit", "parity.xml")
    done = run(unpacked, tmp_path, "mlxbert-verify", "mlx_models/source", "--reference", "source", *reports)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "parity.html").stat().st_size > 1000
    assert (tmp_path / "parity.xml").stat().st_size > 1000
    done = run(unpacked, tmp_path, "mlxbert", "encode", "mlx_models/source", "a b c", "x y", "-o", "out.npy")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.npy").is_file()
    done = run(unpacked, tmp_path, "mlxbert-export", "mlx_models/source", "-o", "back")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back" / "model.safetensors").is_file()


@pytest.mark.slow
def test_report(unpacked: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_run(tmp_path / "run", "binary", finished=1)
    done = run(unpacked, tmp_path, "mlxbert", "report", "run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
