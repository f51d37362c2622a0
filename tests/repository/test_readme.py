"""What the README says works: its Python runs, its commands and their flags exist, its files are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from benchmarks import supported
from converter import cli
from converter.convert import convert
from mlxbert.cli import main
from mlxbert.models.architecture import supported as model_types

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS: dict[str, click.Command] = {
    "mlxbert-convert": cli.convert,
    "mlxbert-verify": cli.verify,
    "mlxbert-export": cli.export,
    "mlxbert-push": cli.push,
    **{f"mlxbert {name}": command for name, command in main.commands.items()},
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def command_lines() -> list[str]:
    """Every line of a shell block, and every step of a workflow, that calls one of our commands."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    for block in blocks("yaml"):
        for job in yaml.safe_load(block)["jobs"].values():
            lines += [step["run"] for step in job["steps"] if "run" in step]
    return [line.split("#")[0].strip() for line in lines if line.startswith("mlxbert")]


def test_there_is_something_to_check() -> None:
    assert len(command_lines()) >= 4
    assert len(blocks("python")) >= 2


@pytest.mark.parametrize("line", command_lines())
def test_commands_and_flags_exist(line: str) -> None:
    name = next(name for name in sorted(COMMANDS, key=len, reverse=True) if line.startswith(name))
    COMMANDS[name].make_context(name, shlex.split(line.removeprefix(name)))  # raises what a wrong call would


def test_the_table_of_what_is_supported_is_the_registry_s() -> None:
    assert supported.with_table(README) == README, "fix: python -m benchmarks.supported --write"
    assert sum(line.startswith("| `") for line in supported.table().splitlines()[2:]) == len(model_types())


def test_no_number_was_left_to_fill_in() -> None:
    assert not re.findall(r"@[A-Z]+@|TODO|TBD", README)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    documents = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", documents, re.MULTILINE))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (ROOT / link).exists() or (ROOT / f"{link}.md").exists(), link


def test_python_blocks_run(minilm_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(minilm_source, tmp_path / "mlx_models" / "minilm", verify=False)
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
