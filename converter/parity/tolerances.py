"""How far apart two computations of one model may be, a row for each architecture.

The two gates have separate limits on purpose: a limit wide enough for half precision would hide a wrong mapping. When
a gate fails, the limit stays where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

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
