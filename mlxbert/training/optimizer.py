"""Rates and decays by parameter, learning-rate schedules, AdamW, gradient clipping, and the moving average of weights.

A parameter's rule depends on its name in `BertWithHead` (core.*, pooling.*, head.*). A schedule is a pure function of
the step, so that a resumed run needs no state of it. The optimizer's functions take flat dicts of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlxbert.adapters.linear import is_adapter
from mlxbert.errors import MLXBertError
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import POOLER
from mlxbert.models.base import Encoder
from mlxbert.models.config_fields import EncoderConfig
from mlxbert.with_head import BertWithHead

Arrays = dict[str, mx.array]

CORE = "core."
"""Prefix of the names of the encoder's parameters in a `BertWithHead`."""


class ConfigurationError(MLXBertError):
    """A setting is unknown, of the wrong type, out of its range, or does not fit the model."""


@dataclass(frozen=True)
class Rule:
    """How one parameter is trained.

    Attributes:
        rate: peak learning rate.
        weight_decay: decoupled decay, 0 for biases, norms and other vectors.
        frozen: whether it never changes, and has no gradient and no optimizer state.
    """

    rate: float
    weight_decay: float
    frozen: bool = False


SMALL, BASE = 384 * 6, 768 * 12
"""Hidden size times layers of MiniLM-L6 and of BERT base, between which the default rate falls."""
SMALL_RATE, BASE_RATE = 1.5e-4, 3e-5
"""Default rates at these sizes."""
SMALL_HEAD_RATE = 1.5e-3
"""Default rate of the head at the smaller size; from base on it is the encoder's."""


def default_rates(config: EncoderConfig) -> tuple[float, float]:
    """Return the default peak rates of encoder and head for an encoder of this size, hidden size · layers.

    - Up to 384 · 6: 1.5e-4, and ten times that for the head. Measured for MiniLM-L6 in runs of 6 to 78 steps
      (docs/tuning.md). Smaller encoders were not measured; they get the same rates. The authors of the small BERTs
      search 3e-5 … 3e-4 for all sizes (Turc et al. 2019, https://github.com/google-research/bert).
    - From 768 · 12 on: 3e-5 · √(768 · 12 / size) for both. Published: Devlin et al. 2018 (A.3) search 2e-5 … 5e-5 for
      base. Large fails to train for some seeds; small rates with bias correction and warm-up prevent that (Mosbach et
      al. 2020, https://arxiv.org/abs/2006.04884).
    - Between them: the powers of the size that meet both ends, in one significant digit. They are not measured.

    This gives large 2e-5, base 3e-5, MiniLM-L12 (384 wide) and DistilBERT 7e-5 and 2e-4 for the head, MiniLM-L6 and
    smaller 1.5e-4 and 1.5e-3.
    """
    size = config.hidden_size * config.num_layers
    if size <= SMALL:
        return SMALL_RATE, SMALL_HEAD_RATE
    if size >= BASE:
        rate = _one_digit(BASE_RATE * (BASE / size) ** 0.5)
        return rate, rate
    share = math.log(BASE / size) / math.log(BASE / SMALL)  # 0 at base, 1 at the smaller size
    rate = BASE_RATE * (SMALL_RATE / BASE_RATE) ** share
    return _one_digit(rate), _one_digit(rate * (SMALL_HEAD_RATE / SMALL_RATE) ** share)


def _one_digit(rate: float) -> float:
    return float(f"{rate:.0e}")


def parameter_rules(
    model: BertWithHead,
    *,
    rate: float,
    head_rate: float | None = None,
    weight_decay: float = 0.01,
    layer_decay: float = 1.0,
    freeze_embeddings: bool = False,
    freeze_layers: int = 0,
) -> dict[str, Rule]:
    """Return a `Rule` for every parameter of `model`, by name, in the module tree's order.

    Args:
        model: encoder, pooling and head.
        rate: peak rate of the top encoder layer and the pooler.
        head_rate: peak rate of head and pooling, which start from random weights; None: `rate`.
        weight_decay: for matrices alone; biases, norms and other vectors never decay (Devlin et al. 2018's code).
        layer_decay: layer i of L has rate · layer_decay^(L − 1 − i), the embeddings rate · layer_decay^L (Howard and
            Ruder 2018, https://arxiv.org/abs/1801.06146; Zhang et al. 2020, https://arxiv.org/abs/2006.05987). Layers
            that share their parameters count once, as the lowest of them.
        freeze_embeddings: leave the embeddings as they are.
        freeze_layers: leave the embeddings and this many of the lowest layers as they are, and so every layer that
            shares its parameters with one of these.

    An encoder with adapters keeps its own weights. The adapters have the rates of their layers, and A and B decay as
    matrices do.

    Raises:
        ConfigurationError: a rate, decay or number of layers is out of its range.
    """
    core = model.core
    layers = core.num_layers
    for name, value in (("rate", rate), ("head_rate", rate if head_rate is None else head_rate)):
        if not 0 <= value < float("inf"):
            raise ConfigurationError(f"{name} must be a number from 0, not {value}")
    if not 0 <= weight_decay < float("inf"):
        raise ConfigurationError(f"weight_decay must be a number from 0, not {weight_decay}")
    if not 0 < layer_decay <= 1:
        raise ConfigurationError(f"layer_decay must be above 0 and at most 1 (no decay), not {layer_decay}")
    if not 0 <= freeze_layers <= layers:
        raise ConfigurationError(f"freeze_layers is {freeze_layers}; fix: from 0 to {layers}, the encoder's layers")
    pooler_used = getattr(model.pooling, "strategy", None) == "pooler"
    stored = _stored_depths(core)
    rules = {}
    for name, array in named_parameters(model).items():
        if not name.startswith(CORE):
            decay = weight_decay if is_matrix(name, array) else 0.0
            rules[name] = Rule(rate if head_rate is None else head_rate, decay)
            continue
        inner = name.removeprefix(CORE)
        if core.lora is not None and not is_adapter(name):
            rules[name] = Rule(rate, 0.0, frozen=True)
            continue
        decay = weight_decay if is_matrix(name, array) and not core.is_norm(inner) else 0.0
        depth = core.depth_of(inner)
        # Depth 0 is the embeddings, i + 1 layer i. A pooler that the pooling does not read has no gradient and must
        # not decay: torch skips a parameter without a gradient.
        frozen = depth <= freeze_layers if freeze_layers else (freeze_embeddings and depth == 0)
        frozen = frozen or (inner.startswith(POOLER) and not pooler_used)
        above = sum(other > depth for other in stored)
        rules[name] = Rule(rate * layer_decay**above, decay, frozen)
    return rules


def _stored_depths(core: Encoder) -> set[int]:
    """Return the depths at which an encoder has parameters, its pooler aside; layers may share theirs."""
    return {core.depth_of(name) for name in named_parameters(core) if not name.startswith(POOLER)}


def is_matrix(name: str, array: mx.array) -> bool:
    """Return whether a parameter is a matrix: no vector, and no bias of any shape."""
    return array.ndim >= 2 and not name.endswith(".bias")


def trainable(rules: dict[str, Rule]) -> list[str]:
    """Return the names that are not frozen.

    Raises:
        ConfigurationError: there is none.
    """
    names = [name for name, rule in rules.items() if not rule.frozen]
    if not names:
        raise ConfigurationError("every parameter is frozen; fix: leave at least the head to train")
    return names


def reinitialize_top(model: BertWithHead, layers: int, seed: int) -> list[str]:
    """Give the top `layers` encoder layers, and a pooler in use, the random weights of an untrained model.

    Return the names of these weights.

    Matrices are normal with deviation `initializer_range`, biases 0, norms' weights 1 (transformers `_init_weights`).
    On few rows this trains better and more steadily (Zhang et al. 2020, https://arxiv.org/abs/2006.05987, section 4).
    The weights are a pure function of `seed`.

    Raises:
        ConfigurationError: there are fewer layers, or these share all their parameters with lower ones.
    """
    core = model.core
    if not 0 <= layers <= core.num_layers:
        raise ConfigurationError(f"reinitialize_top: {layers} layers; fix: from 0 to {core.num_layers}")
    if layers == 0:
        return []
    least = core.num_layers + 1 - max(_stored_depths(core))
    if layers < least:
        raise ConfigurationError(
            f"reinitialize_top: {layers} layers, and these share their parameters with lower ones; "
            f"fix: {least} or more, or 0"
        )
    pooler_used = getattr(model.pooling, "strategy", None) == "pooler"
    fresh = {}
    key = mx.random.key(seed)
    for name, array in named_parameters(model).items():
        inner = name.removeprefix(CORE)
        if inner == name or core.depth_of(inner) <= core.num_layers - layers:
            continue
        if inner.startswith(POOLER) and not pooler_used:
            continue
        if name.endswith(".bias"):
            fresh[name] = mx.zeros_like(array)
        elif core.is_norm(inner):
            fresh[name] = mx.ones_like(array)
        else:
            key, drawn = mx.random.split(key)
            values = mx.random.normal(array.shape, scale=core.config.initializer_range, key=drawn)
            fresh[name] = values.astype(array.dtype)
    mx.eval(fresh)
    model.update(tree_unflatten(list(fresh.items())))
    return list(fresh)


def padding_rows(model: BertWithHead, names: Iterable[str]) -> dict[str, int]:
    """Return which row of a trained table has no gradient, by the table's name: torch's `padding_idx`."""
    trained = set(names)
    return {CORE + name: row for name, row in model.core.padding_rows.items() if CORE + name in trained}


# Half of the exponent's offset, reduced so that the largest error of the guess is 3.5 % upwards and downwards.
_ROOT_GUESS = 0x1FBB4F2E


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and bias correction: Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101.

    At step t, counted from 1, with gradient g and rate η_t (algorithm and order of torch's `adamw`):

        w ← w (1 − η_t λ)
        m ← β₁ m + (1 − β₁) g          v ← β₂ v + (1 − β₂) g²
        w ← w − η_t / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)

    MLX's own `AdamW` has `bias_correction=False` by default, which makes the first step some three times the rate.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= value < 1:
                raise ConfigurationError(f"AdamW: {name} must be at least 0 and below 1, not {value}")
        if not 0 < self.eps < 1:
            raise ConfigurationError(f"AdamW: eps must be above 0 and below 1, not {self.eps}")

    def scalars(self, rules: Mapping[str, Rule], factor: float, step: int) -> dict[str, mx.array]:
        """Return the factors of step t = `step` ≥ 1, computed in double precision and then rounded, as torch does.

        They are "size", η_t / (1 − β₁ᵗ), and "shrink", 1 − η_t λ, for every distinct rule, and "root", 1 / √(1 − β₂ᵗ).
        They are arrays because a number would be compiled into the update, again at every step.
        """
        first = 1 - self.beta1**step
        values = {"root": 1 / math.sqrt(1 - self.beta2**step)}
        for rule in set(rules.values()):
            rate = rule.rate * factor
            values[_key("size", rule)] = rate / first
            values[_key("shrink", rule)] = 1 - rate * rule.weight_decay
        return {name: mx.array(value, mx.float32) for name, value in values.items()}

    def apply(
        self,
        weights: Arrays,
        means: Arrays,
        squares: Arrays,
        gradients: Arrays,
        rules: Mapping[str, Rule],
        scalars: Arrays,
    ) -> tuple[Arrays, Arrays, Arrays]:
        """Return new weights, means and squares of every parameter in `gradients`; nothing is changed in place.

        Args:
            weights: w; this and the other dicts are flat, by name, and float32.
            means: m.
            squares: v.
            gradients: g, clipped.
            rules: peak rate and decay of each.
            scalars: from `scalars`.
        """
        new_weights, new_means, new_squares = {}, {}, {}
        for name, gradient in gradients.items():
            size, shrink = (scalars[_key(what, rules[name])] for what in ("size", "shrink"))
            m = self.beta1 * means[name] + (1 - self.beta1) * gradient
            v = self.beta2 * squares[name] + (1 - self.beta2) * mx.square(gradient)
            new_means[name], new_squares[name] = m, v
            m, v = _unfused(m), _unfused(v)
            new_weights[name] = weights[name] * shrink - size * m / (_root(v) * scalars["root"] + self.eps)
        return new_weights, new_means, new_squares


def _unfused(x: mx.array) -> mx.array:
    """Return a float32 array that `mx.compile` computes in a loop of its own, and does not compute twice.

    g++ vectorizes a loop only if it has to check few of its arrays for overlap: three outputs are too many.
    """
    return x.view(mx.int32).view(mx.float32)


def _root(x: mx.array) -> mx.array:
    """Return √x of float32 x ≥ 0; of ∞ it is NaN on a CPU.

    On a CPU g++ calls a function for the root of every element, and then vectorizes nothing else in the loop. There it
    is two of Heron's steps from a guess, half of the exponent. The relative error is below 3e-7 from 1e-37 on; the
    root of 0 is 2e-20, which AdamW's ε hides.
    """
    if mx.default_device() != mx.cpu:
        return mx.sqrt(x)
    y = ((x.view(mx.int32) >> 1) + _ROOT_GUESS).view(mx.float32)
    for _ in range(2):
        y = 0.5 * (y + x / y)
    return y


def _key(what: str, rule: Rule) -> str:
    return f"{what} {rule.rate!r} {rule.weight_decay!r}"


def squared_norms(gradients: Arrays) -> Arrays:
    """Return Σ g² over the elements of each array, in float32.

    The sum is in the order of the indices, whatever the order in memory: a product can leave a gradient transposed,
    and the same numbers from a saved state must give the same bits.
    """
    return {name: mx.square(mx.contiguous(g.astype(mx.float32))).sum() for name, g in gradients.items()}


def global_norm(squared: Arrays) -> mx.array:
    """Return √Σ g² over all elements of all gradients, from their `squared_norms`."""
    return mx.sqrt(mx.stack(list(squared.values())).sum())


def clip_factor(norm: float, max_norm: float | None) -> float:
    """Return min(1, max_norm / (norm + 1e-6)), torch's `clip_grad_norm_` (Pascanu et al. 2013); None: no clipping."""
    return 1.0 if max_norm is None else min(1.0, max_norm / (norm + 1e-6))


def ema_decay(decay: float, step: int) -> float:
    """Return min(decay, (1 + t) / (10 + t)) at step t ≥ 1; a young average is short (TensorFlow's `num_updates`)."""
    return min(decay, (1 + step) / (10 + step))


def ema_update(average: Arrays, weights: Arrays, decay: mx.array) -> Arrays:
    """Return decay · average + (1 − decay) · weights, by name; Polyak and Juditsky 1992."""
    return {name: old + (1 - decay) * (weights[name] - old) for name, old in average.items()}


SHAPES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, power: 1 - progress,
    "cosine": lambda progress, power: 0.5 * (1 + math.cos(math.pi * progress)),
    "constant": lambda progress, power: 1.0,
    "polynomial": lambda progress, power: (1 - progress) ** power,
}
"""The rate after the warm-up, from 1 to 0, as a function of the progress (0 … 1) and the power."""


@dataclass(frozen=True)
class Schedule:
    """factor(t) = (t + offset) / W in the warm-up t < W, then end + (1 − end) · shape((t − W) / (T − W)).

    With `first_step_is_zero` the offset is 0 and these are transformers' `get_*_schedule_with_warmup`
    (`optimization.py`): the first step then changes nothing. Otherwise it is 1, and no step is lost.

    Attributes:
        total_steps: T, optimizer steps of the run; the factor stays at `end` after them.
        kind: "linear" (to `end`), "cosine" (half a wave), "constant", or "polynomial": (1 − p)^power.
        warmup_steps: W, from 0 to T.
        end: the factor at T; the peak is 1.
        power: of "polynomial"; 2 falls fast and then slowly.
        first_step_is_zero: as in transformers.
    """

    total_steps: int
    kind: str = "linear"
    warmup_steps: int = 0
    end: float = 0.0
    power: float = 2.0
    first_step_is_zero: bool = False

    def __post_init__(self) -> None:
        if self.kind not in SHAPES:
            raise ConfigurationError(f"schedule {self.kind!r} is unknown; known: {', '.join(SHAPES)}")
        if self.total_steps < 1:
            raise ConfigurationError(f"schedule: total_steps must be at least 1, not {self.total_steps}")
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ConfigurationError(
                f"schedule: warmup_steps is {self.warmup_steps}; fix: from 0 to total_steps, {self.total_steps}"
            )
        if not 0 <= self.end <= 1:
            raise ConfigurationError(f"schedule: end must be from 0 to 1, a part of the peak rate, not {self.end}")
        if not (math.isfinite(self.power) and self.power > 0):
            raise ConfigurationError(f"schedule: power must be above 0, not {self.power}")

    def factor(self, step: int) -> float:
        """Return the factor of the peak rate at optimizer step `step`, counted from 0."""
        if step < self.warmup_steps:
            return (step + (0 if self.first_step_is_zero else 1)) / self.warmup_steps
        length = max(self.total_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / length, 1.0)
        return self.end + (1 - self.end) * SHAPES[self.kind](progress, self.power)


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """Return the steps of an epoch after which to evaluate; the last one is always among them."""
    count = min(steps, evaluations)
    return frozenset(round(steps * (i + 1) / count) for i in range(count))
