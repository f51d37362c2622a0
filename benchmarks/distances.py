"""What half precision and a packed table of distances cost an encoder with disentangled attention.

    python -m benchmarks.distances [--gain 1 2 3]

A random encoder of 6 layers, 384 wide, whose queries and keys are multiplied by a gain: the larger it is, the fewer
others a token attends to. Two tables against float32: hidden states with scores in half precision, as they are
computed, and in float32; and the mean vectors and tokens with one part of the weights at 4 bits, another one exact.

A benchmark shows, and asserts nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from mlxbert.activations import softmax
from mlxbert.backend.device import use_fast_blas
from mlxbert.model_arrays import named_parameters
from mlxbert.models.attention import merge_heads, split_heads
from mlxbert.models.deberta_v2 import DEBERTA_V2, DebertaV2Config, DisentangledSelfAttention

_SIZES: dict[str, Any] = {
    "vocab_size": 2000,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}
_TABLE, _WORDS = "encoder.rel_embeddings.weight", "embeddings.word_embeddings.weight"
Weights = dict[str, mx.array]


def main(argv: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gain", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="of queries and keys")
    gains = parser.parse_args(argv).gain
    use_fast_blas()
    half = Table("gain", "dtype", "scores", "largest error", "1 - cosine", box=None, title="Half precision")
    packed = Table("gain", "at 4 bits", "1 - cosine of means", "of tokens", box=None, title="Packing")
    for gain in gains:
        config = DebertaV2Config.from_hf({"model_type": DEBERTA_V2.model_type, **_SIZES})
        core = DEBERTA_V2.encoder(config)
        core.eval()
        weights = random_weights(named_parameters(core), gain)
        ids = mx.array(np.random.default_rng(0).integers(1, config.vocab_size, (2, 128)))
        exact = states(core, weights, ids)
        for dtype in (mx.float16, mx.bfloat16):
            rounded = {name: array.astype(dtype) for name, array in weights.items()}
            found = {"half": states(core, rounded, ids)}
            with float32_scores():
                found["float32"] = states(core, rounded, ids)
            for name, hidden in found.items():
                half.add_row(f"{gain:g}", str(dtype).rpartition(".")[2], name, *errors(hidden, exact))
        linears = [name for name, array in weights.items() if array.ndim == 2 and "embeddings" not in name]
        for title, names in {"table": [_TABLE], "words": [_WORDS], "all else": linears}.items():
            changed = {**weights, **{name: at_4_bits(weights[name]) for name in names}}
            packed.add_row(f"{gain:g}", title, *cosines(states(core, changed, ids)[-1], exact[-1]))
    console = Console()
    console.print(machine())
    console.print(half, packed)


def random_weights(parameters: Weights, gain: float) -> Weights:
    """Return random weights that keep the variance of what passes through them."""
    weights = {}
    for i, (name, array) in enumerate(parameters.items()):
        noise = mx.random.normal(array.shape, key=mx.random.key(i))
        is_norm = name.endswith("LayerNorm.weight")
        scale = array.shape[1] ** -0.5 if array.ndim == 2 and "embeddings" not in name else 0.3
        scale *= gain if name.endswith(("query_proj.weight", "key_proj.weight")) else 1
        weights[name] = is_norm + scale * noise
    return weights


def states(core: Any, weights: Weights, ids: mx.array) -> list[np.ndarray]:
    """Return every hidden state (B, L, D), float32."""
    core.load_weights(list(weights.items()))
    output = core(ids, output_hidden_states=True)
    return [np.array(state.astype(mx.float32)) for state in output.hidden_states]


@contextmanager
def float32_scores() -> Iterator[None]:
    """Compute the scores of attention in float32, inside."""
    real = DisentangledSelfAttention.__call__

    def call(self: Any, x: mx.array, context: Any, output_attentions: bool = False) -> Any:
        projections = (self.query_proj, self.key_proj, self.value_proj)
        q, k, v = (split_heads(projection(x), self.num_heads) for projection in projections)
        q, k = q.astype(mx.float32) * self.scale, k.astype(mx.float32)
        weights = softmax(q @ k.swapaxes(-1, -2) + self.position_scores(q, k, context)).astype(x.dtype)
        return merge_heads(weights @ v), None

    DisentangledSelfAttention.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        DisentangledSelfAttention.__call__ = real  # type: ignore[method-assign]


def at_4_bits(weight: mx.array) -> mx.array:
    """Return a matrix as it is after packing."""
    return mx.dequantize(*mx.quantize(weight, 64, 4), 64, 4)


def errors(found: list[np.ndarray], exact: list[np.ndarray]) -> tuple[str, str]:
    """Return the largest error, scaled as the gates scale it, and the largest 1 − cosine of a token."""
    scaled = [
        np.abs(a - b) / np.maximum(1, np.abs(b).max(-1, keepdims=True)) for a, b in zip(found, exact, strict=True)
    ]
    far = [1 - _cosine(a, b).min() for a, b in zip(found, exact, strict=True)]
    return f"{max(error.max() for error in scaled):.1e}", f"{max(far):.1e}"


def cosines(found: np.ndarray, exact: np.ndarray) -> tuple[str, str]:
    """Return the mean 1 − cosine of a text's mean vector, and that of a token's."""
    means = 1 - _cosine(found.mean(1), exact.mean(1)).mean()
    return f"{means:.1e}", f"{1 - _cosine(found, exact).mean():.1e}"


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


if __name__ == "__main__":
    main()
