"""`ParityReport`: what was compared, how far apart it was, and whether that passes; plain data, kept as JSON.

The proof of a source that is a conversion itself: what is made of it inherits the comparison that it passed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.quantize.cost import QuantizationReport
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.output_file import read_manifest
from mlxbert.files.reading import from_json, parse_json, sha256_hex

NAME = "parity.json"
# 2: says what was compared (`scope`), and what a quantization cost against limits on text. A report of version 1 may
# call a model verified whose head was never compared, so it is not read.
FORMAT_VERSION = 2
# A report of bert-large is below 100 kB.
MAX_BYTES = 16 << 20
MAPPING, PRECISION = "mapping", "precision"
CUMULATIVE, LOCAL, PADDING = "cumulative", "layer-local", "padding"
NOT_COMPARED = "not_compared"
ENCODER, POOLER, OWN_HEAD, TRAINED_HEAD = "encoder", "pooler", "own head", "trained head"
PIPELINE = "sentence pipeline"
SENTENCE = "sentence embedding"
"""The point of a sentence pipeline."""


class ReportError(MLXBertError):
    """A `parity.json` that is damaged, or of another format version."""


class NotComparedError(ReportError):
    """A `parity.json` that says what a quantization cost (`converter.parity.gates`), and compares nothing."""


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
        seconds: that computing and comparing it took; not kept in `parity.json`, whose bytes repeat.
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
class Part:
    """Something that the directory ships, and whether it was compared with PyTorch.

    Attributes:
        name: "encoder", "pooler", "own head", "trained head" or "sentence pipeline".
        compared: whether it was.
        detail: what it was compared with, or why it was not compared.
    """

    name: str
    compared: bool
    detail: str


@dataclass(frozen=True)
class Proof:
    """An earlier comparison, which a model that was made from the compared files inherits.

    Attributes:
        source, revision: what the files had been compared with.
        dtype: of the files, that is, of the weights that the comparison was of.
        report: SHA-256 of the `parity.json` beside them.
    """

    source: str
    revision: str | None
    dtype: str
    report: str


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
        proof: the reference's own comparison with `origin`, where these very files passed one.
        own_export: whether the reference is what mlxbert-export writes of the model itself: one trained here.
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
        """What the directory is proven to be, for people: the first source, where its proof is inherited."""
        if self.own_export:
            return f"{self.source}, exported to PyTorch"
        return self.source if self.proof is None else self.proof.source

    @property
    def compared_with(self) -> tuple[str, str | None]:
        """Source and revision that the proof is about."""
        return (self.source, self.revision) if self.proof is None else (self.proof.source, self.proof.revision)

    @property
    def inherited(self) -> str | None:
        """How the proof came here, to follow the model's name; None: it was compared itself."""
        if self.proof is None:
            return None
        return (
            f"through {self.source}, whose {self.proof.dtype} weights were compared with it "
            f"(proof inherited by digest: parity.json {self.proof.report[:12]})"
        )

    @property
    def reservation(self) -> str | None:
        """What a comparison with something converted leaves open, to follow "verified against"; None: nothing."""
        if self.origin is None or self.proof is not None:
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
        points: in the order of the model, gate by gate; of a quantized model the mapping gate's alone.
        scope: what the directory ships, part by part: compared, or not and why.
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
    scope: tuple[Part, ...]
    quantization: QuantizationReport | None = None

    @property
    def passed(self) -> bool:
        """Whether what was compared agrees: each point, and what a quantization cost, within the limits.

        A gate that compared nothing has not passed.
        """
        needed = {MAPPING} if self.quantization else {MAPPING, PRECISION}
        return needed <= {point.gate for point in self.points} and not self.failures

    @property
    def verified(self) -> bool:
        """Whether it passed, and nothing that the directory ships was left out."""
        return self.passed and bool(self.compared) and not self.uncompared

    @property
    def compared(self) -> tuple[str, ...]:
        """The names of the parts that were compared."""
        return tuple(part.name for part in self.scope if part.compared)

    @property
    def uncompared(self) -> tuple[Part, ...]:
        """The parts that the directory ships and that were not compared."""
        return tuple(part for part in self.scope if not part.compared)

    @property
    def left_out(self) -> str:
        """The parts that were not compared, for people: "own head (why), …"."""
        return ", ".join(f"{part.name} ({part.detail})" for part in self.uncompared)

    @property
    def verdict(self) -> str:
        """Verified or not, of which parts, for people; one line."""
        parts = ", ".join(self.compared)
        if not self.passed:
            first = next(iter(self.failures), "a gate compared nothing")
            return f"NOT VERIFIED: the comparison with PyTorch FAILED ({first})"
        if self.uncompared:
            return f"NOT VERIFIED as a whole: not compared: {self.left_out}; proven: {parts}"
        seen = self.provenance
        before = "VERIFIED" if self.quantization is None else "VERIFIED before packing"
        if seen.reservation:
            before += f" against {seen.reservation}"
        elif seen.inherited or seen.own_export:
            before += f" against {seen.model}{', ' + seen.inherited if seen.inherited else ''}"
        cost = (
            "" if self.quantization is None else f"; the cost is within the limits of {self.quantization.limits.name}"
        )
        return f"{before}: {parts}{cost}"

    @property
    def failures(self) -> list[str]:
        """One line for each point that fails, then for what a quantization broke or cost too much."""
        found = [line for point in self.points if (line := point.failure) is not None]
        return found + (self.quantization.failures if self.quantization else [])

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
        """Whether one gate compared something and every point of it passes; of a quantized model, its cost."""
        if gate == PRECISION and self.quantization is not None:
            return not self.quantization.failures
        points = [point for point in self.points if point.gate == gate]
        return bool(points) and all(point.passed for point in points)

    def to_json(self) -> str:
        """`parity.json`: the verdict first, then everything; the same run gives the same bytes."""
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
        return json.dumps(head | values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def read(cls, directory: Path) -> ParityReport | None:
        """Return the report beside a converted model; None where there is none.

        Raises:
            NotComparedError, ReportError: as `from_json`, or the file cannot be read.
        """
        value = parse_json(directory / NAME, ReportError, limit=MAX_BYTES)
        return None if value is None else cls.from_value(value)

    @classmethod
    def from_json(cls, text: str) -> ParityReport:
        """Read `to_json`'s output; the verdict is computed again, not believed.

        Raises:
            NotComparedError: it says what a quantization cost, and nothing was compared with PyTorch.
            ReportError: not JSON, of another version, or with fields that are missing or of another type.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ReportError(f"{NAME} is not JSON ({error}); fix: run mlxbert-verify again") from error
        return cls.from_value(value)

    @classmethod
    def from_value(cls, value: Any) -> ParityReport:
        """`from_json`, for JSON that is parsed already."""
        require_version(value)
        if NOT_COMPARED in value:
            why = printable(value[NOT_COMPARED])
            raise NotComparedError(f"{NAME} compares nothing with PyTorch ({why}); fix: run mlxbert-verify")
        return from_json(cls, value, place=NAME, fix="fix: run mlxbert-verify again", error=ReportError)


def require_version(value: Any) -> None:
    """Refuse JSON that is no `parity.json` of this format version.

    Raises:
        ReportError: it is another's.
    """
    found = value.get("format_version") if isinstance(value, dict) else None
    if type(found) is not int:
        raise ReportError(f"{NAME} is not a parity report; fix: run mlxbert-verify again")
    if found != FORMAT_VERSION:
        raise ReportError(
            f"{NAME} has format version {found}, this mlxbert reads {FORMAT_VERSION}; fix: run mlxbert-verify again"
        )


if TYPE_CHECKING:
    from converter.source import Source


def origin_of(source: Source) -> str | None:
    """What a source that mlxbert had converted was made from; of one that it trained, or of any other, None."""
    block = source.config.get("mlxbert")
    if not isinstance(block, dict) or "head" in block or not isinstance(block.get("source"), str):
        return None
    revision = block.get("revision")
    return printable(f"{block['source']} at {revision}" if revision else block["source"])


def inherited_proof(source: Source) -> Proof | None:
    """The comparison that the source's own files passed; None where it is no conversion, or there is none of them.

    It has to be whole (nothing that is shipped was left out), in a `parity.json` that the manifest lists, and of the
    very weights that lie there now, by their SHA-256.
    """
    if origin_of(source) is None:
        return None
    try:
        report = ParityReport.read(source.directory)
        digest = sha256_hex(source.directory / NAME, ReportError)
    except ReportError:  # damaged, or of another version: no proof, and the report of this conversion says so
        return None
    records = read_manifest(source.directory) or {}
    if report is None or digest is None or not report.verified or report.provenance.reservation is not None:
        return None
    if NAME not in records or records[NAME].sha256 != digest:
        return None
    compared = report.provenance.weights
    if {file.name for file in source.weight_files} != set(compared):
        return None
    if any(_sha256(file) != compared[file.name] for file in source.weight_files):
        return None
    name, revision = report.provenance.compared_with
    return Proof(name, revision, report.written_dtype, digest)


def _sha256(file: Path) -> str | None:
    return sha256_hex(file, ReportError)
