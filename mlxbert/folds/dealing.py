"""Dealing groups of rows to parts of given sizes, so that every label is spread as the rows are.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", 2011), for
groups of rows in place of rows, which scikit-learn does not have: the label with the fewest rows left is dealt first,
each of its groups to the part that still wants most of that label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deal_groups(
    groups: np.ndarray, labels: np.ndarray, shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """The part of each row, (N,): rows of one group in one part.

    Args:
        groups: (N,) whole numbers, 0 … G − 1.
        labels: (N, L) bool; L may be 0.
        shares: of the rows, one a part; they sum to 1.
        rng: decides ties and the order among equals.
    """
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count).astype(np.float64)
    held = np.zeros((count, labels.shape[1]))
    np.add.at(held, groups, labels)
    part = np.full(count, -1)
    wanted_rows = np.outer(shares, [sizes.sum()])[:, 0]
    wanted = np.outer(shares, held.sum(axis=0))  # (parts, L)
    left = held.sum(axis=0)
    # Large groups first, while there is room for them everywhere; equals in random order.
    order = rng.permutation(count)
    order = order[np.argsort(-sizes[order], kind="stable")]
    while (left > 0).any():
        label = int(np.where(left > 0, left, np.inf).argmin())
        mine = order[(part[order] < 0) & (held[order, label] > 0)]
        for group in mine[np.argsort(-held[mine, label], kind="stable")]:
            chosen = _hungriest(wanted[:, label], wanted_rows, rng)
            part[group] = chosen
            wanted[chosen] -= held[group]
            wanted_rows[chosen] -= sizes[group]
            left -= held[group]
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
