"""A linear layer with a low-rank adapter, and how adapters get into an encoder and into its weights.

The layer keeps its own weights under `base`, packed or not; the adapter's are `lora_a`, `lora_b` and, with DoRA,
`magnitude`. They start as PEFT's do, so that a fresh adapter changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from heads.pretrained import Dropout
from mlxbert.adapters.settings import AdapterError, LoRA, chosen_layers
from mlxbert.models.base import Encoder, module_at, put_module
from mlxbert.quantization import unpacked

LEAVES = ("lora_a", "lora_b", "magnitude")
"""The names of an adapter's own tensors in its layer."""
BASE = "base"
_TINY = 1e-30


class AdaptedLinear(nn.Module):
    """x -> base(x) + scale · B A dropout(x); with DoRA the rows of W + scale · B A have the lengths `magnitude`.

    DoRA's row norms are no part of the gradient (Liu et al. 2024, section 4.3), and with dropout its product with W
    takes the dropped input: both as in PEFT's `dora.py`.

    Attributes:
        base: the layer itself, `nn.Linear` or `nn.QuantizedLinear`; it is frozen.
        lora_a: A, (rank, in), float32.
        lora_b: B, (out, rank), float32; 0 at the start.
        magnitude: (out,), float32; only with DoRA.
        scale: alpha / rank.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float, *, dropout: float = 0.0, dora: bool = False):
        """Put a fresh adapter on `base`; A is drawn from MLX's random stream, uniform in ± 1 / √in as PEFT's."""
        super().__init__()
        rows, width = shape_of(base)
        bound = width**-0.5  # kaiming_uniform_(a=√5)
        self.base = base
        self.lora_a = mx.random.uniform(-bound, bound, (rank, width))
        self.lora_b = mx.zeros((rows, rank))
        if dora:
            self.magnitude = row_norms(base_weight(base))
        self.dropout = Dropout(dropout)
        self.scale = scale
        base.freeze()

    @property
    def dora(self) -> bool:
        """Whether the lengths of the rows are trained too."""
        return "magnitude" in self

    def __call__(self, x: mx.array) -> mx.array:
        """Map (…, in) to (…, out)."""
        y = self.base(x)
        dropped = self.dropout(x)
        a, b = self.lora_a.astype(x.dtype), self.lora_b.astype(x.dtype)
        update = ((dropped @ a.T) @ b.T) * self.scale
        if not self.dora:
            return y + update
        factor = self._factor()
        bias = self.base.bias.astype(x.dtype) if "bias" in self.base else None
        if dropped is x:
            plain = y if bias is None else y - bias
        else:
            plain = self.base(dropped) if bias is None else self.base(dropped) - bias
        # A trained factor is near 1, where bfloat16 has steps of 0.004 to 0.008: its distance from 1 is float32.
        return y + (factor - 1).astype(x.dtype) * plain + factor.astype(x.dtype) * update

    def _factor(self) -> mx.array:
        """Return magnitude / ‖row of W + scale · B A‖, (out,); the norm has no gradient."""
        updated = base_weight(self.base) + self.scale * (self.lora_b @ self.lora_a).astype(mx.float32)
        norms = mx.maximum(row_norms(updated), _TINY)  # a row of zeros stays one
        return self.magnitude.astype(mx.float32) / mx.stop_gradient(norms)

    def merged_weight(self) -> mx.array:
        """Return the weight (out, in), float32, of the one linear layer that computes the same."""
        weight = base_weight(self.base) + self.scale * (self.lora_b @ self.lora_a).astype(mx.float32)
        return weight * self._factor()[:, None] if self.dora else weight


def shape_of(base: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear layer, packed or not."""
    rows, width = base.weight.shape
    return rows, width * 32 // base.bits if isinstance(base, nn.QuantizedLinear) else width


def base_weight(base: nn.Module) -> mx.array:
    """Return the weight (out, in) of a linear layer as float32 numbers."""
    weight: mx.array = unpacked(base) if isinstance(base, nn.QuantizedLinear) else base.weight
    return weight.astype(mx.float32)


def row_norms(weight: mx.array) -> mx.array:
    """Return ‖row‖₂ of each row: (out, in) to (out,)."""
    return mx.sqrt(mx.square(weight).sum(axis=1))


def adapted(module: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the layers with an adapter, by their paths, in the order of the module tree."""
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, AdaptedLinear)}


def is_adapter(name: str) -> bool:
    """Return whether a tensor of this name is an adapter's own: A, B or magnitude."""
    return name.rpartition(".")[2] in LEAVES


def linear_paths(core: Encoder) -> tuple[str, ...]:
    """Return the path of every linear layer of an encoder, with an adapter or without: those of `Encoder.linears`."""
    inside = {f"{path}.{BASE}": path for path in adapted(core)}
    linears = [path for path, layer in core.named_modules() if isinstance(layer, nn.Linear | nn.QuantizedLinear)]
    return tuple(inside.get(path, path) for path in reversed(linears))


def notes_on(core: Encoder) -> tuple[str, ...]:
    """Return what to tell the user about the layers that have adapters, such as that one is fused."""
    if core.lora is None:
        return ()
    return chosen_layers(core.lora.layers, linear_paths(core), core.architecture.projections)[1]


def add_adapters(core: Encoder, settings: LoRA) -> tuple[str, ...]:
    """Put fresh adapters on the layers that `settings` name, and freeze everything else; return notes for the user.

    A layer that runs several times, with shared parameters, gets one adapter. Seed `mx.random` before, if A is to be
    repeatable.

    Raises:
        AdapterError: a name is no layer's, or the encoder has adapters already.
    """
    if core.lora is not None:
        raise AdapterError("the encoder has adapters already; fix: merge_adapters(core) first")
    paths, notes = chosen_layers(settings.layers, linear_paths(core), core.architecture.projections)
    put_adapters(core, settings, paths)
    return notes


def put_adapters(core: Encoder, settings: LoRA, paths: Sequence[str]) -> None:
    """Put fresh adapters on the linear layers at these paths, and freeze everything else."""
    core.freeze()
    for path in paths:
        layer = AdaptedLinear(
            module_at(core, path), settings.rank, settings.scale, dropout=settings.dropout, dora=settings.dora
        )
        put_module(core, path, layer)
    core.lora = settings
    # A chain of random keys that nobody evaluated would be followed by recursion.
    mx.eval([layer.parameters() for layer in adapted(core).values()], mx.random.state)
    core.train(core.training)


def merge_adapters(core: Encoder) -> None:
    """Replace every layer with an adapter by a plain one that computes the same; the weights keep their dtype.

    Raises:
        AdapterError: the encoder is quantized.
    """
    refuse_packed(core)
    for path, layer in adapted(core).items():
        base: Any = layer.base
        plain = nn.Linear(1, 1, bias="bias" in base)
        plain.weight = layer.merged_weight().astype(base.weight.dtype)
        if "bias" in base:
            plain.bias = base.bias
        mx.eval(plain.parameters())
        put_module(core, path, plain)
    core.lora = None
    core.unfreeze()


def refuse_packed(core: Encoder) -> None:
    """Refuse to add adapters to packed weights.

    Raises:
        AdapterError: the encoder is quantized.
    """
    if core.packed is not None:
        raise AdapterError(
            "adapters cannot be merged into packed weights, which would round them; fix: merge=no, or mlxbert-convert "
            "DIRECTORY --dequantize -o OUT and train on that"
        )
