"""How far apart two computations of one model may be, a row for each architecture.

The two gates have separate limits on purpose: a limit wide enough for half precision would hide a wrong mapping. When
a gate fails, the limit stays where it is.

How far one array is from another: the measures that both parity gates use. NumPy only.

The error of an element is scaled by the largest magnitude in the reference's vector at that position, where that
exceeds 1. LayerNorm and matrix products round relative to the whole vector, so an element near 0 beside one of 10 has
the latter's noise: scaled by itself alone it would look wrong in a right model (one layer of all-MiniLM-L6-v2 in torch
float32 is then 3e-6 from torch float64, and MLX up to 5.2e-6 from torch). Scaled by the whole tensor's maximum, on the
other hand, one large token would hide errors in all the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from mlxbert.errors import MLXBertError


class UnknownToleranceError(MLXBertError):
    """No limits are declared for an architecture or a dtype."""


@dataclass(frozen=True)
class MappingLimits:
    """Float32 MLX against float32 PyTorch; both limits are on `converter.parity.deviation.Deviation.max_rel`.

    Attributes:
        cumulative: after any number of layers, pooler and logits included.
        local: one layer alone, fed the reference's own input to it.
    """

    cumulative: float
    local: float


@dataclass(frozen=True)
class PrecisionLimits:
    """The written checkpoint against its own float32 core, at every hidden state, the pooler and the logits.

    Attributes:
        max_rel: on `converter.parity.deviation.Deviation.max_rel`.
        cosine: the smallest cosine that one token's hidden state may have with its float32 self; the pooler's
            vector likewise. Not for logits, whose length LayerNorm does not set: two near 0 may point anywhere.
    """

    max_rel: float
    cosine: float


@dataclass(frozen=True)
class Tolerances:
    """The limits of one architecture: the mapping gate's, the precision gate's for each written dtype."""

    mapping: MappingLimits
    precision: dict[str, PrecisionLimits]


TOLERANCES: dict[str, Tolerances] = {
    "bert": Tolerances(
        # Measured with benchmarks/parity_errors.py; the limits do not move when a test fails.
        mapping=MappingLimits(cumulative=2e-5, local=5e-6),
        precision={
            "float32": PrecisionLimits(max_rel=1e-6, cosine=0.999999),
            # Three to five times what rounded weights and arithmetic in that dtype together cost all-MiniLM-L6-v2 and
            # random models of bert-base's size: float16 8.6e-3 and 1 − 8.7e-6, bfloat16 6.8e-2 and 1 − 6.3e-4.
            "float16": PrecisionLimits(max_rel=3e-2, cosine=0.99996),
            "bfloat16": PrecisionLimits(max_rel=2.5e-1, cosine=0.998),
        },
    ),
}


def tolerances(model_type: str) -> Tolerances:
    """The limits of an architecture.

    Raises:
        UnknownToleranceError: none are declared.
    """
    if model_type not in TOLERANCES:
        raise UnknownToleranceError(
            f"parity: no limits for model_type {model_type!r}; fix: add a row to converter/parity/tolerances.py "
            f"(it has {', '.join(sorted(TOLERANCES))})"
        )
    return TOLERANCES[model_type]


def precision_limits(model_type: str, dtype: str) -> PrecisionLimits:
    """The precision gate's limits for weights written as `dtype` ("float32", "float16", "bfloat16").

    Raises:
        UnknownToleranceError: none are declared.
    """
    limits = tolerances(model_type).precision
    if dtype not in limits:
        raise UnknownToleranceError(
            f"parity: no precision limits for {model_type} written as {dtype!r}; fix: add them to "
            f"converter/parity/tolerances.py (it has {', '.join(limits)})"
        )
    return limits[dtype]


_CHUNK = 1 << 22  # elements compared at once


@dataclass(frozen=True)
class Deviation:
    """How far `got` is from `reference` over the positions compared.

    Attributes:
        max_abs: max |a − b|; None when either side holds a NaN or an infinity anywhere, padding included.
        max_rel: max |a − b| / max(1, max |b| over the features of that position), b the reference; None likewise.
        cosine: the smallest cosine between the two vectors of one position; None likewise.
        argmax_agreement: the share of positions whose largest feature is the same one; None likewise.
        positions: how many vectors were compared.
        problem: why there is nothing to compare, or that something is not finite; None when all is well.
    """

    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    argmax_agreement: float | None
    positions: int
    problem: str | None = None


def no_comparison(problem: str) -> Deviation:
    """A deviation that never passes, for the reason given."""
    return Deviation(None, None, None, None, 0, problem)


def measure(reference: np.ndarray, got: np.ndarray, keep: np.ndarray | None = None) -> Deviation:
    """Compare two arrays of vectors along the last axis.

    Args:
        reference, got: (..., D), any floating dtype.
        keep: (...) boolean, the positions to compare; None: all. Everything is checked for NaN and infinity.
    """
    if reference.shape != got.shape:
        return no_comparison(f"shape {got.shape} in MLX, {reference.shape} in the reference")
    for side, array in (("MLX", got), ("the reference", reference)):
        if not np.isfinite(array).all():
            what = "NaN" if np.isnan(array).any() else "infinity"
            return no_comparison(f"{what} in {side}")
    a, b = (_vectors(array, keep) for array in (got, reference))
    if not len(b):
        return no_comparison("every position is masked")
    if b.shape[1] == 1:
        return _one_feature(a.astype(np.float64), b.astype(np.float64))
    # Scores of a whole vocabulary: all of them in float64 at once would be gigabytes.
    rows = max(1, _CHUNK // b.shape[1])
    return worst(_compare(a[i : i + rows], b[i : i + rows]) for i in range(0, len(b), rows))


def _compare(a: np.ndarray, b: np.ndarray) -> Deviation:
    """(N, D) against (N, D), in float64, so that measuring adds no rounding of its own."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    difference = np.abs(a - b)
    return Deviation(
        max_abs=float(difference.max()),
        max_rel=float((difference / np.maximum(1, np.abs(b).max(axis=-1, keepdims=True))).max()),
        cosine=float(_cosine(a, b).min()),
        argmax_agreement=float(np.mean(a.argmax(axis=-1) == b.argmax(axis=-1))),
        positions=len(b),
    )


def _one_feature(a: np.ndarray, b: np.ndarray) -> Deviation:
    """(N, 1) against (N, 1): one number has no direction and no largest feature, so all N are taken together."""
    alone = _compare(a, b)
    if len(b) == 1:
        return replace(alone, cosine=1.0, argmax_agreement=1.0)
    together = _compare(a.T, b.T)
    return replace(alone, cosine=together.cosine, argmax_agreement=together.argmax_agreement)


def worst(deviations: Iterable[Deviation]) -> Deviation:
    """The largest errors, the smallest cosine and the overall agreement of several; a problem in one is a problem."""
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


def _vectors(array: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    """The vectors to compare, (N, D)."""
    return array.reshape(-1, array.shape[-1]) if keep is None else array[keep]


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per row, (N, D), (N, D) -> (N,). A zero vector agrees with another zero vector and with nothing else."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~a.any(axis=-1) & ~b.any(axis=-1)
    cosine = np.einsum("nd,nd->n", a, b) / np.where(norms > 0, norms, 1)
    return np.where(both_zero, 1.0, np.clip(cosine, -1, 1))


def _number(value: float | None) -> float:
    # Without a problem every measure is a number; were one not, NaN would fail each limit instead of passing it.
    return math.nan if value is None else value
