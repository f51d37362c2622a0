"""What a quantization cost, as data with its verdict: the "quantization" object of `parity.json`.

The mapping is proven before anything is packed (`converter.parity.gates`). What is left to show is that the files hold
the matrices that were rounded, and what the rounding costs a text's embedding: each has limits of its own packing.

Which limits a quantized checkpoint answers to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from converter.quantize.recipes import AUTO, MIXED
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import from_json
from mlxbert.quantization import LayerQuantization, QuantizationConfig


@dataclass(frozen=True)
class CostLimits:
    """What texts' embeddings may lose; `name` is the packing that the limits belong to."""

    name: str
    cosine_mean: float
    cosine_min: float
    rank_correlation: float


# Measured with `python -m benchmarks.quantize_limits` (table in benchmarks/README.md): about twice what rounding costs
# the worst of all-MiniLM-L6-v2 and three random BERTs. The same files with their codes in another order, or with a
# neighbour's scales, are far beyond. They do not move when a test fails.
TEXT_LIMITS = {
    limits.name: limits
    for limits in (
        CostLimits("2bit", 0.25, 0.0, 0.25),
        CostLimits("3bit", 0.75, 0.45, 0.70),
        CostLimits("4bit", 0.93, 0.88, 0.92),
        CostLimits("5bit", 0.98, 0.97, 0.97),
        CostLimits("6bit", 0.995, 0.992, 0.993),
        CostLimits("8bit", 0.9995, 0.999, 0.9995),
        CostLimits("mxfp4", 0.92, 0.84, 0.86),
        CostLimits("mxfp8", 0.996, 0.993, 0.99),
        CostLimits("nvfp4", 0.955, 0.925, 0.90),
        CostLimits("mixed", 0.993, 0.988, 0.98),  # calibrated, as it is made for
    )
}
# On |W − Ŵ| / |W|, Frobenius, of one packed matrix, and of one tensor that is kept in a dtype.
ERROR_LIMITS = {
    "2bit": 0.50,
    "3bit": 0.30,
    "4bit": 0.16,
    "5bit": 0.08,
    "6bit": 0.04,
    "8bit": 0.01,
    "mxfp4": 0.18,
    "mxfp8": 0.05,
    "nvfp4": 0.16,
}
KEPT_LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class LayerReport:
    """One packed matrix.

    Attributes:
        path: its layer.
        mode, bits, group_size: how it is packed.
        bytes: what it takes, scales and biases included.
        error: |W − Ŵ| / |W|, Frobenius, against the float32 matrix.
        limit: on `error`.
        seconds: that comparing it took; not kept in `parity.json`, whose bytes repeat.
    """

    path: str
    mode: str
    bits: int
    group_size: int
    bytes: int
    error: float
    limit: float
    seconds: float | None = field(default=None, compare=False)

    @property
    def form(self) -> str:
        """`4-bit affine, groups of 64`."""
        return f"{self.bits}-bit {self.mode}, groups of {self.group_size}"

    @property
    def failure(self) -> str | None:
        """Why these are not the rounded source's numbers; None: they are."""
        if self.error <= self.limit:  # so that NaN fails
            return None
        return f"packing: {self.path}: error {self.error:.3f} > {self.limit:g}, the limit of {self.form}"


@dataclass(frozen=True)
class Kept:
    """Of the tensors that are not packed, the one that is furthest from the source's; `error` and `limit` as above."""

    name: str
    error: float
    limit: float


@dataclass(frozen=True)
class Skipped:
    """A layer that keeps its numbers, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Quality:
    """One list of held-out texts, quantized against float32.

    Attributes:
        text: the list's name; "random ids" where there is no tokenizer.
        sentences: in it.
        cosine_mean, cosine_min: between a sentence's two embeddings.
        rank_correlation: Spearman's, of the cosines of all pairs of sentences.
        logit_agreement: share of the head's decisions that are the same (the largest score; of several labels each
            by itself, at a probability of 0.5); None: no head, or one of numbers.
        logit_kl: mean KL divergence, in nats, from the float32 head's distribution, of several labels each
            label's; None likewise.
        seconds: that measuring it took; not kept in `parity.json`.
    """

    text: str
    sentences: int
    cosine_mean: float
    cosine_min: float
    rank_correlation: float | None
    logit_agreement: float | None = None
    logit_kl: float | None = None
    seconds: float | None = field(default=None, compare=False)

    def failures(self, limits: CostLimits) -> list[str]:
        """A line for each measure beyond its limit; NaN is."""
        found = {"mean cosine": (self.cosine_mean, limits.cosine_mean)}
        found["smallest cosine"] = (self.cosine_min, limits.cosine_min)
        if self.rank_correlation is not None:
            found["rank correlation"] = (self.rank_correlation, limits.rank_correlation)
        return [
            f"cost on {self.text}: {what} {value:.4f} < {limit:g}, the limit of {limits.name}"
            for what, (value, limit) in found.items()
            if not value >= limit
        ]


@dataclass(frozen=True)
class QuantizationReport:
    """All that the terminal, `parity.json`, the HTML page and the card say of a quantization.

    Attributes:
        recipe: its name; where another tool wrote the files, their packing.
        calibrated: whether text chose the codes.
        bytes: of all weight files, headers and heads included.
        parameters: true count, of the encoder.
        bits_per_weight: of storage: the encoder's bytes · 8 / parameters.
        layers, skipped, kept: what was packed, what was not and why, and the worst of what was not.
        quality: on each held-out list.
        limits: what `quality` answers to.
    """

    recipe: str
    calibrated: bool
    bytes: int
    parameters: int
    bits_per_weight: float
    layers: tuple[LayerReport, ...]
    skipped: tuple[Skipped, ...]
    kept: Kept | None
    quality: tuple[Quality, ...]
    limits: CostLimits

    @property
    def failures(self) -> list[str]:
        """A line for each matrix that is not the rounded source's, then for each measure on text beyond its limit."""
        found = [layer.failure for layer in self.layers if layer.failure is not None]
        if self.kept is not None and not self.kept.error <= self.kept.limit:
            found.append(f"packing: {self.kept.name}, not packed: error {self.kept.error:.1e} > {self.kept.limit:g}")
        found += [line for item in self.quality for line in item.failures(self.limits)]
        return found if self.quality else [*found, "cost: not measured on any text"]

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """For each form of layer, the widest first: how many layers have it, and their bytes."""
        found: dict[str, list[LayerReport]] = defaultdict(list)
        for layer in sorted(self.layers, key=lambda layer: (-layer.bits, layer.mode, -layer.group_size)):
            found[layer.form].append(layer)
        return {form: (len(layers), sum(layer.bytes for layer in layers)) for form, layers in found.items()}

    @property
    def sentence(self) -> str:
        """What the bits cost, in one sentence."""
        worst = min(self.quality, key=lambda item: item.cosine_mean, default=None)
        if worst is None:
            return f"{self.recipe}: not measured"
        rank = "" if worst.rank_correlation is None else f", rank correlation {worst.rank_correlation:.4f}"
        within = "beyond" if self.failures else "within"
        limits = self.limits
        asked = f"mean {limits.cosine_mean:g}, smallest {limits.cosine_min:g}, rank {limits.rank_correlation:g}"
        return (
            f"{self.recipe}, {self.bits_per_weight:.2f} bits a weight: on {worst.text} cosine {worst.cosine_mean:.4f} "
            f"(smallest {worst.cosine_min:.4f}){rank}; {within} the limits of {self.limits.name} ({asked})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the seconds that it took."""
        values = asdict(self)
        for item in (*values["layers"], *values["quality"]):
            del item["seconds"]
        return values


def read_cost(block: Mapping[str, Any], error: type[MLXBertError]) -> QuantizationReport:
    """Return what `QuantizationReport.to_dict` gave; fields of a later version are left out.

    Raises:
        error: one of ours is missing or of another type.
    """
    return from_json(
        QuantizationReport,
        block,
        place="the quantization block of parity.json",
        fix="fix: run mlxbert-verify again",
        error=error,
    )


def recipe_of(config: Mapping[str, Any]) -> str:
    """The recipe that a `config.json` names; of another tool's files its packing."""
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    recipe = facts.get("recipe") if isinstance(facts, dict) else None
    return recipe if isinstance(recipe, str) else coarsest(config)


def text_limits(config: Mapping[str, Any], mean_bits: float, *, calibrated: bool) -> CostLimits:
    """The recipe's own limits; of allotted bits those of the best uniform recipe that takes no more of them.

    Args:
        config: a quantized checkpoint's `config.json`.
        mean_bits: of a packed weight, scales aside.
        calibrated: whether text chose the codes.
    """
    recipe = recipe_of(config)
    if recipe == AUTO:
        fitting = [bits for bits in (2, 3, 4, 5, 6, 8) if bits <= mean_bits]
        return TEXT_LIMITS[f"{max(fitting, default=2)}bit"]
    return TEXT_LIMITS[MIXED if recipe == MIXED and calibrated else coarsest(config)]


def coarsest(config: Mapping[str, Any]) -> str:
    """The limits' row of the narrowest packing that any layer has: "4bit", "mxfp4", …"""
    parsed = QuantizationConfig.from_hf(config)
    assert parsed is not None  # asked of quantized ones alone
    return row(
        min([*parsed.overrides.values(), parsed.default], key=lambda layer: (layer.bits, layer.mode == "affine"))
    )


def row(layer: LayerQuantization) -> str:
    """The name of a packing in `converter.quantize.cost`."""
    return f"{layer.bits}bit" if layer.mode == "affine" else layer.mode
