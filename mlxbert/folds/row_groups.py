"""Which rows belong together, and must never lie on both sides of a fold: equal texts, and the user's own groups."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from mlxbert.factory.frames import plain


def normalized(text: str) -> str:
    """A text as it is compared: compatible characters made equal, case and the amount of white space left out."""
    # Only what is not one space already: of a text of 20 million characters each match is a string of its own.
    return re.sub(r"\s{2,}|[^\S ]", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_keys(texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Hashable]:
    """One key a row, equal where the texts are: both of a pair, in whichever order. Empty texts are equal, too."""
    firsts = [normalized(text) for text in texts]
    if pairs is None:
        return list(firsts)
    seconds = [normalized(text) for text in pairs]
    return [tuple(sorted(both)) for both in zip(firsts, seconds, strict=True)]


def join_rows(rows: int, *keys: Iterable[Any] | None) -> np.ndarray:
    """The group of each row, (N,) int64 from 0 in order of first appearance.

    Rows with an equal key of any kind are in one group, and so are rows that a chain of such pairs connects. A missing
    key (None, NaN) joins nothing.
    """
    parent = list(range(rows))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for kind in keys:
        first: dict[Any, int] = {}
        for row, key in enumerate(() if kind is None else kind):
            key = plain(key)
            if key is None:
                continue
            one, two = root(first.setdefault(key, row)), root(row)
            parent[max(one, two)] = min(one, two)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(row), len(numbers)) for row in range(rows)], np.int64)
