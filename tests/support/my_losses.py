"""Losses of a competitor, in a file of their own: importing it registers them."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from heads.losses import Loss, register_loss


@register_loss("my_bce")
class MyBCE(Loss):
    """Binary cross-entropy, written anew; NaN for a target that is neither 0 nor 1."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        probabilities = mx.sigmoid(logits)
        return -(targets * mx.log(probabilities) + (1 - targets) * mx.log(1 - probabilities)) + 0 * mx.log(
            targets + 0.5
        )


@register_loss("my_scaled_bce")
@dataclass(frozen=True)
class MyScaledBCE(Loss):
    """`MyBCE` times a factor."""

    factor: float = 3.0

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return self.factor * MyBCE()(logits, targets)


@register_loss("my_cross_entropy")
class MyCrossEntropy(Loss):
    """Softmax cross-entropy."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        log_probabilities = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return -mx.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0]


@register_loss("my_square")
class MySquare(Loss):
    """Squared error."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return mx.square(logits - targets)


@register_loss("my_coral")
class MyCoral(Loss):
    """The sum of the binary cross-entropies of "is the rating above k?"."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        above = (targets[:, None] > mx.arange(logits.shape[-1])).astype(mx.float32)
        return MyBCE()(logits, above).sum(axis=-1)


@register_loss("my_mean")
class MyMean(Loss):
    """A loss with the usual mistake: it returns the mean."""

    def __call__(self, logits: mx.array, targets: mx.array) -> mx.array:
        return mx.square(logits - targets).mean()
