"""The report of a quantization: read its files, measure them, and show the result as tables and a plot."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from converter.quantize.cost import (
    KEPT_LIMITS,
    CostLimits,
    KeptTensor,
    LayerReport,
    Quality,
    QuantizationReport,
    SkippedLayer,
    error_limit,
    recipe_of,
    text_limits,
)
from converter.quantize.quality import Model, measure_on_random_ids, measure_quality, pooling_of
from mlxbert.model_arrays import named_parameters
from mlxbert.models.base import Encoder

if TYPE_CHECKING:
    from converter.quantize.allotment import Allotment
    from mlxbert.quantization import PackedWeights

PLOT = "quantization.png"

Tensors = Mapping[str, Any]


def describe_quantization(
    directory: Path, config: Mapping[str, Any], exact: Model, written: Model
) -> QuantizationReport:
    """Read the facts of a quantized directory and measure its quality.

    Args:
        directory: the directory with weights, tokenizer and `modules.json`; `config.json` may be missing.
        config: the content of `config.json`.
        exact: the float32 model.
        written: the model of the directory.
    """
    packed = written.core.packed
    assert packed is not None  # the directory is quantized
    original, numbers = named_parameters(exact.core), dict(packed.dequantized())
    calibrated = ((config.get("mlxbert") or {}).get("quantization") or {}).get("calibration") is not None
    encoder_bytes = sum(tensor.nbytes for tensor in packed.tensors.values())
    return QuantizationReport(
        recipe=recipe_of(config),
        calibrated=calibrated,
        bytes=sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        parameters=packed.parameters,
        bits_per_weight=round(8 * encoder_bytes / packed.parameters, 3),
        layers=_layers(packed, original, numbers),
        skipped=tuple(SkippedLayer(path, reason) for path, reason in packed.config.skipped.items()),
        kept=_worst_kept(packed, exact, written, numbers, calibrated=calibrated),
        quality=_quality(directory, config, exact, written),
        limits=text_limits(config, _mean_bits(packed), calibrated=calibrated),
    )


def _layers(packed: PackedWeights, original: Tensors, numbers: Tensors) -> tuple[LayerReport, ...]:
    layers = []
    for path, layer in packed.layers.items():
        begin = time.perf_counter()
        error = _relative_error(np.array(original[f"{path}.weight"]), np.array(numbers[f"{path}.weight"]))
        leaves = ("weight", "scales", "biases") if layer.has_biases else ("weight", "scales")
        layers.append(
            LayerReport(
                path=path,
                mode=layer.mode,
                bits=layer.bits,
                group_size=layer.group_size,
                bytes=sum(packed.tensors[f"{path}.{leaf}"].nbytes for leaf in leaves),
                error=error,
                limit=error_limit(layer),
                seconds=time.perf_counter() - begin,
            )
        )
    return tuple(layers)


def _worst_kept(
    packed: PackedWeights, exact: Model, written: Model, numbers: Tensors, *, calibrated: bool
) -> KeptTensor | None:
    """Return the tensor with the largest error of those that are not packed, the checkpoint's own head included."""
    pairs = {name: (array, numbers[name]) for name, array in named_parameters(exact.core).items()}
    if not isinstance(exact, Encoder) and not isinstance(written, Encoder):
        head = named_parameters(written.head)
        pairs |= {name: (array, head[name]) for name, array in named_parameters(exact.head).items()}
    leaves = ("weight", "bias") if calibrated else ("weight",)  # calibration corrects the biases of packed layers
    changed = {f"{path}.{leaf}" for path in packed.layers for leaf in leaves}
    errors = {
        name: _relative_error(np.array(a), np.array(b.astype(a.dtype)))
        for name, (a, b) in pairs.items()
        if name not in changed
    }
    if not errors:
        return None
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    return KeptTensor(worst, errors[worst], KEPT_LIMITS[packed.dtype])


def _relative_error(exact: np.ndarray, other: np.ndarray) -> float:
    length = float(np.linalg.norm(exact))
    difference = float(np.linalg.norm(other - exact))
    return difference / length if length else difference


def _quality(directory: Path, hf_config: Mapping[str, Any], exact: Model, written: Model) -> tuple[Quality, ...]:
    from mlxbert.tokenization.files import has_tokenizer
    from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError

    config, pooling = exact.core.config, pooling_of(directory)
    if not has_tokenizer(file.name for file in directory.iterdir()):
        return measure_on_random_ids(exact, written, pooling)
    try:
        tokenizer = Tokenizer.from_directory(directory, max_length=config.max_length, hf_config=hf_config)
    except TokenizerError:  # a note of the parity report says what is wrong with it
        return measure_on_random_ids(exact, written, pooling)
    if tokenizer.vocab_size > config.vocab_size:
        return measure_on_random_ids(exact, written, pooling)
    return measure_quality(exact, written, tokenizer, pooling)


def _mean_bits(packed: PackedWeights) -> float:
    """Return the bits of a packed weight, without scales."""
    words = {path: packed.tensors[f"{path}.weight"].size for path in packed.layers}
    weights = sum(32 * words[path] / layer.bits for path, layer in packed.layers.items())
    return 32 * sum(words.values()) / weights if weights else 0.0


def quantization_table(report: QuantizationReport) -> Group:
    """Return the packings, the layers that are not packed, and the quality on held-out text; fits 80 columns."""
    how = "calibrated" if report.calibrated else "rounded"
    size = f"{report.bytes / 1e6:.2f} MB of weight files, {report.bits_per_weight:.2f} bits a weight"
    parts: list[RenderableType] = [Text(f"Quantization: {report.recipe}, {how}, {size}", style="bold")]
    for packing, layers in report.packings.items():
        worst = max(layers, key=lambda layer: layer.error)
        count = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
        parts.append(Text(f"  {packing}: {count}, error up to {worst.error:.3f} ({worst.path})"))
    parts += [Text(f"  kept: {skipped.path}: {skipped.reason}") for skipped in report.skipped]
    if report.quality:
        parts += [Text(), _quality_table(report.quality, report.limits)]
    else:
        parts.append(Text("  quality not measured: there is no tokenizer that fits the model"))
    return Group(*parts)


def _quality_table(qualities: Sequence[Quality], limits: CostLimits) -> Table:
    table = Table(title="Held-out text: quantized against float32", title_justify="left", box=None, padding=(0, 1))
    for column in ("text", "sentences", "cosine mean", "min", "rank corr.", "decisions", "KL"):
        table.add_column(column, justify="left" if column == "text" else "right", no_wrap=True)
    for quality in qualities:
        table.add_row(
            quality.text,
            str(quality.sentences),
            f"{quality.cosine_mean:.5f}",
            f"{quality.cosine_min:.5f}",
            _number(quality.rank_correlation),
            "–" if quality.logit_agreement is None else f"{100 * quality.logit_agreement:.1f} %",
            _number(quality.logit_kl),
        )
    limit = (f"{value:g}" for value in (limits.cosine_mean, limits.cosine_min, limits.rank_correlation))
    table.add_row(f"limits of {limits.name}", "", *limit, "", "")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def allotment_table(allotment: Allotment) -> Group:
    """Return the bits that `auto` gave every layer, the most sensitive layer first."""
    table = Table(title="Bits allotted", title_justify="left", box=None, padding=(0, 1))
    for column in ("layer", "alone at 4 bits", "bits", "group", "kB"):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for choice in sorted(allotment.choices, key=lambda choice: -choice.sensitivity):
        layer = choice.option.layer
        numbers = (f"{choice.sensitivity:.1e}", str(layer.bits), str(layer.group_size))
        table.add_row(choice.path, *numbers, f"{choice.option.bytes / 1e3:,.0f}")
    lines = [f"target: {allotment.target.description}; expected cosine {allotment.expected.cosine:.4f}"]
    if allotment.measured is not None:
        lines.append(f"measured on {allotment.measured_on}: {allotment.measured:.4f}")
    return Group(table, *map(Text, lines))


def plot_sizes(allotment: Allotment) -> bytes | None:
    """Return a PNG, bytes of the weight files against 1 − cosine; None without matplotlib."""
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
    axes.set_title(f"Size against quality; target: {allotment.target.description}", fontsize=11)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=9)
    file = BytesIO()
    # Without a date or a version: the same allotment gives the same bytes.
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()


def _loss(cosine: float) -> float:
    return max(1 - cosine, 1e-7)
