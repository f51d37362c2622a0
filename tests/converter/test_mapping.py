"""The rule engine, and BERT's table: every name once, whatever the order, and errors that list what is wrong."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from converter.mapping import (
    ArchitectureMapping,
    Drop,
    MappingError,
    Refuse,
    Rename,
    Split,
    hugging_face_names,
    plan,
)
from converter.mappings import mapping_for, supported
from mlxbert.models.architecture import architecture, config_from_hf
from mlxbert.models.bert import BertConfig
from mlxbert.models.config_fields import ConfigError
from tests.support.tiny import ALL_CLASSES, SIZES, declared_of, tiny_model

TABLES = Path(__file__).parents[2] / "converter" / "mappings"
BERT = mapping_for({"model_type": "bert"})
CONFIG = BertConfig.from_hf({"model_type": "bert", **SIZES})


def shapes_of(architecture: str, **options: object) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tiny_model(architecture, **options).state_dict().items()}


@pytest.mark.parametrize("architecture", ALL_CLASSES)
def test_every_class_maps_whatever_the_order_and_back(architecture: str) -> None:
    shapes, declared = shapes_of(architecture), declared_of(architecture)
    model = {"model_type": declared.model_type}
    mapping, config = mapping_for(model), config_from_hf({**model, **declared.tiny})
    planned = plan(mapping, config, shapes)
    names = list(shapes)
    random.Random(0).shuffle(names)
    shuffled = plan(mapping, config, {name: shapes[name] for name in names})
    assert planned.encoder == shuffled.encoder
    assert set(planned.heads) == set(shuffled.heads)
    # each source key exactly once, each target exactly once
    sources = [item.source for item in (*planned.encoder, *planned.heads)]
    assert sorted([*sources, *planned.dropped]) == sorted(shapes)
    targets = [item.target for item in (*planned.encoder, *planned.heads)]
    assert len(targets) == len(set(targets))
    assert all(not target.startswith(declared.prefix) for target in targets)
    # the table inverts
    back = hugging_face_names(mapping, architecture, [item.target for item in planned.encoder])
    assert {back[item.target]: item.shape for item in planned.encoder} == {
        item.source: shapes[item.source] for item in planned.encoder
    }


def test_a_missing_base_prefix_and_a_superfluous_one_both_map() -> None:
    shapes = shapes_of("BertModel")
    prefixed = {f"bert.{name}": shape for name, shape in shapes.items()}
    assert [i.target for i in plan(BERT, CONFIG, prefixed).encoder] == [
        i.target for i in plan(BERT, CONFIG, shapes).encoder
    ]


def test_legacy_layer_norm_names() -> None:
    shapes = shapes_of("BertForPreTraining")
    legacy = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): shape
        for name, shape in shapes.items()
    }
    planned, modern = plan(BERT, CONFIG, legacy), plan(BERT, CONFIG, shapes)
    assert legacy != shapes
    assert [i.target for i in planned.encoder] == [i.target for i in modern.encoder]
    assert [i.target for i in planned.heads] == [i.target for i in modern.heads]


def test_buffers_are_dropped_with_a_reason() -> None:
    shapes = {**shapes_of("BertModel"), "embeddings.position_ids": (1, 64), "bert.embeddings.token_type_ids": (1, 64)}
    assert plan(BERT, CONFIG, shapes).dropped == {
        "embeddings.position_ids": "a constant: 0, 1, 2, …",
        "bert.embeddings.token_type_ids": "a constant: zeros",
    }


def test_no_pooler_is_fine_and_half_of_one_is_not() -> None:
    shapes = shapes_of("BertModel", pooler=False)
    assert not any(i.target.startswith("pooler") for i in plan(BERT, CONFIG, shapes).encoder)
    with pytest.raises(MappingError, match=r"(?s)is missing from the checkpoint .*pooler\.dense\.bias"):
        plan(BERT, CONFIG, {**shapes, "pooler.dense.weight": (48, 48)})


def test_a_tensor_without_a_rule_is_named_with_its_shape_and_the_fix() -> None:
    shapes = {**shapes_of("BertModel"), "encoder.layer.0.attention.self.rel.weight": (48, 8)}
    with pytest.raises(MappingError) as caught:
        plan(BERT, CONFIG, shapes)
    assert str(caught.value) == (
        "bert: 1 checkpoint tensor has no rule\n"
        "  encoder.layer.0.attention.self.rel.weight (48, 8)\n"
        "  fix: inside the encoder, they make it another model than bert: give a plain bert checkpoint, or add its "
        "architecture (CONTRIBUTING.md)"
    )


def test_half_an_encoder_under_another_name_is_no_head_to_leave_out() -> None:
    shapes = {("enc." if i % 2 else "") + name: s for i, (name, s) in enumerate(shapes_of("BertModel").items())}
    with pytest.raises(MappingError) as caught:
        plan(BERT, CONFIG, shapes)
    assert "checkpoint tensors have no rule\n  enc.embeddings." in str(caught.value)
    assert "tensors of the encoder are missing, such as embeddings." in str(caught.value)
    assert "fix: give the encoder's tensors one prefix" in str(caught.value)
    assert "--encoder-only" not in str(caught.value)


def test_long_lists_are_cut_after_ten() -> None:
    with pytest.raises(MappingError, match=r"(?s)12 checkpoint tensors have no rule\n.*… and 2 more\n  fix:"):
        plan(BERT, CONFIG, {**shapes_of("BertModel"), **{f"mystery.{i}": (1,) for i in range(12)}})


@pytest.mark.parametrize("name", ["encoder.layer.01.output.dense.weight", "encoder.layer.-1.output.dense.weight"])
def test_an_index_has_one_spelling(name: str) -> None:
    with pytest.raises(MappingError, match="1 checkpoint tensor has no rule"):
        plan(BERT, CONFIG, {**shapes_of("BertModel"), name: (48, 80)})


def test_one_target_from_two_tensors() -> None:
    shapes = {**shapes_of("BertModel"), "embeddings.LayerNorm.gamma": (48,)}
    with pytest.raises(MappingError) as caught:
        plan(BERT, CONFIG, shapes)
    assert "embeddings.LayerNorm.weight from embeddings.LayerNorm.weight and embeddings.LayerNorm.gamma" in str(
        caught.value
    )


def test_a_vocabulary_padded_beyond_the_tokenizer_is_fine_where_config_and_tensor_agree_and_an_error_where_not() -> (
    None
):
    shapes = {**shapes_of("BertModel"), "embeddings.word_embeddings.weight": (104, 48)}
    plan(BERT, BertConfig.from_hf({"model_type": "bert", **SIZES, "vocab_size": 104}), shapes)
    with pytest.raises(MappingError) as caught:
        plan(BERT, CONFIG, shapes)
    assert str(caught.value) == (
        "bert: 1 tensor disagrees with config.json\n"
        "  embeddings.word_embeddings.weight is (104, 48); config.json says vocab_size=97, hidden_size=48\n"
        "  fix: correct config.json, or pass the right one with --config"
    )


def test_more_layers_than_the_config_says_and_fewer() -> None:
    shapes = shapes_of("BertModel")
    with pytest.raises(
        MappingError, match=r"encoder\.layer\.2\.\S+: config\.json, with num_hidden_layers=2, calls for no such"
    ):
        plan(BERT, BertConfig.from_hf({"model_type": "bert", **SIZES, "num_hidden_layers": 2}), shapes)
    with pytest.raises(MappingError, match=r"(?s)16 tensors are missing .*encoder\.layer\.3\.attention"):
        plan(BERT, BertConfig.from_hf({"model_type": "bert", **SIZES, "num_hidden_layers": 4}), shapes)


def test_a_head_of_the_wrong_width() -> None:
    shapes = {**shapes_of("BertForSequenceClassification"), "classifier.weight": (2, 47)}
    with pytest.raises(MappingError, match=r"classifier.weight is \(2, 47\); config.json says hidden_size=48"):
        plan(BERT, CONFIG, shapes)


def test_a_fused_tensor_is_split_in_equal_parts() -> None:
    toy = ArchitectureMapping(
        model_type="toy",
        base_class="Toy",
        base_prefix="toy.",
        encoder=(Rename("layer.{i}.q", ("D",)), Rename("layer.{i}.k", ("D",))),
        splits=(Split("layer.{i}.qk", ("layer.{i}.q", "layer.{i}.k")),),
        drops=(Drop("junk", why="not needed"),),
    )
    config = SimpleNamespace(num_hidden_layers=1, D=3)
    planned = plan(toy, config, {"toy.layer.0.qk": (6,), "junk": ()})
    assert [(i.target, i.source, i.part, i.parts, i.shape) for i in planned.encoder] == [
        ("layer.0.q", "toy.layer.0.qk", 0, 2, (3,)),
        ("layer.0.k", "toy.layer.0.qk", 1, 2, (3,)),
    ]
    with pytest.raises(MappingError, match=r"layer\.0\.qk \(5,\) cannot be split into 2 equal parts"):
        plan(toy, config, {"layer.0.qk": (5,)})


def test_supported_architectures_are_the_files_of_the_folder() -> None:
    assert {architecture(name).table for name in supported()} == {file.stem for file in TABLES.glob("[!_]*.py")}
    with pytest.raises(ConfigError, match=r"model_type 'gpt2' is not supported; supported: .*'bert', "):
        mapping_for({"model_type": "gpt2"})
    with pytest.raises(ConfigError, match='add "model_type"'):
        mapping_for({})


GROUPED = ArchitectureMapping(
    model_type="grouped",
    base_class="GroupedModel",
    base_prefix="grouped.",
    encoder=(
        Rename("groups.{g}.inner.{j}.weight", (4,)),
        Rename("groups.{g}.scale", (1,), when=lambda config, g: g > 0, otherwise="group 0 has no scale"),
        Rename("projection.weight", (4, 2), when=lambda config: config.projected),
    ),
    refused=(Refuse("groups.{g}.old", "a first version; fix: convert the second"),),
    counts={"g": "num_groups", "j": "inner"},
)
GROUPED_CONFIG = SimpleNamespace(num_groups=2, inner=2, projected=False)
GROUPED_SHAPES = {
    **{f"grouped.groups.{g}.inner.{j}.weight": (4,) for g in range(2) for j in range(2)},
    "grouped.groups.1.scale": (1,),
}


def test_a_name_may_have_two_indices_and_a_tensor_a_condition() -> None:
    found = plan(GROUPED, GROUPED_CONFIG, {**GROUPED_SHAPES, "groups.0.scale": (1,)})
    assert [item.target for item in found.encoder] == [
        *("groups.1.scale", "groups.0.inner.0.weight", "groups.0.inner.1.weight"),
        *("groups.1.inner.0.weight", "groups.1.inner.1.weight"),
    ]
    assert found.dropped == {"groups.0.scale": "group 0 has no scale"}


def test_a_tensor_that_the_configuration_does_not_call_for_is_refused() -> None:
    counts = "num_groups=2, inner=2"
    cases = {"projection.weight": "projected=False", "groups.2.scale": counts, "groups.0.inner.2.weight": counts}
    for name, fields in cases.items():
        with pytest.raises(MappingError, match=rf"{name}: config\.json, with {fields}, calls for no such tensor"):
            plan(GROUPED, GROUPED_CONFIG, {**GROUPED_SHAPES, name: (4, 2)})
    with pytest.raises(
        MappingError, match=r"missing .*\n.*projection\.weight\n  config\.json calls .* projected=True"
    ):
        plan(GROUPED, SimpleNamespace(num_groups=2, inner=2, projected=True), GROUPED_SHAPES)


def test_a_tensor_of_another_model_is_refused_by_name() -> None:
    with pytest.raises(
        MappingError, match=r"1 tensor belongs to a model .*: a first version; fix: .*\n.*groups\.1\.old"
    ):
        plan(GROUPED, GROUPED_CONFIG, {**GROUPED_SHAPES, "grouped.groups.1.old": (3,)})


def test_a_name_with_many_indices_has_no_rule() -> None:
    with pytest.raises(MappingError, match="has no rule"):
        plan(GROUPED, GROUPED_CONFIG, {**GROUPED_SHAPES, ".".join(map(str, range(200))): (1,)})
