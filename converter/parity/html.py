"""The parity report as one HTML page without anything outside it: verdict, plots, tables, where it ran."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from converter.parity.plot import Line, Mark, log_plot
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, SENTENCE, ParityReport, Point
from mlxbert.errors import escaped_value

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


def _badness(point: Point) -> float:
    return float("inf") if point.max_rel is None else point.max_rel


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
