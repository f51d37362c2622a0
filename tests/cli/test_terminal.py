"""What a person sees at 80 columns, which commands there are, and whose `heads` are imported."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from converter import cli
from mlxbert.cli import main
from mlxbert.cli.commands import _similarities
from mlxbert.runs.progress import ProgressBar
from mlxbert.training.callbacks import StepEvent

ROOT = Path(__file__).parents[2]
CONVERTER = {"convert": cli.convert, "verify": cli.verify, "export": cli.export, "push": cli.push}


def test_the_summaries_of_the_commands_are_whole() -> None:
    shown = CliRunner().invoke(main, ["--help"], terminal_width=80, prog_name="mlxbert").output
    assert "..." not in shown.partition("Commands:")[2]
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "Export CONVERTED to PyTorch, for places without MLX such as a" in shown


@pytest.mark.parametrize("name", CONVERTER)
def test_mlxbert_convert_is_mlxbert_dash_convert(name: str) -> None:
    context = click.Context(main)
    assert main.get_command(context, name) is CONVERTER[name]
    assert name in main.list_commands(context)


@pytest.mark.parametrize("name", ["", *CONVERTER, *main.commands])
def test_every_command_tells_its_version(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--version"] if name else ["--version"], prog_name="mlxbert")
    assert re.fullmatch(r"mlxbert( \w+)?, version \d+\.\d+\.\d+\n", result.output), result.output


@pytest.mark.parametrize(("texts", "numbers"), [(2, 4), (6, 36), (7, 7), (30, 30)])
def test_encode_shows_its_numbers_at_80_columns(texts: int, numbers: int) -> None:
    lines = [
        f"A sentence that is longer than the terminal is wide, {'very ' * 20} {number}" for number in range(texts)
    ]
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-0.999, 0.999, (texts, texts))
    out = StringIO()
    Console(file=out, width=80).print(_similarities(lines, cosines, 384))
    assert len(re.findall(r"-?0\.\d{3}\b", out.getvalue())) == numbers
    assert max(map(len, out.getvalue().splitlines())) <= 80
    if texts > 6:  # each text with the nearest other one
        first = int(np.argmax(np.where(np.arange(texts) == 0, -2, cosines[0])))
        assert re.search(rf"1  A sentence.*{first + 1}  A sentence.*{cosines[0, first]:.3f}", out.getvalue())


def test_a_training_bar_is_a_bar_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = ProgressBar(1)
    bar.console.file = StringIO()
    monkeypatch.setattr(type(bar.console), "width", 80)
    bar.bars.disable = False
    bar._task = bar.bars.add_task("", total=1.0, numbers="")
    step = {"step": 1000, "steps": 1000, "loss": 0.4321, "rate": 3e-5, "rows_per_second": 123.4}
    bar.on_step(StepEvent(**{**dict.fromkeys(StepEvent.__dataclass_fields__), **step, "member": "seed0-fold0"}))
    bar._seconds = 2.0
    out = StringIO()
    Console(file=out, width=80, force_terminal=True, color_system=None).print(bar.bars.get_renderable())
    assert "loss 0.4321" in out.getvalue()
    assert "left" in out.getvalue()
    assert out.getvalue().count("\u2501") >= 10


def python(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, *(arguments or ("-c", code))]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("theirs", ["heads.py", "heads/__init__.py", "heads/other.py"])
def test_a_file_beside_the_script_called_heads_is_not_ours(theirs: str, tmp_path: Path) -> None:
    (tmp_path / theirs).parent.mkdir(exist_ok=True)
    (tmp_path / theirs).write_text("class Mine: pass\n")
    done = python("import mlxbert, heads.pretrained; print(heads.__file__)", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(ROOT / "heads" / "__init__.py")
    regular = theirs != "heads/other.py"  # a folder without __init__.py comes after every package
    assert ("has the name of mlxbert's package 'heads'" in done.stderr) == regular


def test_a_heads_that_is_imported_already_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "heads.py").write_text("class Mine: pass\n")
    done = python("import heads, mlxbert", tmp_path)
    assert done.returncode == 1
    expected = (
        f"ImportError: {tmp_path}/heads.py was imported as 'heads', which is also the name of a package of mlxbert"
    )
    assert done.stderr.splitlines()[-1] == f"{expected}; fix: rename yours"


def test_python_dash_m_mlxbert_and_a_folder_called_converter(tmp_path: Path) -> None:
    (tmp_path / "converter").mkdir()
    (tmp_path / "converter" / "__init__.py").write_text("")
    done = python("", tmp_path, "-m", "mlxbert", "convert", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: mlxbert convert [OPTIONS] SRC" in done.stdout
    assert "has the name of mlxbert's package 'converter'" in done.stderr
