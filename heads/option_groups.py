"""`OptionGroups`: the options of a command under headings in its `--help`.

It stands beside `heads.errors` because every command uses it, and `mlxbert-convert --help` must answer before MLX is
loaded, which importing `mlxbert` does. It imports nothing, click included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from click import Command, Context, HelpFormatter
else:
    Command = object

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
        """Each heading with its options and their help texts, without the empty ones."""
        options = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "option"]
        records = {str(option.name): option.get_help_record(ctx) for option in options}
        grouped = {name for names in self.groups.values() for name in names}
        others = [name for name in records if name not in grouped]
        for heading, names in {**self.groups, OTHERS: others}.items():
            rows = [record for name in names if (record := records[name]) is not None]
            if rows:
                yield heading, rows
