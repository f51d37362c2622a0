"""The commands at their edges: odd paths, closed pipes, Ctrl-C, no backend; each with its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import converter.convert
import converter.verify
from converter.cli import convert, export, verify
from heads.install import install_fix
from mlxbert.cli import main
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the current directory, as a newcomer has it."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "source")
    return Path("source")


def run(command: click.Command, *arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def start(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # A test run in the background (`make test &`) ignores SIGINT, and so would its children.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=listening, **options
    )


CONVERT = "from converter.cli import convert; convert()"


@pytest.mark.parametrize("name", ["with space", "ünï 模型", "[red]x[/red]", "y[/y]", "it's", "$(x)"])
def test_the_next_step_can_be_copied_whatever_the_path(name: str, source: Path) -> None:
    result = run(convert, source, "-o", name, "--no-verify")
    assert result.exit_code == 0, result.output
    assert f"Written   {name}\n" in result.stdout
    python = re.search(r"mlxbert\.load\((.*)\)", result.stdout)
    assert python is not None
    assert json.loads(python[1]) == name
    command = re.search(r"mlxbert encode (.*) \"A sentence", result.stdout)
    assert command is not None
    shell = subprocess.run(f"printf %s {command[1]}", shell=True, capture_output=True, text=True, check=True)
    assert shell.stdout == name


def test_no_line_is_folded_and_no_extra_is_taken_for_markup(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(converter.convert.importlib.util, "find_spec", lambda name: None)
    result = run(convert, source, "-o", "out")
    assert result.exit_code == 0, result.output
    line = f"Parity    NOT VERIFIED: torch and transformers are not installed; {install_fix('torch')}"
    assert line in result.stdout.splitlines()


def test_numbers_and_verdicts_stand_on_a_narrow_terminal(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("COLUMNS", "30")
    result = run(convert, source, "-o", "out", "--verify")
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    assert re.search(r"encoder\.layer\.2 .* ok", result.stdout)


def test_a_tilde_is_the_home_directory(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert run(convert, source, "-o", "~/out", "--no-verify").exit_code == 0
    assert run(export, "~/out", "-o", "~/back").exit_code == 0
    assert run(main, "encode", "~/out", "w1", "-o", "~/x.npy").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["back", "out", "x.npy"]
    assert not Path("~").exists()
    assert run(convert, "~no-such-user/model").exit_code == 2


def test_a_name_that_is_no_text_is_written_all_the_same(source: Path) -> None:
    result = run(convert, source, "-o", "bad\udcff", "--no-verify")
    assert result.exit_code == 0, result.output
    assert r"# bad\udcff" in (Path("bad\udcff") / "README.md").read_text(encoding="utf-8")


def test_what_importing_mlxbert_refuses_costs_one_line(source: Path) -> None:
    process = start(CONVERT, source, env={"MLXBERT_BLAS": "banana"})
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert process.wait() == 2
    assert len(lines) == 1
    assert "error: MLXBERT_BLAS='banana' is not known; fix: " in lines[0]


def test_without_a_backend_one_line_says_which_extra(source: Path) -> None:
    hide = "import sys; sys.modules['mlx.core'] = None; "
    process = start(hide + CONVERT, source)
    assert process.stderr is not None
    lines = process.stderr.read().splitlines()
    assert process.wait() == 2
    assert len(lines) == 1
    assert "pip install" in lines[0]


def test_ctrl_c_is_one_line_and_130_also_while_importing(source: Path) -> None:
    slow_import = """
import builtins, time
real = builtins.__import__
def slow(name, *arguments, **options):
    if name == "mlxbert" or name.startswith("mlxbert."):
        print("here", flush=True)
        time.sleep(60)
    return real(name, *arguments, **options)
builtins.__import__ = slow
"""
    process = start(slow_import + CONVERT, source, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert process.stderr.read().splitlines()[1:] == ["-c: interrupted; nothing half-written was left"]


def test_encode_interrupted_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlxbert.encode

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mlxbert.encode.SentenceEncoder, "from_pretrained", interrupted)
    result = run(main, "encode", "x", "y")
    assert result.exit_code == 130
    assert result.stderr == "\nmlxbert: interrupted\n"


def test_a_reader_that_goes_changes_neither_the_files_nor_the_exit_code(source: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(CONVERT, source, "-o", "out", "--no-verify", stdout=write)
    os.close(write)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 0
    assert Path("out/config.json").is_file()


def test_a_bug_of_ours_is_not_taken_for_a_failed_parity(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(converter.verify, "verify", broken)
    result = run(verify, "x", "--reference", "y")
    assert result.exit_code == 2
    assert "ZeroDivisionError: a bug" in result.stderr
    assert result.stderr.splitlines()[-1].endswith("could not run: the lines above show a bug; fix: report it")


def test_a_negative_seed_could_not_run(source: Path) -> None:
    result = run(verify, "x", "--reference", "y", "--seed", "-1")
    assert result.exit_code == 2
    assert "--seed" in result.stderr


def truncate(out: Path) -> None:
    with (out / "model.safetensors").open("r+b") as file:
        file.truncate(20_000)


def empty_block(out: Path) -> None:
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"mlxbert": {}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors is damaged ("),
        (empty_block, 'the "mlxbert" block of config.json: source is missing; fix: convert again'),
    ],
)
def test_verify_of_a_damaged_directory_could_not_run(
    damage: Callable[[Path], None], message: str, source: Path
) -> None:
    pytest.importorskip("torch")
    run(convert, source, "-o", "out", "--no-verify")
    damage(Path("out"))
    result = run(verify, "out", "--reference", source)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_verify_writes_the_reports_before_it_shows_the_table(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    import converter.terminal

    def unshown(report: object) -> None:
        assert Path("parity.xml").is_file()
        assert Path("out/parity.json").is_file()

    run(convert, source, "-o", "out", "--no-verify")
    monkeypatch.setattr(converter.terminal, "show_parity", unshown)
    result = run(verify, "out", "--reference", source, "--junit", "parity.xml")
    assert result.exit_code == 0, result.output


def test_verify_of_a_file_asks_for_the_directory(source: Path) -> None:
    result = run(verify, source / "config.json", "--reference", source)
    assert result.exit_code == 2
    assert "is a file; fix: give the directory that mlxbert-convert wrote" in result.stderr


def test_the_card_names_what_the_model_was_compared_with(source: Path) -> None:
    pytest.importorskip("torch")
    run(convert, source, "-o", "out", "--no-verify")
    shutil.copytree(source, "copy")
    assert run(verify, "out", "--reference", "copy").exit_code == 0
    card = Path("out/README.md").read_text()
    assert "converted to [MLX](https://github.com/ml-explore/mlx) from `source`" in card
    assert "element by element with\n`copy` in PyTorch" in card


def test_encode_shows_texts_as_they_are_and_says_what_it_assumed(source: Path) -> None:
    run(convert, source, "-o", "out", "--no-verify")
    result = run(main, "encode", "out", "[/x] w1", "w2 :smile:", "-o", "x.npy")
    assert result.exit_code == 0, result.output
    assert "1  [/x] w1" in result.stdout
    assert ":smile:" in result.stdout
    assert result.stderr.startswith("mlxbert: warning: out has no modules.json")
    assert len(result.stderr.splitlines()) == 1
    assert np.load("x.npy").shape == (2, 48)


@pytest.mark.parametrize("out", ["none/x.npy", "source"])
def test_encode_into_what_cannot_be_written(out: str, source: Path) -> None:
    run(convert, source, "-o", "out", "--no-verify")
    result = run(main, "encode", "out", "w1", "-o", out)
    assert result.exit_code == 2
    assert f"error: {out}: cannot be written: " in result.stderr
