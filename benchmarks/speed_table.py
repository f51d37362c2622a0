"""The measurements of `benchmarks.speed`: a JSON file that runs add to, the table, and the plot."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.supported import README

BEGIN, END = "<!-- python -m benchmarks.speed --write -->", "<!-- end of the speeds -->"
PICTURE = "docs/speed.png"
OURS = "mlxbert"


@dataclass(frozen=True)
class Measurement:
    """What one side took in one turn.

    Attributes:
        run: number of the run; its sides took turns.
        turn: number of the turn in its run.
        case: a line of the table.
        side: who.
        baseline: whose neighbouring measurement the ratio is to.
        seconds, cpu: wall and CPU seconds of one pass, the median of the turn; None: the numbers are wrong.
        error: the largest difference of a number from the baseline's.
    """

    run: int
    turn: int
    case: str
    side: str
    baseline: str
    seconds: float | None
    cpu: float | None
    error: float | None = None


@dataclass
class Results:
    """Everything that was measured on one machine.

    Attributes:
        machine: processor, cores, and versions.
        threads: that every side computed with.
        measurements: of all runs.
        absent: side -> the command that installs it.
        failed: sides whose process ended.
    """

    machine: str
    threads: int
    measurements: list[Measurement] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def next_run(self) -> int:
        """The number of the next run."""
        return 1 + max((one.run for one in self.measurements), default=0)

    def write(self, file: Path) -> None:
        """Replace the file."""
        unfinished = file.with_name(f"unfinished-{file.name}")
        unfinished.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        unfinished.replace(file)

    @classmethod
    def read(cls, file: Path) -> Results:
        """Return what a file has."""
        values = json.loads(file.read_text(encoding="utf-8"))
        values["measurements"] = [Measurement(**one) for one in values["measurements"]]
        return cls(**values)


@dataclass(frozen=True)
class Cell:
    """One side in one case.

    Attributes:
        seconds, cpu: medians over all turns; None: the numbers are wrong.
        ratios: to the baseline, turn by turn; empty where the baseline was not measured.
        error: the largest of all runs.
    """

    seconds: float | None
    cpu: float | None
    ratios: tuple[float, ...]
    error: float | None

    @property
    def ratio(self) -> float | None:
        """The median of the ratios."""
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(frozen=True)
class Line:
    """One case: its name, the baseline's, and a cell for each side that was measured, in the order of first sight."""

    case: str
    baseline: str
    cells: dict[str, Cell]


def lines(measurements: Sequence[Measurement], order: Sequence[str] = ()) -> list[Line]:
    """Return a line for each case, in this order; cases that it does not name follow."""
    found = []
    known = list(dict.fromkeys(one.case for one in measurements))
    for case in [*(name for name in order if name in known), *(name for name in known if name not in order)]:
        those = [one for one in measurements if one.case == case]
        baseline = those[0].baseline
        cells = {side: _cell(side, those) for side in dict.fromkeys(one.side for one in those)}
        found.append(Line(case, baseline, cells))
    return found


def _cell(side: str, those: Sequence[Measurement]) -> Cell:
    ours = [one for one in those if one.side == side]
    base = {(one.run, one.turn): one.seconds for one in those if one.side == one.baseline}
    errors = [one.error for one in ours if one.error is not None]
    if any(one.seconds is None for one in ours):
        return Cell(None, None, (), max(errors, default=None))
    ratios = [one.seconds / there for one in ours if one.seconds and (there := base.get((one.run, one.turn)))]
    return Cell(
        statistics.median(one.seconds or 0.0 for one in ours),
        statistics.median(cpus) if (cpus := [one.cpu for one in ours if one.cpu is not None]) else None,
        tuple(ratios),
        max(errors, default=None),
    )


def terminal(results: Results, order: Sequence[str]) -> Table:
    """Return the table for a terminal: a row for each case and side."""
    table = Table(title=f"float32 on the CPU, threads: {results.threads}; medians; ratios turn by turn")
    for column in ("", "", "seconds", "CPU seconds", "ratio [min – max]", "turns", "largest error"):
        table.add_column(column, justify="left" if not column else "right")
    for line in lines(results.measurements, order):
        for number, (side, cell) in enumerate(line.cells.items()):
            name = line.case if number == 0 else ""
            error = "" if cell.error is None or side == line.baseline else f"{cell.error:.1e}"
            if cell.seconds is None:
                table.add_row(name, side, "WRONG: not counted", "", "", "", error)
                continue
            cpu = "" if cell.cpu is None else f"{cell.cpu:.4g}"
            ratio = "baseline" if side == line.baseline else spread(cell.ratios)
            turns = sum(one.case == line.case and one.side == side for one in results.measurements)
            table.add_row(name, side, f"{cell.seconds:.4g}", cpu, ratio, str(turns), error)
        table.add_section()
    return table


def spread(ratios: Sequence[float], dash: str = " – ") -> str:
    """Return median [smallest – largest]."""
    if not ratios:
        return "?"
    middle = f"{statistics.median(ratios):.2f}×"
    return middle if len(ratios) == 1 else f"{middle} [{min(ratios):.2f}{dash}{max(ratios):.2f}]"


def progress(text: str, *, keep: bool = False) -> None:
    """Show a line on standard error, in a terminal in place of the one before, unless that is kept."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="\n" if keep else "", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def sides(results: Results) -> list[str]:
    """Return who is compared with a baseline: ours first, then in the order of first sight."""
    found = dict.fromkeys(one.side for one in results.measurements if one.side != one.baseline)
    return sorted(found, key=lambda side: side != OURS)


def markdown(results: Results, order: Sequence[str]) -> str:
    """Return the README's part: the table, the machine, and who is missing."""
    names = sides(results)
    rows = [("what", "baseline", *names), ("---",) * (len(names) + 2)]
    for line in lines(results.measurements, order):
        base = line.cells.get(line.baseline)
        seconds = "?" if base is None or base.seconds is None else _seconds(base.seconds)
        rows.append((line.case, f"{line.baseline} {seconds}", *(_text(line.cells.get(side)) for side in names)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    plural = "" if results.threads == 1 else "s"
    text = (
        f"{table}\n\nTime over the baseline's, median [range] of neighbouring turns; under 1× is faster. "
        f"Float32 on the CPU, {results.threads} thread{plural}. {results.machine}."
    )
    for side, command in results.absent.items():
        text += f"\nNot installed here: {side} (`{command}`)."
    return text


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return "wrong numbers" if cell.seconds is None else spread(cell.ratios, "–")


def with_table(text: str, part: str) -> str:
    """Return the README's text with this part between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return f"{text[:before]}\n{part}\n{text[after:]}"


def write_readme(results: Results, order: Sequence[str]) -> Iterable[Path]:
    """Put table and plot into the README; return the files that changed."""
    picture = README.parent / PICTURE
    picture.parent.mkdir(exist_ok=True)
    picture.write_bytes(plot(results, order))
    part = f"![Time of each package over the baseline's]({PICTURE})\n\n{markdown(results, order)}"
    README.write_text(with_table(README.read_text(encoding="utf-8"), part), encoding="utf-8")
    return README, picture


# The plot

_END = 2.0
"""Longer bars are cut here, and end in an arrow."""


def plot(results: Results, order: Sequence[str]) -> bytes:
    """Return a PNG: for each case a bar for each side, as long as its ratio to the baseline.

    Raises:
        mlxbert.report.reported_run.ReportError: matplotlib is not installed.
    """
    from mlxbert.report.figures import LIGHT, Plot, render

    found = lines(results.measurements, order)
    columns = 2 if len(found) > 1 else 1
    rows = -(-len(found) // columns)
    most = max(len(line.cells) for line in found)

    def draw(figure: Any, theme: Any) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes[len(found) :]:
            axis.set_axis_off()
        for line, axis in zip(found, axes, strict=False):
            _draw_line(axis, line, theme)
        threads = "1 thread" if results.threads == 1 else f"{results.threads} threads"
        machine = results.machine.split(", Linux")[0].split(", Darwin")[0]
        figure.supxlabel(
            f"time over the baseline's: shorter is faster; float32, {threads}, {machine}",
            fontsize=8.5,
            color=theme.muted,
        )

    size = (4.6 * columns, rows * (0.62 + 0.24 * most) + 0.3)
    return render(Plot("speed", "Speed", "", draw, size), LIGHT)


def _draw_line(axis: Any, line: Line, theme: Any) -> None:
    names = sorted(line.cells, key=lambda side: (side != OURS, side != line.baseline))
    for place, side in enumerate(names):
        cell = line.cells[side]
        ratio = 1.0 if side == line.baseline else cell.ratio
        color = theme.series[0] if side == OURS else theme.text if side == line.baseline else theme.muted
        if cell.seconds is None or ratio is None:
            axis.text(0.02, place, "wrong numbers: not counted" if cell.seconds is None else "", va="center")
            continue
        axis.barh(place, min(ratio, _END), height=0.66, color=color, alpha=1 if side == OURS else 0.55)
        far = "→ " if ratio > _END else ""
        label = f"{far}{ratio:.2f}×  {_seconds(cell.seconds)}"
        axis.text(_END * 1.5, place, label, ha="right", va="center", fontsize=8, color=theme.text)
    axis.axvline(1, color=theme.text, linewidth=0.8, zorder=0.5)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, _END * 1.5)
    axis.set_xticks([0, 0.5, 1, 1.5, 2], ["0", "0.5×", "1×", "1.5×", "2×"], fontsize=7.5)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.set_title(line.case, fontsize=9.5, loc="left")
