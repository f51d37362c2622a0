"""An encoder of transformers and ours with the same random weights, inputs of every kind, and how far they differ."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.models.base import Encoder
from mlxbert.training.gradients import checkpointed_layers
from tests.support.tiny import tiny_model

L = 17
KINDS = (
    *("ids alone", "padded right", "padded left", "a row of padding", "a mask that disagrees with the pads"),
    *("a mask with holes", "positions of the caller's", "the longest text"),
)
Batch = dict[str, np.ndarray]


def filled(model: Any) -> Encoder:
    """Our encoder with the weights of a transformers model; canonical names are theirs, so nothing is renamed."""
    config = config_from_hf(model.config.to_dict())
    pooler = getattr(model, "pooler", None) is not None
    core = architecture(config.model_type).encoder(config, add_pooling_layer=pooler)
    core.load_weights([(name, mx.array(value.numpy())) for name, value in model.state_dict().items()])
    core.eval()
    return core


def pair(model_type: str, **options: Any) -> tuple[Any, Encoder]:
    """A random model of transformers and ours; options as those of `tiny_model`."""
    theirs = tiny_model(architecture(model_type).encoder_class, attn_implementation="eager", **options)
    return theirs, filled(theirs)


def batches(core: Encoder) -> dict[str, Batch]:
    """Inputs of every kind: ragged, padded left, all padding, a mask that disagrees with the pads, with holes."""
    random = np.random.default_rng(0)
    pad, vocabulary, longest = core.config.pad_token_id or 0, core.config.vocab_size, core.config.max_length
    length = min(L, longest)
    ids = _without(pad, random.integers(0, vocabulary, (4, length)), vocabulary)
    right = (np.arange(length) < np.array([length, 9, 1, 5])[:, None]).astype(np.int64)
    left = right[:, ::-1].copy()
    holes = random.integers(0, 2, (4, length))
    holes[:, 0] = 1
    types = random.integers(0, core.config.table_rows.get("token_type_ids", 1), (4, length))
    pads_elsewhere = np.where(random.integers(0, 4, (4, length)) == 0, pad, ids)
    last = core.config.table_rows.get("position_ids", length) - length
    long = _without(pad, random.integers(0, vocabulary, (1, longest)), vocabulary)
    no_third = right * (np.arange(4) != 2)[:, None]
    return {
        "ids alone": {"input_ids": ids},
        "padded right": {"input_ids": np.where(right, ids, pad), "attention_mask": right, "token_type_ids": types},
        "padded left": {"input_ids": np.where(left, ids, pad), "attention_mask": left},
        "a row of padding": {"input_ids": np.where(no_third, ids, pad), "attention_mask": no_third},
        "a mask that disagrees with the pads": {"input_ids": pads_elsewhere, "attention_mask": right},
        "a mask with holes": {"input_ids": ids, "attention_mask": holes},
        "positions of the caller's": {"input_ids": ids, "position_ids": np.arange(length)[None] + min(last, 4)},
        "the longest text": {"input_ids": long},
    }


def _without(pad: int, ids: np.ndarray, vocabulary: int) -> np.ndarray:
    """The ids without padding: its id is replaced by the next one."""
    return np.where(ids == pad, (pad + 1) % vocabulary, ids)


def reference(theirs: Any, inputs: Batch, **options: Any) -> Any:
    """The output of transformers, for those of the inputs that the class takes."""
    import torch

    taken = inspect.signature(theirs.forward).parameters
    tensors = {name: torch.tensor(value) for name, value in inputs.items() if name in taken}
    with torch.no_grad():
        return theirs(**tensors, **options)


def error(ours: mx.array, theirs: Any, mask: np.ndarray | None = None) -> float:
    """Largest element-wise error over unmasked positions, scaled where the reference exceeds 1."""
    a, b = np.array(ours, np.float64), theirs.double().numpy()
    scaled = np.abs(a - b) / np.maximum(1, np.abs(b))
    return float((scaled if mask is None else scaled[mask == 1]).max(initial=0))


def gradients(core: Encoder, inputs: Batch) -> dict[str, mx.array]:
    """The gradient of every parameter, of a random projection of the last hidden state, and of the pooler."""
    parameters = dict(named_parameters(core))
    shape = (*inputs["input_ids"].shape, core.config.hidden_size)
    projection = mx.random.normal(shape, key=mx.random.key(0))

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        core.update(tree_unflatten(list(arrays.items())))
        output = core(**inputs)
        total = (output.last_hidden_state * projection).sum()
        return total if output.pooler_output is None else total + output.pooler_output.sum()

    found: dict[str, mx.array] = mx.grad(loss)(parameters)
    mx.eval(found)
    core.update(tree_unflatten(list(parameters.items())))
    return found


def assert_checkpointing_changes_no_gradient(core: Encoder, inputs: Batch) -> None:
    """Every parameter has a gradient, and the same one whether its layer is computed once or twice."""
    kept = gradients(core, inputs)
    with checkpointed_layers(core):
        recomputed = gradients(core, inputs)
    assert core.layer_runner is None
    assert set(kept) == set(recomputed) == set(named_parameters(core))
    for name, gradient in kept.items():
        assert float(mx.abs(gradient).max()) > 0, name
        assert mx.allclose(gradient, recomputed[name], rtol=1e-4, atol=1e-5), name


def assert_whole_forward_agrees(theirs: Any, core: Encoder, inputs: Batch, limit: float) -> None:
    """Hidden states, attentions and pooler are those of transformers, within `limit`; no number is NaN."""
    expected = reference(theirs, inputs, output_hidden_states=True, output_attentions=True)
    output = core(**inputs, output_hidden_states=True, output_attentions=True)
    mask = inputs.get("attention_mask")
    assert output.hidden_states is not None
    assert output.attentions is not None
    assert len(output.hidden_states) == len(expected.hidden_states) == core.num_layers + 1
    for a, b in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert error(a, b, mask) < limit
    for a, b in zip(output.attentions, expected.attentions, strict=True):
        assert error(a.swapaxes(1, 2), b.swapaxes(1, 2), mask) < limit
    assert (output.pooler_output is not None) == core.has_pooler
    if output.pooler_output is not None:
        first = slice(None) if mask is None else mask[:, 0] == 1
        assert error(mx.array(np.array(output.pooler_output)[first]), expected.pooler_output[first]) < limit
    assert mx.isfinite(output.last_hidden_state).all()
    assert error(core(**inputs).last_hidden_state, expected.last_hidden_state, mask) < limit
