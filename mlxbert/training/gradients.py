"""Gradients of one batch, and sums of them: the part of a step that is differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlxbert.training.adversarial import AWP, FGM
from mlxbert.training.groups import WORD_EMBEDDINGS, padding_row
from mlxbert.training.layer_checkpointing import checkpointed_layers
from mlxbert.training.optim import Arrays

COMPUTE_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
Sums = dict[str, Any]
"""{"gradients": by name, Σ w_i ∇l_i times the loss scale; "loss": Σ w_i l_i; "weight": Σ w_i; "rows"}, float32."""
SCALARS = ("loss", "weight", "rows")


def add_up(arrays: Sequence[Arrays]) -> Arrays:
    """Dicts of the same names, added name by name in their order."""
    return {name: reduce(add, (one[name] for one in arrays)) for name in arrays[0]}


class Gradients:
    """`of` is a pure function of its arrays and the random state; model and settings are what is compiled in."""

    def __init__(
        self,
        model: Any,
        names: Sequence[str],
        compute_dtype: str = "float32",
        checkpoint_layers: bool = False,
        adversarial: FGM | AWP | None = None,
    ):
        self.model = model
        self.dtype = COMPUTE_DTYPES[compute_dtype]
        self.checkpoint_layers, self.adversarial = checkpoint_layers, adversarial
        self.padding_row = padding_row(model, names)

    def of(
        self,
        weights: Arrays,
        frozen: Arrays,
        inputs: Arrays,
        targets: mx.array,
        rows: mx.array,
        loss_scale: mx.array,
    ) -> Sums:
        """The sums of one batch.

        It leaves whatever it was called with in the model: the caller puts the weights back.
        """

        def objective(at: Arrays) -> tuple[mx.array, mx.array]:
            self._set({**frozen, **at})
            self.model.train()
            layers = checkpointed_layers(self.model.core.encoder) if self.checkpoint_layers else nullcontext()
            with layers:
                loss = self.model.loss(self.model(**inputs), targets, rows=rows).astype(mx.float32)
            return loss * weight * loss_scale, loss

        weight = self.model.head.loss_weight(targets, rows=rows)
        differentiate = mx.value_and_grad(objective)
        (_, loss), gradients = cast(Any, differentiate)(weights)
        gradients = self._without_padding(gradients)
        if self.adversarial is not None:
            moved = self.adversarial.perturb(weights, gradients)
            _, second = cast(Any, differentiate)(moved)
            second = self._without_padding(second)
            gradients = {name: 0.5 * (first + second[name]) for name, first in gradients.items()}
        return {"gradients": gradients, "loss": loss * weight, "weight": weight, "rows": rows.sum()}

    def _set(self, arrays: Arrays) -> None:
        # The encoder alone computes in the narrow dtype; its master weights get float32 gradients through the cast.
        cast_arrays = [
            (name, array.astype(self.dtype) if name.startswith("core.") else array) for name, array in arrays.items()
        ]
        self.model.update(tree_unflatten(cast_arrays))

    def _without_padding(self, gradients: Arrays) -> Arrays:
        """No gradient for the padding token's embedding, as `torch.nn.Embedding(padding_idx=…)` has none."""
        if self.padding_row is None:
            return gradients
        gradient = gradients[WORD_EMBEDDINGS]
        real = (mx.arange(gradient.shape[0]) != self.padding_row)[:, None]
        return {**gradients, WORD_EMBEDDINGS: mx.where(real, gradient, 0)}
