"""One of several classes: one logit a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from heads.arrays import Float, softmax
from heads.base import Head, Objective, Objectives, row_targets
from heads.calibration import check_temperature, fit_temperature, multiclass_nll
from heads.checks import check_numbers, check_output_weights
from heads.errors import HeadError
from heads.head_registry import register_head
from heads.labels import Label, check_classes, decode_labels, encode_labels, infer_classes
from heads.loss_functions import cross_entropy, softmax_focal

_IGNORED = -100


@register_head("multiclass", competition_types="multiclass")
class MulticlassClassificationHead(Head):
    """P(class) for each row.

    `predict` returns probabilities (N, C), columns in the order of `classes`; `decide` the user's labels; `top_k` the
    most probable labels. `calibrate` fits a temperature on held-out rows.
    """

    default_metric = "accuracy"
    metrics = ("accuracy", "balanced_accuracy", "f1_macro", "log_loss")
    fitted = ("temperature", "fitted_class_weights")
    objectives: ClassVar[Objectives] = {
        "cross_entropy": ("class_weights", "label_smoothing"),
        "focal": ("class_weights", "gamma"),
    }
    registered_loss_options = ("class_weights",)

    def __init__(
        self,
        hidden_size: int,
        *,
        classes: Sequence[Label],
        objective: Objective = "cross_entropy",
        class_weights: Sequence[float] | str | None = None,
        label_smoothing: float | None = None,
        gamma: float | None = None,
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head; `hidden_size`, `dropout` and `dropout_samples` as for `Head`.

        Args:
            classes: the labels, in the order of the logits.
            objective: "cross_entropy", "focal" or a registered loss.
            class_weights: one number a class; "balanced": rows / (classes × rows of the class) of the training fold.
                The mean of the loss divides by Σ w_y.
            label_smoothing: for "cross_entropy", from 0 to 1; with weights divided by Σ w_y, as torch does.
            gamma: for "focal": the exponent that reduces the loss of easy rows, 2 by default.
        """
        labels = check_classes(classes, self.title)
        super().__init__(hidden_size, len(labels), dropout=dropout, dropout_samples=dropout_samples)
        self.classes = labels
        options = {"class_weights": class_weights, "label_smoothing": label_smoothing, "gamma": gamma}
        self.objective, self.registered_loss = self.choose_objective(objective, options)
        self.label_smoothing, self.gamma = label_smoothing, gamma
        self.class_weights = check_output_weights(class_weights, len(self.classes), f"{self.title}: class_weights")
        self.temperature: float = 1.0
        self.fitted_class_weights: tuple[float, ...] | None = None

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """Return a head for the labels of `targets` (N,); give `classes` where the training fold may lack one."""
        arguments.setdefault("classes", infer_classes(targets, cls.head_name))
        return super().from_targets(hidden_size, targets, **arguments)

    def fit_targets(self, targets: Any) -> None:
        """Learn class weights from the training fold, if they are "balanced"."""
        if self.class_weights != "balanced":
            return
        counts = np.bincount(self.encode_targets(targets), minlength=len(self.classes))
        # A class that the fold lacks is never in its loss: any weight is right.
        weights = np.where(counts > 0, counts.sum() / (len(counts) * np.maximum(counts, 1)), 1.0)
        self.fitted_class_weights = tuple(map(float, weights))

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """See `Head.restore`."""
        super().restore(fitted)
        check_temperature(self.temperature, self.title)
        if self.fitted_class_weights is not None:
            check_numbers(self.fitted_class_weights, len(self.classes), f"{self.title}: fitted_class_weights", 0)

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's labels (N,) as int32 indices of `classes`."""
        return encode_labels(targets, self.classes, self.title)

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """See `Head.loss`; targets (B,) of class indices, −100 is left out."""
        labels = row_targets(targets, rows, logits, _IGNORED, self.title, classes=len(self.classes))
        if self.registered_loss is not None:
            weight, keep = self.weights_of("class_weights"), labels != _IGNORED
            weights = None if weight is None else mx.array(list(weight), dtype=mx.float32)[mx.where(keep, labels, 0)]
            total = None if weights is None else (weights * keep).sum()
            return self.mean_registered_loss(logits, labels, keep, weights=weights, total=total)
        function = softmax_focal if self.objective == "focal" else cross_entropy
        options = self.loss_options()
        return function(logits, labels, weight=options.pop("class_weights", None), ignore_index=_IGNORED, **options)

    def loss_weight(self, targets: Any, *, rows: Any = None) -> mx.array:
        """Return the sum of the class weights of the real rows; see `Head.loss_weight`."""
        labels = row_targets(targets, rows, targets, _IGNORED, self.title)
        keep = labels != _IGNORED
        weight = self.weights_of("class_weights")
        if weight is None:
            return keep.sum().astype(mx.float32)
        known = (labels >= 0) & (labels < len(weight))  # MLX reads memory behind the weights otherwise
        return (mx.array(list(weight), dtype=mx.float32)[mx.where(known, labels, 0)] * keep).sum()

    def predict(self, logits: Any) -> Float:
        """Return P(class), (N, C), with the calibrated temperature."""
        return softmax(self.host(logits) / check_temperature(self.temperature, self.title))

    def decide(self, logits: Any) -> np.ndarray[Any, Any]:
        """Return the most probable of the user's labels, (N,)."""
        return decode_labels(self.outputs(logits, "labels"), self.classes)

    def top_k(self, logits: Any, k: int) -> tuple[np.ndarray[Any, Any], Float]:
        """Return the k most probable labels (N, k), best first, and their probabilities (N, k).

        Raises:
            HeadError: k is below 1 or above the number of classes.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(self.classes):
            raise HeadError(f"{self.title}: top_k with k={k!r}; fix: between 1 and the {len(self.classes)} classes")
        probabilities = self.predict(logits)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        return decode_labels(order, self.classes), np.take_along_axis(probabilities, order, axis=1)

    def outputs(self, logits: Any, needs: str) -> np.ndarray[Any, Any]:
        """See `Head.outputs`: probabilities, or class indices for "labels"."""
        probabilities = self.predict(logits)
        return probabilities.argmax(axis=1).astype(np.int32) if needs == "labels" else probabilities

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Fit the temperature on the logits (N, C) and labels of held-out rows, whatever the metric."""
        scores, labels = self.host(logits), self.encode_targets(targets)
        self.check_rows(scores, labels)
        self.temperature = fit_temperature(scores, lambda z: multiclass_nll(z, labels), self.title)
