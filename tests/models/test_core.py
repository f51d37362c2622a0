"""The encoder against transformers' own, on random weights: ragged masks, types, positions, every activation."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
import torch

from heads.errors import HeadError
from mlxbert.activations import ACTIVATIONS
from mlxbert.models.bert import BertConfig, BertCore
from mlxbert.training.gradients import checkpointed_layers
from tests.support.tiny import tiny_model

LIMIT = 2e-5  # DESIGN: cumulative, scaled by the reference's magnitude where that exceeds 1


def core_of(model: torch.nn.Module) -> BertCore:
    """The MLX encoder with a `BertModel`'s weights; canonical names are Hugging Face's, so nothing is renamed."""
    core = BertCore(BertConfig.from_hf(model.config.to_dict()), add_pooling_layer=model.pooler is not None)
    core.load_weights([(name, mx.array(value.numpy())) for name, value in model.state_dict().items()])
    core.eval()
    return core


def batch(rows: int = 3, length: int = 17, vocab: int = 97) -> dict[str, np.ndarray]:
    """Random ids and types with a ragged mask: full, half, one token."""
    random = np.random.default_rng(0)
    mask = np.ones((rows, length), np.int64)
    mask[1, length // 2 :] = 0
    mask[2, 1:] = 0
    return {
        "input_ids": random.integers(0, vocab, (rows, length)),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, 2, (rows, length)),
    }


def torch_output(model: torch.nn.Module, inputs: dict[str, np.ndarray], **options: object):
    with torch.no_grad():
        return model(**{name: torch.tensor(value) for name, value in inputs.items()}, **options)


def error(ours: mx.array, theirs: torch.Tensor, mask: np.ndarray | None = None) -> float:
    """Largest element-wise error over unmasked positions, scaled where the reference exceeds 1."""
    a, b = np.array(ours, np.float64), theirs.double().numpy()
    scaled = np.abs(a - b) / np.maximum(1, np.abs(b))
    return float((scaled if mask is None else scaled[mask == 1]).max())


@pytest.mark.parametrize("pooler", [True, False])
def test_every_hidden_state_pooler_and_attention(pooler: bool) -> None:
    model = tiny_model(pooler=pooler, attn_implementation="eager")
    inputs = batch()
    theirs = torch_output(model, inputs, output_hidden_states=True, output_attentions=True)
    core = core_of(model)
    ours = core(**inputs, output_hidden_states=True, output_attentions=True)
    assert ours.hidden_states is not None
    assert ours.attentions is not None
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 4
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert error(a, b, inputs["attention_mask"]) < LIMIT
    for a, b in zip(ours.attentions, theirs.attentions, strict=True):
        assert error(a.swapaxes(1, 2), b.swapaxes(1, 2), inputs["attention_mask"]) < LIMIT
    fused = core(**inputs)  # the fused kernel, which does not return its weights
    assert fused.hidden_states is None
    assert fused.attentions is None
    assert error(fused.last_hidden_state, theirs.last_hidden_state, inputs["attention_mask"]) < LIMIT
    if pooler:
        assert fused.pooler_output is not None
        assert error(fused.pooler_output, theirs.pooler_output) < LIMIT
    else:
        assert fused.pooler_output is None


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(activation: str) -> None:
    model = tiny_model(hidden_act=activation, num_hidden_layers=1)
    inputs = batch()
    theirs = torch_output(model, inputs).last_hidden_state
    assert error(core_of(model)(**inputs).last_hidden_state, theirs, inputs["attention_mask"]) < LIMIT


def test_without_mask_types_or_positions() -> None:
    model = tiny_model()
    ids = {"input_ids": batch()["input_ids"]}
    assert error(core_of(model)(**ids).last_hidden_state, torch_output(model, ids).last_hidden_state) < LIMIT


def test_positions_of_the_callers() -> None:
    model = tiny_model()
    inputs = {**batch(), "position_ids": np.arange(17)[None] + 5}
    theirs = torch_output(model, inputs).last_hidden_state
    assert error(core_of(model)(**inputs).last_hidden_state, theirs, inputs["attention_mask"]) < LIMIT


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_all_pad_rows_are_finite_in_every_dtype(dtype: mx.Dtype) -> None:
    core = core_of(tiny_model())
    core.set_dtype(dtype)
    inputs = batch()
    inputs["attention_mask"][2] = 0
    output = core(**inputs)
    assert output.last_hidden_state.dtype == dtype
    assert mx.isfinite(output.last_hidden_state).all()


def test_padding_changes_nothing() -> None:
    core = core_of(tiny_model())
    ids = batch()["input_ids"][:1, :9]
    padded = np.pad(ids, ((0, 0), (0, 11)))
    alone = core(ids).last_hidden_state
    in_batch = core(padded, attention_mask=(np.arange(20) < 9)[None].astype(int)).last_hidden_state[:, :9]
    assert mx.abs(alone - in_batch).max() < LIMIT


def test_dropout_in_training_mode_only() -> None:
    core = core_of(tiny_model())
    inputs = batch()
    once = core(**inputs).last_hidden_state
    assert mx.array_equal(once, core(**inputs).last_hidden_state)
    core.train()
    assert not mx.allclose(core(**inputs).last_hidden_state, core(**inputs).last_hidden_state)


@pytest.mark.parametrize("field", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_a_dropout_of_one_infers_as_in_torch_and_is_refused_in_training(field: str) -> None:
    model = tiny_model(**{field: 1.0})
    inputs, core = batch(), core_of(tiny_model(**{field: 1.0}))
    assert error(core(**inputs).last_hidden_state, torch_output(model, inputs).last_hidden_state) <= LIMIT
    core.train()
    message = "^the model's config.json asks for a dropout of 1, which drops every value"
    with pytest.raises(HeadError, match=message):
        core(**inputs)
    with checkpointed_layers(core), pytest.raises(HeadError, match=message):
        mx.grad(lambda x: core.layer_runner(0, x, {}, False)[0].sum())(mx.ones((1, 3, 48)))
    core.set_dropout(0.1)
    core.train()
    assert core(**inputs).last_hidden_state.shape == (3, 17, 48)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": [1, 2]}, r"input_ids has shape \(2,\); expected \(batch, length\), both at least 1"),
        ({"input_ids": [[]]}, r"input_ids has shape \(1, 0\); expected \(batch, length\), both at least 1"),
        ({"input_ids": [[1] * 65]}, "65 tokens, but this model has 64 positions; truncate to 64"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, r"attention_mask has shape \(1, 1\); expected \(1, 2\)"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0]]}, r"token_type_ids has shape \(1, 1\)"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(inputs: dict[str, list], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        core_of(tiny_model())(**inputs)


def test_many_models_and_then_a_gradient_with_dropout() -> None:
    """In a process of its own: a chain of random keys that is too long ends it by a segmentation fault."""
    script = """
import mlx.core as mx
from mlxbert.models.architecture import architecture
declared = architecture("bert")
for _ in range(200_000):
    mx.random.uniform()
core = declared.encoder(declared.config.from_hf({**declared.tiny, "model_type": "bert", "hidden_dropout_prob": 0.1}))
core.train()
def loss(weight):
    core.embeddings.word_embeddings.weight = weight
    return core([[1, 2]]).last_hidden_state.sum()
assert mx.isfinite(mx.grad(loss)(core.embeddings.word_embeddings.weight)).all()
"""
    subprocess.run([sys.executable, "-c", script], check=True)
