"""The options of a command under headings in its `--help`."""

from __future__ import annotations

import inspect

import click
import pytest
from click.testing import CliRunner

import mlxbert
from heads.command_line import OptionGroups
from mlxbert.cli import main
from mlxbert.runs.settings import arguments


class _Grouped(OptionGroups, click.Command):
    pass


def _command(**settings: object) -> click.Command:
    @click.command(cls=_Grouped, **settings)
    @click.argument("place", required=False)
    @click.option("--size", help="How large.")
    @click.option("--a-very-long-name-of-an-option", "long", help="Long.")
    @click.option("-o", "--out", help="Where to.")
    @click.option("--secret", hidden=True)
    def command(**_: object) -> None:
        """Do something."""

    return command


def test_options_stand_under_their_headings_in_one_column() -> None:
    shown = CliRunner().invoke(_command(groups={"Output": ("out",), "Data": ("long", "size")}), ["--help"])
    assert shown.output.splitlines()[4:] == [
        "Output:",
        f"  {'-o, --out TEXT':30}  Where to.",
        "",
        "Data:",
        "  --a-very-long-name-of-an-option TEXT",
        f"{'':34}Long.",
        f"  {'--size TEXT':30}  How large.",
        "",
        "Other options:",
        f"  {'--help':30}  Show this message and exit.",
    ]


def test_without_groups_the_help_is_that_of_click() -> None:
    shown = CliRunner().invoke(_command(), ["--help"]).output
    assert "\nOptions:\n" in shown
    assert "Other options" not in shown


@pytest.mark.parametrize("name", ["train", "predict"])
def test_every_option_of_a_command_stands_under_one_heading(name: str) -> None:
    command = main.commands[name]
    assert isinstance(command, OptionGroups)
    grouped = [option for options in command.groups.values() for option in options]
    options = [parameter.name for parameter in command.params if isinstance(parameter, click.Option)]
    assert sorted(grouped) == sorted(set(options) - {"version"})
    assert CliRunner().invoke(main, [name, "--help"]).output.count("Other options:") == 1


def test_the_eight_options_that_most_runs_need_come_first() -> None:
    command = main.commands["train"]
    assert isinstance(command, OptionGroups)
    headings = list(command.groups)
    assert len(command.groups[headings[0]]) == 8
    assert headings[1:] == ["Data", "Folds", "Model", "Optimization", "Memory", "Output", "Run"]


def test_the_documentation_of_train_has_every_argument() -> None:
    assert mlxbert.train.__doc__ is not None
    parameters = inspect.signature(mlxbert.train).parameters
    for argument in arguments():
        assert parameters[argument.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"\n        {argument.name}: {argument.metadata['help'][:40]}" in mlxbert.train.__doc__
