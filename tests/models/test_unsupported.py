"""What is not supported is refused by name: model_types, variants, code of the checkpoint's own, decoders."""

from __future__ import annotations

from collections import Counter

import pytest

from mlxbert.models.architecture import architecture, config_from_hf, supported
from mlxbert.models.config_fields import ConfigError

VARIANTS = {variant: (name, what) for name in supported() for variant, what in architecture(name).variants.items()}


def message(config: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_hf(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_refused_with_what_it_is_and_the_nearest_one(variant: str) -> None:
    nearest, what = VARIANTS[variant]
    listed = ", ".join(map(repr, supported()))
    assert message({"model_type": variant}) == (
        f"config.json: model_type {variant!r} is not supported ({what}); supported: {listed}; nearest: {nearest!r}; "
        "fix: convert a checkpoint of a supported one, or add the architecture (CONTRIBUTING.md)"
    )


def test_variants_are_model_types_of_transformers_that_are_not_supported() -> None:
    transformers = pytest.importorskip("transformers")
    assert not VARIANTS.keys() & set(supported())
    assert set(transformers.CONFIG_MAPPING) >= VARIANTS.keys()
    declared = Counter(variant for name in supported() for variant in architecture(name).variants)
    assert set(declared.values()) == {1}


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [
        ("deberta-v3", "'deberta-v2'"),
        ("xlm_roberta", "'xlm-roberta'"),
        ("XLM-RoBERTa", "'xlm-roberta'"),
        ("roberta-large", "'roberta'"),
        ("bert_large", "'bert'"),
        ("robreta", "'roberta'"),
        ("t5", "none of them"),
        ("x" * 10**6, "none of them"),
        ({"bert": 1}, "none of them"),
        (7, "none of them"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_of_other_model_types_the_nearest_one_is_that_of_a_similar_name(model_type: object, nearest: str) -> None:
    assert f"; nearest: {nearest}; fix: " in message({"model_type": model_type})


def test_without_a_model_type_the_fix_is_to_name_one() -> None:
    said = message({})
    assert "nearest" not in said
    assert said.endswith('; fix: add "model_type", the one of these that this encoder is')
    assert message({"architectures": "BertModel"}) == said


@pytest.mark.parametrize("model_type", supported())
def test_without_a_model_type_its_class_tells_the_one_to_name(model_type: str) -> None:
    declared = architecture(model_type)
    for name in (declared.encoder_class, *declared.heads):
        said = message({"architectures": [7, name]})
        assert said.endswith(f'; fix: add "model_type": "{model_type}", or the one of these that this encoder is')


@pytest.mark.parametrize("model_type", supported())
def test_code_of_its_own_and_decoders_are_refused_for_every_architecture(model_type: str) -> None:
    code = {"AutoModel": "modeling_own.OwnModel"}
    assert message({"model_type": model_type, "auto_map": code}) == (
        f"config.json: auto_map={code} asks for code of its own, which is never run; not computed here; "
        "fix: convert a checkpoint without it, or take auto_map out of config.json if this one was trained without it"
    )
    for field, what in {
        "is_decoder": "a decoder (causal attention)",
        "add_cross_attention": "cross-attention",
        "is_encoder_decoder": "an encoder-decoder",
    }.items():
        assert message({"model_type": model_type, field: True}).startswith(
            f"config.json: {field}=True asks for {what}; not computed here; fix: "
        )
    off = {"is_decoder": False, "add_cross_attention": False, "is_encoder_decoder": False, "auto_map": {}}
    declared = architecture(model_type)
    assert config_from_hf({"model_type": model_type, **declared.tiny, **off}).model_type == model_type


def test_code_of_its_own_is_said_beside_an_unsupported_model_type() -> None:
    said = message({"model_type": "new", "auto_map": {"AutoModel": "modeling_new.NewModel"}})
    assert said.startswith("config.json: model_type 'new' is not supported; supported: ")
    assert "; its auto_map names code of its own, which is never run; fix: " in said
