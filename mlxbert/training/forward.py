"""Logits of many rows: batches of similar length through the model, put back in the order of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlxbert.data.batching import PredictionBatches
from mlxbert.data.token_rows import TokenRows
from mlxbert.with_head import BertWithHead


def predict_logits(
    model: BertWithHead,
    tokens: TokenRows,
    rows: np.ndarray | None = None,
    *,
    batch_size: int,
    lengths: Sequence[int] | None = None,
    extra: Mapping[str, mx.array] | None = None,
) -> np.ndarray:
    """Logits (n, outputs), float32, in evaluation mode; the model's mode is as it was afterwards.

    Args:
        model: encoder, pooling and head.
        tokens: N rows.
        rows: numbers of the n rows wanted; None: all.
        batch_size: rows a batch.
        lengths: that batches are padded to, where they are known already.
        extra: N rows of each of the head's inputs beside the text.

    Raises:
        BatchError: there are no rows.
    """
    batches = PredictionBatches(tokens, rows, batch_size=batch_size, lengths=lengths)
    training = model.training
    model.eval()
    try:
        outputs = []
        for batch in batches:
            chosen = {name: array[mx.array(batch.rows)] for name, array in (extra or {}).items()}
            outputs.append(np.array(model(**batch.inputs(), **chosen)))
        return batches.restore(outputs)
    finally:
        model.train(training)
