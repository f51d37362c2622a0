"""`ParityReport`: what was compared, how far apart it was, and whether that passes; plain data, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from mlxbert.errors import MLXBertError

if TYPE_CHECKING:
    from converter.quantize.report import QuantizationReport

FORMAT_VERSION = 1
MAPPING, PRECISION = "mapping", "precision"
CUMULATIVE, LOCAL, PADDING = "cumulative", "layer-local", "padding"
NOT_COMPARED = "not_compared"


class ReportError(MLXBertError):
    """A `parity.json` that is damaged, or of another format version."""


class NotComparedError(ReportError):
    """A `parity.json` that says what a quantization cost (`converter.parity.cost`), and compares nothing."""


@dataclass(frozen=True)
class Point:
    """One place of the model under one check, over all probes.

    Attributes:
        gate: "mapping" or "precision".
        check: "cumulative" (the whole model up to here), "layer-local" (this layer alone, fed the reference's input
            to it) or "padding" (a text alone against itself in a padded batch).
        name: the module whose output it is: "embeddings", "encoder.layer.3" (counted from 0, as in the checkpoint),
            "pooler", "logits.start_logits" (a head's output under transformers' name for it) …
        limit: on `max_rel`.
        cosine_limit: on `cosine`; None: not limited.
        max_abs: max |a − b| over unmasked positions; None where there is a problem, as are the next three.
        max_rel: max |a − b| / max(1, max |b| over the features of that position), b the reference.
        cosine: the smallest cosine between the two vectors of one position.
        argmax_agreement: the share of positions whose largest feature is the same one.
        probe: the probe with the largest `max_rel`, or with the problem.
        problem: NaN, infinity, a wrong shape, a missing layer; it fails whatever the numbers.
    """

    gate: str
    check: str
    name: str
    limit: float
    cosine_limit: float | None
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    argmax_agreement: float | None
    probe: str
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Within the limits; what has no number does not pass."""
        if self.problem is not None or self.max_rel is None or self.cosine is None:
            return False
        # "<=" and ">=", so that a NaN fails.
        return self.max_rel <= self.limit and (self.cosine_limit is None or self.cosine >= self.cosine_limit)

    @property
    def failure(self) -> str | None:
        """One line that says what is wrong here; None when it passes."""
        if self.passed:
            return None
        place = f"{self.gate} gate, {self.check}: {self.name}"
        if self.problem is not None or self.max_rel is None or self.cosine is None:
            return f"{place}: {self.problem or 'no numbers'} ({self.probe})"
        if not self.max_rel <= self.limit:
            return f"{place}: error {self.max_rel:.1e} > {self.limit:g} ({self.probe})"
        return f"{place}: cosine {self.cosine:.6f} < {self.cosine_limit} ({self.probe})"


@dataclass(frozen=True)
class Provenance:
    """What was compared with what; given by the caller.

    Attributes:
        source: the reference's Hub id, or the name (never the path) of its directory or file.
        revision: its commit, 40 hex digits, when it came from the Hub.
        weights: the written weight files' names and sha256.
        float32_core: what the mapping gate's MLX side was: the written weights, or the source through the mapping.
        seed: the probes'.
        notes: what a reader should know besides.
        origin: what the reference itself had been converted from, by mlxbert; None: it is no conversion.
    """

    source: str
    revision: str | None
    weights: dict[str, str]
    float32_core: str
    seed: int
    notes: tuple[str, ...] = ()
    origin: str | None = None

    @property
    def reservation(self) -> str | None:
        """What a comparison with something converted leaves open, to follow "verified against"; None: nothing."""
        if self.origin is None:
            return None
        return f"{self.source} alone, itself a conversion of {self.origin}, which was not compared"


@dataclass(frozen=True)
class ParityReport:
    """Both gates' results.

    Attributes:
        model_type: the architecture whose limits were applied.
        written_dtype: the written checkpoint's; `compute_dtype`: what the precision gate computed it in.
        reference_class: the transformers class; `unexpected`: the source's tensors that it had no use for.
        probes: name and shape of each.
        environment: versions, device, TF32, BLAS, platform.
        points: in the order of the model, gate by gate.
        quantization: what was packed and what it cost on held-out text; None where nothing is.
    """

    model_type: str
    written_dtype: str
    compute_dtype: str
    reference_class: str
    unexpected: tuple[str, ...]
    provenance: Provenance
    probes: tuple[str, ...]
    environment: dict[str, str]
    points: tuple[Point, ...]
    quantization: QuantizationReport | None = None

    @property
    def passed(self) -> bool:
        """Every point of both gates within its limits; a gate that compared nothing has not passed."""
        return {MAPPING, PRECISION} <= {point.gate for point in self.points} and not self.failures

    @property
    def failures(self) -> list[str]:
        """One line for each point that fails."""
        return [line for point in self.points if (line := point.failure) is not None]

    @property
    def first_diverging_layer(self) -> str | None:
        """The first module that is wrong by itself; where each is right alone, the first cumulative one; or None."""
        for check in (LOCAL, CUMULATIVE, PADDING):
            for point in self.select(MAPPING, check):
                if not point.passed:
                    return point.name
        return None

    def select(self, gate: str, check: str) -> list[Point]:
        """The points of one check, in the order of the model."""
        return [point for point in self.points if (point.gate, point.check) == (gate, check)]

    def gate_passed(self, gate: str) -> bool:
        """Whether one gate compared something and every point of it passes."""
        points = [point for point in self.points if point.gate == gate]
        return bool(points) and all(point.passed for point in points)

    def to_json(self) -> str:
        """`parity.json`: the verdict first, then everything; the same run gives the same bytes."""
        head = {
            "format_version": FORMAT_VERSION,
            "passed": self.passed,
            "first_diverging_layer": self.first_diverging_layer,
            "failures": self.failures,
        }
        return json.dumps(head | asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ParityReport:
        """Read `to_json`'s output; the verdict is computed again, not believed.

        Raises:
            NotComparedError: it says what a quantization cost, and nothing was compared with PyTorch.
            ReportError: not JSON, of another version, or with fields missing.
        """
        try:
            data = json.loads(text)
            found = data["format_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ReportError(
                f"parity.json is not a parity report ({error!r}); fix: run mlxbert-verify again"
            ) from error
        if found != FORMAT_VERSION:
            raise ReportError(
                f"parity.json has format version {found!r}, this mlxbert reads {FORMAT_VERSION}; "
                "fix: run mlxbert-verify again"
            )
        if NOT_COMPARED in data:
            raise NotComparedError(
                f"parity.json compares nothing with PyTorch ({data[NOT_COMPARED]}); fix: run mlxbert-verify"
            )
        try:
            values = _only_fields(cls, {"quantization": None, **data})
            provenance = _only_fields(Provenance, {"origin": None, **values["provenance"]})
            provenance["notes"] = tuple(provenance["notes"])
            values["provenance"] = Provenance(**provenance)
            values["points"] = tuple(Point(**point) for point in values["points"])
            values["unexpected"], values["probes"] = tuple(values["unexpected"]), tuple(values["probes"])
            if values["quantization"] is not None:
                from converter.quantize.report import QuantizationReport

                values["quantization"] = QuantizationReport.from_dict(values["quantization"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ReportError(f"parity.json is damaged ({error!r}); fix: run mlxbert-verify again") from error


def _only_fields(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: data[field.name] for field in fields(cls)}
