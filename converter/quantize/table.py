"""What a quantization did and cost, on the terminal; fits 80 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.quantize.allotment import Allotment
from converter.quantize.cost import CostLimits, Quality, QuantizationReport


def quantization_table(report: QuantizationReport) -> Group:
    """The packings by how many layers have them, the skipped layers, and the quality on held-out text."""
    how = "calibrated" if report.calibrated else "rounded"
    size = f"{report.bytes / 1e6:.2f} MB of weight files, {report.bits_per_weight:.2f} bits a weight"
    parts: list[RenderableType] = [Text(f"Quantization: {report.recipe}, {how}, {size}", style="bold")]
    parts += [Text(f"  {line}") for line in packings(report)]
    parts += [Text(f"  kept: {skipped.path}: {skipped.reason}") for skipped in report.skipped]
    if report.quality:
        parts += [Text(), _quality(report.quality, report.limits)]
    else:
        parts.append(Text("  quality not measured: there is no tokenizer that fits the model"))
    return Group(*parts)


def packings(report: QuantizationReport) -> list[str]:
    """One line for each packing: how many layers have it, and their largest error."""
    kinds = Counter((layer.mode, layer.bits, layer.group_size) for layer in report.layers)
    lines = []
    for (mode, bits, group), count in sorted(kinds.items()):
        same = [layer for layer in report.layers if (layer.mode, layer.bits, layer.group_size) == (mode, bits, group)]
        worst = max(same, key=lambda layer: layer.error)
        layers = "1 layer" if count == 1 else f"{count} layers"
        lines.append(f"{mode} {bits} bits, groups of {group}: {layers}, error up to {worst.error:.3f} ({worst.path})")
    return lines


def allotment_table(allotment: Allotment) -> Group:
    """What `auto` gave every layer, the most sensitive first."""
    table = Table(title="Bits allotted", title_justify="left", box=None, padding=(0, 1))
    for column in ("layer", "alone at 4 bits", "bits", "group", "kB"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for choice in sorted(allotment.choices, key=lambda choice: -choice.sensitivity):
        layer = choice.option.layer
        numbers = (f"{choice.sensitivity:.1e}", str(layer.bits), str(layer.group_size))
        table.add_row(choice.path, *numbers, f"{choice.option.bytes / 1e3:,.0f}")
    lines = [f"target: {allotment.target.words}; expected cosine {allotment.expected.cosine:.4f}"]
    if allotment.measured is not None:
        lines.append(f"measured on {allotment.measured_on}: {allotment.measured:.4f}")
    return Group(table, *map(Text, lines))


def _quality(quality: Sequence[Quality], limits: CostLimits) -> Table:
    table = Table(title="Held-out text: quantized against float32", title_justify="left", box=None, padding=(0, 1))
    for column in ("text", "sentences", "cosine mean", "min", "rank corr.", "decisions", "KL"):
        table.add_column(column, justify="left" if column == "text" else "right", no_wrap=True)
    for item in quality:
        table.add_row(
            item.text,
            str(item.sentences),
            f"{item.cosine_mean:.5f}",
            f"{item.cosine_min:.5f}",
            _number(item.rank_correlation),
            "–" if item.logit_agreement is None else f"{100 * item.logit_agreement:.1f} %",
            _number(item.logit_kl),
        )
    limit = (f"{value:g}" for value in (limits.cosine_mean, limits.cosine_min, limits.rank_correlation))
    table.add_row(f"limits of {limits.name}", "", *limit, "", "")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"
