"""Adapters on the linear layers of every architecture: fresh, trained, merged; and the words of their settings."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxbert.adapters import AdaptedLinear, AdapterError, LoRA, adapted, add_adapters, linear_paths, merge_adapters
from mlxbert.adapters.linear import is_adapter
from mlxbert.adapters.settings import chosen_layers
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, supported
from mlxbert.models.base import Encoder


def encoder(model_type: str) -> Encoder:
    mx.random.seed(3)
    declared = architecture(model_type)
    core = declared.encoder(declared.config.from_hf({"model_type": model_type, **declared.tiny}))
    core.eval()
    return core


def hidden(core: Encoder) -> np.ndarray:
    ids = np.random.default_rng(0).integers(5, 90, (2, 9))
    return np.array(core(ids).last_hidden_state)


def disturb(core: Encoder) -> None:
    """Give the adapters numbers as after some training."""
    for layer in adapted(core).values():
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape)
        if layer.dora:
            layer.magnitude = layer.magnitude * (1 + 0.1 * mx.random.normal(layer.magnitude.shape))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("layers", ["query+value", "all"])
@pytest.mark.parametrize("model_type", supported())
def test_fresh_adapters_change_nothing_and_merged_ones_compute_the_same(
    model_type: str, layers: str, dora: bool
) -> None:
    core = encoder(model_type)
    names, plain = list(named_parameters(core)), hidden(core)
    paths = linear_paths(core)
    add_adapters(core, LoRA(rank=4, layers=(layers,), dora=dora))
    assert set(adapted(core)) <= set(paths)
    if layers == "all":
        assert set(adapted(core)) == set(paths)
    np.testing.assert_array_equal(hidden(core), plain)
    disturb(core)
    moved = hidden(core)
    assert np.abs(moved - plain).max() > 1e-2
    merge_adapters(core)
    assert list(named_parameters(core)) == names
    np.testing.assert_allclose(hidden(core), moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", supported())
def test_only_adapters_are_trainable(model_type: str) -> None:
    from mlx.utils import tree_flatten

    core = encoder(model_type)
    add_adapters(core, LoRA(layers=("all",), dora=True))
    trainable = [name for name, _ in tree_flatten(core.trainable_parameters())]
    assert trainable
    assert all(is_adapter(name) for name in trainable)
    assert len(trainable) == 3 * len(adapted(core))


def test_a_starts_as_peft_s_and_the_layer_computes_hu_s_formula() -> None:
    core = encoder("bert")
    add_adapters(core, LoRA(rank=4, alpha=2))
    layer = next(iter(adapted(core).values()))
    a = np.array(layer.lora_a)
    width = a.shape[1]
    assert a.shape[0] == 4
    assert np.abs(a).max() <= width**-0.5
    assert np.abs(a).max() > 0.8 * width**-0.5
    disturb(core)
    x = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    w, bias, b = np.array(layer.base.weight), np.array(layer.base.bias), np.array(layer.lora_b)
    expected = x @ (w + 2 / 4 * b @ a).T + bias
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, atol=1e-5)


def test_dora_and_its_gradients_are_those_of_pytorch() -> None:
    import torch

    core = encoder("bert")
    add_adapters(core, LoRA(rank=4, alpha=8, dora=True))
    disturb(core)
    layer = next(iter(adapted(core).values()))
    x = np.random.default_rng(0).normal(size=(3, layer.lora_a.shape[1])).astype(np.float32)
    tensors = {name: torch.tensor(np.array(layer[name]), requires_grad=True) for name in LEAVES}
    w, bias = torch.tensor(np.array(layer.base.weight)), torch.tensor(np.array(layer.base.bias))
    updated = w + layer.scale * tensors["lora_b"] @ tensors["lora_a"]
    # The norm is a constant of the gradient: Liu et al. 2024, section 4.3.
    rows = tensors["magnitude"][:, None] * updated / updated.norm(dim=1, keepdim=True).detach()
    y = torch.tensor(x) @ rows.T + bias
    y.square().sum().backward()
    np.testing.assert_allclose(np.array(layer(mx.array(x))), y.detach().numpy(), atol=1e-5)

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        layer.update(arrays)
        return mx.square(layer(mx.array(x))).sum()

    gradients = mx.grad(loss)({name: layer[name] for name in LEAVES})
    for name, tensor in tensors.items():
        assert tensor.grad is not None
        np.testing.assert_allclose(np.array(gradients[name]), tensor.grad.numpy(), rtol=1e-4, atol=1e-4)


LEAVES = ("lora_a", "lora_b", "magnitude")


def test_a_fused_layer_is_taken_whole_and_said() -> None:
    core = encoder("modernbert")
    (note,) = add_adapters(core, LoRA())
    assert note == (
        "lora: query and value are computed by the fused layer Wqkv (query, key, value); the adapter takes the whole "
        "layer, as PEFT does"
    )
    assert {path.rpartition(".")[2] for path in adapted(core)} == {"Wqkv"}
    assert add_adapters(encoder("modernbert"), LoRA(layers=("Wqkv",))) == ()


def test_shared_layers_have_one_adapter() -> None:
    core = encoder("albert")
    add_adapters(core, LoRA(layers=("query",)))
    runs = sum(path.endswith("query") for group in encoder("albert").linears() for path in group.paths)
    assert len(adapted(core)) < runs


def test_a_second_set_of_adapters_is_refused() -> None:
    core = encoder("bert")
    add_adapters(core, LoRA())
    with pytest.raises(AdapterError, match=r"has adapters already; fix: merge_adapters\(core\) first"):
        add_adapters(core, LoRA())
    assert all(isinstance(layer, AdaptedLinear) for layer in adapted(core).values())


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("rank=8,alpha=16,layers=query+value", LoRA()),
        ("", LoRA()),
        ("r=4, lora_alpha=2.5, target_modules=query+attention.output.dense, use_dora=true", None),
        ({"r": 4, "lora_alpha": 2.5, "target_modules": ["query", "attention.output.dense"], "use_dora": True}, None),
        ({"rank": 4, "alpha": 2.5, "layers": "query+attention.output.dense", "dora": True, "bias": "none"}, None),
        ({"rank": 8, "use_rslora": False, "task_type": "SEQ_CLS"}, LoRA()),
        (LoRA(), LoRA()),
    ],
)
def test_settings_in_three_forms_and_in_peft_s_words(given: Any, settings: LoRA | None) -> None:
    expected = settings or LoRA(4, 2.5, layers=("query", "attention.output.dense"), dora=True)
    made = LoRA.make(given)
    assert made == expected
    assert LoRA.make(str(made)) == LoRA.make(made.to_dict()) == made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rank=0", "lora: rank must be a whole number from 1, not 0; fix: rank=8"),
        ("rank=-2", "lora: rank must be a whole number from 1, not -2"),
        ("rank=2.5", "lora: rank must be a whole number from 1, not '2.5'"),
        ("alpha=0", "lora: alpha must be a number above 0, not 0.0; fix: alpha=16"),
        ("alpha=nan", "lora: alpha must be a number above 0, not nan"),
        ("dropout=1", "lora: dropout must be a number from 0 to below 1, not 1.0; fix: dropout=0.1"),
        ("dropout=-0.1", "lora: dropout must be a number from 0 to below 1, not -0.1"),
        ("dora=perhaps", "lora: dora must be yes or no, not 'perhaps'"),
        ("merge=maybe", "lora: merge must be yes or no, not 'maybe'"),
        ("layers=query++value", "lora: layers must name linear layers"),
        ("rank", "lora: 'rank': give NAME=VALUE, such as rank=8,alpha=16,layers=query.value"),
        ("rank=8,rank=4", "lora: rank is given twice; fix: leave one out"),
        ("rank=8,r=4", "lora: rank is given twice; fix: leave one out"),
        ("rnak=8", "lora: there is no option 'rnak'; did you mean 'rank'?"),
        ("zzz=8", "lora: there is no option 'zzz'; options: rank, alpha, dropout, layers, dora, merge"),
        ("use_rslora=true", "lora: PEFT's option use_rslora=True is not computed here; options: rank, alpha,"),
        ({"modules_to_save": ["pooler"]}, "PEFT's option modules_to_save=.'pooler'. is not computed here"),
        (8, "lora must be settings such as rank=8,alpha=16,layers=query.value, not 8"),
        (True, "lora must be settings such as"),
        ({"layers": 3}, "lora: layers must name linear layers, not 3"),
        ({"layers": []}, "lora: layers must name linear layers"),
    ],
)
def test_settings_that_cannot_be(given: Any, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        LoRA.make(given)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("qurey", "lora: no linear layer is called 'qurey'; did you mean query?"),
        ("attention.output.dens", "did you mean .*output.dense"),
        ("zzz", "lora: no linear layer is called 'zzz'; fix: one of query, key, value, dense, all"),
        ("word_embeddings", "no linear layer is called 'word_embeddings'"),
    ],
)
def test_a_layer_that_does_not_exist(word: str, message: str) -> None:
    core = encoder("bert")
    with pytest.raises(AdapterError, match=message):
        add_adapters(core, LoRA(layers=("query", word)))
    assert adapted(core) == {}


def test_whole_paths_and_ends_of_paths() -> None:
    paths = ("a.0.query", "a.0.pos_query", "a.1.query", "a.1.output.dense")
    words = {"query": "query"}
    assert chosen_layers(("a.1.query",), paths, words) == (("a.1.query",), ())
    assert chosen_layers(("output.dense", "query"), paths, words)[0] == ("a.0.query", "a.1.query", "a.1.output.dense")
    assert chosen_layers(("all-linear",), paths, words)[0] == paths


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_keeps_the_small_changes_of_magnitudes(dtype: mx.Dtype) -> None:
    """A factor of 1.001 is 1 in bfloat16; the output's rounding is no bias, so a mean over rows shows the factor."""
    mx.random.seed(0)
    layer = AdaptedLinear(nn.Linear(64, 64, bias=False), 4, 2.0, dora=True)
    layer.magnitude = layer.magnitude * 1.001
    x = mx.random.normal((512, 64)).astype(dtype).astype(mx.float32)
    plain, y = x @ layer.base.weight.T, layer(x.astype(dtype)).astype(mx.float32)
    np.testing.assert_allclose(float((y * plain).sum() / (plain * plain).sum()), 1.001, atol=2e-4)
