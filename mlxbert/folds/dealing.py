"""Dealing groups of rows to parts of given sizes, so that every label is spread as the rows are.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", 2011), for
groups of rows in place of rows, which scikit-learn does not have: the label with the fewest rows left is dealt first,
each of its groups to the part that still wants most of that label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def one_label(strata: np.ndarray) -> Any:
    """Return rows with one label each as a sparse (N, labels) matrix: 10,000 classes of as many rows are no table."""
    from scipy.sparse import csr_array

    numbers = np.unique(strata, return_inverse=True)[1].reshape(-1)
    return csr_array((np.ones(len(strata)), numbers, np.arange(len(strata) + 1)))


def deal_groups(groups: np.ndarray, labels: Any, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The part of each row, (N,): rows of one group in one part.

    Args:
        groups: (N,) whole numbers, 0 … G − 1.
        labels: (N, L) bool, or sparse; L may be 0.
        shares: of the rows, one a part; they sum to 1.
        rng: decides ties and the order among equals.
    """
    from scipy.sparse import csc_array, csr_array

    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count).astype(np.float64)
    members = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))), shape=(count, len(groups)))
    held = csr_array(members @ csr_array(labels, dtype=np.float64))  # (G, L)
    by_label = csc_array(held)
    part = np.full(count, -1)
    wanted_rows = np.outer(shares, [sizes.sum()])[:, 0]
    left = np.asarray(held.sum(axis=0), np.float64).reshape(-1)
    wanted = np.outer(shares, left)  # (parts, L)
    # Large groups first, while there is room for them everywhere; equals in random order.
    order = rng.permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]
    place = np.argsort(order)
    while (left > 0).any():
        label = int(np.where(left > 0, left, np.inf).argmin())
        column = slice(by_label.indptr[label], by_label.indptr[label + 1])
        mine, amounts = by_label.indices[column], by_label.data[column]
        free = part[mine] < 0
        for group in mine[free][np.lexsort((place[mine[free]], -amounts[free]))]:
            chosen = _hungriest(wanted[:, label], wanted_rows, rng)
            part[group] = chosen
            row = slice(held.indptr[group], held.indptr[group + 1])
            wanted[chosen, held.indices[row]] -= held.data[row]
            wanted_rows[chosen] -= sizes[group]
            left[held.indices[row]] -= held.data[row]
    for group in order[part[order] < 0]:
        chosen = _hungriest(wanted_rows, wanted_rows, rng)
        part[group] = chosen
        wanted_rows[chosen] -= sizes[group]
    return part[groups]


def _hungriest(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> int:
    """The index where `first` is largest; among equals where `second` is; among those, any."""
    best = np.flatnonzero(first >= first.max() - 1e-9)
    if len(best) > 1:
        best = best[second[best] >= second[best].max() - 1e-9]
    return int(best[0] if len(best) == 1 else rng.choice(best))
