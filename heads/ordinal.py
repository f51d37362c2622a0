"""Ratings: K ordered classes, K − 1 logits of "is it more than this?"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from heads.arrays import Float, sigmoid
from heads.base import Head, Objective, Objectives, linear, row_targets
from heads.errors import HeadError
from heads.head_registry import register_head
from heads.labels import Label, check_classes, decode_labels, encode_labels, infer_classes
from heads.loss_functions import coral, corn, cumulative_logits

_IGNORED = -100
# Least distance between two thresholds: softplus of a very negative number is 0 in float32, and the class between the
# thresholds would have no probability.
_LEAST_GAP = 1e-4


@register_head("ordinal", competition_types="ordinal")
class OrdinalRegressionHead(Head):
    """A rating for each row.

    Logit k is the logit of P(y > k): score − θ_k with increasing thresholds θ. For "corn" it is the logit of
    P(y > k | y > k − 1). `predict` returns ratings in the user's own values, `probabilities` one column a class. These
    are never negative, because P(y > k) cannot rise with k.

    CORAL https://arxiv.org/abs/1901.07884, CORN https://arxiv.org/abs/2111.08851, cumulative link: McCullagh 1980.
    """

    default_metric = "quadratic_kappa"
    metrics = ("quadratic_kappa", "accuracy", "accuracy_within_one", "mae", "kendall")
    objectives: ClassVar[Objectives] = {"coral": (), "corn": (), "cumulative_link": ()}

    def __init__(
        self,
        hidden_size: int,
        *,
        classes: Sequence[Label],
        objective: Objective = "corn",
        dropout: float = 0.1,
        dropout_samples: int = 1,
    ):
        """Make the head; `hidden_size`, `dropout` and `dropout_samples` as for `Head`.

        Args:
            classes: the ratings, lowest first.
            objective: "coral", "corn", "cumulative_link" or a registered loss, on logits score − θ_k.
        """
        ratings = check_classes(classes, self.title)
        super().__init__(hidden_size, len(ratings) - 1, dropout=dropout, dropout_samples=dropout_samples)
        self.classes = ratings
        self.objective, self.registered_loss = self.choose_objective(objective, {})
        if self.objective != "corn":
            self.output = linear(hidden_size, 1, bias=False)  # the score, without a bias: the thresholds have it
            # softplus(0.5413) = 1: at the start the thresholds have a distance of 1 and are centred on a score of 0.
            gaps = len(ratings) - 2
            self.first_threshold = mx.array([-gaps / 2])
            if gaps:
                self.raw_gaps = mx.full((gaps,), 0.5413)

    @classmethod
    def from_targets(cls, hidden_size: int, targets: Any, **arguments: Any) -> Self:
        """Return a head for numeric ratings (N,); give `classes` if the fold may lack one, or if they are words."""
        if "classes" not in arguments:
            classes = infer_classes(targets, cls.head_name)
            if isinstance(classes[0], str):
                raise HeadError(f"{cls.head_name}: the ratings are words; fix: give classes=(…), lowest first")
            arguments["classes"] = classes
        return super().from_targets(hidden_size, targets, **arguments)

    @property
    def thresholds(self) -> mx.array:
        """Return θ (K − 1,), float32, which strictly increases for all values of the parameters.

        Raises:
            HeadError: the objective is "corn", which has no thresholds.
        """
        if self.objective == "corn":
            raise HeadError(f"{self.title}: objective='corn' has no thresholds")
        first = self.first_threshold.astype(mx.float32)
        if "raw_gaps" not in self:
            return first
        gaps = nn.softplus(self.raw_gaps.astype(mx.float32)) + _LEAST_GAP
        return mx.cumsum(mx.concatenate([first, gaps]))

    def __call__(self, features: mx.array) -> mx.array:
        """Return float32 logits (B, K − 1) of features (B, D)."""
        logits = self.project(features)
        return logits if self.objective == "corn" else logits - self.thresholds

    def encode_targets(self, targets: Any) -> np.ndarray[Any, Any]:
        """Return the user's ratings (N,) as int32 ranks 0 … K − 1."""
        return encode_labels(targets, self.classes, self.title)

    def loss(self, logits: mx.array, targets: Any, *, rows: Any = None) -> mx.array:
        """See `Head.loss`; targets (B,) of ranks, −100 is left out."""
        ranks = row_targets(targets, rows, logits, _IGNORED, self.title, classes=len(self.classes))
        if self.registered_loss is not None:
            return self.mean_registered_loss(logits, ranks, ranks != _IGNORED)
        function = {"coral": coral, "corn": corn, "cumulative_link": cumulative_logits}[self.objective]
        return function(logits, ranks, ignore_index=_IGNORED)

    def loss_weight(self, targets: Any, *, rows: Any = None) -> mx.array:
        """Return the number of real rows with a rank, for "corn" of their questions; see `Head.loss_weight`."""
        ranks = row_targets(targets, rows, targets, _IGNORED, self.title)
        questions = ranks != _IGNORED
        if self.objective == "corn":
            questions = questions[:, None] & (ranks[:, None] >= mx.arange(len(self.classes) - 1))
        return questions.sum().astype(mx.float32)

    def exceedance(self, logits: Any) -> Float:
        """Return P(y > k) for k = 0 … K − 2: (N, K − 1), which never rises along a row."""
        probabilities = sigmoid(self.host(logits))
        return np.asarray(np.cumprod(probabilities, axis=1)) if self.objective == "corn" else probabilities

    def probabilities(self, logits: Any) -> Float:
        """Return P(y = k), (N, K)."""
        above = self.exceedance(logits)
        ends = np.ones((len(above), 1)), np.zeros((len(above), 1))
        # The logits score − θ decrease in exact arithmetic; in float32 a difference may be −1e-9.
        return np.maximum(-np.diff(np.concatenate([ends[0], above, ends[1]], axis=1), axis=1), 0.0)

    def expected(self, logits: Any) -> Float:
        """Return the expected rank, Σ P(y > k), between 0 and K − 1: (N,)."""
        return np.asarray(self.exceedance(logits).sum(axis=1))

    def predict(self, logits: Any) -> np.ndarray[Any, Any]:
        """Return the median rating in the user's own values, (N,): its rank is the number of P(y > k) above 0.5."""
        return decode_labels(self.outputs(logits, "labels"), self.classes)

    def outputs(self, logits: Any, needs: str) -> np.ndarray[Any, Any]:
        """See `Head.outputs`: probabilities (N, K) for "probabilities" and "scores", else the median rank."""
        if needs in ("probabilities", "scores"):
            return self.probabilities(logits)
        return (self.exceedance(logits) > 0.5).sum(axis=1).astype(np.int32)
