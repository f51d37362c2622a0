"""What each parameter is trained with, decided by its name in `BertWithHead` (core.*, pooling.*, head.*)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlxbert.config import BertConfig
from mlxbert.errors import MLXBertError
from mlxbert.model_tensors import named_parameters
from mlxbert.with_head import BertWithHead

_LAYER = re.compile(r"core\.encoder\.layer\.(\d+)\.")
WORD_EMBEDDINGS = "core.embeddings.word_embeddings.weight"


class GroupError(MLXBertError):
    """Settings that no parameter of this model can follow."""


@dataclass(frozen=True)
class Rule:
    """How one parameter is trained.

    Attributes:
        rate: peak learning rate.
        weight_decay: decoupled decay, 0 for biases, LayerNorms and other vectors.
        frozen: it never changes, has no gradient and no optimizer state.
    """

    rate: float
    weight_decay: float
    frozen: bool = False


def default_learning_rate(config: BertConfig) -> float:
    """The peak rate that an encoder of this size is fine-tuned with unless told otherwise: one significant digit of

        3e-5 · √((768 · 12) / (hidden size · layers))

    The reason: Devlin et al. 2018 (A.3) search 2e-5 … 5e-5 for base (768 × 12), and the authors of the small BERTs
    3e-5 … 3e-4 for all down to tiny (Turc et al. 2019, https://github.com/google-research/bert): a smaller model bears
    a larger rate. Large (1024 × 24) fails to train for some seeds, which small rates with bias correction and warm-up
    mend (Mosbach et al. 2020, https://arxiv.org/abs/2006.04884). The formula gives large 2e-5,
    base 3e-5, MiniLM-L12 (384) 4e-5, MiniLM-L6 6e-5, mini (256 × 4) 9e-5, tiny (128 × 2) 2e-4.
    """
    rate = 3e-5 * ((768 * 12) / (config.hidden_size * config.num_hidden_layers)) ** 0.5
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
    """A `Rule` for every parameter of `model`, by name, in the module tree's order.

    Args:
        model: encoder, pooling and head.
        rate: peak rate of the top encoder layer and the pooler.
        head_rate: peak rate of head and pooling, which start from random weights; None: `rate`.
        weight_decay: for matrices alone; biases, LayerNorms and other vectors never decay (Devlin et al. 2018's code).
        layer_decay: layer i of L has rate · layer_decay^(L − 1 − i), the embeddings rate · layer_decay^L (Howard and
            Ruder 2018, https://arxiv.org/abs/1801.06146; Zhang et al. 2020, https://arxiv.org/abs/2006.05987).
        freeze_embeddings: leave the embeddings as they are.
        freeze_layers: leave the embeddings and this many of the lowest layers as they are.

    Raises:
        GroupError: a rate, decay or number of layers that makes no sense.
    """
    layers = model.core.config.num_hidden_layers
    for name, value in (("rate", rate), ("head_rate", rate if head_rate is None else head_rate)):
        if not 0 <= value < float("inf"):
            raise GroupError(f"{name} must be a number from 0, not {value}")
    if not 0 <= weight_decay < float("inf"):
        raise GroupError(f"weight_decay must be a number from 0, not {weight_decay}")
    if not 0 < layer_decay <= 1:
        raise GroupError(f"layer_decay must be above 0 and at most 1 (no decay), not {layer_decay}")
    if not 0 <= freeze_layers <= layers:
        raise GroupError(f"freeze_layers is {freeze_layers}; fix: from 0 to {layers}, the encoder's layers")
    pooler_used = getattr(model.pooling, "strategy", None) == "pooler"
    rules = {}
    for name, array in named_parameters(model).items():
        decay = 0.0 if array.ndim < 2 or not decays(name) else weight_decay
        if not name.startswith("core."):
            rules[name] = Rule(rate if head_rate is None else head_rate, decay)
            continue
        depth = _depth(name, layers)
        # 0 is the embeddings, i + 1 layer i. A pooler that the pooling does not read has no gradient, and must not
        # decay away: torch skips a parameter without a gradient.
        frozen = depth <= freeze_layers if freeze_layers else (freeze_embeddings and depth == 0)
        frozen = frozen or (name.startswith("core.pooler.") and not pooler_used)
        rules[name] = Rule(rate * layer_decay ** max(layers - depth, 0), decay, frozen)
    return rules


def decays(name: str) -> bool:
    """Whether weight decay is meant for a parameter of this name: no bias, nothing of a LayerNorm."""
    return not name.endswith(".bias") and "LayerNorm" not in name.split(".")


def trainable(rules: dict[str, Rule]) -> list[str]:
    """The names that are not frozen.

    Raises:
        GroupError: there is none.
    """
    names = [name for name, rule in rules.items() if not rule.frozen]
    if not names:
        raise GroupError("every parameter is frozen; fix: leave at least the head to train")
    return names


def reinitialize_top(model: BertWithHead, layers: int, seed: int) -> list[str]:
    """Give the top `layers` encoder layers, and a pooler in use, the weights that pre-training started from.

    Matrices normal with deviation `initializer_range`, biases 0, LayerNorm weights 1 (transformers `_init_weights`);
    few rows learn better and more steadily so (Zhang et al. 2020, https://arxiv.org/abs/2006.05987, section 4). A pure
    function of `seed`; returns the names.

    Raises:
        GroupError: more layers than there are.
    """
    config = model.core.config
    if not 0 <= layers <= config.num_hidden_layers:
        raise GroupError(f"reinitialize_top: {layers} layers; fix: from 0 to {config.num_hidden_layers}")
    if layers == 0:
        return []
    prefixes = [f"core.encoder.layer.{i}." for i in range(config.num_hidden_layers - layers, config.num_hidden_layers)]
    if getattr(model.pooling, "strategy", None) == "pooler":
        prefixes.append("core.pooler.")
    fresh = {}
    key = mx.random.key(seed)
    for name, array in named_parameters(model).items():
        if not name.startswith(tuple(prefixes)):
            continue
        if name.endswith(".bias"):
            fresh[name] = mx.zeros_like(array)
        elif "LayerNorm" in name.split("."):
            fresh[name] = mx.ones_like(array)
        else:
            key, own = mx.random.split(key)
            values = mx.random.normal(array.shape, scale=config.initializer_range, key=own)
            fresh[name] = values.astype(array.dtype)
    mx.eval(fresh)
    model.update(tree_unflatten(list(fresh.items())))
    return list(fresh)


def padding_row(model: BertWithHead, names: Iterable[str]) -> int | None:
    """The row of the word embeddings that has no gradient: torch's `padding_idx`; None: no such row is trained."""
    return model.core.config.pad_token_id if WORD_EMBEDDINGS in set(names) else None


def _depth(name: str, layers: int) -> int:
    """0 for the embeddings, i + 1 for layer i, the top layer's for the pooler."""
    match = _LAYER.match(name)
    if match:
        return int(match[1]) + 1
    return 0 if name.startswith("core.embeddings.") else layers
