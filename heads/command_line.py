"""What every command shares: how mlxbert is installed, and `OptionGroups`, the options under headings in `--help`.

Every message, model card and README line takes the install command from here; only this file changes with the first
release. The file is in `heads`, the lowest package, so that all can import it, and imports nothing, click included:
`mlxbert-convert --help` must answer before MLX is loaded, which importing `mlxbert` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from click import Command, Context, HelpFormatter
else:
    Command = object

# PyPI has no release of mlxbert yet: `pip install mlxbert` fails or installs another package of that name.
# With the first release set this to True, and run `python -m tests.support.card_samples` for the reviewed cards.
RELEASED = False

CHECKOUT = "a checkout of mlxbert"


def requirement(*extras: str) -> str:
    """Return the requirement for pip: ``mlxbert[cpu]``, before the first release ``.[cpu]``, the checkout."""
    return ("mlxbert" if RELEASED else ".") + (f"[{','.join(extras)}]" if extras else "")


def install_command(*extras: str, reinstall: bool = False) -> str:
    """Return the shell command that installs mlxbert with `extras`: ``pip install ".[cpu,torch]"``."""
    return f'pip install {"--force-reinstall " if reinstall else ""}"{requirement(*extras)}"'


def install_fix(*extras: str, reinstall: bool = False) -> str:
    """Return `install_command` for a message, with the directory to run it in: ``… in a checkout of mlxbert``."""
    return install_command(*extras, reinstall=reinstall) + ("" if RELEASED else f" in {CHECKOUT}")


# Columns of the longest option that stands on one line with its help, as in click.
WIDTH = 30
OTHERS = "Other options"


class OptionGroups(Command):
    """Mixin of a click command: `--help` lists its options by group.

        class GroupedCommand(OptionGroups, click.Command): ...

        @click.command(cls=GroupedCommand, groups={"Output": ("out", "overwrite")})

    Attributes:
        groups: heading -> names of the command's parameters; both in the order of the help. An option that no group
            names comes last, under "Other options".
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]] | None = None, **settings: Any):
        super().__init__(*arguments, **settings)
        self.groups = dict(groups or {})

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write a section of the help for each group; without groups, as click does."""
        if not self.groups:
            return super().format_options(ctx, formatter)
        sections = list(self._sections(ctx))
        # One width for all sections: the help texts stand in one column.
        width = min(WIDTH, max(len(option) for _, rows in sections for option, _ in rows))
        for heading, rows in sections:
            with formatter.section(heading):
                formatter.write_dl([(option.ljust(width), text) for option, text in rows], col_max=WIDTH)
        return None

    def _sections(self, ctx: Context) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """Return each heading with its options and their help texts; leave out empty headings."""
        options = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "option"]
        records = {str(option.name): option.get_help_record(ctx) for option in options}
        grouped = {name for names in self.groups.values() for name in names}
        others = [name for name in records if name not in grouped]
        for heading, names in {**self.groups, OTHERS: others}.items():
            rows = [record for name in names if (record := records[name]) is not None]
            if rows:
                yield heading, rows
