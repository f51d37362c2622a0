"""`parity.json` of a quantization that was measured and never compared with PyTorch: a cost, and no verdict.

The two parity gates. Mapping: is it the same model? Precision: what did the written dtype cost?
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from converter.parity.deviation import Deviation, measure, no_comparison, precision_limits, tolerances, worst
from converter.parity.outputs import LOGITS, Clock, Model, named, row_of, rows_alone, run, run_each_alone
from converter.parity.probes import Probe
from converter.parity.reference import ReferenceOutput, describe, require_exact_float32
from converter.parity.report import (
    CUMULATIVE,
    ENCODER,
    FORMAT_VERSION,
    LOCAL,
    MAPPING,
    NOT_COMPARED,
    OWN_HEAD,
    PADDING,
    POOLER,
    PRECISION,
    SENTENCE,
    TRAINED_HEAD,
    ParityReport,
    Part,
    Point,
    Provenance,
)
from converter.parity.sentences import SentenceComparison
from converter.quantize.cost import QuantizationReport
from mlxbert.errors import MLXBertError

_UNUSED = ("torch", "transformers")


def cost_json(quantization: QuantizationReport, *, why: str, weights: Mapping[str, str]) -> str:
    """The cost alone, which takes MLX and no PyTorch; `ParityReport.from_json` refuses to read a verdict out of it.

    Args:
        quantization: what was packed, and what that cost on held-out text.
        why: nothing was compared.
        weights: the weight files' names and sha256.
    """
    environment = {name: value for name, value in describe("not checked").items() if name not in _UNUSED}
    content = {
        "format_version": FORMAT_VERSION,
        "passed": None,  # neither passed nor failed, and false to whoever asks for no more than that
        NOT_COMPARED: why,
        "weights": dict(weights),
        "environment": environment,
        "quantization": quantization.to_dict(),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


Progress = Callable[[int, int, str], None]
"""Called with (probes done, probes in all, name of the next one)."""


class ParityError(MLXBertError):
    """The gates were given something that they cannot compare."""


class RunsProbes(Protocol):
    """What the gates need of a reference: `converter.parity.reference.Reference`, or recorded tensors."""

    @property
    def class_name(self) -> str: ...
    @property
    def unexpected(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def run(self, probe: Probe) -> ReferenceOutput: ...


def compare(
    reference: RunsProbes,
    float32_core: Model,
    written_core: Model | None,
    probes: Sequence[Probe],
    *,
    written_dtype: str,
    provenance: Provenance,
    model_type: str = "bert",
    sentences: SentenceComparison | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Run both gates over the probes.

    Args:
        reference: the source in PyTorch.
        float32_core: the mapping gate's MLX side, with the head if the reference has one; its parameters are float32.
        written_core: the written checkpoint, in whatever it is computed in; None for a quantized one, whose cost is
            told by `converter.quantize.report`.
        probes: from `converter.parity.probes.make_probes`.
        written_dtype: the dtype on disk, or the recipe of a quantized checkpoint.
        provenance: what the report says about the two sides.
        model_type: the row of `converter.parity.deviation`.
        sentences: texts' embeddings by the reference's sentence pipeline and by ours; None: there is none to compare.
        progress: called before each probe and once at the end.

    Raises:
        ParityError: `float32_core` is not float32, or there are no probes.
        InexactFloat32Error: MLX multiplies as TF32 in this process.
        UnknownToleranceError: no limits are declared for the architecture or dtype.
    """
    tf32 = require_exact_float32()
    if not probes:
        raise ParityError("parity: no probes, so nothing would be compared")
    if (found := _dtype(float32_core)) != "float32":
        raise ParityError(f"parity: the mapping gate compares float32 with float32; this core has {found} parameters")
    mapping = tolerances(model_type).mapping
    precision = None if written_core is None else precision_limits(model_type, written_dtype)
    float32_core.eval()
    if written_core is not None:
        written_core.eval()

    gates = _Results()
    for done, probe in enumerate(probes):
        if progress is not None:
            progress(done, len(probes), probe.name)
        _compare_probe(gates, reference, float32_core, written_core, probe)
        mx.clear_cache()
    if sentences is not None:
        sentences.add_to(gates.add)
    if progress is not None:
        progress(len(probes), len(probes), "")

    def limits(gate: str, check: str, name: str) -> tuple[float, float | None]:
        if gate == PRECISION:
            assert precision is not None
            # Logits have no length that LayerNorm gives them: two that are both near 0 may point anywhere.
            return precision.max_rel, None if name.startswith(LOGITS) else precision.cosine
        return (mapping.local if check == LOCAL else mapping.cumulative), None

    return ParityReport(
        model_type=model_type,
        written_dtype=written_dtype,
        compute_dtype=_dtype(float32_core if written_core is None else written_core),
        reference_class=reference.class_name,
        unexpected=reference.unexpected,
        provenance=Provenance(**(vars(provenance) | {"notes": (*provenance.notes, *reference.notes)})),
        probes=tuple(f"{probe.name} ({probe.shape[0]} × {probe.shape[1]})" for probe in probes),
        environment=describe(tf32),
        points=(points := gates.points(limits)),
        scope=_scope(points, reference.class_name, sentences, trained=provenance.own_export),
    )


def _compare_probe(
    gates: _Results, reference: RunsProbes, float32_core: Model, written_core: Model | None, probe: Probe
) -> None:
    """Add one probe's comparisons to the results: the mapping gate's three checks, and the precision gate's."""
    expected = reference.run(probe)
    clock = Clock()
    actual = run(float32_core, probe, clock)
    gates.add(MAPPING, CUMULATIVE, probe, named(expected), actual, clock)
    alone = Clock()
    gates.add(MAPPING, LOCAL, probe, named(expected), run_each_alone(float32_core, probe, expected, alone), alone)
    if probe.padding_invariance:
        for one, row in rows_alone(probe):
            clock = Clock()
            gates.add(
                MAPPING, PADDING, probe, run(float32_core, one, clock), row_of(actual, row, one), clock, one.keep
            )
    if written_core is not None:
        clock = Clock()
        # Float32 weights as they are written are the float32 core itself: running it again would show nothing.
        written = actual if written_core is float32_core else run(written_core, probe, clock)
        gates.add(PRECISION, CUMULATIVE, probe, actual, written, clock)


def _scope(
    points: Sequence[Point], class_name: str, sentences: SentenceComparison | None, *, trained: bool
) -> tuple[Part, ...]:
    """The parts that points are of."""
    names = {point.name for point in points if point.gate == MAPPING}
    parts = [Part(ENCODER, True, f"with PyTorch's {class_name}")]
    if "pooler" in names:
        parts.append(Part(POOLER, True, "with PyTorch's pooler"))
    if any(name.startswith(LOGITS) for name in names):
        parts.append(Part(TRAINED_HEAD if trained else OWN_HEAD, True, f"its logits, as {class_name}"))
    if sentences is not None and SENTENCE in names:
        parts.append(sentences.part)
    return tuple(parts)


class _Results:
    """Deviations by gate, check and module; folds the probes together at the end."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[tuple[str, Deviation]]] = {}
        self._seconds: dict[tuple[str, str, str], float] = {}

    def add(
        self,
        gate: str,
        check: str,
        probe: Probe,
        reference: Mapping[str, np.ndarray],
        got: Mapping[str, np.ndarray],
        clock: Clock,
        keep: np.ndarray | None = None,
    ) -> None:
        keep = probe.keep if keep is None else keep
        for name in dict.fromkeys((*reference, *got)):
            begin = time.perf_counter()
            if name not in got:
                deviation = no_comparison("the MLX model does not have it")
            elif name not in reference:
                deviation = no_comparison("the reference does not have it")
            else:
                # The pooler, and a head on it, read position 0 alone: a row that masks it has nothing to speak of.
                positions = keep if reference[name].ndim == 3 else keep[:, 0]
                deviation = measure(reference[name], got[name], positions)
            key = (gate, check, name)
            self._found.setdefault(key, []).append((probe.name, deviation))
            took = clock.seconds.get(name, 0.0) + time.perf_counter() - begin
            self._seconds[key] = self._seconds.get(key, 0.0) + took

    def points(self, limits: Callable[[str, str, str], tuple[float, float | None]]) -> tuple[Point, ...]:
        points = []
        for (gate, check, name), found in self._found.items():
            total = worst(deviation for _, deviation in found)
            limit, cosine_limit = limits(gate, check, name)
            points.append(
                Point(
                    gate=gate,
                    check=check,
                    name=name,
                    limit=limit,
                    cosine_limit=cosine_limit,
                    max_abs=total.max_abs,
                    max_rel=total.max_rel,
                    cosine=total.cosine,
                    argmax_agreement=total.argmax_agreement,
                    probe=max(found, key=lambda pair: _badness(pair[1]))[0],
                    problem=total.problem,
                    seconds=self._seconds[gate, check, name],
                )
            )
        order = [(MAPPING, CUMULATIVE), (MAPPING, LOCAL), (MAPPING, PADDING), (PRECISION, CUMULATIVE)]
        return tuple(sorted(points, key=lambda point: order.index((point.gate, point.check))))


def _badness(deviation: Deviation) -> float:
    return float("inf") if deviation.max_rel is None else deviation.max_rel


def _dtype(core: Model) -> str:
    """The floating dtype of the parameters; several are joined by "+"."""
    parameters = cast(list[tuple[str, mx.array]], tree_flatten(core.parameters()))
    names = {str(array.dtype).removeprefix("mlx.core.") for _, array in parameters}
    return "+".join(sorted(names))
