"""The fields of `TrainingConfig` as options of a command: one table for Python and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str}


quoting_option = click.option(
    "--quoting",
    type=click.Choice(["none", "minimal", "escaped"]),
    help='Of CSV and TSV: none (quotes are characters), minimal ("" is a quote), escaped (\\").  [default: found out]',
)


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: an option for every field, None where it is not given; `--help` has the default."""
    from mlxbert.training.config import TrainingConfig

    for field in reversed(dataclasses.fields(TrainingConfig)):
        command = _option(field)(command)
    return command


def given_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Of a command's parameters, the settings that were given: taken out of `values`."""
    from mlxbert.training.config import TrainingConfig

    settings = {}
    for field in dataclasses.fields(TrainingConfig):
        value = values.pop(field.name)
        if value is not None and value != ():
            settings[field.name] = value
    return settings


def _option(field: dataclasses.Field[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flag, help = "--" + field.name.replace("_", "-"), field.metadata["help"]
    if field.name == "seeds":
        return click.option("--seed", "seeds", type=int, multiple=True, help=f"{help} May be given several times.")
    kind = str(field.type).partition(" | ")[0]
    if field.default is not None and "[default" not in help:
        shown = ("yes" if field.default else "no") if kind == "bool" else field.default
        help = f"{help}  [default: {shown}]"
    if kind == "bool":
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=help)
    return click.option(flag, field.name, type=_TYPES[kind], default=None, help=help)
