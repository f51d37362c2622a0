"""What a training ends in: weights and held-out predictions, or an error that leaves what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlxbert.data.batching import Batch
from mlxbert.errors import Interrupted, MLXBertError
from mlxbert.training.predictions import Predictions


class TrainingError(MLXBertError):
    """A training that cannot go on; what was saved stays."""


class TrainingInterrupted(TrainingError, Interrupted):  # noqa: N818 - an answer to Ctrl-C, not a fault
    """Ctrl-C: the state is saved, and the training can go on from there."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a training ended in; the model has the weights that are kept, and its head is calibrated.

    Attributes:
        logits: (n, outputs) of the fold's held-out rows.
        predictions: of these, cross-fitted (`mlxbert.training.judging`).
        metrics: of the predictions.
        step: whose weights they are; likewise `epoch`.
        note: why temperature and thresholds could not be learned; None: they were.
    """

    logits: np.ndarray
    predictions: Predictions
    metrics: dict[str, float]
    step: int
    epoch: float
    note: str | None


def named_rows(batch: Batch, names: Sequence[str] | None) -> str:
    """A batch's first ten rows by name, or number, and how many there are beyond these."""
    first = batch.rows[: min(batch.real, 10)].tolist()
    rows = ", ".join(str(row) if names is None else names[row] for row in first)
    return rows + (f", … ({batch.real} in all)" if batch.real > 10 else "")
