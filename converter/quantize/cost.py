"""The cost of a quantization as data with a verdict: the "quantization" object of `parity.json`, and its limits.

The mapping is proven before anything is packed (`converter.parity.gates`). Two questions remain: do the files hold the
matrices that were rounded, and what does the rounding cost a text's embedding? Each packing has limits on both.
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
    """What the embeddings of texts may lose; `name` is the packing that the limits belong to."""

    name: str
    cosine_mean: float
    cosine_min: float
    rank_correlation: float


# Measured with `python -m benchmarks.quantize_limits` (table in benchmarks/README.md): about twice what rounding costs
# the worst of all-MiniLM-L6-v2 and three random BERTs. The same files with their codes in another order, or with a
# neighbour's scales, are far beyond. They do not move when a test fails.
_LIMITS: dict[str, tuple[float, float, float, float]] = {
    # |W − Ŵ| / |W| of one matrix (Frobenius); mean cosine, smallest cosine and rank correlation on text
    "2bit": (0.50, 0.25, 0.0, 0.25),
    "3bit": (0.30, 0.75, 0.45, 0.70),
    "4bit": (0.16, 0.93, 0.88, 0.92),
    "5bit": (0.08, 0.98, 0.97, 0.97),
    "6bit": (0.04, 0.995, 0.992, 0.993),
    "8bit": (0.01, 0.9995, 0.999, 0.9995),
    "mxfp4": (0.18, 0.92, 0.84, 0.86),
    "mxfp8": (0.05, 0.996, 0.993, 0.99),
    "nvfp4": (0.16, 0.955, 0.925, 0.90),
}
TEXT_LIMITS = {name: CostLimits(name, *text) for name, (_, *text) in _LIMITS.items()}
TEXT_LIMITS["mixed"] = CostLimits("mixed", 0.993, 0.988, 0.98)  # calibrated, as is its default
# On the error of one tensor that is not packed, by its dtype.
KEPT_LIMITS = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class LayerReport:
    """One packed matrix.

    Attributes:
        path: path of its layer.
        mode, bits, group_size: its packing.
        bytes: its size, scales and biases included.
        error: |W − Ŵ| / |W|, Frobenius, against the float32 matrix.
        limit: limit on `error`.
        seconds: time of the comparison; not in `parity.json`, whose bytes repeat.
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
    def packing(self) -> str:
        """The packing in words: `4-bit affine, groups of 64`."""
        return f"{self.bits}-bit {self.mode}, groups of {self.group_size}"

    @property
    def failure(self) -> str | None:
        """Why these are not the rounded numbers of the source; None: they are."""
        if self.error <= self.limit:  # so that NaN fails
            return None
        return f"packing: {self.path}: error {self.error:.3f} > {self.limit:g}, the limit of {self.packing}"


@dataclass(frozen=True)
class KeptTensor:
    """The tensor with the largest error of those that are not packed; `error` and `limit` as in `LayerReport`."""

    name: str
    error: float
    limit: float


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that is not packed, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Quality:
    """Quantized against float32 on one list of held-out texts.

    Attributes:
        text: name of the list; "random ids" without a tokenizer.
        sentences: number of texts.
        cosine_mean, cosine_min: of the cosines between the two embeddings of a text.
        rank_correlation: Spearman's, of the cosines of all pairs of texts.
        logit_agreement: share of equal decisions of the head (the largest score; with several labels each of them,
            at a probability of 0.5); None: there is no head, or it gives numbers.
        logit_kl: mean KL divergence, in nats, from the distribution of the float32 head, with several labels that of
            each; None likewise.
        seconds: time of the measurement; not in `parity.json`.
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
        """Return a line for each measure beyond its limit; NaN is beyond."""
        measures = {
            "mean cosine": (self.cosine_mean, limits.cosine_mean),
            "smallest cosine": (self.cosine_min, limits.cosine_min),
        }
        if self.rank_correlation is not None:
            measures["rank correlation"] = (self.rank_correlation, limits.rank_correlation)
        return [
            f"cost on {self.text}: {name} {value:.4f} < {limit:g}, the limit of {limits.name}"
            for name, (value, limit) in measures.items()
            if not value >= limit
        ]


@dataclass(frozen=True)
class QuantizationReport:
    """What the terminal, `parity.json`, the HTML page and the card say about a quantization.

    Attributes:
        recipe: name of the recipe; for files of another tool their packing.
        calibrated: whether calibration text chose the codes.
        bytes: size of all weight files, headers and heads included.
        parameters: number of the encoder's parameters before packing.
        bits_per_weight: storage: the encoder's bytes · 8 / parameters.
        layers: the packed matrices.
        skipped: the layers that are not packed.
        kept: the worst tensor that is not packed.
        quality: the measures on each held-out list.
        limits: the limits on `quality`.
    """

    recipe: str
    calibrated: bool
    bytes: int
    parameters: int
    bits_per_weight: float
    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedLayer, ...]
    kept: KeptTensor | None
    quality: tuple[Quality, ...]
    limits: CostLimits

    @property
    def failures(self) -> list[str]:
        """A line for each matrix with wrong numbers, then for each measure on text beyond its limit."""
        lines = [layer.failure for layer in self.layers if layer.failure is not None]
        if self.kept is not None and not self.kept.error <= self.kept.limit:
            lines.append(f"packing: {self.kept.name}, not packed: error {self.kept.error:.1e} > {self.kept.limit:g}")
        lines += [line for quality in self.quality for line in quality.failures(self.limits)]
        return lines if self.quality else [*lines, "cost: not measured on any text"]

    @property
    def packings(self) -> dict[str, list[LayerReport]]:
        """Packing -> its layers, the widest packing first."""
        layers: dict[str, list[LayerReport]] = defaultdict(list)
        for layer in sorted(self.layers, key=lambda layer: (-layer.bits, layer.mode, -layer.group_size)):
            layers[layer.packing].append(layer)
        return layers

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Packing -> (number of layers, their bytes), the widest packing first."""
        return {packing: (len(same), sum(layer.bytes for layer in same)) for packing, same in self.packings.items()}

    @property
    def sentence(self) -> str:
        """The cost in one sentence."""
        worst = min(self.quality, key=lambda quality: quality.cosine_mean, default=None)
        if worst is None:
            return f"{self.recipe}: not measured"
        rank = "" if worst.rank_correlation is None else f", rank correlation {worst.rank_correlation:.4f}"
        within = "beyond" if self.failures else "within"
        limits = self.limits
        limit = f"mean {limits.cosine_mean:g}, smallest {limits.cosine_min:g}, rank {limits.rank_correlation:g}"
        return (
            f"{self.recipe}, {self.bits_per_weight:.2f} bits a weight: on {worst.text} cosine {worst.cosine_mean:.4f} "
            f"(smallest {worst.cosine_min:.4f}){rank}; {within} the limits of {limits.name} ({limit})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data without the seconds."""
        values = asdict(self)
        for item in (*values["layers"], *values["quality"]):
            del item["seconds"]
        return values


def read_cost(block: Mapping[str, Any], error: type[MLXBertError]) -> QuantizationReport:
    """Return the report that `QuantizationReport.to_dict` wrote; fields of a later version are ignored.

    Raises:
        error: a field is missing or of another type.
    """
    place, fix = "the quantization block of parity.json", "fix: run mlxbert-verify again"
    return from_json(QuantizationReport, block, place=place, fix=fix, error=error)


def recipe_of(config: Mapping[str, Any]) -> str:
    """Return the recipe that a `config.json` names; for files of another tool their packing."""
    block = config.get("mlxbert")
    facts = block.get("quantization") if isinstance(block, dict) else None
    recipe = facts.get("recipe") if isinstance(facts, dict) else None
    return recipe if isinstance(recipe, str) else _coarsest(config)


def text_limits(config: Mapping[str, Any], mean_bits: float, *, calibrated: bool) -> CostLimits:
    """Return the limits of the recipe; for allotted bits those of the best uniform recipe with no more of them.

    Args:
        config: the `config.json` of a quantized checkpoint.
        mean_bits: bits of a packed weight, without scales.
        calibrated: whether calibration text chose the codes.
    """
    recipe = recipe_of(config)
    if recipe == AUTO:
        fitting = [bits for bits in (2, 3, 4, 5, 6, 8) if bits <= mean_bits]
        return TEXT_LIMITS[f"{max(fitting, default=2)}bit"]
    return TEXT_LIMITS[MIXED if recipe == MIXED and calibrated else _coarsest(config)]


def error_limit(layer: LayerQuantization) -> float:
    """Return the limit on the error of a matrix with this packing."""
    return _LIMITS[_name(layer)][0]


def _coarsest(config: Mapping[str, Any]) -> str:
    """Return the narrowest packing of any layer: "4bit", "mxfp4", …"""
    parsed = QuantizationConfig.from_hf(config)
    assert parsed is not None  # the checkpoint is quantized
    layers = [*parsed.overrides.values(), parsed.default]
    return _name(min(layers, key=lambda layer: (layer.bits, layer.mode == "affine")))


def _name(layer: LayerQuantization) -> str:
    return f"{layer.bits}bit" if layer.mode == "affine" else layer.mode
