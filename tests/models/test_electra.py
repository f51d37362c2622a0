"""ELECTRA's own: the summary of a text in all its settings, mistakes in its heads, the width of the embeddings."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from converter.mapping import MappingError
from converter.parity.report import LOCAL, MAPPING, PADDING
from converter.verify import verify
from heads.pretrained.roberta import RobertaClassificationHead
from mlxbert.activations import ACTIVATIONS
from mlxbert.checkpoint import CheckpointError
from mlxbert.models.architecture import config_from_hf
from mlxbert.models.config_fields import ConfigError
from mlxbert.models.electra import ELECTRA, ElectraConfig
from mlxbert.pretrained import HeadChoice, PretrainedBert, attach_head
from tests.support.encoder_pairs import filled
from tests.support.tiny import save_tiny, save_tokenizer, tiny_model

torch = pytest.importorskip("torch", reason="the reference is transformers")

LIMIT = 2e-5
CHOICE = "ElectraForMultipleChoice"
D = ELECTRA.tiny["hidden_size"]


def converted(directory: Path, name: str, *, check: bool = False, **options: Any) -> Path:
    save_tiny(directory / "source", name, **options)
    save_tokenizer(directory / "source")
    return convert(directory / "source", directory / "out", verify=check).path


def with_head(theirs: Any, name: str) -> PretrainedBert:
    tensors = {key: mx.array(value.numpy()) for key, value in theirs.state_dict().items()}
    head = {key: value for key, value in tensors.items() if not key.startswith("electra.")}
    return attach_head(filled(theirs.electra), head, HeadChoice(name), theirs.config.to_dict(), place="x")


def scaled(ours: mx.array | None, theirs: Any) -> float:
    reference = theirs.detach().numpy()
    return float((np.abs(np.array(ours) - reference) / np.maximum(1, np.abs(reference))).max())


# --- the summary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("summary_type", ["first", "last", "mean", "cls_index"])
def test_the_summary_is_transformers_in_all_its_settings(summary_type: str) -> None:
    ids = np.random.default_rng(0).integers(5, 90, (2, 3, 7))
    mask = (np.arange(7) < np.array([[7, 4, 1], [2, 7, 6]])[..., None]).astype(np.int64)
    ids = ids * mask
    seen = []
    for project, activation, to_labels in product([True, False], ["gelu", "", "tanh", "relu"], [True, False]):
        theirs = tiny_model(
            CHOICE,
            num_hidden_layers=1,
            summary_type=summary_type,
            summary_use_proj=project,
            summary_activation=activation,
            summary_proj_to_labels=to_labels,
            num_labels=D,  # else transformers cannot run a projection to labels
        )
        assert any("sequence_summary" in key for key in theirs.state_dict()) == project
        with torch.no_grad():
            expected = theirs(torch.tensor(ids), torch.tensor(mask)).logits
        got = with_head(theirs, CHOICE)(ids, mask).logits
        assert got is not None
        assert got.shape == (2, 3)
        assert scaled(got, expected) < LIMIT
        seen.append(expected.numpy())
    assert len({np.round(one, 5).tobytes() for one in seen}) == 8  # `summary_proj_to_labels` changes nothing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"summary_type": "attn"},
            "summary_type 'attn' cannot be run by ElectraForMultipleChoice; it runs: first, ",
        ),
        ({"summary_type": "sum"}, "summary_type 'sum' cannot be run by ElectraForMultipleChoice"),
        (
            {"summary_proj_to_labels": True},
            "summary_proj_to_labels=True makes a summary of 2 numbers (num_labels), and the classifier of "
            "ElectraForMultipleChoice takes 48 (hidden_size); fix: set it to false",
        ),
        ({"summary_activation": "prelu"}, "summary_activation 'prelu' is not an activation this encoder computes"),
        ({"summary_activation": "glue"}, "summary_activation 'glue' is not an activation this encoder computes"),
    ],
)
def test_a_summary_that_cannot_be_run_is_refused_by_name_and_other_heads_are_not(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    out = converted(tmp_path, CHOICE)
    config = json.loads((out / "config.json").read_text()) | fields
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError) as error:
        mlxbert.load_with_head(out)
    assert message in str(error.value)
    mlxbert.load(out)
    config_from_hf(config)
    theirs = tiny_model("ElectraForTokenClassification", num_hidden_layers=1, **fields)
    with_head(theirs, "ElectraForTokenClassification")


def test_the_encoder_of_a_head_that_cannot_be_run_is_converted_and_the_head_is_said_not_to_be_compared(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    save_tiny(source, CHOICE)
    save_tokenizer(source)
    config = json.loads((source / "config.json").read_text()) | {"summary_type": "attn"}
    (source / "config.json").write_text(json.dumps(config))
    report = convert(source, tmp_path / "out", verify=True).report
    assert report is not None
    assert report.passed
    assert report.reference_class == "ElectraModel"
    (part,) = [part for part in report.scope if not part.compared]
    assert "summary_type 'attn' cannot be run by ElectraForMultipleChoice" in part.detail


@pytest.mark.parametrize("field", ["summary_type", "summary_activation"])
def test_what_transformers_refuses_for_every_class_is_refused_for_every_class(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be a text, not None"):
        config_from_hf({"model_type": "electra", field: None})


@pytest.mark.parametrize("summary_type", ["mean", "last"])
def test_a_summary_that_reads_padding_passes_both_gates(summary_type: str, tmp_path: Path) -> None:
    out = converted(tmp_path, CHOICE, check=True, summary_type=summary_type)
    report = verify(out, tmp_path / "source")
    assert report.passed
    assert report.reference_class == CHOICE
    logits = [(point.gate, point.check) for point in report.points if point.name.startswith("logits")]
    assert (MAPPING, LOCAL) in logits
    assert (MAPPING, PADDING) not in logits
    assert report.select(MAPPING, PADDING)


def test_without_its_projection_the_class_is_known_by_config_json_alone(tmp_path: Path) -> None:
    out = converted(tmp_path, CHOICE, check=True, summary_use_proj=False)
    assert set(mx.load(str(out / "heads.safetensors"))) == {"classifier.weight", "classifier.bias"}
    assert mlxbert.load_with_head(out)[0].architecture == CHOICE
    assert verify(out, tmp_path / "source").reference_class == CHOICE
    config = json.loads((out / "config.json").read_text())
    config["mlxbert"]["original_architectures"] = None
    (out / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a"}}))
    assert mlxbert.load_with_head(out)[0].architecture == "ElectraForTokenClassification"


def test_with_its_projection_the_class_is_known_by_the_tensors(tmp_path: Path) -> None:
    out = converted(tmp_path, CHOICE)
    config = json.loads((out / "config.json").read_text())
    config["mlxbert"]["original_architectures"] = None
    (out / "config.json").write_text(json.dumps(config))
    assert mlxbert.load_with_head(out)[0].architecture == CHOICE
    config["summary_use_proj"] = False
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"unexpected: sequence_summary\.summary\.weight"):
        mlxbert.load_with_head(out)


# --- the other heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("ElectraForSequenceClassification", "mx.tanh for GELU"),
        ("ElectraForSequenceClassification", "tanh-GELU for GELU"),
        ("ElectraForMaskedLM", "hidden_act for GELU"),
        ("ElectraForPreTraining", "GELU for hidden_act"),
        (CHOICE, "the summary without its activation"),
        (CHOICE, "the last token for the first"),
    ],
)
def test_a_mistake_in_a_head_is_seen_with_room_to_spare(name: str, mistake: str) -> None:
    theirs = tiny_model(name, hidden_act="relu")
    ours: Any = with_head(theirs, name)
    ids = np.random.default_rng(0).integers(5, 90, (2, 2, 7) if name == CHOICE else (3, 7))
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    assert scaled(ours(ids).logits, expected) < LIMIT
    head = ours.head
    if isinstance(head, RobertaClassificationHead):
        head.classifier._activation = mx.tanh if mistake.startswith("mx.tanh") else ACTIVATIONS["gelu_new"]
    elif name == "ElectraForMaskedLM":
        head.generator_predictions._activation = ACTIVATIONS["relu"]
    elif name == "ElectraForPreTraining":
        head.discriminator_predictions._activation = ACTIVATIONS["gelu"]
    elif mistake.startswith("the summary"):
        head.sequence_summary._activation = None
    else:
        head.sequence_summary._kind = "last"
    assert scaled(ours(ids).logits, expected) > 5 * LIMIT


def test_a_discriminator_scores_each_token_in_the_gates_and_in_the_quality_of_a_quantized_one(tmp_path: Path) -> None:
    from converter.quantize.quality import measure_quality

    out = converted(tmp_path, "ElectraForPreTraining", check=True)
    model, tokenizer = mlxbert.load_with_head(out)
    logits = model(np.array([[5, 6, 7], [8, 9, 10]])).logits
    assert logits is not None
    assert logits.shape == (2, 3)
    for quality in measure_quality(model, model, tokenizer, ("mean",)):
        assert (quality.logit_agreement, quality.logit_kl) == (1, 0)


def test_a_generator_s_words_are_tied_to_embeddings_of_another_width(tmp_path: Path) -> None:
    out = converted(tmp_path, "ElectraForMaskedLM", check=True)
    assert "generator_lm_head.weight" not in mx.load(str(out / "heads.safetensors"))
    (tmp_path / "untied").mkdir()
    untied = converted(tmp_path / "untied", "ElectraForMaskedLM", check=True, tie_word_embeddings=False)
    tensors: Any = mx.load(str(untied / "heads.safetensors"))
    assert tensors["generator_lm_head.weight"].shape == (97, 32)
    del tensors["generator_lm_head.weight"]
    mx.save_safetensors(str(untied / "heads.safetensors"), tensors, {"format": "mlx"})
    with pytest.raises(CheckpointError, match=r"missing: generator_lm_head\.weight"):
        mlxbert.load_with_head(untied)


# --- the width of the embeddings ------------------------------------------------------------------------------------


def test_a_projection_is_there_if_and_only_if_the_widths_differ(tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_tiny(source, "ElectraModel", embedding_size=D)
    save_tokenizer(source)
    out = convert(source, tmp_path / "out", verify=True).path
    assert not any("embeddings_project" in name for name in mx.load(str(out / "model.safetensors")))
    tensors: dict[str, Any] = {**cast(dict[str, Any], mx.load(str(source / "model.safetensors")))}
    tensors |= {"embeddings_project.weight": mx.zeros((D, D)), "embeddings_project.bias": mx.zeros((D,))}
    mx.save_safetensors(str(source / "model.safetensors"), tensors, {"format": "pt"})
    with pytest.raises(MappingError, match=r"embeddings_project\.weight: config\.json.* calls for no such tensor"):
        convert(source, tmp_path / "other", verify=False)


def test_embeddings_of_another_width_are_packed_read_backwards_and_given_in_the_place_of_ids(tmp_path: Path) -> None:
    out = converted(tmp_path, "ElectraForMaskedLM", hidden_size=64, intermediate_size=128)
    model, _ = mlxbert.load_with_head(out)
    core: Any = model.core
    assert core.config.embedding_size == 32
    ids = np.array([[5, 6, 7]])
    rows = core.embeddings.word_embeddings(mx.array(ids))
    assert rows.shape == (1, 3, 32)
    assert mx.array_equal(core(inputs_embeds=rows).last_hidden_state, core(ids).last_hidden_state)
    packed = convert(tmp_path / "source", tmp_path / "packed", quantize="8bit", verify=False).path
    for dequantize in (True, False):
        quantized, _ = mlxbert.load_with_head(packed, dequantize=dequantize)
        assert quantized.core.packed is not None
        assert {"embeddings.word_embeddings", "embeddings_project"} <= set(quantized.core.packed.layers)
        a, b = (np.array(one(ids).logits) for one in (model, quantized))
        assert np.abs(a - b).max() < 0.03 * np.abs(a).max()


def test_the_config_of_the_hub_is_read() -> None:
    text = """{
        "attention_probs_dropout_prob": 0.1, "classifier_dropout": null, "embedding_size": 128, "hidden_size": 256,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02, "intermediate_size": 1024,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "electra", "num_hidden_layers": 12,
        "num_attention_heads": 4, "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2,
        "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first",
        "summary_use_proj": true, "use_cache": true, "vocab_size": 30522
    }"""
    small = json.loads(text)
    assert config_from_hf(small) == ElectraConfig()
    with pytest.raises(ConfigError, match="position_embedding_type='relative_key' asks for relative positions"):
        config_from_hf(small | {"position_embedding_type": "relative_key"})
