"""The heads' logits against PyTorch: every `BertFor*` class, at run time and in both gates; wrong heads are named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from converter.parity.gates import compare, measure
from converter.parity.probes import make_probes
from converter.parity.reference import build_reference
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, ParityReport, Provenance
from converter.source import open_source
from converter.verify import verify
from mlxbert.activations import gelu_tanh
from mlxbert.pretrained import PretrainedBert
from tests.support.tiny import CLASSES, save_tiny

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")

HEADS = [name for name in CLASSES if name != "BertModel"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in HEADS]
VARIANTS += [
    ("BertForMaskedLM", {"tie_word_embeddings": False}),
    ("BertForPreTraining", {"tie_word_embeddings": False}),
    ("BertForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    ("BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    ("BertForSequenceClassification", {"num_labels": 5, "problem_type": "multi_label_classification"}),
    ("BertForSequenceClassification", {"num_labels": 3, "problem_type": "single_label_classification"}),
    ("BertForTokenClassification", {"num_labels": 7, "classifier_dropout": 0.5}),
]
FIELDS = {
    "BertForPreTraining": ["prediction_logits", "seq_relationship_logits"],
    "BertForQuestionAnswering": ["start_logits", "end_logits"],
}


def fields(architecture: str) -> list[str]:
    return FIELDS.get(architecture, ["logits"])


def batch(architecture: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shape = (3, 4, 11) if architecture == "BertForMultipleChoice" else (4, 11)
    mask = np.ones(shape, dtype=np.int64)
    mask[..., 1, 6:] = 0
    return {
        "input_ids": rng.integers(0, 97, shape),
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, shape),
    }


@pytest.mark.parametrize(("architecture", "options"), VARIANTS, ids=lambda value: str(value))
def test_the_logits_are_pytorchs_under_transformers_field_names(
    tmp_path: Path, architecture: str, options: dict[str, Any]
) -> None:
    reference = save_tiny(tmp_path / "source", architecture, **options)
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    model, _ = mlxbert.load_with_head(tmp_path / "out")
    inputs = batch(architecture)
    with torch.inference_mode():
        expected = reference(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    got = model(**inputs)
    assert [name for name in expected if name.endswith("logits")] == fields(architecture)
    for name in fields(architecture):
        found = measure(expected[name].numpy(), np.array(getattr(got, name)))
        assert found.problem is None
        assert found.max_rel is not None
        assert found.max_rel < 2e-5, name
    assert model.architecture == architecture
    assert model.labels.id2label == reference.config.id2label
    assert model.labels.problem_type == reference.config.problem_type


@pytest.mark.parametrize(("architecture", "options"), VARIANTS, ids=lambda value: str(value))
def test_both_gates_compare_the_logits(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    save_tiny(tmp_path / "source", architecture, **options)
    out = convert(tmp_path / "source", tmp_path / "out", dtype="bfloat16", verify=False).path
    report = verify(out, tmp_path / "source")
    assert report.passed, report.failures
    assert report.reference_class == architecture
    assert report.unexpected == ()
    assert "heads.safetensors" in report.provenance.weights
    for gate, check in ((MAPPING, CUMULATIVE), (MAPPING, LOCAL), (MAPPING, PADDING), (PRECISION, CUMULATIVE)):
        names = [point.name for point in report.select(gate, check) if point.name.startswith("logits.")]
        assert names == [f"logits.{name}" for name in fields(architecture)]
    (point, *_) = [point for point in report.select(PRECISION, CUMULATIVE) if point.name.startswith("logits.")]
    assert point.max_rel
    assert point.max_rel > 0


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "BertForTokenClassification"])
def test_a_pooler_that_the_class_leaves_out_is_compared_all_the_same(tmp_path: Path, architecture: str) -> None:
    model = save_tiny(tmp_path / "source", architecture)
    state = dict(model.state_dict())
    state |= {"bert.pooler.dense.weight": torch.randn(48, 48), "bert.pooler.dense.bias": torch.randn(48)}
    torch.save(state, tmp_path / "source" / "pytorch_model.bin")
    (tmp_path / "source" / "model.safetensors").unlink()
    report = convert(tmp_path / "source", tmp_path / "out").report
    assert report is not None
    assert report.reference_class == architecture
    assert report.unexpected == ()
    assert {"pooler", "logits.logits"} <= {point.name for point in report.select(MAPPING, LOCAL)}
    assert f"{architecture} has no pooler: the file's own is compared with BertModel's" in report.provenance.notes


def test_a_masked_lm_whose_file_has_the_next_sentence_head_too_has_both_compared(tmp_path: Path) -> None:
    # bert-base-uncased: the class is BertForMaskedLM, the file that of BertForPreTraining.
    save_tiny(tmp_path / "source", "BertForPreTraining")
    rename_class(tmp_path / "source", "BertForMaskedLM")
    report = convert(tmp_path / "source", tmp_path / "out").report
    assert report is not None
    assert report.reference_class == "BertForPreTraining"
    assert report.unexpected == ()
    model, _ = mlxbert.load_with_head(tmp_path / "out")
    assert model.architecture == "BertForMaskedLM"
    assert model(np.array([[1, 2, 3]])).logits is not None


def rename_class(source: Path, *names: str) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"architectures": list(names)}))


def test_an_untied_decoder_without_a_bias_of_its_own_has_the_predictions_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_tiny(tmp_path / "source", "BertForMaskedLM", tie_word_embeddings=False)
    file = tmp_path / "source" / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if name != "cls.predictions.decoder.bias"}
    save_file(tensors, file, {"format": "pt"})
    report = convert(tmp_path / "source", tmp_path / "out").report
    assert report is not None
    assert any("cls.predictions.decoder.bias is not in the file" in note for note in report.provenance.notes)
    bias = model.cls.predictions.bias.detach().numpy()
    converted, _ = mlxbert.load_with_head(tmp_path / "out")
    ids = np.array([[1, 2, 3]])
    with_bias = np.array(converted(ids).logits)
    converted.head.cls.predictions.bias = mx.zeros(97)
    difference = with_bias - np.array(converted(ids).logits)  # (1, 3, 97)
    np.testing.assert_allclose(difference, np.broadcast_to(bias, difference.shape), atol=1e-5)


def test_a_tied_decoder_bias_that_differs_is_the_one_that_counts(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path / "source", "BertForMaskedLM")
    file = tmp_path / "source" / "model.safetensors"
    save_file({**load_file(file), "cls.predictions.decoder.bias": torch.randn(97)}, file, {"format": "pt"})
    report = convert(tmp_path / "source", tmp_path / "out").report
    assert report is not None
    assert report.passed


def test_a_head_that_is_not_whole_is_left_out_and_said(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny(tmp_path / "source", "BertForMaskedLM")
    file = tmp_path / "source" / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if not name.startswith("cls.predictions.transform")}
    save_file(tensors, file, {"format": "pt"})
    report = convert(tmp_path / "source", tmp_path / "out").report
    assert report is not None
    assert report.reference_class == "BertModel"
    assert report.unexpected == ("cls.predictions.bias",)
    (part,) = report.uncompared
    assert part.name == "own head"
    assert "its head is not that of a BertForMaskedLM of this config.json: missing: " in part.detail
    assert "cls.predictions.transform.dense.weight" in part.detail
    assert "\n" not in part.detail
    assert report.passed
    assert not report.verified
    with pytest.raises(mlxbert.MLXBertError, match=r"missing: cls\.predictions\.transform\.dense\.weight"):
        mlxbert.load_with_head(tmp_path / "out")


# --- wrong heads ----------------------------------------------------------------------------------------------------


def gate(source: Path, mutate: Callable[[PretrainedBert], None], *, written_only: bool = False) -> ParityReport:
    reference = build_reference(open_source(str(source)))
    model, _ = mlxbert.load_with_head(source.parent / "out")
    wrong = copy.deepcopy(model)
    mutate(wrong)
    probes = [probe for probe in make_probes(model.config) if probe.shape[1] <= 7]
    provenance = Provenance("tiny", None, {}, "the written weights", 0)
    float32 = model if written_only else wrong
    return compare(reference, float32, wrong, probes, written_dtype="float32", provenance=provenance)


def swap_rows(model: PretrainedBert) -> None:
    model.head.classifier.weight = model.head.classifier.weight[::-1]


def swap_spans(model: PretrainedBert) -> None:
    outputs = model.head.qa_outputs
    outputs.weight, outputs.bias = outputs.weight[::-1], outputs.bias[::-1]


def swap_next_sentence(model: PretrainedBert) -> None:
    linear = model.head.cls.seq_relationship
    linear.weight, linear.bias = linear.weight[::-1], linear.bias[::-1]


def shift_decoder_bias(model: PretrainedBert) -> None:
    predictions = model.head.cls.predictions
    predictions.bias = mx.roll(predictions.bias, 1)


def other_eps(model: PretrainedBert) -> None:
    model.head.cls.predictions.transform.LayerNorm.eps = 1e-4


def tanh_gelu(model: PretrainedBert) -> None:
    model.head.cls.predictions.transform._activation = gelu_tanh


def transpose_transform(model: PretrainedBert) -> None:
    dense = model.head.cls.predictions.transform.dense
    dense.weight = dense.weight.T


def poison(model: PretrainedBert) -> None:
    model.head.cls.predictions.transform.dense.bias[3] = float("nan")


MUTATIONS: list[tuple[str, Callable[[PretrainedBert], None], str]] = [
    ("BertForSequenceClassification", swap_rows, "logits.logits"),
    ("BertForTokenClassification", swap_rows, "logits.logits"),
    ("BertForQuestionAnswering", swap_spans, "logits.start_logits"),
    ("BertForNextSentencePrediction", swap_next_sentence, "logits.logits"),
    ("BertForPreTraining", swap_next_sentence, "logits.seq_relationship_logits"),
    ("BertForPreTraining", shift_decoder_bias, "logits.prediction_logits"),
    ("BertForMaskedLM", shift_decoder_bias, "logits.logits"),
    ("BertForMaskedLM", other_eps, "logits.logits"),
    ("BertForMaskedLM", tanh_gelu, "logits.logits"),
    ("BertForMaskedLM", transpose_transform, "logits.logits"),
    ("BertForMaskedLM", poison, "logits.logits"),
]


@pytest.mark.parametrize(("architecture", "mutate", "name"), MUTATIONS)
def test_a_wrong_head_is_named_and_nothing_else(
    tmp_path: Path, architecture: str, mutate: Callable[[PretrainedBert], None], name: str
) -> None:
    save_tiny(tmp_path / "source", architecture)
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    report = gate(tmp_path / "source", mutate)
    assert not report.passed
    assert report.first_diverging_layer == name
    assert all(point.passed for point in report.points if not point.name.startswith("logits."))
    (point,) = [point for point in report.select(MAPPING, LOCAL) if point.name == name]
    assert point.problem == "NaN in MLX" if mutate is poison else (point.max_rel or 0) >= 5 * point.limit
    assert any(line.startswith(f"mapping gate, layer-local: {name}: ") for line in report.failures)


def test_a_nan_in_the_written_head_fails_the_precision_gate_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForMaskedLM")
    convert(tmp_path / "source", tmp_path / "out", verify=False)
    report = gate(tmp_path / "source", poison, written_only=True)
    assert report.gate_passed(MAPPING)
    assert not report.gate_passed(PRECISION)


def test_a_changed_or_missing_head_file_does_not_verify(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForSequenceClassification")
    out = convert(tmp_path / "source", tmp_path / "out", verify=False).path
    tensors = cast(dict[str, mx.array], mx.load(str(out / "heads.safetensors")))
    tensors["classifier.bias"] = tensors["classifier.bias"] + 1e-3
    mx.save_safetensors(str(out / "heads.safetensors"), tensors, {"format": "mlx"})
    report = verify(out, tmp_path / "source")
    assert report.first_diverging_layer == "logits.logits"
    (out / "heads.safetensors").unlink()
    failures = "\n".join(verify(out, tmp_path / "source").failures)
    assert "mapping gate, cumulative: logits.logits: the MLX model does not have it" in failures
