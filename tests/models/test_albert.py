"""ALBERT: layers that are stored once and run several times, embeddings of their own width, and its own heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from safetensors.torch import load_file, save_file

import mlxbert
from converter.convert import convert
from converter.mapping import MappingError
from heads.binary import BinaryClassificationHead
from mlxbert.checkpoint import load
from mlxbert.model_arrays import named_parameters
from mlxbert.models.albert import AlbertConfig, AlbertCore
from mlxbert.models.architecture import config_from_hf
from mlxbert.models.config_fields import ConfigError
from mlxbert.training.optimizer import ConfigurationError, Rule, parameter_rules, reinitialize_top
from mlxbert.with_head import BertWithHead
from tests.support.encoder_pairs import batches, pair
from tests.support.tiny import save_tiny

torch = pytest.importorskip("torch", reason="the reference is transformers")
transformers = pytest.importorskip("transformers")

# As published (https://huggingface.co/albert/albert-base-v2), with fields that nothing computes with.
PUBLISHED: dict[str, Any] = {
    "architectures": ["AlbertForMaskedLM"],
    "attention_probs_dropout_prob": 0,
    "bos_token_id": 2,
    "classifier_dropout_prob": 0.1,
    "down_scale_factor": 1,
    "embedding_size": 128,
    "eos_token_id": 3,
    "gap_size": 0,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "inner_group_num": 1,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "albert",
    "net_structure_type": 0,
    "num_attention_heads": 12,
    "num_hidden_groups": 1,
    "num_hidden_layers": 12,
    "num_memory_blocks": 0,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30000,
}
LAYER = "encoder.albert_layer_groups.{}.albert_layers.{}"
SMALL: dict[str, Any] = {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 64, "vocab_size": 300}


def model_of(**fields: Any) -> BertWithHead:
    """A classifier with a pooler that it reads, on an encoder of 12 layers."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 61}
    config = AlbertConfig(**{**sizes, "embedding_size": 16, "max_position_embeddings": 16, **fields})
    return BertWithHead(AlbertCore(config), BinaryClassificationHead(32), "pooler")


# The configuration


def test_a_published_configuration_is_read() -> None:
    config = config_from_hf(PUBLISHED)
    assert isinstance(config, AlbertConfig)
    assert (config.embedding_size, config.hidden_size, config.num_layers, config.max_length) == (128, 768, 12, 512)
    assert (config.hidden_act, config.head_dropout) == ("gelu_new", 0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"num_hidden_groups": 13},
            "config.json: num_hidden_groups 13 is more than num_hidden_layers 12: some groups would never run; "
            "not computed here",
        ),
        (
            {"num_hidden_layers": 500, "inner_group_num": 3},
            "config.json: num_hidden_layers · inner_group_num must be at most 1000, not 1500",
        ),
        ({"inner_group_num": 0}, "config.json: inner_group_num must be a positive whole number, not 0"),
        ({"num_hidden_groups": 1.0}, "config.json: num_hidden_groups must be a positive whole number, not 1.0"),
        ({"embedding_size": "128"}, "config.json: embedding_size must be a positive whole number, not '128'"),
        # transformers' own configuration takes no null here.
        (
            {"classifier_dropout_prob": None},
            "config.json: classifier_dropout_prob must be a number between 0 and 1, not None",
        ),
        (
            {"position_embedding_type": "relative_key"},
            "config.json: position_embedding_type='relative_key' asks for relative positions; not computed here; "
            "fix: convert a checkpoint without it, or take position_embedding_type out of config.json if this one was "
            "trained without it",
        ),
        (
            {"is_decoder": True},
            "config.json: is_decoder=True asks for a decoder (causal attention); not computed here; fix: convert a "
            "checkpoint without it, or take is_decoder out of config.json if this one was trained without it",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_hf({**PUBLISHED, **fields})
    assert str(caught.value) == message


# Runs


def test_runs_go_through_the_layers_of_a_group_then_to_the_next_step() -> None:
    config = AlbertConfig(num_hidden_layers=3, num_hidden_groups=2, inner_group_num=2)
    assert config.num_layers == 6
    assert [config.place(i) for i in range(6)] == [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert config.runs_of(0, 1) == (1, 3)


@pytest.mark.parametrize("inner", [1, 3])
def test_every_group_runs_and_none_before_a_lower_one(inner: int) -> None:
    for layers in range(1, 41):
        for groups in range(1, layers + 1):
            config = AlbertConfig(num_hidden_layers=layers, num_hidden_groups=groups, inner_group_num=inner)
            used = [config.place(i)[0] for i in range(config.num_layers)]
            assert used == sorted(used)
            assert set(used) == set(range(groups))


def test_a_layer_is_stored_once_whatever_the_number_of_its_runs() -> None:
    sizes = {"num_hidden_layers": 12, "num_hidden_groups": 3, "inner_group_num": 2}
    theirs, core = pair("albert", **sizes)
    _, longer = pair("albert", **{**sizes, "num_hidden_layers": 24})
    assert (core.num_layers, longer.num_layers) == (24, 48)
    sizes_of = [sum(array.size for array in named_parameters(encoder).values()) for encoder in (core, longer)]
    assert sizes_of == [sum(parameter.numel() for parameter in theirs.parameters())] * 2
    assert core.layer_modules(0)[0] is core.layer_modules(6)[0]
    assert core.layer_modules(0)[0] is not core.layer_modules(1)[0]


def test_names_and_depths() -> None:
    core = model_of(num_hidden_layers=3, num_hidden_groups=2, inner_group_num=2).core
    assert core.layer_name(2) == "layer 2 (group 0, inner 0)"
    assert core.layer_name(4) == LAYER.format(1, 0)  # it runs once
    assert len({core.layer_name(i) for i in range(6)}) == 6
    depths = {core.depth_of(f"{LAYER.format(group, inner)}.ffn.weight") for group in (0, 1) for inner in (0, 1)}
    assert depths == {1, 2, 5, 6}
    assert core.depth_of("encoder.embedding_hidden_mapping_in.weight") == 0
    assert core.depth_of("pooler.bias") == 6


@pytest.mark.parametrize("inner", [1, 2])
def test_the_gradient_of_a_shared_layer_is_the_sum_over_its_runs(inner: int) -> None:
    theirs, core = pair("albert", num_hidden_layers=4, num_hidden_groups=1, inner_group_num=inner)
    inputs: Any = batches(core)["padded right"]
    shape = (*inputs["input_ids"].shape, core.config.hidden_size)
    projection = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    output = theirs(**{name: torch.tensor(value) for name, value in inputs.items()})
    ((output.last_hidden_state * torch.tensor(projection)).sum() + output.pooler_output.sum()).backward()

    def loss(arrays: dict[str, mx.array]) -> mx.array:
        core.update(tree_unflatten(list(arrays.items())))
        x = core(**inputs)
        assert x.pooler_output is not None
        return (x.last_hidden_state * mx.array(projection)).sum() + x.pooler_output.sum()

    gradients = mx.grad(loss)(dict(named_parameters(core)))
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.numpy()
        if name in core.padding_rows:
            expected[core.padding_rows[name]] = np.array(gradients[name])[core.padding_rows[name]]
        error = np.abs(np.array(gradients[name]) - expected).max()
        assert error < 2e-5 * max(1, np.abs(expected).max()), name


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_row_of_padding_gives_no_nan(dtype: mx.Dtype) -> None:
    _, core = pair("albert")
    core.set_dtype(dtype)
    inputs: Any = batches(core)["a row of padding"]
    output = core(**inputs)
    assert output.last_hidden_state.dtype == dtype
    assert mx.isfinite(output.last_hidden_state).all()


# Training


def test_a_shared_layer_counts_once_in_rates_by_depth() -> None:
    rules = parameter_rules(model_of(), rate=1.0, weight_decay=0.1, layer_decay=0.5)
    assert rules["core.embeddings.word_embeddings.weight"] == Rule(0.5, 0.1)
    assert rules["core.encoder.embedding_hidden_mapping_in.weight"] == Rule(0.5, 0.1)
    assert rules[f"core.{LAYER.format(0, 0)}.ffn.weight"] == Rule(1.0, 0.1)
    assert rules[f"core.{LAYER.format(0, 0)}.full_layer_layer_norm.weight"] == Rule(1.0, 0.0)
    assert rules["core.pooler.weight"] == Rule(1.0, 0.1)
    rules = parameter_rules(model_of(num_hidden_groups=3), rate=1.0, weight_decay=0.1, layer_decay=0.5)
    assert [rules[f"core.{LAYER.format(group, 0)}.ffn.weight"].rate for group in range(3)] == [0.25, 0.5, 1.0]
    assert rules["core.embeddings.word_embeddings.weight"].rate == 0.125


def test_freezing_a_layer_freezes_every_run_of_it() -> None:
    rules = parameter_rules(model_of(num_hidden_groups=3), rate=1.0, weight_decay=0.1, freeze_layers=5)
    frozen = {group: rules[f"core.{LAYER.format(group, 0)}.ffn.weight"].frozen for group in range(3)}
    assert frozen == {0: True, 1: True, 2: False}


def test_layers_that_share_their_weights_with_lower_ones_are_not_reinitialized() -> None:
    with pytest.raises(ConfigurationError) as caught:
        reinitialize_top(model_of(num_hidden_groups=3), 3, seed=1)
    assert str(caught.value) == (
        "reinitialize_top: 3 layers, and these share their parameters with lower ones; fix: 4 or more, or 0"
    )
    names = reinitialize_top(model_of(num_hidden_groups=3), 4, seed=1)
    parts = {name.removeprefix("core.").partition(".albert_layers")[0] for name in names}
    assert parts == {"encoder.albert_layer_groups.2", "pooler.weight", "pooler.bias"}


# Conversion


def test_the_pooler_in_a_masked_lms_file_is_kept_and_compared(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny(source, "AlbertForPreTraining")
    tensors = {name: tensor for name, tensor in load_file(source / "model.safetensors").items() if "sop" not in name}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["AlbertForMaskedLM"]}))
    report = convert(source, tmp_path / "out", verify=True).report
    assert report is not None
    assert report.passed, report.failures
    assert report.reference_class == "AlbertForMaskedLM"
    assert {point.name for point in report.points} >= {"pooler", "logits.logits"}
    core, _ = load(tmp_path / "out")
    assert core.has_pooler


def test_both_heads_of_pretraining_are_kept_and_compared(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "source", "AlbertForPreTraining", num_labels=3)
    report = convert(tmp_path / "source", tmp_path / "out", verify=True).report
    assert report is not None
    assert report.passed, report.failures
    assert {point.name for point in report.points} >= {"logits.prediction_logits", "logits.sop_logits"}
    ours, _ = mlxbert.load_with_head(tmp_path / "out")
    ids = np.arange(3, 12)[None]
    output = ours(ids)
    expected = model(torch.tensor(ids))
    for name in ("prediction_logits", "sop_logits"):
        np.testing.assert_allclose(np.array(getattr(output, name)), expected[name].detach().numpy(), atol=2e-5)
    assert output.sop_logits is not None
    assert output.sop_logits.shape == (1, 3)


def test_an_untied_decoder_is_used(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "AlbertForMaskedLM", tie_word_embeddings=False)
    report = convert(tmp_path / "source", tmp_path / "out", verify=True).report
    assert report is not None
    assert report.passed, report.failures
    heads = load_file(tmp_path / "out" / "heads.safetensors")
    assert heads["predictions.decoder.weight"].shape == (97, 24)


@pytest.mark.parametrize("prefix", ["", "albert.", "module.albert."])
def test_old_names_of_norms_and_prefixes(prefix: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "AlbertModel")
    tensors = {}
    for name, tensor in load_file(tmp_path / "source/model.safetensors").items():
        path, _, leaf = name.rpartition(".")
        is_norm = path.endswith(("LayerNorm", "full_layer_layer_norm"))
        tensors[f"{prefix}{path}.{ {'weight': 'gamma', 'bias': 'beta'}[leaf] if is_norm else leaf }"] = tensor
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(64)[None]
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_bytes((tmp_path / "source/config.json").read_bytes())
    save_file(tensors, tmp_path / "old/model.safetensors")
    convert(tmp_path / "old", tmp_path / "out-old", verify=False)
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    before, after = (load_file(tmp_path / out / "model.safetensors") for out in ("out", "out-old"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_layer_that_the_configuration_does_not_call_for_is_named(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "AlbertModel", num_hidden_groups=3)
    config = json.loads((tmp_path / "source/config.json").read_text())
    (tmp_path / "source/config.json").write_text(json.dumps({**config, "num_hidden_groups": 2}))
    with pytest.raises(MappingError) as caught:
        convert(tmp_path / "source", tmp_path / "out", verify=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == "albert: 16 tensors disagree with config.json"
    said = "attention.dense.weight: config.json, with num_hidden_groups=2, inner_group_num=1, calls for no such tensor"
    assert any(f"{LAYER.format(2, 0)}.{said}" in line for line in lines)
    (tmp_path / "source/config.json").write_text(json.dumps({**config, "inner_group_num": 2}))
    with pytest.raises(MappingError, match=r"albert: 48 tensors are missing from the checkpoint"):
        convert(tmp_path / "source", tmp_path / "out", verify=False)


# Quantization


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    random = np.random.default_rng(0)
    words = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for", "on", "are", "with", "as", "his"]
    file.write_text("\n".join(" ".join(random.choice(words, 8)) for _ in range(24)), encoding="utf-8")
    return file


@pytest.mark.parametrize("recipe", ["4bit", "mixed", "auto"])
def test_a_shared_layer_is_packed_once(recipe: str, texts: Path, tmp_path: Path) -> None:
    save_tiny(
        tmp_path / "source", "AlbertForSequenceClassification", num_hidden_layers=4, num_hidden_groups=1, **SMALL
    )
    options: dict[str, Any] = {} if recipe == "4bit" else {"calibration": texts}
    if recipe == "auto":
        options["target_bits"] = 5.5
    result = convert(tmp_path / "source", tmp_path / "out", quantize=recipe, verify=True, **options)
    assert result.report is not None
    assert result.report.verified, result.report.failures
    tensors = load_file(tmp_path / "out/model.safetensors")
    packed = sorted(name.removesuffix(".scales") for name in tensors if name.endswith(".scales"))
    layer = LAYER.format(0, 0)
    inside = [f"{layer}.attention.{name}" for name in ("query", "key", "value", "dense")]
    inside += [f"{layer}.ffn", f"{layer}.ffn_output"]
    assert set(packed) >= {*inside, "encoder.embedding_hidden_mapping_in", "embeddings.word_embeddings"}
    assert len(packed) == len(set(packed))
    if recipe == "auto":
        assert result.allotment is not None
        chosen = [choice.path for choice in result.allotment.choices]
        assert len(chosen) == len(set(chosen))
        assert sorted(chosen) == packed
        size = (tmp_path / "out/model.safetensors").stat().st_size
        assert 0 <= result.allotment.expected.bytes - size < 3000
