"""Every loss: pure functions, and beside them `Loss`, the base of the same losses with their settings.

All are computed in float32 whatever the dtype of the input, and give float32 (gradients have the input's dtype).
Shapes are checked and nothing is broadcast; `reduction` is "mean", "sum" or "none". Ignored labels count neither in
the sum nor in what the mean divides by; a mean over nothing is 0 with a zero gradient.
"""

from heads.losses.binary import asymmetric, bce_with_logits, sigmoid_focal
from heads.losses.configured import (
    MAE,
    MSE,
    Asymmetric,
    BCEWithLogits,
    Coral,
    Corn,
    CrossEntropy,
    CumulativeLink,
    GaussianNLL,
    Huber,
    Loss,
    Pinball,
    SigmoidFocal,
    SoftmaxFocal,
)
from heads.losses.multiclass import cross_entropy, softmax_focal
from heads.losses.ordinal import coral, corn, cumulative_link, cumulative_logits
from heads.losses.reduction import Reduction
from heads.losses.regression import gaussian_nll, huber, mae, mse, pinball

__all__ = [
    "MAE",
    "MSE",
    "Asymmetric",
    "BCEWithLogits",
    "Coral",
    "Corn",
    "CrossEntropy",
    "CumulativeLink",
    "GaussianNLL",
    "Huber",
    "Loss",
    "Pinball",
    "Reduction",
    "SigmoidFocal",
    "SoftmaxFocal",
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
    "sigmoid_focal",
    "softmax_focal",
]
