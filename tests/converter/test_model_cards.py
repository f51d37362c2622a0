"""The cards in `model_cards/` are what is rendered, what the Hub accepts, and what nobody needs to be ashamed of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from converter.card.card import read_quantization, read_scores, render_card
from converter.card.facts import _max_length
from converter.card.source_card import FIELDS, LICENSES, SourceCard, front_matter_problems
from converter.parity.report import ParityReportError
from converter.publish.leaks import leaks, lint_card
from converter.publish.remote import default_repo_id, precision_suffix
from converter.quantize.cost import read_cost
from tests.support.card_samples import FOLDER, MINILM, QUANTIZATION, QUANTIZED, REVISION, SAMPLES, WITH_HEAD
from tests.support.hub.yaml_rules import LICENSES as THE_HUBS_LICENSES
from tests.support.hub.yaml_rules import check_yaml


@pytest.mark.parametrize("name", SAMPLES)
class TestReviewed:
    def test_is_what_is_rendered(self, name: str) -> None:
        file = FOLDER / f"{name}.md"
        assert render_card(SAMPLES[name]) == file.read_text("utf-8"), (
            "python -m tests.support.card_samples, then read it"
        )

    def test_the_hub_and_our_lint_accept_it(self, name: str) -> None:
        card = render_card(SAMPLES[name])
        assert lint_card(card) == []
        errors, warnings = check_yaml(card)
        assert errors == []
        assert warnings == ([] if SAMPLES[name].source_card.license else ["The license is not specified"])

    def test_only_allowed_fields_in_their_order(self, name: str) -> None:
        data = yaml.safe_load(render_card(SAMPLES[name]).split("---\n")[1])
        assert list(data) == [field for field in FIELDS if field in data]

    def test_no_place_of_this_machine(self, name: str) -> None:
        card = render_card(SAMPLES[name])
        assert leaks(card) == []
        assert str(Path.home()) not in card or Path.home() == Path("/")


def test_every_reviewed_card_is_rendered() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} - {"README"} == set(SAMPLES)


class TestFrontMatter:
    def test_norwegian_is_no_boolean(self) -> None:
        card = render_card(replace(MINILM, source_card=SourceCard(language=("no", "en"), datasets=("2024/x", "null"))))
        data = yaml.safe_load(card.split("---\n")[1])
        assert data["language"] == ["no", "en"]
        assert data["datasets"] == ["2024/x", "null"]

    def test_quantized_says_so_and_only_then(self) -> None:
        facts = replace(QUANTIZED, source="a/b", revision=REVISION)
        assert "base_model: a/b\nbase_model_relation: quantized\n" in render_card(facts)
        assert "base_model_relation" not in render_card(QUANTIZED)  # its source was a directory
        assert "base_model_relation" not in render_card(WITH_HEAD)

    @pytest.mark.parametrize(
        ("original_class", "task"),
        [
            ("BertForPreTraining", "fill-mask"),
            ("BertForMaskedLM", "fill-mask"),
            ("BertForSequenceClassification", "text-classification"),
            ("BertForTokenClassification", "token-classification"),
            ("BertForQuestionAnswering", "question-answering"),
            ("BertForMultipleChoice", "multiple-choice"),
            ("BertForNextSentencePrediction", None),
        ],
    )
    def test_the_task_comes_from_the_head(self, original_class: str, task: str | None) -> None:
        assert replace(WITH_HEAD, original_class=original_class).pipeline_tag == task

    def test_a_trained_head_has_the_task_of_its_kind(self) -> None:
        assert replace(MINILM, trained_head="ordinal").pipeline_tag == "text-classification"
        assert replace(MINILM, trained_head="time_series").pipeline_tag is None
        card = render_card(replace(MINILM, trained_head="ordinal", heads=("head.weight",), parity=None))
        assert "with a trained `ordinal` head, in float32, fine-tuned in [MLX]" in card
        assert "mlxbert-verify PATH_OF_THIS_DIRECTORY\n" in card
        assert "## Scores" not in card

    def test_an_encoder_alone(self) -> None:
        assert replace(WITH_HEAD, heads=()).pipeline_tag == "feature-extraction"
        assert MINILM.pipeline_tag == "sentence-similarity"


class TestLint:
    def test_the_same_licenses_as_the_hub(self) -> None:
        assert set(THE_HUBS_LICENSES) == LICENSES

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("license", "gpl-2.0-or-later"),
            ("license", "Apache-2.0"),
            ("license", ["mit", "Apache-2.0"]),
            ("license_name", "My License"),
            ("license_link", "../LICENSE"),
            ("license_link", "javascript:alert(1)"),
            ("language", "english"),
            ("language", "EN"),
            ("language", False),
            ("language", ["en", "pt-br"]),
            ("datasets", ["my data"]),
            ("base_model", "/home/alice/bert"),
            ("base_model_relation", "derived"),
            ("tags", ["mlx", 3]),
        ],
    )
    def test_what_the_hub_refuses_our_lint_refuses(self, field: str, value: object) -> None:
        assert len(front_matter_problems({field: value})) == 1
        card = f"---\n{yaml.safe_dump({field: value})}---\n# x\n"
        assert check_yaml(card)[0]
        assert lint_card(card)

    @pytest.mark.parametrize("field", ["model-index", "author", "thumbnail"])
    def test_a_field_that_is_not_ours(self, field: str) -> None:
        assert front_matter_problems({field: "x"}) == [f'"{field}" is not a field that our cards have']

    @pytest.mark.parametrize("card", ["# no front matter\n", "---\nlicense: [\n---\n", "---\n- a\n---\n"])
    def test_no_card_at_all(self, card: str) -> None:
        assert lint_card(card)

    @pytest.mark.parametrize(
        "text",
        [
            "hf_" + "Ab1" * 11,
            "Authorization: Bearer abcdefghijklmnop",
            "ghp_" + "a" * 36,
            "AKIA" + "Q" * 16,
            "-----BEGIN RSA PRIVATE KEY-----",
            "/home/alice/bert",
            "/Users/alice/bert",
            r"C:\Users\alice\bert",
            "C:/Users/alice/bert",
            "file:///home/alice/bert",
            "/workspace/alice/bert",
            "/data/alice/bert",
            "/content/drive/bert",
        ],
    )
    def test_what_must_never_be_published(self, text: str) -> None:
        assert len(leaks(f"see {text} there")) == 1
        assert lint_card(render_card(replace(MINILM, source=text)))

    def test_the_token_in_use_and_the_home_directory(self, tmp_path: Path) -> None:
        assert leaks("a plain-secret", token="plain-secret") == ["the token that is in use"]
        assert leaks(f"in {tmp_path.parent.parent}x", home=tmp_path.parent.parent)

    @pytest.mark.parametrize(
        "text",
        ["https://huggingface.co/home/x", "hf_internal", "and/or", "config: tmp/x", "https://x.org/data/y"],
    )
    def test_what_is_harmless(self, text: str) -> None:
        assert leaks(text, home=Path("/nowhere/at/all")) == []


class TestEvidence:
    def test_a_block_of_a_later_version(self) -> None:
        later = {**QUANTIZATION, "new": 1, "layers": [{**QUANTIZATION["layers"][0], "newer": 2}]}
        assert read_cost(later, ParityReportError).layers[0].bits == 4

    @pytest.mark.parametrize("lacking", ["bytes", "layers", "quality"])
    def test_a_damaged_block(self, lacking: str) -> None:
        block = {name: value for name, value in QUANTIZATION.items() if name != lacking}
        with pytest.raises(
            ParityReportError,
            match=rf"block of parity.json: {lacking} is missing; fix: run mlxbert-verify",
        ):
            read_cost(block, ParityReportError)

    def test_read_from_a_directory(self, tmp_path: Path) -> None:
        assert read_quantization(tmp_path) is None
        (tmp_path / "parity.json").write_text(json.dumps({"format_version": 2, "quantization": QUANTIZATION}))
        assert read_quantization(tmp_path) == read_cost(QUANTIZATION, ParityReportError)
        (tmp_path / "parity.json").write_text("{")
        with pytest.raises(ParityReportError, match="not valid JSON"):
            read_quantization(tmp_path)

    def test_predictions_have_columns_of_their_own(self) -> None:
        rows = [{**QUANTIZATION["quality"][0], "logit_agreement": 0.9875, "logit_kl": 1.2e-3}]
        facts = replace(
            WITH_HEAD, quantized=True, quantization=read_cost({**QUANTIZATION, "quality": rows}, ParityReportError)
        )
        card = render_card(facts)
        assert "| same prediction | KL of predictions |\n|---|---|---|---|---|---|---|\n" in card
        assert "| 0.9961 | 98.8 % | 1.2e-03 |\n" in card

    def test_scores(self) -> None:
        assert read_scores({}) is None
        with pytest.raises(ParityReportError, match=r'"trained" block of config.json is damaged'):
            read_scores({"trained": {"task": "binary"}})

    def test_a_metric_without_a_number_is_left_out(self) -> None:
        block = {"task": "binary", "metric": "f1", "folds": 2, "data_rows": 9, "models": 2, "own_rows": 4}
        scores = read_scores({"trained": {**block, "pooled": {"f1": 1, "roc_auc": None}, "own": {"f1": None}}})
        assert scores is not None
        assert (scores.pooled, scores.own) == ({"f1": 1.0}, {})
        assert "| `f1` (chosen by) | – | 1.0000 |" in render_card(replace(MINILM, scores=scores))
        assert "| `f1` (chosen by) | 1.0000 |" in render_card(replace(MINILM, scores=replace(scores, models=1)))

    def test_a_correlation_that_is_not_defined(self) -> None:
        rows = [{**QUANTIZATION["quality"][0], "rank_correlation": None}]
        quantization = read_cost({**QUANTIZATION, "quality": rows}, ParityReportError)
        assert "| 0.9912 | – |" in render_card(replace(QUANTIZED, quantization=quantization))

    def test_what_is_read_of_a_text(self, tmp_path: Path) -> None:
        assert _max_length(tmp_path, {"model_type": "bert", "max_position_embeddings": 512}) == 512
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling/config.json").write_text("{}")
        assert _max_length(tmp_path, {"model_type": "bert", "max_position_embeddings": 512}) == 256
        assert _max_length(tmp_path, {"model_type": "bert", "max_position_embeddings": 128}) == 128
        (tmp_path / "modules.json").write_text("[]")
        assert _max_length(tmp_path, {"model_type": "bert", "max_position_embeddings": 512}) == 512

    def test_somebody_elses_names_stay_inside_their_quotes(self) -> None:
        card = render_card(replace(MINILM, dropped={"x`\n# Buy\n`": "a reason"}, source="a`b"))
        assert "\n# Buy" not in card
        assert "`a'b`" in card


class TestNames:
    @pytest.mark.parametrize(
        ("config", "suffix"),
        [
            ({"dtype": "float32"}, "fp32"),
            ({"dtype": "float16"}, "fp16"),
            ({"dtype": "bfloat16"}, "bf16"),
            ({"quantization": {"bits": 4, "group_size": 64}}, "4bit"),
            ({"quantization": {"bits": 8, "group_size": 64, "mode": "affine", "pooler.dense": False}}, "8bit"),
            ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "mxfp4"),
            ({"quantization": {"bits": 4, "group_size": 16, "mode": "nvfp4"}}, "nvfp4"),
            ({"quantization": {"bits": 4, "group_size": 64, "a": {"bits": 6, "group_size": 64}}}, "mixed-4.6bit"),
        ],
    )
    def test_the_precision(self, config: dict, suffix: str) -> None:
        assert precision_suffix(config, 4.57) == suffix

    def test_the_default(self) -> None:
        hub = {"dtype": "bfloat16", "mlxbert": {"source": "google-bert/bert-base-uncased", "revision": "a" * 40}}
        assert default_repo_id(hub, "out") == "mlx-community/bert-base-uncased-bf16"
        local = {"dtype": "float32", "mlxbert": {"source": "model", "revision": None}}
        assert default_repo_id(local, "minilm") == "mlx-community/minilm-fp32"
        assert default_repo_id(local, "minilm-fp32") == "mlx-community/minilm-fp32"
