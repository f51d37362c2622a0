"""Temperature scaling: held-out logits divided by one T > 0, so that probabilities mean what they say.

Guo et al. 2017, https://arxiv.org/abs/1706.04599. It never changes which class is the most probable.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from heads.errors import HeadError
from heads.host import Float

# Held-out rows that are all right would have T = 0, all wrong infinity: both ends are where that stops.
LOWEST, HIGHEST = 0.01, 100.0


def fit_temperature(logits: Float, nll: Callable[[Float], float], what: str) -> float:
    """The T in [0.01, 100] that minimizes `nll(logits / T)`.

    The search is over log T, so T > 0 by construction. Negative log-likelihood is convex in 1/T for linear logits
    and a log-partition function, hence has one minimum.

    Raises:
        HeadError: no rows, or logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    if not len(logits) or not np.isfinite(logits).all():
        problem = "no rows" if not len(logits) else "logits that are not finite"
        raise HeadError(
            f"{what}: a temperature cannot be fitted on {problem}; fix: give held-out logits of a trained model"
        )
    found = minimize_scalar(
        lambda log_t: nll(logits / math.exp(log_t)),
        bounds=(math.log(LOWEST), math.log(HIGHEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    # Bounded search is golden section with parabolas: T = 1 itself is a candidate that it may miss by its tolerance.
    temperature = math.exp(float(found.x))
    return temperature if nll(logits / temperature) <= nll(logits) else 1.0


def binary_nll(logits: Float, targets: Float) -> float:
    """Mean −log P(target) for logits and 0/1 targets of one shape; sums over targets of −1 are left out."""
    keep = targets >= 0
    losses = np.logaddexp(0.0, logits) - logits * targets
    return float(losses[keep].mean())


def multiclass_nll(logits: Float, indices: np.ndarray) -> float:
    """Mean −log softmax(logits)[index] over the rows."""
    partition = np.logaddexp.reduce(logits, axis=1)
    return float((partition - logits[np.arange(len(logits)), indices]).mean())


def check_temperature(temperature: float, what: str) -> float:
    """`temperature` if it is a finite number above 0.

    Raises:
        HeadError: it is not.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise HeadError(f"{what}: temperature must be a number above 0, not {temperature!r}")
    return float(temperature)
