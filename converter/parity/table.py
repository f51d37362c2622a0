"""The parity report on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, ParityReport, Point


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
