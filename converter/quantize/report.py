"""What a quantization did and cost, on the terminal; fits 80 columns.

The plot of size against quality that `auto` leaves in its output.

Read a quantized directory's facts, compare its matrices with the source's, and measure what it costs on text.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mlx.utils import tree_flatten
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.quantize.allotment import Allotment
from converter.quantize.cost import (
    ERROR_LIMITS,
    KEPT_LIMITS,
    CostLimits,
    Kept,
    LayerReport,
    Quality,
    QuantizationReport,
    Skipped,
    recipe_of,
    row,
    text_limits,
)
from converter.quantize.quality import Model, core_of, measure_on_random_ids, measure_quality, pooling_of
from mlxbert.model_tensors import named_parameters


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


if TYPE_CHECKING:
    from converter.quantize.allotment import Allotment

PLOT = "quantization.png"


def plot_sizes(allotment: Allotment) -> bytes | None:
    """A PNG: bytes of the weight files against 1 − cosine; None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        [point.bytes / 1e6 for point in allotment.curve],
        [_loss(point.cosine) for point in allotment.curve],
        color="#2563c9",
        label="auto, expected",
    )
    points = {name: point for name, point in allotment.uniform.items() if _loss(point.cosine) < 1}
    sizes, losses = [p.bytes / 1e6 for p in points.values()], [_loss(p.cosine) for p in points.values()]
    axes.plot(sizes, losses, "s", color="#c05a00", label="the same bits everywhere, expected")
    for (name, _), x, y in zip(points.items(), sizes, losses, strict=True):
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 5), fontsize=9, color="#c05a00")
    size = allotment.expected.bytes / 1e6
    axes.plot([size], [_loss(allotment.expected.cosine)], "o", color="#2563c9", markersize=9, label="chosen, expected")
    if allotment.measured is not None:
        label = f"chosen, on {allotment.measured_on}: {allotment.measured:.4f}"
        axes.plot([size], [_loss(allotment.measured)], "*", color="#157a3c", markersize=14, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("weight files, MB")
    axes.set_ylabel("1 − mean cosine with float32 (lower is closer)")
    axes.set_title(f"Size against quality; target: {allotment.target.words}", fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=9)
    file = BytesIO()
    # Without a date or a version: the same allotment gives the same bytes.
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _loss(cosine: float) -> float:
    return max(1 - cosine, 1e-7)


if TYPE_CHECKING:
    from mlxbert.quantization import PackedWeights

Tensors = Mapping[str, Any]


def describe_quantization(
    directory: Path, config: Mapping[str, Any], exact: Model, written: Model
) -> QuantizationReport:
    """Read a quantized directory's facts and measure its quality.

    Args:
        directory: with its weights, its tokenizer and its `modules.json`; `config.json` may be missing still.
        config: what that holds, or will hold.
        exact: the float32 model.
        written: the directory's, as it is loaded.
    """
    packed: PackedWeights = core_of(written).packed
    original: Any = dict(tree_flatten(core_of(exact).parameters()))
    numbers = dict(packed.dequantized())
    calibrated = ((config.get("mlxbert") or {}).get("quantization") or {}).get("calibration") is not None
    encoder_bytes = sum(tensor.nbytes for tensor in packed.tensors.values())
    return QuantizationReport(
        recipe=recipe_of(config),
        calibrated=calibrated,
        bytes=weight_bytes(directory),
        parameters=packed.parameters,
        bits_per_weight=round(8 * encoder_bytes / packed.parameters, 3),
        layers=_layers(packed, original, numbers),
        skipped=tuple(Skipped(path, reason) for path, reason in packed.config.skipped.items()),
        kept=_kept(packed, exact, written, numbers, calibrated=calibrated),
        quality=_measured_quality(directory, exact, written),
        limits=text_limits(config, _mean_bits(packed), calibrated=calibrated),
    )


def weight_bytes(directory: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _layers(packed: PackedWeights, original: Tensors, numbers: Tensors) -> tuple[LayerReport, ...]:
    layers = []
    for path, layer in packed.layers.items():
        begin = time.perf_counter()
        error = _relative(np.array(original[f"{path}.weight"]), np.array(numbers[f"{path}.weight"]))
        leaves = ("weight", "scales", "biases") if layer.has_biases else ("weight", "scales")
        layers.append(
            LayerReport(
                path=path,
                mode=layer.mode,
                bits=layer.bits,
                group_size=layer.group_size,
                bytes=sum(packed.tensors[f"{path}.{leaf}"].nbytes for leaf in leaves),
                error=error,
                limit=ERROR_LIMITS[row(layer)],
                seconds=time.perf_counter() - begin,
            )
        )
    return tuple(layers)


def _mean_bits(packed: PackedWeights) -> float:
    """Of a packed weight, scales aside: every code has its layer's bits."""
    words = {path: packed.tensors[f"{path}.weight"].size for path in packed.layers}
    weights = sum(32 * words[path] / layer.bits for path, layer in packed.layers.items())
    return 32 * sum(words.values()) / weights if weights else 0.0


def _kept(packed: PackedWeights, exact: Model, written: Model, numbers: Tensors, *, calibrated: bool) -> Kept | None:
    """The tensor that is furthest from the source's of those that are not packed, the own head's included."""
    original: dict[str, Any] = dict(tree_flatten(core_of(exact).parameters()))
    pairs = {name: (array, numbers[name]) for name, array in original.items()}
    if core_of(exact) is not exact and core_of(written) is not written:
        ours = named_parameters(written.head)
        pairs |= {name: (array, ours[name]) for name, array in named_parameters(exact.head).items()}
    packed_names = {f"{path}.weight" for path in packed.layers}
    if calibrated:  # calibration corrects the biases of what it packs
        packed_names |= {f"{path}.bias" for path in packed.layers}
    errors = {
        name: _relative(np.array(a), np.array(b.astype(a.dtype)))
        for name, (a, b) in pairs.items()
        if name not in packed_names
    }
    if not errors:
        return None
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return Kept(worst, errors[worst], KEPT_LIMITS[packed.dtype])


def _measured_quality(directory: Path, exact: Model, written: Model) -> tuple[Quality, ...]:
    from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError

    core, pooling = core_of(exact), pooling_of(directory)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return measure_on_random_ids(exact, written, pooling)
    try:
        tokenizer = Tokenizer.from_directory(directory, max_length=core.config.max_length)
    except TokenizerError:  # what is wrong with it, the parity report's notes say
        return measure_on_random_ids(exact, written, pooling)
    if tokenizer.vocab_size > core.config.vocab_size:
        return measure_on_random_ids(exact, written, pooling)
    return measure_quality(exact, written, tokenizer, pooling)


def _relative(exact: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(exact))
    difference = float(np.linalg.norm(other - exact))
    return difference / length if length else difference
