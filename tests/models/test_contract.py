"""The contract of an encoder, for every architecture that is registered: registering one is testing it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlxbert.models
from mlxbert.model_arrays import InputError, named_parameters
from mlxbert.models import architecture as registry
from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.base import Encoder, module_at
from mlxbert.models.config_fields import ConfigError
from mlxbert.training.gradients import checkpointed_layers
from tests.support.encoder_pairs import (
    KINDS,
    Batch,
    L,
    assert_checkpointing_changes_no_gradient,
    assert_whole_forward_agrees,
    batches,
    error,
    pair,
    reference,
)
from tests.support.tiny import tiny_model

torch = pytest.importorskip("torch", reason="the reference is transformers")

LIMIT = 2e-5  # DESIGN: cumulative, scaled by the reference's magnitude where that exceeds 1

pytestmark = pytest.mark.parametrize("model_type", supported())


def inputs_of(core: Encoder, name: str = "padded right") -> Batch:
    return batches(core)[name]


def has_pooler(model_type: str) -> bool:
    """Whether the encoder of transformers can have a pooler."""
    return getattr(tiny_model(architecture(model_type).encoder_class), "pooler", None) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_forward_is_transformers(model_type: str, kind: str) -> None:
    theirs, core = pair(model_type)
    assert_whole_forward_agrees(theirs, core, inputs_of(core, kind), LIMIT)


def test_a_mask_that_hides_nothing_is_no_mask(model_type: str) -> None:
    _, core = pair(model_type)
    ids = mx.array(inputs_of(core, "ids alone")["input_ids"])
    B, length = ids.shape
    expected = core(ids).last_hidden_state
    for shape in ((B, length), (B, length, length), (1, 1, length, length)):
        assert mx.array_equal(core(ids, mx.ones(shape, mx.int32)).last_hidden_state, expected)
    traced = mx.compile(lambda mask: core(ids, mask).last_hidden_state)
    assert mx.allclose(traced(mx.ones((B, length), mx.int32)), expected, atol=LIMIT)


def test_without_a_pooler_there_is_none(model_type: str) -> None:
    theirs, core = pair(model_type, pooler=False)
    assert not core.has_pooler
    assert pair(model_type)[1].has_pooler == has_pooler(model_type)
    assert core(**inputs_of(core)).pooler_output is None
    assert not any(name.startswith(registry.POOLER) for name in named_parameters(core))
    assert set(theirs.state_dict()) == set(named_parameters(core))


def test_a_layer_alone_is_the_layer_in_the_whole(model_type: str) -> None:
    _, core = pair(model_type)
    inputs = inputs_of(core)
    states = core(**inputs, output_hidden_states=True).hidden_states
    assert states is not None
    x, context = core.embed(**inputs)
    assert mx.array_equal(x, states[0])
    for i in range(core.num_layers):
        alone, weights = core.run_layer(i, mx.array(np.array(states[i])), context)
        assert weights is None
        last = i + 1 == core.num_layers
        assert mx.array_equal(core.finish(alone) if last else alone, states[i + 1])


def test_masks_of_every_rank_are_the_same_mask(model_type: str) -> None:
    _, core = pair(model_type)
    inputs = inputs_of(core)
    mask = inputs.pop("attention_mask")
    expected = core(**inputs, attention_mask=mask).last_hidden_state
    real = mx.array(mask)[..., None]  # a mask of two axes may mask the rows of padding too
    heads = core.config.num_attention_heads
    for wider in (
        np.broadcast_to(mask[:, None, :], (4, L, L)),
        mask[:, None, :],
        mask[:, None, None, :],
        np.broadcast_to(mask[:, None, None, :], (4, heads, L, L)),
    ):
        got = core(**inputs, attention_mask=wider.copy()).last_hidden_state
        assert mx.allclose(got * real, expected * real, rtol=0, atol=1e-6)
    causal = np.tril(np.ones((4, L, L), np.int64))
    assert not mx.allclose(core(**inputs, attention_mask=causal).last_hidden_state * real, expected * real)
    with pytest.raises(InputError, match=r"attention_mask has shape \(4, 3, 17\); expected \(4, 17, 17\)"):
        core(**inputs, attention_mask=np.ones((4, 3, L), np.int64))
    with pytest.raises(InputError, match=r"attention_mask has shape \(17,\); expected \(4, 17\)"):
        core(**inputs, attention_mask=np.ones(L, np.int64))


def test_embeddings_in_the_place_of_ids(model_type: str) -> None:
    theirs, core = pair(model_type)
    inputs = inputs_of(core)
    ids = inputs["input_ids"]
    rows = module_at(core, core.architecture.tables["word"])(mx.array(ids))
    expected = core(**inputs).last_hidden_state
    assert mx.array_equal(core(**inputs, inputs_embeds=rows).last_hidden_state, expected)
    alone = {name: value for name, value in inputs.items() if name != "input_ids"}
    output = reference(theirs, {**alone, "inputs_embeds": np.array(rows)}).last_hidden_state
    assert error(core(**alone, inputs_embeds=rows).last_hidden_state, output, inputs["attention_mask"]) < LIMIT
    with pytest.raises(InputError, match="input_ids are missing; fix: give input_ids, or inputs_embeds"):
        core()
    with pytest.raises(InputError, match=r"inputs_embeds has shape \(4, 2, \d+\); expected \(4, 17, 'width'\)"):
        core(ids, inputs_embeds=rows[:, :2])


def test_a_text_that_is_too_long_is_refused(model_type: str) -> None:
    _, core = pair(model_type)
    limit = core.config.max_length
    with pytest.raises(InputError, match=f"{limit + 1} tokens, but this model has {limit} positions; truncate to"):
        core(np.full((1, limit + 1), 5))


@pytest.mark.parametrize("kind", ["ids alone", "padded right"])
def test_gradients_of_every_parameter_are_the_same_with_checkpointing(model_type: str, kind: str) -> None:
    _, core = pair(model_type)
    assert_checkpointing_changes_no_gradient(core, inputs_of(core, kind))


def test_every_array_of_the_context_is_differentiated_by_not_captured(model_type: str) -> None:
    _, core = pair(model_type)
    x, context = core.embed(**inputs_of(core))
    inside: list[dict[str, mx.array]] = []
    real = core.run_layer
    core.run_layer = lambda i, x, context, out=False: inside.append(context) or real(i, x, context, out)  # type: ignore
    with checkpointed_layers(core):
        assert core.layer_runner is not None
        core.layer_runner(0, x, context, False)
    assert set(inside[0]) == set(context)
    assert all(inside[0][name] is not array for name, array in context.items())


def test_checkpointing_asks_for_no_gradient_of_masks_and_indices(model_type: str) -> None:
    _, core = pair(model_type)
    x, context = core.embed(**inputs_of(core))
    # As a fused kernel does, this raises where it is asked for the gradient of its second argument.
    core.run_layer = lambda i, x, context, out=False: (mx.take_along_axis(x, context["order"], axis=1), None)  # type: ignore
    context["order"] = mx.zeros(x.shape, mx.int32)

    def total(x: mx.array) -> mx.array:
        assert core.layer_runner is not None
        return core.layer_runner(0, x, context, False)[0].sum()

    with checkpointed_layers(core):
        gradient = mx.grad(total)(x)
    assert float(gradient[:, 0].min()) == x.shape[1]


def test_every_stored_tensor_has_a_depth(model_type: str) -> None:
    _, core = pair(model_type)
    read_by = {name: [i for i in range(core.num_layers) if _holds(core, i, name)] for name in named_parameters(core)}
    for name, layers in read_by.items():
        depth = core.depth_of(name)
        # Several layers may share a tensor, or one of them may have none of its own.
        assert depth == min(layers) + 1 if layers else depth in (0, core.num_layers), name
        if name.startswith(registry.POOLER):
            assert depth == core.num_layers
    assert core.depth_of(core.architecture.word_embeddings) == 0


def _holds(core: Encoder, i: int, name: str) -> bool:
    parameter = named_parameters(core)[name]
    return any(parameter is array for module in core.layer_modules(i) for array in named_parameters(module).values())


def test_norms_are_those_whose_weight_starts_at_one(model_type: str) -> None:
    declared = architecture(model_type)
    core = declared.encoder(declared.config.from_hf({"model_type": model_type, **declared.tiny}))
    norms = {name for name in named_parameters(core) if core.is_norm(name)}
    ones = {name for name, array in named_parameters(core).items() if array.ndim == 1 and mx.all(array == 1)}
    assert ones <= norms
    assert {name.rpartition(".")[0] for name in norms} == {name.rpartition(".")[0] for name in ones}


def test_linears_are_all_there_in_order_of_computation_and_grouped_by_input(model_type: str) -> None:
    _, core = pair(model_type)
    groups = core.linears()
    every = {path for path, module in core.named_modules() if isinstance(module, nn.Linear)}
    assert {path for group in groups for path in group.paths} == every
    assert [group.stage for group in groups] == sorted(group.stage for group in groups)
    assert (groups[-1].stage == core.num_layers + 1) == core.has_pooler
    seen: list[tuple[str, int]] = []
    with core.watched(lambda path, linear, x: seen.append((path, id(x))) or linear(x)):
        core(**inputs_of(core))
    assert [path for path, _ in seen] == [path for group in groups for path in group.paths]
    assert all(isinstance(module_at(core, path), nn.Linear) for path in every)


def test_tables_and_matrices_are_all_that_is_packed(model_type: str) -> None:
    _, core = pair(model_type)
    declared = core.architecture
    modules = dict(core.named_modules())
    matrices = {name.removesuffix(".weight") for name, array in named_parameters(core).items() if array.ndim == 2}
    linears = {path for group in core.linears() for path in group.paths}
    tables = set(core.tables.values())  # a configuration may leave one out
    kept = {path for path in declared.kept if path in modules}
    assert matrices == linears | tables | kept
    assert tables.isdisjoint(linears)
    assert kept.isdisjoint(linears | tables)
    assert all(isinstance(modules[path], nn.Embedding) for path in tables)
    rows = core.config.table_rows
    assert module_at(core, declared.tables["word"]).weight.shape[0] == rows["input_ids"]


def test_rows_without_a_gradient_are_torchs(model_type: str) -> None:
    theirs, core = pair(model_type)
    rows = {
        f"{name}.weight": module.padding_idx
        for name, module in theirs.named_modules()
        if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None
    }
    assert core.padding_rows == rows


def test_the_word_embeddings_backwards(model_type: str) -> None:
    _, core = pair(model_type)
    table = named_parameters(core)[core.architecture.word_embeddings]
    x = mx.random.normal((2, 3, table.shape[1]), key=mx.random.key(0))
    assert mx.allclose(core.decode(x), x @ table.T)


def test_ids_outside_their_tables_are_refused(model_type: str) -> None:
    _, core = pair(model_type)
    ids = np.full((1, 3), 5)
    for name, rows in core.config.table_rows.items():
        inputs = {"input_ids": ids, name: np.full((1, 3), rows)}
        with pytest.raises(InputError, match=rf"{name}: {rows} at \[0, 0\] is outside the model's table"):
            core(**inputs)
        with pytest.raises(InputError, match=f"{name}: {rows} at"):
            core.check_ids({name: mx.array(value) for name, value in inputs.items()})


def test_dropout_is_set_for_the_whole_encoder(model_type: str) -> None:
    _, core = pair(model_type)
    inputs = inputs_of(core)
    core.train()
    core.set_dropout(0.3)
    assert not mx.allclose(core(**inputs).last_hidden_state, core(**inputs).last_hidden_state)
    core.set_dropout(0.0)
    assert mx.array_equal(core(**inputs).last_hidden_state, core(**inputs).last_hidden_state)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, not 1"):
        core.set_dropout(1.0)


def test_what_is_declared_is_true_of_transformers(model_type: str) -> None:
    import transformers

    declared = architecture(model_type)
    encoder = getattr(transformers, declared.encoder_class)
    assert encoder.config_class.model_type == model_type
    assert declared.prefix == f"{encoder.base_model_prefix}."
    assert hasattr(transformers, declared.tokenizer_class)
    assert declared.config.from_hf({"model_type": model_type}) == config_from_hf(encoder.config_class().to_dict())
    for name, head in declared.heads.items():
        model = tiny_model(name, num_labels=3 if head.labels else 2)  # a span has two
        names = {key for key in model.state_dict() if not key.startswith(declared.prefix)}
        assert all(any(key.startswith(prefix) for key in names) for prefix in head.prefixes)
        assert all(key.startswith(head.all_prefixes) for key in names)
        assert head.has_pooler == any(map(declared.is_pooler, model.state_dict()))
        built = head.build(config_from_hf(model.config.to_dict()), 3, names)
        assert built.needs_pooler == head.has_pooler
        if head.labels is not None:
            assert model.state_dict()[f"{head.labels}.weight"].shape[0] == 3
        if head.tied_bias is not None:
            assert set(head.tied_bias) <= names


def test_swift_s_paths_go_there_and_back(model_type: str) -> None:
    declared = architecture(model_type)
    core = declared.encoder(declared.config.from_hf({"model_type": model_type, **declared.tiny}))
    paths = [path for group in core.linears() for path in group.paths] + list(declared.tables.values())
    assert [declared.from_swift_path(declared.swift_path(path)) for path in paths] == paths


def test_the_configuration_reads_what_it_wrote_and_refuses_another_type(model_type: str) -> None:
    declared = architecture(model_type)
    with pytest.raises(ConfigError, match="model_type 'gpt2' is not supported; supported: "):
        declared.config.from_hf({"model_type": "gpt2"})
    with pytest.raises(ConfigError, match=r"model_type None is not supported; .*; fix: add \"model_type\""):
        config_from_hf({})


def test_every_file_beside_the_contract_is_registered_and_a_broken_one_is_not_hidden(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {module.name for module in pkgutil.iter_modules(mlxbert.models.__path__)} - {
        "architecture",
        "attention",
        "base",
        "config_fields",
        "distances",
        "rotary",
        "shards",
    }
    assert names == {architecture(name).table for name in supported()}
    real, table = importlib.import_module, architecture(model_type).table

    def broken(name: str) -> Any:
        if name.endswith(f".{table}"):
            raise ImportError("a mistake in this file")
        return real(name)

    registry._architectures.cache_clear()
    monkeypatch.setattr("importlib.import_module", broken)
    try:
        with pytest.raises(ImportError, match="a mistake in this file"):
            supported()
    finally:
        registry._architectures.cache_clear()
