"""The two parity gates. Mapping: is it the same model? Precision: what does the written dtype cost?

Their limits, which the architecture declares, are separate: a limit wide enough for half precision would hide a wrong
mapping. When a gate fails, the limit stays where it is.

The error of an element is scaled by the largest magnitude in the reference's vector at that position, where that
exceeds 1. LayerNorm and matrix products round relative to the whole vector, so that an element near 0 beside one of 10
has the noise of the latter: scaled by itself it would look wrong in a right model (one layer of all-MiniLM-L6-v2 in
torch float32 is then 3e-6 from torch float64, and MLX up to 5.2e-6 from torch). Scaled by the maximum of the whole
tensor, on the other hand, one large token would hide errors in all the others.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from converter.parity.outputs import (
    LOGITS,
    POOLED,
    Clock,
    Model,
    SentenceComparison,
    named,
    row_of,
    rows_alone,
    run,
    run_each_alone,
    without_padded_logits,
)
from converter.parity.probes import Probe
from converter.parity.reference import ReferenceOutput
from converter.parity.report import (
    CUMULATIVE,
    ENCODER,
    LOCAL,
    MAPPING,
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
    badness,
)
from mlxbert.backend.device import blas_name, device_name, package_versions
from mlxbert.errors import MLXBertError

Progress = Callable[[int, int, str], None]
"""Called with the number of finished probes, of all, and the name of the next one."""

_PACKAGES = ("mlxbert", "mlx", "torch", "transformers", "tokenizers", "numpy")
_CHUNK = 1 << 22  # elements that are compared together


class ParityError(MLXBertError):
    """The gates cannot compare what they got."""


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
    sentences: SentenceComparison | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Run both gates over the probes.

    Args:
        reference: the source in PyTorch.
        float32_core: the MLX side of the mapping gate, with the head if the reference has one; float32.
        written_core: the written checkpoint, in the dtype that it is computed in; None for a quantized one, whose cost
            `converter.quantize.report` measures.
        probes: the inputs.
        written_dtype: the dtype on disk, or the recipe of a quantized checkpoint.
        provenance: what the report says about the two sides.
        sentences: embeddings of texts by the reference's sentence pipeline and by ours; None: there are none.
        progress: called before each probe and once at the end.

    Raises:
        ParityError: `float32_core` is not float32, there are no probes, MLX multiplies as TF32 in this process, or
            the architecture declares no limits for the dtype.
    """
    tf32 = require_exact_float32()
    if not probes:
        raise ParityError("parity: no probes, so nothing would be compared")
    if (dtype := _dtype(float32_core)) != "float32":
        raise ParityError(f"parity: the mapping gate compares float32 with float32; this core has {dtype} parameters")
    limits = _limits(float32_core, None if written_core is None else written_dtype)
    float32_core.eval()
    if written_core is not None:
        written_core.eval()

    results = _Results()
    for done, probe in enumerate(probes):
        if progress is not None:
            progress(done, len(probes), probe.name)
        _compare_probe(results, reference, float32_core, written_core, probe)
        mx.clear_cache()
    if sentences is not None:
        sentences.add_to(results.add)
    if progress is not None:
        progress(len(probes), len(probes), "")
    points = results.points(limits)
    return ParityReport(
        model_type=float32_core.core.config.model_type,
        written_dtype=written_dtype,
        compute_dtype=_dtype(float32_core if written_core is None else written_core),
        reference_class=reference.class_name,
        unexpected=reference.unexpected,
        provenance=replace(provenance, notes=(*provenance.notes, *reference.notes)),
        probes=tuple(f"{probe.name} ({probe.shape[0]} × {probe.shape[1]})" for probe in probes),
        environment=describe(tf32),
        points=points,
        scope=_scope(points, reference.class_name, sentences, trained=provenance.own_export),
    )


def require_exact_float32() -> str:
    """Turn TF32 off and check with a product that it is off; return a line for the report.

    MLX reads `MLX_ENABLE_TF32` once, at the first product that could use TF32 (`mlx/utils.h`, `enable_tf32`); later
    the variable has no effect. MLX does not say whether it was in time, so it is measured.

    Raises:
        ParityError: it was too late.
    """
    os.environ["MLX_ENABLE_TF32"] = "0"
    size = 256  # large enough for every backend's matrix units
    # 1 + 2⁻¹² needs 12 bits after the point: TF32 keeps 10, float32 23; each sum, 256 + 2⁻⁴, is exact in float32.
    product = mx.full((size, size), 1 + 2**-12) @ mx.ones((size, size))
    error = float(np.abs(np.array(product) - size * (1 + 2**-12)).max())
    if error:
        raise ParityError(
            f"MLX multiplies float32 at reduced precision (TF32; a product of {size}×{size} is off by {error:g}); "
            "fix: set MLX_ENABLE_TF32=0 before the process starts"
        )
    return "off (MLX_ENABLE_TF32=0; checked by a product)"


def describe(tf32: str) -> dict[str, str]:
    """Return where the comparison ran: versions, device, float32 products, BLAS; never a host, a user or a path."""
    facts = {"python": platform.python_version(), **package_versions(_PACKAGES)}
    facts["platform"] = f"{platform.system()} {platform.machine()}"
    facts["device"] = device_name()
    facts["tf32"] = tf32
    facts["blas"] = blas_name()
    return facts


def _dtype(core: Model) -> str:
    """Return the dtype of the parameters; several are joined by "+"."""
    parameters: list[tuple[str, mx.array]] = tree_flatten(core.parameters())  # type: ignore[assignment]
    names = {str(array.dtype).removeprefix("mlx.core.") for _, array in parameters}
    return "+".join(sorted(names))


Limits = Callable[[str, str, str], tuple[float, float | None]]
"""Gate, check and module -> the limits on `max_rel` and on the cosine."""


def _limits(model: Model, written_dtype: str | None) -> Limits:
    """Return the limits that the model's architecture declares; `written_dtype` is None without a precision gate.

    Raises:
        ParityError: there are none for the dtype.
    """
    config, tolerances = model.core.config, model.core.architecture.tolerances
    mapping, precision = tolerances.mapping, tolerances.precision.get(written_dtype or "")
    if written_dtype is not None and precision is None:
        raise ParityError(
            f"parity: no precision limits for {config.model_type} written as {written_dtype!r}; fix: add them to its "
            f"tolerances in mlxbert/models/ (it has {', '.join(tolerances.precision)})"
        )

    def limits(gate: str, check: str, name: str) -> tuple[float, float | None]:
        if gate == PRECISION:
            assert precision is not None
            # No norm sets the length of logits: two vectors near 0 may point anywhere.
            return precision.max_rel, None if name.startswith(LOGITS) else precision.cosine
        return (mapping.local if check == LOCAL else mapping.cumulative), None

    return limits


def _compare_probe(
    results: _Results, reference: RunsProbes, float32_core: Model, written_core: Model | None, probe: Probe
) -> None:
    """Add one probe's comparisons to the results: the mapping gate's three checks, and the precision gate's."""
    output = reference.run(probe)
    expected = named(output, float32_core.core)
    clock = Clock()
    actual = run(float32_core, probe, clock)
    results.add(MAPPING, CUMULATIVE, probe, expected, actual, clock)
    clock = Clock()
    alone = run_each_alone(float32_core, probe, output, clock)
    results.add(MAPPING, LOCAL, probe, expected, alone, clock)
    if probe.padding_invariance:
        for single, row in rows_alone(probe):
            clock = Clock()
            unpadded = without_padded_logits(float32_core, run(float32_core, single, clock))
            padded = without_padded_logits(float32_core, row_of(actual, row, single))
            results.add(MAPPING, PADDING, probe, unpadded, padded, clock, single.keep)
    if written_core is not None:
        clock = Clock()
        # Written float32 weights are the float32 core itself: to run it again would show nothing.
        written = actual if written_core is float32_core else run(written_core, probe, clock)
        results.add(PRECISION, CUMULATIVE, probe, actual, written, clock)


def _scope(
    points: Sequence[Point], class_name: str, sentences: SentenceComparison | None, *, trained: bool
) -> tuple[Part, ...]:
    """Return the parts of the model that the points belong to."""
    names = {point.name for point in points if point.gate == MAPPING}
    parts = [Part(ENCODER, True, f"with PyTorch's {class_name}")]
    if POOLED in names:
        parts.append(Part(POOLER, True, "with PyTorch's pooler"))
    if any(name.startswith(LOGITS) for name in names):
        parts.append(Part(TRAINED_HEAD if trained else OWN_HEAD, True, f"its logits, as {class_name}"))
    if sentences is not None and SENTENCE in names:
        parts.append(sentences.part)
    return tuple(parts)


class _Results:
    """Deviations by gate, check and module; the end combines the probes."""

    def __init__(self) -> None:
        self._deviations: dict[tuple[str, str, str], list[tuple[str, Deviation]]] = {}
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
        """Compare the outputs of every module; `keep` are the real tokens, None: those of the probe."""
        keep = probe.keep if keep is None else keep
        for name in dict.fromkeys((*reference, *got)):
            begin = time.perf_counter()
            if name not in got:
                deviation = no_comparison("the MLX model does not have it")
            elif name not in reference:
                deviation = no_comparison("the reference does not have it")
            else:
                # The pooler, and a head on it, read position 0 only: a row that masks it has nothing to compare.
                positions = keep if reference[name].ndim == 3 else keep[:, 0]
                deviation = measure(reference[name], got[name], positions)
            key = (gate, check, name)
            self._deviations.setdefault(key, []).append((probe.name, deviation))
            seconds = clock.seconds.get(name, 0.0) + time.perf_counter() - begin
            self._seconds[key] = self._seconds.get(key, 0.0) + seconds

    def points(self, limits: Limits) -> tuple[Point, ...]:
        """Return a point for each module under each check."""
        points = []
        for (gate, check, name), deviations in self._deviations.items():
            total = worst(deviation for _, deviation in deviations)
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
                    probe=max(deviations, key=lambda pair: badness(pair[1].max_rel))[0],
                    problem=total.problem,
                    seconds=self._seconds[gate, check, name],
                )
            )
        order = [(MAPPING, CUMULATIVE), (MAPPING, LOCAL), (MAPPING, PADDING), (PRECISION, CUMULATIVE)]
        return tuple(sorted(points, key=lambda point: order.index((point.gate, point.check))))


@dataclass(frozen=True)
class Deviation:
    """The distance of an array from its reference over the compared positions.

    Attributes:
        max_abs: max |a − b|; None where either side has a NaN or an infinity anywhere, padding included.
        max_rel: max |a − b| / max(1, max |b| over the features of that position), b the reference; None likewise.
        cosine: the smallest cosine between the two vectors of one position; None likewise.
        argmax_agreement: share of the positions whose largest feature is the same; None likewise.
        positions: number of compared vectors.
        problem: why nothing can be compared, or what is not finite; None: neither.
    """

    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    argmax_agreement: float | None
    positions: int
    problem: str | None = None


def no_comparison(problem: str) -> Deviation:
    """Return a deviation that never passes, for the given reason."""
    return Deviation(None, None, None, None, 0, problem)


def measure(reference: np.ndarray, got: np.ndarray, keep: np.ndarray | None = None) -> Deviation:
    """Compare two arrays of vectors along the last axis.

    Args:
        reference, got: (..., D), any floating dtype.
        keep: (...) boolean, the positions to compare; None: all. NaN and infinity are looked for everywhere.
    """
    if reference.shape != got.shape:
        return no_comparison(f"shape {got.shape} in MLX, {reference.shape} in the reference")
    for side, array in (("MLX", got), ("the reference", reference)):
        if not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinity"
            return no_comparison(f"{kind} in {side}")
    a, b = (array.reshape(-1, array.shape[-1]) if keep is None else array[keep] for array in (got, reference))
    if not len(b):
        return no_comparison("every position is masked")
    if b.shape[1] == 1:
        return _one_feature(a.astype(np.float64), b.astype(np.float64))
    # The scores of a whole vocabulary would need gigabytes in float64.
    rows = max(1, _CHUNK // b.shape[1])
    return worst(_vectors(a[i : i + rows], b[i : i + rows]) for i in range(0, len(b), rows))


def _vectors(a: np.ndarray, b: np.ndarray) -> Deviation:
    """Compare (N, D) with (N, D) in float64, so that the comparison adds no rounding of its own."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = np.abs(a - b)
    return Deviation(
        max_abs=float(difference.max()),
        max_rel=float((difference / np.maximum(1, np.abs(b).max(axis=-1, keepdims=True))).max()),
        cosine=float(_cosines(a, b).min()),
        argmax_agreement=float(np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))),
        positions=len(b),
    )


def _one_feature(a: np.ndarray, b: np.ndarray) -> Deviation:
    """Compare (N, 1) with (N, 1): one number has no direction and no largest feature, so all N are one vector."""
    alone = _vectors(a, b)
    if len(b) == 1:
        return replace(alone, cosine=1.0, argmax_agreement=1.0)
    together = _vectors(a.T, b.T)
    return replace(alone, cosine=together.cosine, argmax_agreement=together.argmax_agreement)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a cosine for each row; a zero vector agrees with another zero vector and with nothing else."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~a.any(axis=-1) & ~b.any(axis=-1)
    cosine = np.einsum("nd,nd->n", a, b) / np.where(norms > 0, norms, 1)
    return np.where(both_zero, 1.0, np.clip(cosine, -1, 1))


def worst(deviations: Iterable[Deviation]) -> Deviation:
    """Return the largest errors, the smallest cosine and the mean agreement; the first problem wins over numbers."""
    deviations = list(deviations)
    if not deviations:
        return no_comparison("nothing was compared")
    for deviation in deviations:
        if deviation.problem is not None:
            return no_comparison(deviation.problem)
    positions = sum(deviation.positions for deviation in deviations)
    agreed = sum(_number(deviation.argmax_agreement) * deviation.positions for deviation in deviations)
    return Deviation(
        max_abs=max(_number(deviation.max_abs) for deviation in deviations),
        max_rel=max(_number(deviation.max_rel) for deviation in deviations),
        cosine=min(_number(deviation.cosine) for deviation in deviations),
        argmax_agreement=agreed / positions,
        positions=positions,
    )


def _number(value: float | None) -> float:
    # Without a problem every measure is a number. If one were not, NaN would fail each limit instead of passing it.
    return math.nan if value is None else value
