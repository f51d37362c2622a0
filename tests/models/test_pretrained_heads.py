"""`load_with_head`: which class is chosen, what is said about it, and what is refused; the heads themselves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from heads.errors import HeadError
from heads.pretrained import MaskedLMHead, MultipleChoiceHead, Predictions, SequenceClassificationHead, SpanHead
from mlxbert.checkpoint import CheckpointError
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.models.bert import BERT
from mlxbert.models.config_fields import ConfigError
from mlxbert.pretrained import HeadClassError, Labels, choose_head_class
from tests.support.tiny import save_tiny

torch = pytest.importorskip("torch", reason="the sources are built by transformers")

HEAD_CLASSES = {name: head.prefixes for name, head in BERT.heads.items()}
PREDICTIONS, NEXT_SENTENCE = HEAD_CLASSES["BertForPreTraining"]
(CLASSIFIER,), (SPAN,) = HEAD_CLASSES["BertForTokenClassification"], HEAD_CLASSES["BertForQuestionAnswering"]


def choose(architectures: list[str], tensors: list[str], **rest: Any) -> Any:
    return choose_head_class({"model_type": "bert", "architectures": architectures}, tensors, **rest)


BOTH = [f"{PREDICTIONS}bias", f"{NEXT_SENTENCE}bias"]
CLASSIFIER_TENSORS = [f"{CLASSIFIER}weight", f"{CLASSIFIER}bias"]


def converted(directory: Path, architecture: str, **options: Any) -> Path:
    save_tiny(directory / "source", architecture, **options)
    return convert(directory / "source", directory / "out", verify=False).path


def set_config(out: Path, original: Any = ..., **fields: Any) -> None:
    config = json.loads((out / "config.json").read_text())
    if original is not ...:
        config["mlxbert"]["original_architectures"] = original
    (out / "config.json").write_text(json.dumps(config | fields))


def edit_heads(out: Path, change: dict[str, mx.array | None]) -> None:
    file = out / "heads.safetensors"
    tensors = cast(dict[str, Any], mx.load(str(file))) | change
    mx.save_safetensors(str(file), {name: t for name, t in tensors.items() if t is not None}, {"format": "mlx"})


# --- the class ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEAD_CLASSES)
def test_the_class_that_the_config_names_is_taken_without_a_word(name: str) -> None:
    tensors = [f"{prefix}bias" for prefix in HEAD_CLASSES[name]]
    choice = choose([name], tensors, has_pooler=True, place="x")
    assert (choice.name, choice.note) == (name, None)


@pytest.mark.parametrize(
    ("tensors", "has_pooler", "name"),
    [
        (BOTH, True, "BertForPreTraining"),
        (BOTH[:1], False, "BertForMaskedLM"),
        (BOTH[1:], True, "BertForNextSentencePrediction"),
        ([f"{SPAN}bias"], False, "BertForQuestionAnswering"),
        ([*BOTH, f"{SPAN}bias"], True, "BertForQuestionAnswering"),
        (CLASSIFIER_TENSORS, True, "BertForSequenceClassification"),
        ([*BOTH, *CLASSIFIER_TENSORS], True, "BertForSequenceClassification"),
        (CLASSIFIER_TENSORS, False, "BertForTokenClassification"),
    ],
)
@pytest.mark.parametrize("architectures", [[], ["BertModel"], ["BertForMyTask"]])
def test_without_a_known_class_the_tensors_tell_and_it_is_said(
    tensors: list[str], has_pooler: bool, name: str, architectures: list[str]
) -> None:
    choice = choose(architectures, tensors, has_pooler=has_pooler, place="x")
    assert choice.name == name
    assert choice.note is not None
    assert choice.note.startswith(f"x: its config names {architectures[0] if architectures else 'no class'}; from its")
    assert f"it is taken for {name}" in choice.note
    assert ("BertForMultipleChoice" in choice.note) == (CLASSIFIER_TENSORS[0] in tensors)
    assert "\n" not in choice.note


def test_what_does_not_fit_or_tell_is_one_line() -> None:
    with pytest.raises(HeadClassError) as error:
        choose(["BertForQuestionAnswering"], BOTH, has_pooler=True, place="x")
    assert str(error.value) == (
        "x: its config names BertForQuestionAnswering, which needs qa_outputs.*, and there is cls.predictions.*, "
        "cls.seq_relationship.*; fix: convert the complete checkpoint"
    )
    with pytest.raises(HeadClassError) as error:
        choose([], [*CLASSIFIER_TENSORS, f"{SPAN}bias"], has_pooler=True, place="x")
    assert str(error.value) == (
        "x: its config names no class, and its tensors (classifier.*, qa_outputs.*) do not tell the head's class; "
        'fix: give the source\'s config.json its "architectures" and convert again'
    )


def test_what_is_left_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = converted(tmp_path, "BertForPreTraining")
    set_config(out, original=["BertForMaskedLM"])
    with caplog.at_level(logging.WARNING, logger="mlxbert"):
        model, _ = mlxbert.load_with_head(out)
    assert model.architecture == "BertForMaskedLM"
    assert caplog.messages == [f"mlxbert: {out}: BertForMaskedLM has no use for cls.seq_relationship.*"]


def test_a_bare_state_dict_is_loaded_by_its_tensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = converted(tmp_path, "BertForTokenClassification")
    set_config(out, original=None)
    with caplog.at_level(logging.WARNING, logger="mlxbert"):
        model, _ = mlxbert.load_with_head(out)
    assert model.architecture == "BertForTokenClassification"
    assert "its config names no class; from its tensors (classifier.*)" in caplog.messages[0]


# --- refusals -------------------------------------------------------------------------------------------------------


def test_without_a_head_one_line_says_so(tmp_path: Path) -> None:
    out = converted(tmp_path, "BertModel")
    with pytest.raises(CheckpointError) as error:
        mlxbert.load_with_head(out)
    assert str(error.value) == (
        f"{out}: there is no heads.safetensors, so no head: its source had none; fix: mlxbert.load for the encoder "
        "alone, or convert a checkpoint of a class with a head"
    )


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(tmp_path: Path) -> None:
    out = converted(tmp_path, "BertForMaskedLM")
    edit_heads(
        out,
        {
            "cls.predictions.transform.dense.bias": None,
            "cls.predictions.bias": mx.zeros((5,)),
            "cls.predictions.extra": mx.zeros((1,)),
            "strange": mx.zeros((1,)),
        },
    )
    with pytest.raises(CheckpointError) as error:
        mlxbert.load_with_head(out)
    assert str(error.value).splitlines() == [
        f"{out}: its head is not that of a BertForMaskedLM of this config.json; fix: mlxbert.load for the encoder "
        "alone, or convert a checkpoint whose head is whole",
        "  missing: cls.predictions.transform.dense.bias",
        "  unexpected: cls.predictions.extra",
        "  unexpected: strange",
        "  cls.predictions.bias is (5,), config.json calls for (97,)",
    ]


def test_an_untied_decoder_that_is_missing_is_not_replaced_by_the_embeddings(tmp_path: Path) -> None:
    out = converted(tmp_path, "BertForMaskedLM", tie_word_embeddings=False)
    edit_heads(out, {"cls.predictions.decoder.weight": None})
    with pytest.raises(CheckpointError, match=r"missing: cls\.predictions\.decoder\.weight"):
        mlxbert.load_with_head(out)


def test_a_number_of_labels_that_is_not_the_configs_is_refused(tmp_path: Path) -> None:
    out = converted(tmp_path, "BertForSequenceClassification", num_labels=3)
    set_config(out, id2label={"0": "a", "1": "b"})
    with pytest.raises(CheckpointError, match=r"classifier\.weight is \(3, 48\), config\.json calls for \(2, 48\)"):
        mlxbert.load_with_head(out)


def test_a_head_that_mlxbert_trained_a_damaged_one_and_a_lost_pooler_are_refused(tmp_path: Path) -> None:
    out = converted(tmp_path, "BertForTokenClassification")
    set_config(out, original=["BertForSequenceClassification"])
    with pytest.raises(CheckpointError, match="BertForSequenceClassification reads the pooler, and this encoder has"):
        mlxbert.load_with_head(out)
    config = json.loads((out / "config.json").read_text())
    set_config(out, mlxbert={**config["mlxbert"], "head": {"name": "binary"}})
    with pytest.raises(CheckpointError, match=r"is a head that mlxbert trained; fix: load it with mlxbert\.BertWith"):
        mlxbert.load_with_head(out)
    (out / "heads.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match=r"is damaged .*; fix: convert or download again"):
        mlxbert.load_with_head(out)


# --- what comes out -------------------------------------------------------------------------------------------------


def test_hidden_states_and_attentions_come_on_request_alone(tmp_path: Path) -> None:
    model, _ = mlxbert.load_with_head(converted(tmp_path, "BertForQuestionAnswering"))
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    assert model(ids).hidden_states is None
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert output.hidden_states is not None
    assert output.attentions is not None
    assert [state.shape for state in output.hidden_states] == [(2, 3, 48)] * 4
    assert [weights.shape for weights in output.attentions] == [(2, 4, 3, 3)] * 3
    assert output.logits is None
    assert output.start_logits is not None
    assert output.start_logits.shape == (2, 3)


def test_label_names_survive(tmp_path: Path) -> None:
    names = {0: "O", 1: "B-PER", 2: "I-PER"}
    model, _ = mlxbert.load_with_head(converted(tmp_path, "BertForTokenClassification", id2label=names))
    assert model.labels.id2label == names


def test_a_saved_sentence_model_pools_as_before(tmp_path: Path) -> None:
    out = converted(tmp_path, "BertForMaskedLM")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (out / "modules.json").write_text(json.dumps(modules))
    (out / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (out / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    model, _ = mlxbert.load_with_head(out)
    model.save(tmp_path / "saved")
    before, after = (SentenceEncoder.from_pretrained(path) for path in (out, tmp_path / "saved"))
    np.testing.assert_array_equal(before.encode(["a b c"]), after.encode(["a b c"]))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_holds_head_and_encoder(tmp_path: Path, dtype: mx.Dtype) -> None:
    out = converted(tmp_path, "BertForPreTraining")
    model, _ = mlxbert.load_with_head(out, dtype=dtype)
    exact, _ = mlxbert.load_with_head(out)
    got, expected = (one(np.array([[1, 2, 3, 4]])).prediction_logits for one in (model, exact))
    assert got is not None
    assert expected is not None
    assert got.dtype == dtype
    assert float(mx.abs(got.astype(mx.float32) - expected).max()) < 0.2
    assert not model.training


def test_multiple_choice_takes_three_axes(tmp_path: Path) -> None:
    model, _ = mlxbert.load_with_head(converted(tmp_path, "BertForMultipleChoice"))
    ids = np.arange(24).reshape(2, 3, 4)
    logits = model(ids).logits
    assert logits is not None
    alone = [[model(ids[b : b + 1, c : c + 1]).logits for c in range(3)] for b in range(2)]
    np.testing.assert_allclose(np.array(logits), [[float(cast(mx.array, x)) for x in row] for row in alone], atol=1e-5)
    with pytest.raises(ValueError, match=r"multiple choice takes \(batch, choices, length\)"):
        model(ids[0])


def test_the_heads_alone_are_pure_functions_of_arrays() -> None:
    hidden, pooled = mx.random.normal((2, 3, 8)), mx.random.normal((2, 8))

    def decode(x: mx.array) -> mx.array:
        return x @ table.T

    table = mx.random.normal((11, 8))
    masked = MaskedLMHead(Predictions(8, 11, lambda x: x, 1e-12))
    assert masked(hidden, None, decode)["logits"].shape == (2, 3, 11)
    assert SpanHead(8)(hidden, None, decode)["end_logits"].shape == (2, 3)
    assert MultipleChoiceHead(8)(hidden, pooled, decode)["logits"].shape == (2,)
    assert SequenceClassificationHead(8, 5)(hidden, pooled, decode)["logits"].shape == (2, 5)
    with pytest.raises(HeadError, match="SequenceClassificationHead reads the pooler's output: the encoder has none"):
        SequenceClassificationHead(8, 5)(hidden, None, decode)


def test_labels_are_read_as_transformers_reads_them() -> None:
    assert Labels.from_hf({}).id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert Labels.from_hf({"num_labels": 3}).num_labels == 3
    assert Labels.from_hf({"id2label": {"1": "b", "0": "a"}}).id2label == {0: "a", 1: "b"}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"num_labels": 0}, "num_labels must be a positive whole number, not 0"),
        ({"id2label": ["a"]}, "id2label must map whole numbers to names"),
        ({"id2label": {"0": "a", "2": "b"}}, r"id2label has the keys \[0, 2\]; expected 0, 1, 2"),
        ({"problem_type": "ranking"}, "problem_type 'ranking' is not known; known are regression"),
    ]
    for config, message in bad:
        with pytest.raises(ConfigError, match=message):
            Labels.from_hf(config)
