"""`HeldOut`: a fold's held-out rows, and how a model does on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from mlxbert.training.examples import Examples
from mlxbert.training.forward import predict_logits
from mlxbert.training.judging import calibrate, cross_fitted, scores
from mlxbert.training.predictions import Predictions
from mlxbert.with_head import BertWithHead


class HeldOut:
    """Judges `model`, with the weights that it has at the moment, on some rows."""

    def __init__(
        self,
        model: BertWithHead,
        examples: Examples,
        rows: np.ndarray,
        *,
        task: str,
        metric: str,
        metrics: Sequence[str],
        calibrated: bool,
        batch_size: int,
        lengths: Sequence[int],
        extra: Mapping[str, mx.array],
    ):
        """Take over the rows.

        Args:
            model: whose head is fitted to the training rows' targets.
            examples: of which `rows` are held out.
            rows: their numbers.
            task: the competition type.
            metric: that is optimized.
            metrics: that are told, `metric` among them.
            calibrated: whether temperature and thresholds are learned.
            batch_size: rows a batch.
            lengths: that batches are padded to.
            extra: the head's inputs beside the text, of all examples.
        """
        self.model, self.examples, self.rows = model, examples, rows
        self.task, self.metric, self.metrics, self.calibrated = task, metric, tuple(metrics), calibrated
        self.batch_size, self.lengths, self.extra = batch_size, tuple(lengths), extra
        self._targets = examples.targets[rows]
        self._encoded = model.head.encode_targets(self._targets)
        self._truth = model.head.metric_targets(self._targets)

    def logits(self) -> np.ndarray:
        """(n, outputs), float32, in the order of the rows."""
        return predict_logits(
            self.model,
            self.examples.tokens,
            self.rows,
            batch_size=self.batch_size,
            lengths=self.lengths,
            extra=self.extra,
        )

    def loss(self, logits: np.ndarray) -> float:
        """The mean over all rows."""
        return float(np.array(self.model.loss(mx.array(logits), self._encoded)))

    def predictions(self, logits: np.ndarray) -> Predictions:
        """Cross-fitted: `mlxbert.training.judging` says why."""
        return cross_fitted(self.task, self.model.head, logits, self._targets, self.metric, calibrated=self.calibrated)

    def scores(self, predictions: Predictions) -> dict[str, float]:
        """Metric name -> value."""
        return scores(self._truth, predictions, self.metrics)

    def calibrate(self, logits: np.ndarray) -> str | None:
        """Have the head learn temperature and thresholds, where it should; else why it could not."""
        if not self.calibrated:
            return None
        options = self.examples.judging(self.rows)
        return calibrate(self.task, self.model.head, logits, self._targets, self.metric, options)
