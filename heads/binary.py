"""Yes or no: one logit a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from heads.arrays import Float, sigmoid
from heads.base import Head, Objective, Objectives, row_targets
from heads.calibration import best_threshold, binary_nll, check_temperature, fit_temperature
from heads.checks import check_number
from heads.errors import HeadError
from heads.head_registry import register_head
from heads.labels import Label, check_classes, decode_labels, encode_labels, infer_classes
from heads.loss_functions import bce_with_logits, sigmoid_focal

_IGNORED = -1


@register_head("binary", competition_types="binary")
class BinaryClassificationHead(Head):
    """P(positive) for each row.

    `predict` returns probabilities (N,), `decide` the user's labels. `calibrate` fits a temperature and a decision
    threshold on held-out rows.
    """

    default_metric = "roc_auc"
    metrics = ("roc_auc", "accuracy", "f1", "log_loss")
    fitted = ("temperature", "threshold", "fitted_pos_weight")
    objectives: ClassVar[Objectives] = {"bce": ("pos_weight", "label_smoothing"), "focal": ("alpha", "gamma")}
    registered_loss_options = ("pos_weight",)

    def __init__(
        self,
        hidden_size: int,
        *,
        classes: Sequence[Label] = (0, 1),
        objective: Objective = "bce",
        pos_weight: float | str | None = None,
        label_smoothing: float | None = None,
        alpha: float | None = None,
        gamma: float | None = None,
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head; `hidden_size`, `dropout` and `dropout_samples` as for `Head`.

        Args:
            classes: the negative label, then the positive one.
            objective: "bce", "focal" or a registered loss.
            pos_weight: for "bce" and a registered loss: the weight of a positive row; "balanced": negatives /
                positives of the training fold.
            label_smoothing: for "bce", from 0 to 1.
            alpha: for "focal": the weight of positives, negatives weigh 1 − alpha; 0.25 by default.
            gamma: for "focal": the exponent that reduces the loss of easy rows, 2 by default.
        """
        super().__init__(hidden_size, 1, dropout=dropout, dropout_samples=dropout_samples)
        options = {"pos_weight": pos_weight, "label_smoothing": label_smoothing, "alpha": alpha, "gamma": gamma}
        self.objective, self.registered_loss = self.choose_objective(objective, options)
        if isinstance(pos_weight, str) and pos_weight != "balanced":
            raise HeadError(f"{self.title}: pos_weight must be a number or 'balanced', not {pos_weight!r}")
        if pos_weight is not None and not isinstance(pos_weight, str):
            pos_weight = check_number(pos_weight, f"{self.title}: pos_weight", 0)
        self.classes = check_classes(classes, self.title)
        if len(self.classes) != 2:
            raise HeadError(
                f"{self.title}: {len(self.classes)} classes given; fix: two, or the multiclass head for more"
            )
        self.pos_weight, self.label_smoothing, self.alpha, self.gamma = pos_weight, label_smoothing, alpha, gamma
        self.temperature: float = 1.0
        self.threshold: float = 0.5
        self.fitted_pos_weight: float | None = None

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """Return a head for the two labels of `targets` (N,); the last in sorted order is the positive one."""
        arguments.setdefault("classes", infer_classes(targets, cls.head_name))
        return super().from_targets(hidden_size, targets, **arguments)

    def fit_targets(self, targets: Any) -> None:
        """Learn a balanced `pos_weight` from the training fold, if it is "balanced"."""
        if self.pos_weight != "balanced":
            return
        encoded = self.encode_targets(targets)
        positives = int(encoded.sum())
        if not 0 < positives < len(encoded):
            raise HeadError(f"{self.title}: pos_weight='balanced' needs rows of both classes in the training fold")
        self.fitted_pos_weight = (len(encoded) - positives) / positives

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """See `Head.restore`."""
        super().restore(fitted)
        check_temperature(self.temperature, self.title)
        check_number(self.threshold, f"{self.title}: threshold", 0, 1)
        if self.fitted_pos_weight is not None:
            check_number(self.fitted_pos_weight, f"{self.title}: fitted_pos_weight", 0)

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's labels (N,) as float32 0 and 1."""
        return encode_labels(targets, self.classes, self.title).astype(np.float32)

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """See `Head.loss`; targets (B,) of 0 and 1."""
        encoded = row_targets(targets, rows, logits, _IGNORED, self.title)
        scores = logits[:, 0]
        if self.registered_loss is not None:
            weight = self.weights_of("pos_weight")
            weights = None if weight is None else mx.where(encoded == 1, weight, 1.0)
            return self.mean_registered_loss(scores, encoded, encoded != _IGNORED, weights=weights)
        function = sigmoid_focal if self.objective == "focal" else bce_with_logits
        return function(scores, encoded, ignore_index=_IGNORED, **self.loss_options())

    def predict(self, logits: Any) -> Float:
        """Return P(positive), (N,), with the calibrated temperature."""
        return sigmoid(self.host(logits)[:, 0] / check_temperature(self.temperature, self.title))

    def decide(self, logits: Any) -> np.ndarray[Any, Any]:
        """Return the user's labels (N,): positive from `threshold` on."""
        return decode_labels(self.outputs(logits, "labels"), self.classes)

    def outputs(self, logits: Any, needs: str) -> np.ndarray[Any, Any]:
        """See `Head.outputs`: probabilities, or 0 and 1 for "labels"."""
        probabilities = self.predict(logits)
        return (probabilities >= self.threshold).astype(np.int32) if needs == "labels" else probabilities

    def metric_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's labels as 0 and 1."""
        return encode_labels(targets, self.classes, self.title)

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Fit the temperature on held-out rows and then, for `metric`, the decision threshold.

        Args:
            logits: (N, 1) of held-out rows.
            targets: their labels, in the user's own values.
            metric: a metric of labels, such as "f1"; None: the threshold stays.

        Raises:
            HeadError: the metric has no threshold, or the numbers of logits and labels differ.
        """
        scores, encoded = self.host(logits)[:, 0], self.metric_targets(targets)
        self.check_rows(scores, encoded)
        self.temperature = fit_temperature(scores, lambda z: binary_nll(z, encoded), self.title)
        if metric is not None:
            self.threshold = best_threshold(self.predict(logits), encoded, metric, self.title)
