"""The two parity gates. Mapping: is it the same model? Precision: what did the written dtype cost?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from converter.parity.deviation import Deviation, measure, no_comparison, worst
from converter.parity.environment import describe, require_exact_float32
from converter.parity.outputs import LOGITS, Model, named, row_of, rows_alone, run, run_each_alone
from converter.parity.probes import Probe
from converter.parity.reference import ReferenceOutput
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, ParityReport, Point, Provenance
from converter.parity.tolerances import precision_limits, tolerances
from mlxbert.errors import MLXBertError

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
    written_core: Model,
    probes: Sequence[Probe],
    *,
    written_dtype: str,
    provenance: Provenance,
    model_type: str = "bert",
    limits_of: str | None = None,
    progress: Progress | None = None,
) -> ParityReport:
    """Run both gates over the probes.

    Args:
        reference: the source in PyTorch.
        float32_core: the mapping gate's MLX side, with the head if the reference has one; its parameters are float32.
        written_core: the written checkpoint, in whatever it is computed in.
        probes: from `converter.parity.probes.make_probes`.
        written_dtype: the dtype on disk, or the recipe of a quantized checkpoint.
        provenance: what the report says about the two sides.
        model_type: the row of `converter.parity.tolerances`.
        limits_of: the dtype or packing whose precision limits hold; None: `written_dtype`'s.
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
    mapping, precision = tolerances(model_type).mapping, precision_limits(model_type, limits_of or written_dtype)
    float32_core.eval()
    written_core.eval()

    gates = _Results()
    for done, probe in enumerate(probes):
        if progress is not None:
            progress(done, len(probes), probe.name)
        expected = reference.run(probe)
        actual = run(float32_core, probe)
        gates.add(MAPPING, CUMULATIVE, probe, named(expected), actual)
        gates.add(MAPPING, LOCAL, probe, named(expected), run_each_alone(float32_core, probe, expected))
        if probe.padding_invariance:
            for alone, row in rows_alone(probe):
                gates.add(MAPPING, PADDING, probe, run(float32_core, alone), row_of(actual, row, alone), alone.keep)
        # Float32 weights as they are written are the float32 core itself: running it again would show nothing.
        written = actual if written_core is float32_core else run(written_core, probe)
        gates.add(PRECISION, CUMULATIVE, probe, actual, written)
        mx.clear_cache()
    if progress is not None:
        progress(len(probes), len(probes), "")

    def limits(gate: str, check: str, name: str) -> tuple[float, float | None]:
        if gate == PRECISION:
            # Logits have no length that LayerNorm gives them: two that are both near 0 may point anywhere.
            return precision.max_rel, None if name.startswith(LOGITS) else precision.cosine
        return (mapping.local if check == LOCAL else mapping.cumulative), None

    return ParityReport(
        model_type=model_type,
        written_dtype=written_dtype,
        compute_dtype=_dtype(written_core),
        reference_class=reference.class_name,
        unexpected=reference.unexpected,
        provenance=Provenance(**(vars(provenance) | {"notes": (*provenance.notes, *reference.notes)})),
        probes=tuple(f"{probe.name} ({probe.shape[0]} × {probe.shape[1]})" for probe in probes),
        environment=describe(tf32),
        points=gates.points(limits),
    )


class _Results:
    """Deviations by gate, check and module; folds the probes together at the end."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[tuple[str, Deviation]]] = {}

    def add(
        self,
        gate: str,
        check: str,
        probe: Probe,
        reference: Mapping[str, np.ndarray],
        got: Mapping[str, np.ndarray],
        keep: np.ndarray | None = None,
    ) -> None:
        keep = probe.keep if keep is None else keep
        for name in dict.fromkeys((*reference, *got)):
            if name not in got:
                deviation = no_comparison("the MLX model does not have it")
            elif name not in reference:
                deviation = no_comparison("the reference does not have it")
            else:
                # The pooler, and a head on it, read position 0 alone: a row that masks it has nothing to speak of.
                positions = keep if reference[name].ndim == 3 else keep[:, 0]
                deviation = measure(reference[name], got[name], positions)
            self._found.setdefault((gate, check, name), []).append((probe.name, deviation))

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
