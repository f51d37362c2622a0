"""Several yes-or-no questions at once: one logit a label."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import mlx.core as mx
import numpy as np

from heads.arrays import Float, sigmoid
from heads.base import Head, Objective, Objectives, row_targets
from heads.calibration import best_threshold
from heads.checks import check_numbers, check_output_weights
from heads.errors import HeadError, MLXBertWarning
from heads.head_registry import register_head
from heads.labels import Label, as_array, check_classes
from heads.loss_functions import asymmetric, bce_with_logits, sigmoid_focal

_IGNORED = -1


class ThresholdWarning(MLXBertWarning):
    """The threshold of a label cannot be learned."""


@register_head("multilabel", competition_types="multilabel")
class MultilabelClassificationHead(Head):
    """P(label) for each row and label; a target of −1 is unknown and left out.

    `predict` returns probabilities (N, L), `decide` 0 and 1. `calibrate` learns a threshold for each label.
    """

    default_metric = "roc_auc_macro"
    # The metrics that leave unknown entries out; those of whole rows (subset_accuracy, …) refuse them.
    metrics = ("roc_auc_macro", "pr_auc_macro", "f1_macro", "f1_micro", "log_loss")
    fitted = ("thresholds", "fitted_pos_weight")
    objectives: ClassVar[Objectives] = {
        "bce": ("pos_weight", "label_smoothing"),
        "focal": ("alpha", "gamma"),
        "asymmetric": ("gamma_neg", "gamma_pos", "clip"),
    }
    registered_loss_options = ("pos_weight",)

    def __init__(
        self,
        hidden_size: int,
        *,
        classes: Sequence[Label],
        objective: Objective = "bce",
        pos_weight: Sequence[float] | str | None = None,
        label_smoothing: float | None = None,
        alpha: float | None = None,
        gamma: float | None = None,
        gamma_neg: float | None = None,
        gamma_pos: float | None = None,
        clip: float | None = None,
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head; `hidden_size`, `dropout` and `dropout_samples` as for `Head`.

        Args:
            classes: the labels' names, in the order of the target's columns.
            objective: "bce", "focal", "asymmetric" (ASL) or a registered loss.
            pos_weight: for "bce" and a registered loss: the weight of a positive entry, one number a label;
                "balanced": negatives / positives of the training fold.
            label_smoothing: for "bce", from 0 to 1.
            alpha: for "focal": the weight of positives, negatives weigh 1 − alpha; 0.25 by default.
            gamma: for "focal": the exponent that reduces the loss of easy entries, 2 by default.
            gamma_neg: for "asymmetric": the exponent for easy negatives, 4 by default.
            gamma_pos: for "asymmetric": the exponent for easy positives, 0 by default.
            clip: for "asymmetric": negatives below this probability have no loss, 0.05 by default.
        """
        names = check_classes(classes, self.title, least=1)
        super().__init__(hidden_size, len(names), dropout=dropout, dropout_samples=dropout_samples)
        self.classes = names
        options = {"pos_weight": pos_weight, "label_smoothing": label_smoothing, "alpha": alpha, "gamma": gamma}
        options |= {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
        self.objective, self.registered_loss = self.choose_objective(objective, options)
        self.pos_weight = check_output_weights(pos_weight, len(names), f"{self.title}: pos_weight")
        self.label_smoothing, self.alpha, self.gamma = label_smoothing, alpha, gamma
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.thresholds: tuple[float, ...] = (0.5,) * len(names)
        self.fitted_pos_weight: tuple[float, ...] | None = None

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """Return a head for the columns of `targets` (N, L); a frame's column names become the label names."""
        shape = np.shape(targets)
        if len(shape) != 2:
            raise HeadError(f"{cls.head_name}: targets have shape {shape}; expected (N, labels) of 0, 1 and −1")
        columns = getattr(targets, "columns", None)
        arguments.setdefault("classes", tuple(columns) if columns is not None else tuple(range(shape[1])))
        return super().from_targets(hidden_size, targets, **arguments)

    def fit_targets(self, targets: Any) -> None:
        """Learn a balanced `pos_weight` from the training fold, if it is "balanced"."""
        if self.pos_weight != "balanced":
            return
        encoded = self.encode_targets(targets)
        positives, negatives = (encoded == 1).sum(axis=0), (encoded == 0).sum(axis=0)
        # A label without positives (or negatives) in the fold has no ratio: 1 changes nothing.
        both = (positives > 0) & (negatives > 0)
        self.fitted_pos_weight = tuple(map(float, np.where(both, negatives / np.maximum(positives, 1), 1.0)))

    def restore(self, fitted: Mapping[str, Any]) -> None:
        """See `Head.restore`."""
        super().restore(fitted)
        check_numbers(self.thresholds, self.num_outputs, f"{self.title}: thresholds", 0, 1)
        if self.fitted_pos_weight is not None:
            check_numbers(self.fitted_pos_weight, self.num_outputs, f"{self.title}: fitted_pos_weight", 0)

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's targets (N, L) of 0, 1 and −1 (or missing: NaN) as float32."""
        array = as_array(targets, np.float32, self.title)
        if array.ndim != 2 or array.shape[1] != self.num_outputs:
            raise HeadError(f"{self.title}: targets have shape {array.shape}; expected (N, {self.num_outputs})")
        array = np.where(np.isnan(array), np.float32(_IGNORED), array)
        wrong = np.argwhere(~np.isin(array, (0, 1, _IGNORED)))
        if len(wrong):
            row, column = map(int, wrong[0])
            raise HeadError(
                f"{self.title}: row {row}, label {self.classes[column]!r} is {array[row, column]}; "
                "expected 0, 1, or −1 for unknown"
            )
        return array

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """See `Head.loss`; targets (B, L) of 0, 1 and −1."""
        encoded = row_targets(targets, rows, logits, _IGNORED, self.title)
        if self.registered_loss is not None:
            weight = self.weights_of("pos_weight")
            weights = None if weight is None else mx.where(encoded == 1, mx.array(list(weight)), 1.0)
            return self.mean_registered_loss(logits, encoded, encoded != _IGNORED, weights=weights)
        functions: dict[str, Callable[..., mx.array]] = {"bce": bce_with_logits, "focal": sigmoid_focal}
        function = functions.get(self.objective, asymmetric)
        return function(logits, encoded, ignore_index=_IGNORED, **self.loss_options())

    def loss_weight(self, targets: Any, *, rows: Any = None) -> mx.array:
        """Return the number of known labels in the real rows; see `Head.loss_weight`."""
        known = row_targets(targets, rows, targets, _IGNORED, self.title) != _IGNORED
        return known.sum().astype(mx.float32)

    def predict(self, logits: Any) -> Float:
        """Return P(label), (N, L)."""
        return sigmoid(self.host(logits))

    def decide(self, logits: Any) -> np.ndarray[Any, Any]:
        """Return 1 from each label's threshold on, else 0: (N, L) int32."""
        return (self.predict(logits) >= np.asarray(self.thresholds)).astype(np.int32)

    def outputs(self, logits: Any, needs: str) -> np.ndarray[Any, Any]:
        """See `Head.outputs`: probabilities, or 0 and 1 for "labels"."""
        return self.decide(logits) if needs == "labels" else self.predict(logits)

    def metric_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's targets as int32; unknown ones stay −1."""
        return self.encode_targets(targets).astype(np.int32)

    def calibrate(self, logits: Any, targets: Any, *, metric: str | None = None) -> None:
        """Learn each label's threshold on held-out rows for a metric of labels; None: "f1".

        Warns:
            ThresholdWarning: labels whose held-out rows are all positive or all negative; they keep 0.5.
        """
        probabilities, encoded = self.predict(logits), self.encode_targets(targets)
        self.check_rows(probabilities, encoded)
        learned, kept = [], []
        for column, name in enumerate(self.classes):
            known = encoded[:, column] != _IGNORED
            truth = encoded[known, column].astype(np.int32)
            if len(np.unique(truth)) < 2:
                learned.append(0.5)
                kept.append(repr(name))
                continue
            learned.append(
                best_threshold(probabilities[known, column], truth, metric or "f1", f"{self.title} {name!r}")
            )
        self.thresholds = tuple(learned)
        if kept:
            warnings.warn(
                f"{self.title}: the held-out rows of {', '.join(kept)} are all of one kind; the threshold stays 0.5",
                ThresholdWarning,
                stacklevel=2,
            )
