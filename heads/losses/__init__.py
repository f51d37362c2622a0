"""Every built-in loss as a function, and `Loss` with `register_loss` for a loss of your own.

All are computed in float32 whatever the dtype of the input, and return float32 (gradients have the input's dtype).
Shapes are checked and nothing is broadcast; `reduction` is "mean", "sum" or "none". Ignored labels count neither in
the sum nor in the divisor of the mean; a mean over nothing is 0 with a zero gradient.
"""

from heads.losses.base import Loss, Reduction, register_loss
from heads.losses.classification import asymmetric, bce_with_logits, cross_entropy, sigmoid_focal, softmax_focal
from heads.losses.regression import (
    coral,
    corn,
    cumulative_link,
    cumulative_logits,
    gaussian_nll,
    huber,
    mae,
    mse,
    pinball,
)

__all__ = [
    "Loss",
    "Reduction",
    "asymmetric",
    "bce_with_logits",
    "coral",
    "corn",
    "cross_entropy",
    "cumulative_link",
    "cumulative_logits",
    "gaussian_nll",
    "huber",
    "mae",
    "mse",
    "pinball",
    "register_loss",
    "sigmoid_focal",
    "softmax_focal",
]
