"""The parity report on the terminal.

The parity report as JUnit XML, which every CI system reads: a suite for each gate, a test case for each point.

Of a quantized model the second suite has a case for each packed matrix and for each list of texts.

One plot of the parity page: errors per module on a log scale, as SVG text that follows the page's colours.

Written by hand rather than with a plotting library: the text stays text, colours come from the page's style sheet
(light and dark), every point has its numbers as a tooltip, and the same report gives the same bytes.

The parity report as one HTML page without anything outside it: verdict, plots, tables, where it ran.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, SENTENCE, ParityReport, Point
from converter.quantize.cost import QuantizationReport
from mlxbert.errors import escaped_value


def parity_table(report: ParityReport) -> Group:
    """A verdict, a table for each gate, and one line for each failure; fits 80 columns."""
    parts: list[RenderableType] = [_mapping(report), Text()]
    if report.quantization is None:
        parts += [_precision(report), Text()]
    parts += [Text(f"FAIL  {line}", style="red") for line in report.failures]
    return Group(*parts, verdict(report))


def verdict(report: ParityReport) -> Text:
    """The last lines: is it the same model, in which parts, and what did a quantization cost?"""
    environment = report.environment
    where = f"{len(report.probes)} probes, MLX {environment.get('mlx')} on {environment.get('device')}"
    where += f", PyTorch {environment.get('torch')}"
    seen, parts = report.provenance, ", ".join(report.compared)
    reference = seen.reservation or f"{seen.model}{', ' + seen.inherited if seen.inherited else ''}"
    if not report.gate_passed(MAPPING) or (report.quantization is None and not report.passed):
        layer = report.first_diverging_layer
        at = f": first wrong at {layer}" if layer else ": same model, but the written precision costs too much"
        return Text(f"FAIL  against {seen.source}{at} ({where})", style="bold red")
    proven = (
        "the same model as" if report.quantization is None else "mapping proven, float32 before packing: the same as"
    )
    lines = Text(f"PASS  {proven} {reference}: {parts} ({where})", style="bold green")
    if report.uncompared:
        lines = Text(
            f"PART  {proven} {reference} in {parts}; not compared: {report.left_out} ({where})", "bold yellow"
        )
    if report.quantization is not None:
        cost, failed = report.quantization, bool(report.quantization.failures)
        lines.append(
            f"\n{'FAIL' if failed else 'COST'}  {cost.sentence}", style="bold red" if failed else "bold green"
        )
    return lines


def _mapping(report: ParityReport) -> Table:
    alone = {point.name: point for point in report.select(MAPPING, LOCAL)}
    whole = {point.name: point for point in report.select(MAPPING, CUMULATIVE)}
    table = _table("Mapping gate: float32 MLX against float32 PyTorch", "max-rel alone")
    for name in dict.fromkeys((*whole, *alone)):
        points = [point for point in (whole.get(name), alone.get(name)) if point is not None]
        table.add_row(name, *_measures(whole.get(name)), _error(alone.get(name)), _ok(points))
    padding = report.select(MAPPING, PADDING)
    if padding:
        worst = max(padding, key=_badness)
        table.add_section()
        table.add_row("padded or alone", *_measures(worst), "", _ok(padding))
    limits = {point.check: point.limit for point in report.points if point.gate == MAPPING}
    if limits:
        table.caption = f"limits on max-rel: {limits[CUMULATIVE]:.0e} after all layers so far"
        table.caption += f", {limits[LOCAL]:.0e} for a layer alone" if LOCAL in limits else ""
    return table


def _precision(report: ParityReport) -> Table:
    points = report.select(PRECISION, CUMULATIVE)
    title = f"Precision gate: written {report.written_dtype} against its own float32"
    table = _table(title)
    for point in points:
        table.add_row(point.name, *_measures(point), _ok([point]))
    if points:
        table.caption = f"limits: max-rel {points[0].limit:.1e}, cosine {points[0].cosine_limit}"
    return table


def _table(title: str, *extra: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1))
    table.add_column("module", no_wrap=True)
    for column in ("max-abs", "max-rel", "cosine", "argmax", *extra, ""):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _measures(point: Point | None) -> tuple[str, Text, str, str]:
    """max-abs, max-rel, cosine and argmax agreement as text; a dash where there is no number."""
    if point is None or point.max_abs is None or point.cosine is None or point.argmax_agreement is None:
        return "–", _error(point), "–", "–"
    agreement = f"{100 * point.argmax_agreement:.1f} %"
    return f"{point.max_abs:.1e}", _error(point), f"{point.cosine:.7f}", agreement


def _error(point: Point | None) -> Text:
    if point is None:
        return Text("–")
    text = "–" if point.max_rel is None else f"{point.max_rel:.1e}"
    return Text(text, style="" if point.passed else "bold red")


def _ok(points: list[Point]) -> Text:
    passed = points and all(point.passed for point in points)
    return Text("ok", style="green") if passed else Text("FAIL", style="bold red")


def _badness(point: Point) -> float:
    return float("inf") if point.max_rel is None else point.max_rel


QUANTIZATION = "quantization"

# What XML 1.0 cannot hold even escaped; a file name may.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render_junit(report: ParityReport) -> str:
    """The XML document, each case with the seconds that it took; a part that was not compared is a skipped case."""
    root = ElementTree.Element("testsuites", name="mlxbert parity")
    suites = {
        gate: [_of_point(point) for point in report.points if point.gate == gate] for gate in (MAPPING, PRECISION)
    }
    if report.quantization is not None:
        suites = {MAPPING: suites[MAPPING], QUANTIZATION: _of_quantization(report.quantization)}
    suites["scope"] = [Case("scope", part.name, skipped=f"not compared: {part.detail}") for part in report.uncompared]
    total = 0.0
    for name, cases in suites.items():
        if not cases and name == "scope":
            continue
        seconds = sum(case.seconds or 0.0 for case in cases)
        total += seconds
        counts = {
            "tests": len(cases),
            "failures": sum(case.failure is not None for case in cases),
            "errors": 0,
            "skipped": sum(case.skipped is not None for case in cases),
        }
        attributes = {key: str(count) for key, count in counts.items()} | {"time": f"{seconds:.6f}"}
        suite = ElementTree.SubElement(root, "testsuite", {"name": f"parity.{name}", **attributes})
        _properties(suite, report)
        for case in cases:
            _add(suite, case)
    root.set("time", f"{total:.6f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True)
class Case:
    """One test case; `check` is the last part of its class name."""

    check: str
    name: str
    seconds: float | None = None
    failure: str | None = None
    skipped: str | None = None
    numbers: str = ""


def _of_point(point: Point) -> Case:
    numbers = (
        f"max_abs={point.max_abs} max_rel={point.max_rel} limit={point.limit} cosine={point.cosine} "
        f"cosine_limit={point.cosine_limit} argmax_agreement={point.argmax_agreement} worst_probe={point.probe}"
    )
    return Case(f"{point.gate}.{point.check}", point.name, point.seconds, point.failure, numbers=numbers)


def _of_quantization(cost: QuantizationReport) -> list[Case]:
    """A case for each packed matrix, and one for each list of texts."""
    cases = []
    for layer in cost.layers:
        numbers = f"error={layer.error} limit={layer.limit}"
        cases.append(Case(f"{QUANTIZATION}.packing", layer.path, layer.seconds, layer.failure, numbers=numbers))
    for item in cost.quality:
        numbers = (
            f"cosine_mean={item.cosine_mean} cosine_min={item.cosine_min} rank_correlation={item.rank_correlation} "
            f"limits={cost.limits}"
        )
        failure = "; ".join(item.failures(cost.limits)) or None
        cases.append(Case(f"{QUANTIZATION}.cost", item.text, item.seconds, failure, numbers=numbers))
    return cases


def _properties(suite: ElementTree.Element, report: ParityReport) -> None:
    facts = {
        "source": report.provenance.source,
        "revision": report.provenance.revision or "",
        "source_converted_from": report.provenance.origin or "",
        "verified": str(report.verified).lower(),
        "compared": ", ".join(report.compared),
        "not_compared": report.left_out,
        "written_dtype": report.written_dtype,
        "seed": str(report.provenance.seed),
        **report.environment,
    }
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in facts.items():
        ElementTree.SubElement(properties, "property", name=name, value=_NOT_XML.sub("?", value))


def _add(suite: ElementTree.Element, case: Case) -> None:
    attributes = {"classname": f"parity.{case.check}", "name": _NOT_XML.sub("?", case.name)}
    if case.seconds is not None or case.skipped is not None:
        attributes["time"] = f"{case.seconds or 0.0:.6f}"
    element = ElementTree.SubElement(suite, "testcase", attributes)
    if case.failure is not None:
        message = _NOT_XML.sub("?", case.failure)
        ElementTree.SubElement(element, "failure", message=message, type="ParityFailure").text = message
    if case.skipped is not None:
        ElementTree.SubElement(element, "skipped", message=_NOT_XML.sub("?", case.skipped))
    if case.numbers:
        ElementTree.SubElement(element, "system-out").text = _NOT_XML.sub("?", case.numbers)


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


if TYPE_CHECKING:
    from converter.quantize.cost import LayerReport


def render_html(report: ParityReport) -> str:
    """The page; the same report gives the same text."""
    import jinja2

    template = files("converter.parity").joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, finalize=escaped_value, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["error"] = lambda value: "–" if value is None else f"{value:.1e}"
    environment.filters["cosine"] = lambda value: "–" if value is None else f"{value:.7f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.5f}"
    whole = report.select(MAPPING, CUMULATIVE)
    alone = report.select(MAPPING, LOCAL)
    padding = report.select(MAPPING, PADDING)
    precision = report.select(PRECISION, CUMULATIVE)
    identical = bool(precision) and all(point.passed and point.max_abs == 0 for point in precision)
    return environment.from_string(template).render(
        report=report,
        provenance=report.provenance,
        quantization=report.quantization,
        mapping_passed=report.gate_passed(MAPPING) and not report.quantization,
        mapping_gate=report.gate_passed(MAPPING),
        precision_passed=report.gate_passed(PRECISION),
        whole=whole,
        alone={point.name: point for point in alone},
        padding=max(padding, key=_badness, default=None),
        padding_passed=all(point.passed for point in padding),
        precision=precision,
        identical=identical,
        largest={"whole": _largest(whole), "alone": _largest(alone), "precision": _largest(precision)},
        plots={
            "whole": _errors(whole, "whole", "max-rel error"),
            "alone": _errors(alone, "alone", "max-rel error"),
            "precision": _errors(precision, "written", "max-rel error"),
            "cosine": _cosines(whole, "whole"),
            "written_cosine": _cosines(precision, "written"),
            "layers": _layers(report.quantization.layers) if report.quantization else "",
        },
    )


def _largest(points: Sequence[Point]) -> Point | None:
    return max(points, key=_badness, default=None)


def _errors(points: Sequence[Point], style: str, y_label: str) -> str:
    marks = [Mark(point.max_rel, _tooltip(point), point.passed) for point in points]
    limit = points[0].limit if points else None
    return log_plot([_short(point.name) for point in points], [Line(style, marks, style, limit)], y_label=y_label)


def _cosines(points: Sequence[Point], style: str) -> str:
    """1 − cosine, since a cosine of 0.9999999 and one of 1 look the same on any axis."""
    lines = [Line("direction", [_distance(point) for point in points], style)]
    return log_plot([_short(point.name) for point in points], lines, y_label="1 − cosine", floor=1e-16)


def _layers(layers: Sequence[LayerReport]) -> str:
    marks = [
        Mark(layer.error, f"{layer.path}: {layer.mode} {layer.bits} bits, groups of {layer.group_size}", True)
        for layer in layers
    ]
    names = [str(number) for number, _ in enumerate(layers, start=1)]
    return log_plot(names, [Line("written", marks, "written", None)], y_label="relative error")


def _distance(point: Point) -> Mark:
    return Mark(None if point.cosine is None else 1 - point.cosine, _tooltip(point), point.passed)


def _tooltip(point: Point) -> str:
    if point.problem is not None:
        return f"{point.name}: {point.problem} ({point.probe})"
    return f"{point.name}: max-rel {point.max_rel:.2e}, cosine {point.cosine:.9f} ({point.probe})"


def _short(name: str) -> str:
    if name.startswith("logits."):
        return name.removeprefix("logits.").removesuffix("_logits")
    short = {"embeddings": "emb", "pooler": "pool", SENTENCE: "sentence"}
    return short.get(name, name.removeprefix("encoder.layer."))
