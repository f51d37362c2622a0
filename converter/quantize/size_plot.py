"""The plot of size against quality that `auto` leaves in its output."""

from __future__ import annotations

import importlib.util
from io import BytesIO
from typing import TYPE_CHECKING

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
