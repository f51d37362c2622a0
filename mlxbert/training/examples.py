"""`Examples`: rows to learn from, as a trainer takes them: token ids, targets, and what a series has beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from heads.base import Head
from heads.forward_chaining import Windows
from mlxbert.data.token_rows import TokenRows


@dataclass(frozen=True, eq=False)
class Examples:
    """N rows.

    Attributes:
        tokens: N rows of ids.
        targets: N, in the user's own values, as `Head.fit_targets` and `encode_targets` take them.
        windows: of a time series: history and times of each row.
        names: N, what messages call the rows: ids, or their numbers in the data; None: their numbers here.
    """

    tokens: TokenRows
    targets: np.ndarray
    windows: Windows | None = None
    names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def sha256(self) -> str:
        """Of ids, types, targets, histories and times: a resumed run compares it before it goes on."""
        digest = hashlib.sha256()
        tokens = self.tokens
        parts = [tokens.ids, tokens.type_ids, tokens.starts, self.targets]
        if self.windows is not None:
            parts += [self.windows.history, self.windows.made_at, self.windows.known_at]
        for part in parts:
            data = repr(part.tolist()).encode() if part.dtype.kind in "OUM" else np.ascontiguousarray(part).tobytes()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def fitting(self, rows: np.ndarray) -> dict[str, Any]:
        """What `Head.from_targets` and `fit_targets` need beside these rows' targets."""
        return {} if self.windows is None else {"known_at": self.windows.known_at[rows]}

    def judging(self, rows: np.ndarray) -> dict[str, Any]:
        """What `Head.calibrate` needs beside these held-out rows' logits and targets."""
        return {} if self.windows is None else {"made_at": self.windows.made_at[rows]}

    def extra_inputs(self, head: Head) -> dict[str, mx.array]:
        """The head's inputs beside the text, N rows of each; scaled as this fold's head scales."""
        made: Any = getattr(head, "inputs", None)
        if self.windows is None or made is None or not head.extra_inputs:
            return {}
        history = self.windows.history if getattr(head, "window", 0) else None
        arrays: dict[str, mx.array] = made(history=history, made_at=self.windows.made_at)
        return arrays
