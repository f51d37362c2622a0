"""Pooling against sentence-transformers' own, and its safety for padding in every dtype."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxbert.models.base import BertOutput
from mlxbert.pooling import POOLING, STRATEGIES, AttentionPooling, Pooling, PoolingError, WeightedLayerPooling, pool

HALF = {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 2e-2}
THEIR_NAMES = {
    "cls": "cls",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len": "mean_sqrt_len_tokens",
    "weighted_mean": "weightedmean",
    "last_token": "lasttoken",
}


def hidden_and_mask(dtype: mx.Dtype = mx.float32) -> tuple[mx.array, np.ndarray]:
    random = np.random.default_rng(0)
    mask = np.ones((4, 9), np.int64)
    mask[1, 5:] = 0
    mask[2, 1:] = 0
    return mx.array(random.normal(size=(4, 9, 6)).astype(np.float32)).astype(dtype), mask


@pytest.mark.parametrize("strategy", sorted(POOLING))
@pytest.mark.parametrize("dtype", HALF)
def test_equals_sentence_transformers(strategy: str, dtype: mx.Dtype) -> None:
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("sentence_transformers.models")
    hidden, mask = hidden_and_mask(dtype)
    reference = models.Pooling(6, pooling_mode=THEIR_NAMES[strategy])
    theirs = reference(
        {
            "token_embeddings": torch.tensor(np.array(hidden.astype(mx.float32))),
            "attention_mask": torch.tensor(mask),
        }
    )["sentence_embedding"]
    ours = pool(strategy, hidden, mx.array(mask))
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.array(ours.astype(mx.float32)), theirs.numpy(), atol=HALF[dtype], rtol=HALF[dtype])


@pytest.mark.parametrize("strategy", sorted(POOLING))
@pytest.mark.parametrize("dtype", HALF)
def test_padding_changes_nothing_and_all_pad_rows_are_zeros(strategy: str, dtype: mx.Dtype) -> None:
    hidden, mask = hidden_and_mask(dtype)
    mask[3] = 0
    poisoned = mx.where(mx.array(mask)[..., None] == 1, hidden, mx.array(np.nan, dtype))
    pooled = pool(strategy, poisoned, mx.array(mask))
    assert mx.array_equal(pooled, pool(strategy, hidden, mx.array(mask)))
    assert mx.array_equal(pooled[3], mx.zeros(6, dtype))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_sums_do_not_overflow_in_half_precision(dtype: mx.Dtype) -> None:
    hidden = mx.full((1, 512, 4), 1000.0, dtype)
    for strategy in ("mean", "weighted_mean", "mean_sqrt_len"):
        assert mx.isfinite(pool(strategy, hidden)).all(), strategy


def test_last_token_with_left_padding() -> None:
    hidden, _ = hidden_and_mask()
    mask = mx.array(np.repeat([[0, 0, 1, 1, 1, 1, 1, 0, 0]], 4, axis=0))
    assert mx.array_equal(pool("last_token", hidden, mask), hidden[:, 6])


def test_pooler_and_wrong_calls() -> None:
    hidden, mask = hidden_and_mask()
    assert mx.array_equal(BertOutput(hidden, pooler_output=hidden[:, 3]).pool("pooler"), hidden[:, 3])
    with pytest.raises(PoolingError, match="this checkpoint has no pooler; fix: use 'cls' or 'mean'"):
        BertOutput(hidden).pool("pooler")
    with pytest.raises(PoolingError, match=r"pooling 'median' is unknown; known: cls, mean"):
        BertOutput(hidden).pool("median")
    with pytest.raises(PoolingError, match=r"the mask has shape \(4,\); expected \(4, 9\)"):
        BertOutput(hidden).pool("mean", mx.array(mask)[:, 0])
    with pytest.raises(PoolingError, match="unknown"):
        Pooling("median")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_module_is_the_function(strategy: str) -> None:
    hidden, mask = hidden_and_mask()
    output = BertOutput(hidden, pooler_output=hidden[:, 0])
    assert mx.array_equal(Pooling(strategy)(output, mx.array(mask)), output.pool(strategy, mx.array(mask)))


@pytest.mark.parametrize("dtype", HALF)
def test_attention_pooling(dtype: mx.Dtype) -> None:
    hidden, mask = hidden_and_mask(dtype)
    mask[3] = 0
    module = AttentionPooling(6)
    module.set_dtype(dtype)
    poisoned = mx.where(mx.array(mask)[..., None] == 1, hidden, mx.array(np.nan, dtype))
    pooled = module(BertOutput(poisoned), mx.array(mask))
    assert pooled.dtype == dtype
    assert mx.array_equal(pooled[3], mx.zeros(6, dtype))
    # one token: its weight is 1 whatever its score
    assert mx.array_equal(pooled[2], hidden[2, 0])
    # by hand, in float64
    w, b, v = (
        np.array(p.astype(mx.float32), np.float64)
        for p in (module.dense.weight, module.dense.bias, module.score.weight)
    )
    rows = np.array(hidden[1, :5].astype(mx.float32), np.float64)
    scores = (np.tanh(rows @ w.T + b) @ v.T)[:, 0]
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(np.array(pooled[1].astype(mx.float32)), weights @ rows, atol=10 * HALF[dtype])


def test_weighted_layer_pooling() -> None:
    hidden, mask = hidden_and_mask()
    states = tuple(hidden * scale for scale in (5.0, 1.0, 2.0, 3.0))
    output = BertOutput(states[-1], hidden_states=states)
    module = WeightedLayerPooling(layers=3)
    np.testing.assert_allclose(
        np.array(module(output, mx.array(mask))),
        np.array(pool("mean", hidden * 2, mx.array(mask))),
        rtol=1e-5,
        atol=1e-6,
    )
    module.layer_logits = mx.array([-100.0, 100.0, -100.0])
    assert mx.allclose(module(output, mx.array(mask)), pool("mean", states[2], mx.array(mask)))
    with pytest.raises(
        PoolingError, match="needs 3 hidden states; fix: call the model with output_hidden_states=True"
    ):
        module(BertOutput(hidden))
    with pytest.raises(PoolingError, match="cannot use 'pooler'"):
        WeightedLayerPooling(2, strategy="pooler")(output)
