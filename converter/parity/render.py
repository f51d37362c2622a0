"""The parity report for people and for CI: a table on the terminal, JUnit XML, and one HTML page with plots.

The plots are SVG from a template rather than a plotting library: the text stays text, the colours come from the page's
style sheet (light and dark), every point has its numbers as a tooltip, and the same report gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from xml.etree import ElementTree

import jinja2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.parity.report import (
    CUMULATIVE,
    LOCAL,
    MAPPING,
    PADDING,
    PRECISION,
    SENTENCE,
    ParityReport,
    Point,
    badness,
)
from converter.quantize.cost import LayerReport, QuantizationReport
from mlxbert.errors import escaped_value

# The terminal


def parity_table(report: ParityReport) -> Group:
    """Return a table for each gate, one line for each failure, and the verdict; fits 80 columns."""
    parts: list[RenderableType] = [_mapping_table(report), Text()]
    if report.quantization is None:
        parts += [_precision_table(report), Text()]
    parts += [Text(f"FAIL  {line}", style="red") for line in report.failures]
    return Group(*parts, verdict(report))


def verdict(report: ParityReport) -> Text:
    """Return the last lines: is it the same model, in which parts, and what does a quantization cost?"""
    environment, cost = report.environment, report.quantization
    place = f"{len(report.probes)} probes, MLX {environment.get('mlx')} on {environment.get('device')}"
    place += f", PyTorch {environment.get('torch')}"
    if not report.gate_passed(MAPPING) or (cost is None and not report.passed):
        layer = report.first_diverging_layer
        at = f": first wrong at {layer}" if layer else ": same model, but the written precision costs too much"
        return Text(f"FAIL  against {report.provenance.source}{at} ({place})", style="bold red")
    proven = "the same model as" if cost is None else "mapping proven, float32 before packing: the same as"
    reference, parts = report.provenance.reference, ", ".join(report.compared)
    if report.uncompared:
        line = f"PART  {proven} {reference} in {parts}; not compared: {report.left_out} ({place})"
        lines = Text(line, style="bold yellow")
    else:
        lines = Text(f"PASS  {proven} {reference}: {parts} ({place})", style="bold green")
    if cost is not None:
        word, style = ("FAIL", "bold red") if cost.failures else ("COST", "bold green")
        lines.append(f"\n{word}  {cost.sentence}", style=style)
    return lines


def _mapping_table(report: ParityReport) -> Table:
    alone = {point.name: point for point in report.select(MAPPING, LOCAL)}
    whole = {point.name: point for point in report.select(MAPPING, CUMULATIVE)}
    table = _table("Mapping gate: float32 MLX against float32 PyTorch", "max-rel alone")
    for name in dict.fromkeys((*whole, *alone)):
        points = [point for point in (whole.get(name), alone.get(name)) if point is not None]
        table.add_row(name, *_measures(whole.get(name)), _error(alone.get(name)), _ok(points))
    padding = report.select(MAPPING, PADDING)
    if padding:
        table.add_section()
        table.add_row("padded or alone", *_measures(_worst(padding)), "", _ok(padding))
    limits = {point.check: point.limit for point in report.points if point.gate == MAPPING}
    if limits:
        table.caption = f"limits on max-rel: {limits[CUMULATIVE]:.0e} after all layers so far"
        table.caption += f", {limits[LOCAL]:.0e} for a layer alone" if LOCAL in limits else ""
    return table


def _precision_table(report: ParityReport) -> Table:
    points = report.select(PRECISION, CUMULATIVE)
    table = _table(f"Precision gate: written {report.written_dtype} against its own float32")
    for point in points:
        table.add_row(point.name, *_measures(point), _ok([point]))
    if points:
        table.caption = f"limits: max-rel {points[0].limit:.1e}, cosine {points[0].cosine_limit}"
    return table


def _table(title: str, *extra: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=None, padding=(0, 1))
    table.add_column("module", overflow="fold")  # a long name takes two lines; numbers are never cut
    for column in ("max-abs", "max-rel", "cosine", "argmax", *extra, ""):
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _measures(point: Point | None) -> tuple[str, Text, str, str]:
    """Return max-abs, max-rel, cosine and argmax agreement as text; a dash where there is no number."""
    if point is None or point.max_abs is None or point.cosine is None or point.argmax_agreement is None:
        return "–", _error(point), "–", "–"
    agreement = f"{100 * point.argmax_agreement:.1f} %"
    return f"{point.max_abs:.1e}", _error(point), f"{point.cosine:.7f}", agreement


def _error(point: Point | None) -> Text:
    if point is None:
        return Text("–")
    text = "–" if point.max_rel is None else f"{point.max_rel:.1e}"
    return Text(text, style="" if point.passed else "bold red")


def _ok(points: Sequence[Point]) -> Text:
    passed = points and all(point.passed for point in points)
    return Text("ok", style="green") if passed else Text("FAIL", style="bold red")


def _worst(points: Sequence[Point]) -> Point | None:
    return max(points, key=lambda point: badness(point.max_rel), default=None)


# JUnit XML, which every CI system reads

# Characters that XML 1.0 cannot have even escaped; a file name may have them.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class _Case:
    """One test case; `check` is the last part of its class name."""

    check: str
    name: str
    seconds: float | None = None
    failure: str | None = None
    skipped: str | None = None
    numbers: str = ""


def render_junit(report: ParityReport) -> str:
    """Return the XML document: a suite for each gate, a case for each point, with the seconds that it took.

    For a quantized model the second suite has a case for each packed matrix and each list of texts. A part that was
    not compared is a skipped case.
    """
    suites = {gate: [_point_case(p) for p in report.points if p.gate == gate] for gate in (MAPPING, PRECISION)}
    if report.quantization is not None:
        suites = {MAPPING: suites[MAPPING], "quantization": _quantization_cases(report.quantization)}
    if report.uncompared:
        suites["scope"] = [_Case("scope", p.name, skipped=f"not compared: {p.detail}") for p in report.uncompared]
    root = ElementTree.Element("testsuites", name="mlxbert parity")
    total = 0.0
    for name, cases in suites.items():
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
        _add_properties(suite, report)
        for case in cases:
            _add_case(suite, case)
    root.set("time", f"{total:.6f}")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _point_case(point: Point) -> _Case:
    numbers = (
        f"max_abs={point.max_abs} max_rel={point.max_rel} limit={point.limit} cosine={point.cosine} "
        f"cosine_limit={point.cosine_limit} argmax_agreement={point.argmax_agreement} worst_probe={point.probe}"
    )
    return _Case(f"{point.gate}.{point.check}", point.name, point.seconds, point.failure, numbers=numbers)


def _quantization_cases(cost: QuantizationReport) -> list[_Case]:
    cases = []
    for layer in cost.layers:
        numbers = f"error={layer.error} limit={layer.limit}"
        cases.append(_Case("quantization.packing", layer.path, layer.seconds, layer.failure, numbers=numbers))
    for quality in cost.quality:
        numbers = (
            f"cosine_mean={quality.cosine_mean} cosine_min={quality.cosine_min} "
            f"rank_correlation={quality.rank_correlation} limits={cost.limits}"
        )
        failure = "; ".join(quality.failures(cost.limits)) or None
        cases.append(_Case("quantization.cost", quality.text, quality.seconds, failure, numbers=numbers))
    return cases


def _add_properties(suite: ElementTree.Element, report: ParityReport) -> None:
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


def _add_case(suite: ElementTree.Element, case: _Case) -> None:
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


# The HTML page


def render_html(report: ParityReport) -> str:
    """Return one HTML page that needs no other file; the same report gives the same text."""
    whole, alone = report.select(MAPPING, CUMULATIVE), report.select(MAPPING, LOCAL)
    padding, precision = report.select(MAPPING, PADDING), report.select(PRECISION, CUMULATIVE)
    return _template("template.html").render(
        report=report,
        provenance=report.provenance,
        quantization=report.quantization,
        mapping_passed=report.gate_passed(MAPPING),
        precision_passed=report.gate_passed(PRECISION),
        whole=whole,
        alone={point.name: point for point in alone},
        padding=_worst(padding),
        padding_passed=all(point.passed for point in padding),
        precision=precision,
        identical=bool(precision) and all(point.passed and point.max_abs == 0 for point in precision),
        largest={"whole": _worst(whole), "alone": _worst(alone), "precision": _worst(precision)},
        plots={
            "whole": _error_plot(whole, "whole"),
            "alone": _error_plot(alone, "alone"),
            "precision": _error_plot(precision, "written"),
            "cosine": _cosine_plot(whole, "whole"),
            "written_cosine": _cosine_plot(precision, "written"),
            "layers": _layer_plot(report.quantization.layers) if report.quantization else "",
        },
    )


def _template(name: str) -> jinja2.Template:
    """Return a template of this folder; it escapes every value."""
    environment = jinja2.Environment(
        autoescape=True, finalize=escaped_value, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["error"] = lambda value: "–" if value is None else f"{value:.1e}"
    environment.filters["cosine"] = lambda value: "–" if value is None else f"{value:.7f}"
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.5f}"
    return environment.from_string(files("converter.parity").joinpath(name).read_text(encoding="utf-8"))


def _error_plot(points: Sequence[Point], style: str) -> str:
    marks = [Mark(point.max_rel, _tooltip(point), point.passed) for point in points]
    line = Line(style, marks, style, points[0].limit if points else None)
    return log_plot([_short(point.name) for point in points], [line], y_label="max-rel error")


def _cosine_plot(points: Sequence[Point], style: str) -> str:
    """Return a plot of 1 − cosine, since a cosine of 0.9999999 and one of 1 look the same on any axis."""
    marks = [Mark(None if p.cosine is None else 1 - p.cosine, _tooltip(p), p.passed) for p in points]
    line = Line("direction", marks, style)
    return log_plot([_short(point.name) for point in points], [line], y_label="1 − cosine", floor=1e-16)


def _layer_plot(layers: Sequence[LayerReport]) -> str:
    marks = [
        Mark(layer.error, f"{layer.path}: {layer.mode} {layer.bits} bits, groups of {layer.group_size}")
        for layer in layers
    ]
    names = [str(number) for number, _ in enumerate(layers, start=1)]
    return log_plot(names, [Line("written", marks, "written")], y_label="relative error")


def _tooltip(point: Point) -> str:
    if point.problem is not None:
        return f"{point.name}: {point.problem} ({point.probe})"
    return f"{point.name}: max-rel {point.max_rel:.2e}, cosine {point.cosine:.9f} ({point.probe})"


def _short(name: str) -> str:
    """Return a name that fits below a column: the number of a layer, the name of a score."""
    short = {"embeddings": "emb", "pooler": "pool", SENTENCE: "sentence"}
    return short.get(name, name.rpartition(".")[2].removesuffix("_logits"))


# Plots

_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 300, 74, 14
# Width of a label's character at the style sheet's 13.5 px, and height of its line, in pixels.
_CHARACTER, _LINE = 8.0, 16
# A log scale has no 0: smaller values are drawn here.
_FLOOR = 1e-9


@dataclass(frozen=True)
class Mark:
    """One point of a line; with `value` None it is a cross at the top edge."""

    value: float | None
    tooltip: str
    passed: bool = True


@dataclass(frozen=True)
class Line:
    """One line of a plot; `style` is a class of the page's style sheet, `limit` a horizontal line."""

    label: str
    marks: Sequence[Mark]
    style: str
    limit: float | None = None


def log_plot(names: Sequence[str], lines: Sequence[Line], *, y_label: str, floor: float = _FLOOR) -> str:
    """Return an `<svg>` element: one column for each name, one polyline for each line, decades as the grid.

    Each line has as many marks as there are `names`. A single point is no plot: the result is "", since a table says
    it all. No label overlaps another one or a line: the right margin has the names of limits, and names that are wider
    than their column are at an angle.
    """
    if len(names) < 2:
        return ""
    limits = [line.limit for line in lines if line.limit is not None]
    values = [mark.value for line in lines for mark in line.marks if mark.value is not None] + limits
    low = math.floor(math.log10(max(floor, min(values, default=floor))))
    high = max(low + 1, math.ceil(math.log10(max(floor, max(values, default=1.0)) * 1.5)))

    right = _WIDTH - (96 if limits else 14)
    step = (right - _LEFT) / len(names)
    longest = max(map(len, names)) * _CHARACTER
    tilted = longest > step
    bottom = round(_HEIGHT - 28 - (0.71 * longest + 12 if tilted else _LINE), 1)

    def x(column: int) -> float:
        return round(_LEFT + step * (column + 0.5), 1)

    def y(value: float | None) -> float:
        exponent = high if value is None else min(high, math.log10(max(value, 10.0**low)))
        return round(_TOP + (bottom - _TOP) * (high - exponent) / (high - low), 1)

    return _template("plot.html").render(
        names=names,
        lines=lines,
        y_label=y_label,
        x=x,
        y=y,
        # About six labels, however many decades there are.
        decades=range(low, high + 1, max(1, (high - low) // 6)),
        every=math.ceil(_LINE / step),
        tilted=tilted,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
    )
