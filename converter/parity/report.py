"""`ParityReport`: what was compared, the errors, and the verdict; plain data, stored as JSON.

A source may be a conversion itself: then its own report can prove what is made of it (`inherited_proof`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.quantize.cost import QuantizationReport
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.output_file import json_text, read_manifest
from mlxbert.files.reading import from_json, parse_json, sha256_hex

if TYPE_CHECKING:
    from converter.source import Source

NAME = "parity.json"
# Version 2 has the compared parts (`scope`) and the cost of a quantization on text. A report of version 1 may call a
# model verified whose head was never compared, so it is not read.
FORMAT_VERSION = 2
NOT_COMPARED = "not_compared"
"""The field of a `parity.json` without a comparison: why there is none."""

MAPPING, PRECISION = "mapping", "precision"
CUMULATIVE, LOCAL, PADDING = "cumulative", "layer-local", "padding"
ENCODER, POOLER, OWN_HEAD, TRAINED_HEAD = "encoder", "pooler", "own head", "trained head"
PIPELINE = "sentence pipeline"
SENTENCE = "sentence embedding"
"""Name of the sentence pipeline's point."""

_FIX = "fix: run mlxbert-verify again"
MAX_BYTES = 16 << 20  # a report of bert-large is below 100 kB


class ParityReportError(MLXBertError):
    """A `parity.json` that is damaged, or of another format version."""


class NotComparedError(ParityReportError):
    """A `parity.json` with the cost of a quantization alone, and no comparison."""


def badness(max_rel: float | None) -> float:
    """Return a number by which the worst error sorts last; a problem (None) is worse than any error."""
    return float("inf") if max_rel is None else max_rel


@dataclass(frozen=True)
class Point:
    """One module of the model under one check, over all probes.

    Attributes:
        gate: "mapping" or "precision".
        check: "cumulative" (the whole model up to here), "layer-local" (this layer alone, fed the reference's input
            to it) or "padding" (a text alone against itself in a padded batch).
        name: the module whose output is compared: "embeddings", the path of a layer (counted from 0), "pooler",
            "logits.start_logits" (a head's output under transformers' name) …
        limit: limit on `max_rel`.
        cosine_limit: limit on `cosine`; None: there is none.
        max_abs: max |a − b| over unmasked positions; None with a problem, as are the next three.
        max_rel: max |a − b| / max(1, max |b| over the features of that position), b the reference.
        cosine: the smallest cosine between the two vectors of one position.
        argmax_agreement: share of the positions whose largest feature is the same.
        probe: the probe with the largest `max_rel`, or with the problem.
        problem: NaN, infinity, a wrong shape, a missing layer; it fails whatever the numbers are.
        seconds: time to compute and compare; not in `parity.json`, whose bytes repeat.
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
    seconds: float | None = field(default=None, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the numbers are within the limits; without numbers it does not pass."""
        if self.problem is not None or self.max_rel is None or self.cosine is None:
            return False
        # "<=" and ">=", so that a NaN fails.
        return self.max_rel <= self.limit and (self.cosine_limit is None or self.cosine >= self.cosine_limit)

    @property
    def failure(self) -> str | None:
        """One line that says what is wrong; None if it passes."""
        if self.passed:
            return None
        place = f"{self.gate} gate, {self.check}: {self.name}"
        if self.problem is not None or self.max_rel is None or self.cosine is None:
            return f"{place}: {self.problem or 'no numbers'} ({self.probe})"
        if not self.max_rel <= self.limit:
            return f"{place}: error {self.max_rel:.1e} > {self.limit:g} ({self.probe})"
        return f"{place}: cosine {self.cosine:.6f} < {self.cosine_limit} ({self.probe})"


@dataclass(frozen=True)
class Part:
    """A part of the model that the directory ships, and whether it was compared with PyTorch.

    Attributes:
        name: "encoder", "pooler", "own head", "trained head" or "sentence pipeline".
        compared: whether it was.
        detail: what it was compared with, or why it was not.
    """

    name: str
    compared: bool
    detail: str


@dataclass(frozen=True)
class Proof:
    """An earlier comparison; a model that is made from the compared files inherits it.

    Attributes:
        source, revision: what the files were compared with.
        dtype: dtype of the compared weights.
        report: SHA-256 of the `parity.json` beside them.
    """

    source: str
    revision: str | None
    dtype: str
    report: str


@dataclass(frozen=True)
class Provenance:
    """What was compared with what; the caller of the gates knows it.

    Attributes:
        source: the reference's Hub id, or the name (never the path) of its directory or file.
        revision: its commit, 40 hex digits, if it came from the Hub.
        weights: name -> sha256 of the written weight files.
        float32_core: the MLX side of the mapping gate: the written weights, or the source through the mapping.
        seed: seed of the probes.
        notes: notes for the reader.
        origin: what mlxbert converted the reference from; None: the reference is no conversion.
        proof: the comparison of the reference with `origin`, if these very files passed one.
        own_export: whether the reference is the export of the model itself, which was trained here.
    """

    source: str
    revision: str | None
    weights: dict[str, str]
    float32_core: str
    seed: int
    notes: tuple[str, ...] = ()
    origin: str | None = None
    proof: Proof | None = None
    own_export: bool = False

    @property
    def model(self) -> str:
        """The proven model in words: the first source, if its proof is inherited."""
        if self.own_export:
            return f"{self.source}, exported to PyTorch"
        return self.source if self.proof is None else self.proof.source

    @property
    def compared_with(self) -> tuple[str, str | None]:
        """Source and revision of the proof."""
        return (self.source, self.revision) if self.proof is None else (self.proof.source, self.proof.revision)

    @property
    def inherited(self) -> str | None:
        """The way of an inherited proof, to follow the name of the model; None: the proof is its own."""
        if self.proof is None:
            return None
        return (
            f"through {self.source}, whose {self.proof.dtype} weights were compared with it "
            f"(proof inherited by digest: parity.json {self.proof.report[:12]})"
        )

    @property
    def reference(self) -> str:
        """What the model was compared with, in words, with the way of the proof or the reservation."""
        return self.reservation or ", ".join(filter(None, [self.model, self.inherited]))

    @property
    def reservation(self) -> str | None:
        """What the comparison with a conversion leaves open, to follow "verified against"; None: nothing."""
        if self.origin is None or self.proof is not None:
            return None
        return f"{self.source} alone, itself a conversion of {self.origin}, which was not compared"


@dataclass(frozen=True)
class ParityReport:
    """The results of both gates.

    Attributes:
        model_type: the architecture, which declares the limits.
        written_dtype, compute_dtype: dtype of the written checkpoint, and of its computation in the precision gate.
        reference_class, unexpected: the transformers class, and the source's tensors that it does not use.
        probes: name and shape of each.
        environment: versions, device, TF32, BLAS, platform.
        points: in the order of the model, gate by gate; for a quantized model those of the mapping gate only.
        scope: the parts that the directory ships.
        quantization: the packing and its cost on held-out text; None: nothing is packed.
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
    scope: tuple[Part, ...]
    quantization: QuantizationReport | None = None

    @property
    def passed(self) -> bool:
        """Whether each point, and the cost of a quantization, is within the limits.

        A gate that compared nothing has not passed.
        """
        needed = {MAPPING} if self.quantization else {MAPPING, PRECISION}
        return needed <= {point.gate for point in self.points} and not self.failures

    @property
    def verified(self) -> bool:
        """Whether the comparison passed and left out no part that the directory ships."""
        return self.passed and bool(self.compared) and not self.uncompared

    @property
    def compared(self) -> tuple[str, ...]:
        """Names of the compared parts."""
        return tuple(part.name for part in self.scope if part.compared)

    @property
    def uncompared(self) -> tuple[Part, ...]:
        """Parts that the directory ships and that were not compared."""
        return tuple(part for part in self.scope if not part.compared)

    @property
    def left_out(self) -> str:
        """The parts that were not compared, in words: "own head (why), …"."""
        return ", ".join(f"{part.name} ({part.detail})" for part in self.uncompared)

    @property
    def verdict(self) -> str:
        """Verified or not, and which parts; one line."""
        parts = ", ".join(self.compared)
        if not self.passed:
            first = next(iter(self.failures), "a gate compared nothing")
            return f"NOT VERIFIED: the comparison with PyTorch FAILED ({first})"
        if self.uncompared:
            return f"NOT VERIFIED as a whole: not compared: {self.left_out}; proven: {parts}"
        verified, cost = "VERIFIED", ""
        if self.quantization is not None:
            verified, cost = (
                "VERIFIED before packing",
                f"; the cost is within the limits of {self.quantization.limits.name}",
            )
        provenance = self.provenance
        if provenance.reservation or provenance.inherited or provenance.own_export:
            verified += f" against {provenance.reference}"
        return f"{verified}: {parts}{cost}"

    @property
    def failures(self) -> list[str]:
        """One line for each point that fails, then for each failure of a quantization."""
        lines = [line for point in self.points if (line := point.failure) is not None]
        return lines + (self.quantization.failures if self.quantization else [])

    @property
    def first_diverging_layer(self) -> str | None:
        """The first module that is wrong alone; if each is right alone, the first that is wrong in the whole model."""
        for check in (LOCAL, CUMULATIVE, PADDING):
            for point in self.select(MAPPING, check):
                if not point.passed:
                    return point.name
        return None

    def select(self, gate: str, check: str) -> list[Point]:
        """Return the points of one check, in the order of the model."""
        return [point for point in self.points if (point.gate, point.check) == (gate, check)]

    def gate_passed(self, gate: str) -> bool:
        """Return whether a gate compared something and all its points pass; for a packed model, its cost counts."""
        if gate == PRECISION and self.quantization is not None:
            return not self.quantization.failures
        points = [point for point in self.points if point.gate == gate]
        return bool(points) and all(point.passed for point in points)

    def to_json(self) -> str:
        """Return `parity.json`: the verdict first, then everything; the same run gives the same bytes."""
        head = {
            "format_version": FORMAT_VERSION,
            "verified": self.verified,
            "passed": self.passed,
            "first_diverging_layer": self.first_diverging_layer,
            "failures": self.failures,
        }
        values = asdict(self) | {"quantization": self.quantization and self.quantization.to_dict()}
        for point in values["points"]:
            del point["seconds"]
        return json_text(head | values, ensure_ascii=False, allow_nan=False)

    @classmethod
    def read(cls, directory: Path) -> ParityReport | None:
        """Return the report beside a converted model; None where there is none.

        Raises:
            NotComparedError, ParityReportError: as `from_value`; or the file cannot be read.
        """
        value = parse_json(directory / NAME, ParityReportError, limit=MAX_BYTES)
        return None if value is None else cls.from_value(value)

    @classmethod
    def from_value(cls, value: Any) -> ParityReport:
        """Return the report that parsed JSON describes; the verdict is computed again, not believed.

        Raises:
            NotComparedError: nothing was compared with PyTorch.
            ParityReportError: another version, or fields that are missing or of another type.
        """
        require_version(value)
        if NOT_COMPARED in value:
            reason = printable(value[NOT_COMPARED])
            raise NotComparedError(f"{NAME} compares nothing with PyTorch ({reason}); fix: run mlxbert-verify")
        return from_json(cls, value, place=NAME, fix=_FIX, error=ParityReportError)


def require_version(value: Any) -> None:
    """Check that parsed JSON is a `parity.json` of this format version.

    Raises:
        ParityReportError: it is not.
    """
    version = value.get("format_version") if isinstance(value, dict) else None
    if type(version) is not int:
        raise ParityReportError(f"{NAME} is not a parity report; {_FIX}")
    if version != FORMAT_VERSION:
        raise ParityReportError(f"{NAME} has format version {version}, this mlxbert reads {FORMAT_VERSION}; {_FIX}")


def origin_of(source: Source) -> str | None:
    """Return what mlxbert converted the source from; None if it did not convert it, or trained it."""
    block = source.config.get("mlxbert")
    if not isinstance(block, dict) or "head" in block or not isinstance(block.get("source"), str):
        return None
    revision = block.get("revision")
    return printable(f"{block['source']} at {revision}" if revision else block["source"])


def inherited_proof(source: Source) -> Proof | None:
    """Return the comparison that the source's own files passed; None if it is no conversion, or there is none.

    The comparison has to be whole (it left out nothing that is shipped), in a `parity.json` that the manifest lists,
    and of the very weights that are there now, by their SHA-256.
    """
    if origin_of(source) is None:
        return None
    try:
        report = ParityReport.read(source.directory)
        digest = sha256_hex(source.directory / NAME, ParityReportError)
    except ParityReportError:  # damaged or of another version: no proof, and the report of this conversion says so
        return None
    records = read_manifest(source.directory) or {}
    if report is None or digest is None or not report.verified or report.provenance.reservation is not None:
        return None
    if NAME not in records or records[NAME].sha256 != digest:
        return None
    weights = {file.name: sha256_hex(file, ParityReportError) for file in source.weight_files}
    if weights != report.provenance.weights:
        return None
    name, revision = report.provenance.compared_with
    return Proof(name, revision, report.written_dtype, digest)
