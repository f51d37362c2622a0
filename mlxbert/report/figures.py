"""`Plot` and its PNG for a light or a dark page; and what several plots draw alike.

Only matplotlib's object-oriented interface is used. A notebook's own figures and settings stay as they are and change
nothing here: the same run gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from heads.command_line import install_fix
from mlxbert.report.reported_run import ReportError

DPI = 160
LEGEND_LINES = 8


@dataclass(frozen=True)
class Theme:
    """The colors of a page, the same as in page.html; those of `series` differ in lightness, too."""

    name: str
    card: str
    text: str
    muted: str
    line: str
    limit: str
    series: tuple[str, ...]


LIGHT = Theme(
    name="light",
    card="#ffffff",
    text="#1a1f2b",
    muted="#5c6575",
    line="#dde1e8",
    limit="#c05a00",
    series=("#2563c9", "#0f8a6d", "#8a4bc2", "#c05a00", "#b3315f", "#3d8fb5", "#6f7d12", "#5c6575"),
)
DARK = Theme(
    name="dark",
    card="#1b2029",
    text="#e6e9ef",
    muted="#9aa4b5",
    line="#323a47",
    limit="#ffa657",
    series=("#7aa9ff", "#4fd0ae", "#c99cf5", "#ffa657", "#ff8fb1", "#7fd1f0", "#d3d96b", "#9aa4b5"),
)


@dataclass(frozen=True)
class Plot:
    """One figure of a report.

    Attributes:
        name: of its file, without .png.
        title: above it on the page.
        caption: what it shows and how to read it.
        draw: draws on a matplotlib `Figure`.
        size: (width, height) in inches; the page shows 100 pixels an inch at most.
        wide: takes the page's whole width.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Any, Theme], None]
    size: tuple[float, float] = (5.2, 3.9)
    wide: bool = False


def render(plot: Plot, theme: Theme) -> bytes:
    """Return the plot as a PNG.

    Raises:
        ReportError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ReportError(f"plots need matplotlib; fix: {install_fix('kaggle')}") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(theme))
        figure = Figure(figsize=plot.size, dpi=DPI, layout="constrained")
        plot.draw(figure, theme)
        buffer = io.BytesIO()
        # The default metadata names matplotlib's version.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        "axes.edgecolor": theme.line,
        "axes.facecolor": theme.card,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": theme.muted,
        "axes.labelsize": 9.5,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.text,
        "axes.titlesize": 10,
        "figure.facecolor": theme.card,
        "font.family": ["DejaVu Sans"],  # comes with matplotlib
        "font.size": 9.5,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "legend.labelcolor": theme.text,
        "lines.linewidth": 1.6,
        "text.color": theme.text,
        "text.parse_math": False,  # a class named "$x" is no formula
        "xtick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "xtick.labelsize": 9,
        "ytick.color": theme.line,
        "ytick.labelcolor": theme.muted,
        "ytick.labelsize": 9,
    }


@cache
def _drawable() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())


def short(text: str, length: int = 22) -> str:
    """Return a name from the data in one line of `length` characters, □ for those that the font lacks."""
    text = " ".join(text.split())
    text = "".join(sign if ord(sign) in _drawable() else "□" for sign in text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def legend_below(figure: Any, axes: Any, columns: int = 2) -> None:
    """Draw the legend of `axes` under them, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(handles)))


def panels(figure: Any, count: int, columns: int, **options: Any) -> list[Any]:
    """Return `count` axes in rows of `columns`; the other places stay empty."""
    rows = math.ceil(count / columns)
    grid = figure.subplots(rows, min(columns, count), squeeze=False, **options).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return list(grid[:count])


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 … count − 1, with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})
