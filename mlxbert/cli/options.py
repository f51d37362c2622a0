"""The arguments of `mlxbert.train` as options of commands: name, type and help are stated once, in their fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from heads.command_line import OptionGroups
from mlxbert.runs.settings import arguments, default_of, flag_of

_TYPES: dict[str, Any] = {"int": int, "float": float}
_COMMAND = Callable[..., Any]


class GroupedCommand(OptionGroups, click.Command):
    """A command whose `--help` lists its options under headings."""


def argument_options(command: _COMMAND) -> _COMMAND:
    """Decorator: an option for every argument of `mlxbert.train`; its value is None where it is not given."""
    for argument in reversed(arguments()):
        command = _option(argument)(command)
    return command


def argument_option(name: str) -> Callable[[_COMMAND], _COMMAND]:
    """Decorator: the option of one argument of `mlxbert.train`, for another command."""
    return next(_option(argument) for argument in arguments() if argument.name == name)


def _option(argument: dataclasses.Field[Any]) -> Callable[[_COMMAND], _COMMAND]:
    flag, help, choices = flag_of(argument), argument.metadata["help"], argument.metadata.get("choices")
    kind, default = str(argument.type).partition(" | ")[0], default_of(argument)
    if isinstance(default, int | float | str) and not isinstance(default, bool):
        help = f"{help}  [default: {default}]"
    if argument.metadata.get("switch"):
        return click.option(flag, argument.name, is_flag=True, default=None, help=help)
    if kind == "bool":
        shown = "yes" if default else "no"
        return click.option(f"{flag}/--no-{flag[2:]}", argument.name, default=None, help=f"{help}  [default: {shown}]")
    several = kind.startswith(("tuple", "Mapping", "RowText"))
    if several:
        help = f"{help}  [may be repeated]"
    return click.option(
        flag,
        argument.name,
        type=click.Choice(choices) if choices else int if kind == "tuple[int, ...]" else _TYPES.get(kind, str),
        metavar=argument.metadata.get("metavar"),
        multiple=several,
        default=None,
        help=help,
    )
