"""The verdict and its scope: what was compared and what was not, in terminal, card, `parity.json` and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import converter.parity.outputs as sentences
import mlxbert
from converter import cli
from converter.card.card import LOAD, LOAD_WITH_HEAD, SENTENCES
from converter.convert import convert
from converter.parity.report import SENTENCE, ParityReport
from converter.publish.push import gather_evidence
from converter.verify import verify, write_reports
from mlxbert.files.output_file import FileRecord, manifest_bytes, read_manifest
from tests.support.exported_samples import trained
from tests.support.tiny import save_tiny

torch = pytest.importorskip("torch", reason="the reference is PyTorch, which is not installed")

CLASSIFIER, TOKENS = "BertForSequenceClassification", "BertForTokenClassification"


def change(directory: Path, drop: tuple[str, ...] = (), **fields: Any) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({name: value for name, value in config.items() if name not in drop}))


def change_tensors(directory: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def run(command: Any, *arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def said(result: Any) -> str:
    return " ".join(result.output.split())


LABELS = ("id2label", "label2id", "num_labels")
WRONG_LABELS: dict[str, tuple[str, int, dict[str, Any], list[str], str]] = {
    "no labels, one row": (CLASSIFIER, 1, {}, ["LABEL_0"], "classifier.weight has 1 row: its label is LABEL_0"),
    "no labels, three rows": (CLASSIFIER, 3, {}, ["LABEL_0", "LABEL_1", "LABEL_2"], "no number of labels (2 is then"),
    "another num_labels": (TOKENS, 4, {"num_labels": 7}, [f"LABEL_{i}" for i in range(4)], "says num_labels 7, and"),
    "too few names": (
        CLASSIFIER,
        3,
        {"id2label": {"0": "good", "1": "bad"}},
        ["LABEL_0", "LABEL_1", "LABEL_2"],
        "names 2 labels, and classifier.weight has 3 rows: which is which is not known",
    ),
    "too many names": (
        TOKENS,
        2,
        {"id2label": {"0": "a", "1": "b", "2": "c"}},
        ["LABEL_0", "LABEL_1"],
        "names 3 labels, and classifier.weight has 2 rows",
    ),
    "labels 0, 1 and 3": (
        CLASSIFIER,
        3,
        {"id2label": {"0": "a", "1": "b", "3": "c"}},
        ["a", "b", "LABEL_2"],
        "(its keys: 0, 1, 3), and classifier.weight has 3 rows: labels are a, b, LABEL_2",
    ),
    "a name for the last row and gaps": (
        CLASSIFIER,
        4,
        {"id2label": {"0": "a", "1": "b", "3": "c"}},
        ["a", "b", "LABEL_2", "c"],
        "(its keys: 0, 1, 3), and classifier.weight has 4 rows: labels are a, b, LABEL_2, c",
    ),
    "numbers as names": (
        CLASSIFIER,
        2,
        {"id2label": {"0": 5, "1": 7}},
        ["5", "7"],
        "does not name each output once by a text (its keys: 0, 1), and classifier.weight has 2 rows: labels are 5, 7",
    ),
    "names in a list": (CLASSIFIER, 2, {"id2label": ["a", "b"]}, ["LABEL_0", "LABEL_1"], "id2label is not an object"),
    "a number that is text": (
        CLASSIFIER,
        3,
        {"num_labels": "2"},
        [f"LABEL_{i}" for i in range(3)],
        "num_labels '2', and",
    ),
    "an odd problem_type": (
        CLASSIFIER,
        2,
        {"id2label": {"0": "a", "1": "b"}, "problem_type": "odd"},
        ["a", "b"],
        "problem_type 'odd' is not known to transformers: left out",
    ),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_labels_that_do_not_fit_the_classifier_are_taken_from_its_rows(case: str, tmp_path: Path) -> None:
    """The head is compared and loads; transformers gives the same logits with the written labels."""
    architecture, rows, fields, labels, words = WRONG_LABELS[case]
    model = save_tiny(tmp_path / "source", architecture, num_labels=rows)
    change(tmp_path / "source", drop=LABELS)
    change(tmp_path / "source", **fields)
    done = run(cli.convert, tmp_path / "source", "-o", tmp_path / "out", "--verify")
    assert done.exit_code == 0, done.output
    assert words in said(done)
    assert "own head" in said(done).partition("Parity VERIFIED: ")[2]
    head, _ = mlxbert.load_with_head(tmp_path / "out")
    assert list(head.labels.id2label.values()) == labels
    ids = np.array([[2, 7, 9, 3]])
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_allclose(np.array(head(ids).logits), expected, atol=1e-5)
    assert "mlxbert.load_with_head(" in (tmp_path / "out" / "README.md").read_text()


def test_labels_that_mean_nothing_do_not_stop_an_encoder(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    change(tmp_path / "source", id2label={"a": "b"}, label2id={"b": "a"}, problem_type="odd")
    result = convert(tmp_path / "source", tmp_path / "out", verify=True)
    assert result.report is not None
    assert result.report.verified
    assert any(note.startswith("id2label does not name outputs 0, 1, 2") for note in result.notes)


def drop_bias_row(tensors: dict[str, Any]) -> None:
    tensors["classifier.bias"] = tensors["classifier.bias"][:-1].clone()


def drop_transform(tensors: dict[str, Any]) -> None:
    del tensors["cls.predictions.transform.dense.weight"]


def two_heads(tensors: dict[str, Any]) -> None:
    tensors["qa_outputs.weight"], tensors["qa_outputs.bias"] = torch.zeros(2, 48), torch.zeros(2)


def wide_spans(tensors: dict[str, Any]) -> None:
    tensors["qa_outputs.weight"], tensors["qa_outputs.bias"] = torch.zeros(4, 48), torch.zeros(4)


BROKEN_HEADS = {
    "a bias of another length": (CLASSIFIER, drop_bias_row, {"num_labels": 3}, "own head", False),
    "half a head": ("BertForMaskedLM", drop_transform, {}, "own head", False),
    "spans of four outputs": ("BertForQuestionAnswering", wide_spans, {}, "own head", False),
    "another class's head beside it": (CLASSIFIER, two_heads, {"num_labels": 3}, "other head tensors", True),
}


@pytest.mark.parametrize("case", BROKEN_HEADS)
def test_a_head_that_cannot_be_compared_is_not_verified_and_not_offered(case: str, tmp_path: Path) -> None:
    architecture, edit, options, part, runs = BROKEN_HEADS[case]
    save_tiny(tmp_path / "source", architecture, **options)
    change_tensors(tmp_path / "source", edit)
    out = tmp_path / "out"
    done = run(cli.convert, tmp_path / "source", "-o", out, "--verify")
    assert done.exit_code == 3, done.output
    assert f"Parity NOT VERIFIED as a whole: not compared: {part} (" in said(done)
    assert f"; not compared: {part} (" in said(done).partition("PART the same model as source in encoder")[2]
    report = ParityReport.read(out)
    assert report is not None
    assert report.passed
    assert [left.name for left in report.uncompared] == [part]
    card = (out / "README.md").read_text()
    assert f"**Not compared: {part}** (" in card
    assert ("mlxbert.load_with_head(" in card) == ("mlxbert.load_with_head(" in done.output) == runs
    if not runs:
        with pytest.raises(mlxbert.MLXBertError, match=r"fix: mlxbert\.load "):
            mlxbert.load_with_head(out)
    assert run(cli.verify, out, "--reference", tmp_path / "source").exit_code == 3
    with pytest.raises(mlxbert.MLXBertError, match=f"not compared with PyTorch: {part} "):
        gather_evidence(out)


def test_a_head_of_a_class_that_nobody_knows_is_said_to_be_taken_for_another(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", TOKENS, num_labels=5)
    change(tmp_path / "source", architectures=["BertCRF"])
    done = run(cli.convert, tmp_path / "source", "-o", tmp_path / "out", "--verify")
    assert done.exit_code == 0
    assert "names BertCRF; from its tensors (classifier.*) it is taken for BertForTokenClassification" in said(done)


def three_choices(tensors: dict[str, Any]) -> None:
    tensors["classifier.weight"], tensors["classifier.bias"] = torch.zeros(3, 48), torch.zeros(3)


def test_the_reason_names_the_tensors(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", "BertForMultipleChoice")
    change_tensors(tmp_path / "source", three_choices)
    report = convert(tmp_path / "source", tmp_path / "out").report
    assert report is not None
    assert "classifier.weight is (3, 48), config.json calls for (1, 48)" in report.left_out


def test_exit_codes_tell_a_ci_what_was_proven(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    save_tiny(tmp_path / "other", seed=1)
    out = convert(tmp_path / "source", tmp_path / "out", verify=False).path
    assert run(cli.verify, out, "--reference", tmp_path / "source").exit_code == 0
    assert run(cli.verify, out, "--reference", tmp_path / "other").exit_code == 1
    assert run(cli.verify, out, "--reference", tmp_path / "none").exit_code == 2
    done = run(cli.verify, out)
    assert done.exit_code == 2
    assert "was made from no Hub model; fix: give --reference what it was made from" in done.output


# --- sentence pipelines ---------------------------------------------------------------------------------------------


def sentence_source(directory: Path, pooling: str = "mean", **dense: Any) -> Path:
    """A tiny encoder with pooling, a Dense module and Normalize."""
    from safetensors.torch import save_file

    save_tiny(directory)
    for folder, config in {
        "1_Pooling": {"word_embedding_dimension": 48, "pooling_mode": pooling},
        "2_Dense": {"in_features": 48, "out_features": 16, "bias": True, "activation_function": "torch.nn.Tanh"}
        | dense,
    }.items():
        (directory / folder).mkdir()
        (directory / folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    tensors = {"linear.weight": torch.randn(16, 48, generator=generator) / 7, "linear.bias": torch.zeros(16)}
    save_file(tensors, directory / "2_Dense" / "model.safetensors")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory


def test_a_sentence_pipeline_is_compared_with_sentence_transformers(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    result = convert(sentence_source(tmp_path / "source"), tmp_path / "out", verify=True)
    assert result.report is not None
    assert result.report.compared == ("encoder", "pooler", "sentence pipeline")
    assert "with sentence-transformers " in result.report.scope[2].detail
    assert result.usage.ran == (LOAD, SENTENCES)
    # Another pooling than the source's is found, and by its own name.
    config = tmp_path / "out" / "1_Pooling" / "config.json"
    config.write_text(config.read_text().replace('"mean"', '"cls"'))
    report = verify(tmp_path / "out", tmp_path / "source")
    assert report.first_diverging_layer == SENTENCE
    assert [point.name for point in report.points if not point.passed] == [SENTENCE]


@pytest.mark.parametrize("pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_without_sentence_transformers_it_is_pooled_independently(
    pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences, "find_spec", lambda name: None)
    report = convert(sentence_source(tmp_path / "source", pooling), tmp_path / "out", verify=True).report
    assert report is not None
    assert report.verified
    assert report.scope[2].detail == "11 texts to embeddings, with PyTorch's hidden states, pooled by NumPy"


def test_a_pipeline_that_does_not_run_is_not_verified_and_not_on_the_card(tmp_path: Path) -> None:
    source = sentence_source(tmp_path / "source", activation_function="torch.nn.Hardtanh")
    done = run(cli.convert, source, "-o", tmp_path / "out", "--verify")
    assert done.exit_code == 3
    assert "not compared: sentence pipeline (" in said(done)
    assert "SentenceEncoder does not run on these files (" in said(done)
    assert "mlxbert encode" not in said(done)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`SentenceEncoder` does not run on these files: " in card
    assert "SentenceEncoder.from_pretrained" not in card
    assert "model, tokenizer = mlxbert.load(" in card


# --- usage ----------------------------------------------------------------------------------------------------------


def test_what_the_card_shows_has_run_without_a_comparison_too(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", CLASSIFIER, num_labels=3)
    whole = convert(tmp_path / "source", tmp_path / "whole", verify=False)
    assert whole.usage.ran == (LOAD, LOAD_WITH_HEAD)
    assert whole.usage.failed == {}
    change_tensors(tmp_path / "source", drop_bias_row)
    half = convert(tmp_path / "source", tmp_path / "half", verify=False)
    assert half.usage.ran == (LOAD,)
    assert "classifier.bias is (2,), config.json calls for (3,)" in half.usage.failed[LOAD_WITH_HEAD]
    assert any("load_with_head does not run on these files" in note for note in half.notes)
    card = (tmp_path / "half" / "README.md").read_text()
    assert "`mlxbert.load_with_head` does not run on these files: " in card
    assert "mlxbert.load_with_head(" not in card


def test_no_tokenizer_is_no_code_on_the_card(tmp_path: Path) -> None:
    save_tiny(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "source" / name).unlink(missing_ok=True)
    result = convert(tmp_path / "source", tmp_path / "out", verify=False)
    assert result.usage.ran == ()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "mlxbert.load(" not in card
    assert "copy the model's `tokenizer.json` into it" in card


# --- trained models -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("verdict")
    save_tiny(root / "source", "BertForPreTraining")
    return convert(root / "source", root / "mlx", verify=False).path


HEADS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "binary": ("binary", "mean", {}),
    "multiclass, in a class of transformers": ("multiclass", "pooler", {}),
    "multilabel over weighted layers": ("multilabel", "weighted_layers", {}),
    "regression with the scaler folded in": ("regression", "pooler", {"scaling": "standard", "columns": 2}),
    "regression of logarithms": ("regression", "attention", {"log_targets": True}),
    "ordinal": ("ordinal", "cls", {"objective": "corn"}),
    "series": (
        "time_series",
        "pooler",
        {"window": 8, "period": 4, "horizon": 3, "calendar": ("year",), "objective": "gaussian"},
    ),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_trained_model_is_the_same_as_its_own_export(case: str, encoder: Path, tmp_path: Path) -> None:
    name, pooling, options = HEADS[case]
    member = trained(encoder, tmp_path / "member", name, pooling, **options)
    with pytest.raises(mlxbert.MLXBertError, match=f"never compared with PyTorch; fix: mlxbert-verify {member}, or"):
        gather_evidence(member)
    done = run(cli.verify, member)
    assert done.exit_code == 0, done.output
    assert "PASS the same model as member, exported to PyTorch: encoder, pooler, trained head (" in said(done)
    assert gather_evidence(member).unverified is None
    report = ParityReport.read(member)
    assert report is not None
    names = {point.name for point in report.points if point.name.startswith("logits.")}
    assert names == {"logits.prediction"} | (set() if "folded" in case else {"logits.logits"})


def test_a_trained_head_that_was_changed_is_found(encoder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    member = trained(encoder, tmp_path / "member", "binary", "mean")
    write_reports(verify(member), member)
    file = member / "heads.safetensors"
    tensors = load_file(file)
    tensors["head.output.bias"] = tensors["head.output.bias"] + np.float32(0.01)
    save_file(tensors, file)
    with pytest.raises(mlxbert.MLXBertError, match="changed since it was verified"):
        gather_evidence(member)


def test_a_run_verifies_each_of_its_models(encoder: Path, tmp_path: Path) -> None:
    from mlxbert.data.text_columns import RowText
    from tests.support.exported_samples import run_json, write_run

    path = tmp_path / "tweets"
    members = [f"seed{seed}-fold0" for seed in (0, 1)]
    for seed, name in enumerate(members):
        trained(encoder, path / "members" / name, "binary", "mean", seed)
    submission = {"id_column": "id", "columns": ["target"], "values": "labels"}
    write_run(path, run_json("binary", RowText("a", "b"), members, submission))
    done = run(cli.verify, path)
    assert done.exit_code == 0, done.output
    for name in members:
        assert f"PASS the same model as tweets/{name}, exported to PyTorch: " in said(done)
        assert gather_evidence(path / "members" / name).unverified is None
    refused = run(cli.verify, path, "--html", tmp_path / "x.html")
    assert refused.exit_code == 2
    assert f"--junit and --html are for one model, this run has several; fix: {path}/members/seed0-fold0" in said(
        refused
    )


def test_an_export_is_no_proof_of_a_conversion_nor_a_conversion_of_a_trained_head(
    encoder: Path, tmp_path: Path
) -> None:
    member = trained(encoder, tmp_path / "member", "binary", "mean")
    done = run(cli.verify, member, "--reference", encoder)
    assert done.exit_code == 2
    assert "was fine-tuned, so it is in no other checkpoint; fix: leave --reference out" in said(done)
    shutil.copytree(member, tmp_path / "packed")
    change(tmp_path / "packed", quantization={"bits": 8, "group_size": 64})
    refused = run(cli.verify, tmp_path / "packed")
    assert refused.exit_code == 2
    assert "is quantized, which has no PyTorch form; fix: verify the unquantized model" in said(refused)
    write_reports(verify(member), member)
    block = json.loads((encoder / "config.json").read_text())["mlxbert"]
    change(member, mlxbert=block)  # as if it were a conversion
    records = read_manifest(member) or {}
    changed = {**records, "config.json": FileRecord.of((member / "config.json").read_bytes())}
    (member / "manifest.json").write_bytes(manifest_bytes(changed))
    with pytest.raises(mlxbert.MLXBertError, match="the model was never compared with PyTorch"):
        gather_evidence(member)
