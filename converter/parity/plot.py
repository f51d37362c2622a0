"""One plot of the parity page: errors per module on a log scale, as SVG text that follows the page's colours.

Written by hand rather than with a plotting library: the text stays text, colours come from the page's style sheet
(light and dark), every point has its numbers as a tooltip, and the same report gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, TOP = 74, 14
# Of a label: pixels of a character at the style sheet's 13.5 px, and of its line.
_CHARACTER, _LINE = 8.0, 16
FLOOR = 1e-9
"""What is smaller, 0 included, is drawn here: a log scale has no 0."""


@dataclass(frozen=True)
class Mark:
    """One point of a line: `value` None is drawn as a cross at the top edge."""

    value: float | None
    tooltip: str
    passed: bool = True


@dataclass(frozen=True)
class Line:
    """One line of a plot; `style` is a class of the page's style sheet, `limit` a horizontal line in its colour."""

    label: str
    marks: Sequence[Mark]
    style: str
    limit: float | None = None


def log_plot(names: Sequence[str], lines: Sequence[Line], *, y_label: str, floor: float = FLOOR) -> str:
    """An `<svg>` element: one column for each name, one polyline for each line, decades as the grid.

    `names` label the columns and are as many as each line's marks. One point on an axis is no plot: "", for a table
    says it all. No label overlaps another one, or a line: limits are named in the right margin, and names that are
    wider than their column stand at an angle below it.
    """
    if len(names) < 2:
        return ""
    values = [mark.value for line in lines for mark in line.marks if mark.value is not None]
    values += [line.limit for line in lines if line.limit is not None]
    low = math.floor(math.log10(max(floor, min(values, default=floor))))
    high = max(low + 1, math.ceil(math.log10(max(floor, max(values, default=1.0)) * 1.5)))

    right = WIDTH - (96 if any(line.limit is not None for line in lines) else 14)
    step = (right - LEFT) / len(names)
    longest = max(map(len, names)) * _CHARACTER
    tilted = longest > step
    bottom = 28 + (0.71 * longest + 12 if tilted else _LINE)

    def x(column: int) -> float:
        return LEFT + step * (column + 0.5)

    def y(value: float | None) -> float:
        exponent = high if value is None else min(high, math.log10(max(value, 10.0**low)))
        return TOP + (HEIGHT - TOP - bottom) * (high - exponent) / (high - low)

    description = escape(f"{y_label}: {', '.join(line.label for line in lines)}")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{description}">']
    # About six labels, however many decades there are.
    for exponent in range(low, high + 1, max(1, (high - low) // 6)):
        at = y(10.0**exponent)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        text = f'10<tspan dy="-5" font-size="10">{_signed(exponent)}</tspan>'
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
    every = math.ceil(_LINE / step)
    for column, name in enumerate(names):
        if column % every:
            continue
        at_x, at_y = x(column), HEIGHT - bottom + 18
        place = f'x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="middle"'
        if tilted:
            place = f'x="{at_x + 4:.1f}" y="{at_y - 4:.1f}" text-anchor="end"'
            place += f' transform="rotate(-45 {at_x + 4:.1f} {at_y - 4:.1f})"'
        parts.append(f'<text class="tick" {place}>{escape(name)}</text>')
    centre = (LEFT + right) / 2
    parts.append(f'<text class="axis" x="{centre}" y="{HEIGHT - 6}" text-anchor="middle">module, in order</text>')
    middle = TOP + (HEIGHT - TOP - bottom) / 2
    rotated = f'x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})"'
    parts.append(f'<text class="axis" {rotated}>{escape(y_label)}</text>')
    for line in lines:
        parts += _limit(line, y, right)
        points = " ".join(f"{x(column):.1f},{y(mark.value):.1f}" for column, mark in enumerate(line.marks))
        parts.append(f'<polyline class="{line.style}" points="{points}"/>')
        parts += [_mark(mark, line.style, x(column), y(mark.value)) for column, mark in enumerate(line.marks)]
    return "".join((*parts, "</svg>"))


def _limit(line: Line, y: Callable[[float], float], right: float) -> list[str]:
    if line.limit is None:
        return []
    at = y(line.limit)
    ends = f'x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"'
    label = f'x="{right + 6}" y="{at + 4:.1f}"'
    return [
        f'<line class="limit" {ends}/>',
        f'<text class="limit-label" {label}>limit {line.limit:.1e}</text>',
    ]


def _mark(mark: Mark, style: str, x: float, y: float) -> str:
    title = f"<title>{escape(mark.tooltip)}</title>"
    if mark.value is None:
        cross = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return f'<path class="cross" d="{cross}">{title}</path>'
    shape = f"{style}{'' if mark.passed else ' failed'}"
    return f'<circle class="{shape}" cx="{x:.1f}" cy="{y:.1f}" r="{4 if mark.passed else 6}">{title}</circle>'


def _signed(exponent: int) -> str:
    return str(exponent).replace("-", "−")
