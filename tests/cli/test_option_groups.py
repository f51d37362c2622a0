"""The options of a command under headings in its `--help`."""

from __future__ import annotations

import click
from click.testing import CliRunner

from heads.command_line import OptionGroups


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
