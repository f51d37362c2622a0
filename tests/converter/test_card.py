"""The model card by itself: every branch of the template, from facts alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from converter.card.card import LOAD, LOAD_WITH_HEAD, SENTENCES, TRAINED, CardFacts, Usage, render_card
from converter.card.loaders import Trait, readings
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PRECISION, ParityReport, Part, Point, Proof, Provenance

LOCAL_SOURCE = CardFacts(
    name="minilm",
    model_type="bert",
    source="model",
    revision=None,
    original_class="BertModel",
    dtype="float32",
    parameters=22_713_216,
    has_pooler=True,
    converter_version="0.1.0",
    usage=Usage((LOAD,)),
)


def point(gate: str, check: str, name: str, error: float | None, limit: float) -> Point:
    problem = None if error is not None else "NaN in MLX"
    return Point(gate, check, name, limit, None, error, error, 1.0, 1.0, "a probe", problem)


def report(worst: float | None) -> ParityReport:
    return ParityReport(
        model_type="bert",
        written_dtype="float32",
        compute_dtype="float32",
        reference_class="BertModel",
        unexpected=(),
        provenance=Provenance("model", None, {}, "the written weights", 0),
        probes=("one (1 × 2)", "two (3 × 4)"),
        environment={"mlx": "0.32.4", "torch": "2.13.0", "transformers": "5.23.0"},
        points=(
            point(MAPPING, CUMULATIVE, "embeddings", 1e-7, 2e-5),
            point(MAPPING, CUMULATIVE, "encoder.layer.0", worst, 2e-5),
            point(MAPPING, LOCAL, "encoder.layer.0", 3e-7, 5e-6),
            point(PRECISION, CUMULATIVE, "encoder.layer.0", 0.0, 1e-6),
        ),
        scope=(Part("encoder", True, "with PyTorch's BertModel"),),
    )


def front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_local_source_that_nobody_compared() -> None:
    card = render_card(LOCAL_SOURCE)
    tags = ["mlx", "mlxbert", "bert"]
    assert front_matter(card) == {"library_name": "mlx", "pipeline_tag": "feature-extraction", "tags": tags}
    assert "# minilm\n\nBertModel in float32" in card
    assert "22,713,216 parameters" in card
    assert "**NOT VERIFIED.**" in card
    assert "Yes" not in card
    for absent in ("Not carried over", "has no pooler", "no tokenizer files", "heads.safetensors"):
        assert absent not in card


def test_a_source_on_the_hub_is_linked_at_its_commit() -> None:
    card = render_card(replace(LOCAL_SOURCE, source="google-bert/bert-base-uncased", revision="a" * 40))
    assert front_matter(card)["base_model"] == "google-bert/bert-base-uncased"
    assert "[google-bert/bert-base-uncased](https://huggingface.co/google-bert/bert-base-uncased)" in card
    assert "a" * 40 in card


def test_what_cannot_load_elsewhere_what_was_dropped_and_what_is_missing_are_said() -> None:
    facts = replace(
        LOCAL_SOURCE,
        has_pooler=False,
        readings=readings(
            {
                Trait.NO_POOLER,
                Trait.NO_TOKENIZER,
                Trait.NO_TOKENIZER_JSON,
                Trait.HEAD,
                Trait.BESIDE,
                Trait.POOLER_MISSED,
            },
            "bert",
        ),
        heads=("classifier.bias", "classifier.weight"),
        dropped={"embeddings.position_ids": "a constant"},
        missing_tokenizer=True,
    )
    card = render_card(facts)
    assert "2 tensors of the checkpoint's own head in `heads.safetensors`" in card
    assert "- `embeddings.position_ids`: a constant" in card
    assert "| mlxbert | yes |" in card
    assert "| mlx-embeddings | **no**: it needs a pooler, and the source has none |" in card
    assert "| transformers (AutoModel) | **other numbers**: its `pooler_output` is random" in card
    assert "from mlx_embeddings" not in card
    assert "no tokenizer files" in card


def test_the_worst_error_of_each_check_stands_beside_its_limit() -> None:
    card = render_card(replace(LOCAL_SOURCE, parity=report(1.5e-6)))
    assert "Yes" in card
    assert "against PyTorch | 1.5e-06 | 2e-05 |" in card
    assert "mlx 0.32.4, torch 2.13.0, transformers 5.23.0" in card
    assert "NOT VERIFIED" not in card


@pytest.mark.parametrize(("limit", "shown"), [(2.5e-1, "0.25"), (1.2, "1.2"), (2.5, "2.5"), (1e-6, "1e-06")])
def test_a_limit_is_shown_as_it_is(limit: float, shown: str) -> None:
    failed = point(PRECISION, CUMULATIVE, "encoder.layer.0", 99.0, limit)
    assert f"error 9.9e+01 > {shown} (a probe)" in (failed.failure or "")
    found = replace(report(1e-6), points=(*report(1e-6).points[:3], replace(failed, max_rel=0.0)))
    card = render_card(replace(LOCAL_SOURCE, parity=found))
    assert f"against the same model in float32 | 0.0e+00 | {shown} |" in card


def test_a_part_that_was_not_compared_is_no_yes() -> None:
    whole = report(1e-6)
    left_out = Part("own head", False, "2 rows and `3` labels")
    card = render_card(replace(LOCAL_SOURCE, parity=replace(whole, scope=(*whole.scope, left_out))))
    assert "**Not proven for the whole model**, only for encoder: compared element by element with" in card
    assert "Compared: encoder. **Not compared: own head** (2 rows and 3 labels)." in card
    assert "Yes" not in card
    assert "Compared: encoder.\n" in render_card(replace(LOCAL_SOURCE, parity=whole))


def test_only_code_that_ran_is_shown() -> None:
    calls = {
        LOAD: 'mlxbert.load("PATH_OF_THIS_DIRECTORY")',
        LOAD_WITH_HEAD: "mlxbert.load_with_head(",
        SENTENCES: "SentenceEncoder.from_pretrained(",
        TRAINED: "BertWithHead.load(",
    }
    facts = replace(LOCAL_SOURCE, heads=("classifier.weight",), sentence_modules=True)
    for ran, code in calls.items():
        card = render_card(replace(facts, usage=Usage((ran,))))
        shown = [call for call, text in calls.items() if text in card]
        assert shown == ([LOAD, TRAINED] if ran == TRAINED else [ran]), code
    failed = Usage((LOAD,), {SENTENCES: "module `CNN` is not known"})
    card = render_card(replace(facts, usage=failed))
    assert "`SentenceEncoder` does not run on these files: module CNN is not known.\n" in card
    assert 'mlxbert.load("PATH_OF_THIS_DIRECTORY")\n' in card
    assert "output.pooler_output\n```\n" in card


def test_a_proof_that_was_inherited_is_said_to_be() -> None:
    whole = report(1e-6)
    heir = replace(whole.provenance, origin="team/bert", proof=Proof("team/bert", "a" * 40, "float32", "cd" * 32))
    card = render_card(
        replace(LOCAL_SOURCE, source="team/bert", revision="a" * 40, parity=replace(whole, provenance=heir))
    )
    assert (
        "Yes: compared element by element with\n`model`, whose float32 weights were compared with `team/bert` before"
        in card
    )
    assert "(proof inherited by digest: `parity.json` `cdcdcdcdcdcd` beside those weights), in PyTorch, over" in card


def test_only_what_was_compared_is_said_to_be() -> None:
    card = render_card(replace(LOCAL_SOURCE, parity=report(1e-6)))
    assert "| every hidden state, against PyTorch |" in card
    assert "| each layer alone, against PyTorch |" in card
    assert "real sentences" not in card
    more = (
        point(MAPPING, CUMULATIVE, "pooler", 1e-7, 2e-5),
        point(MAPPING, CUMULATIVE, "logits.logits", 1e-7, 2e-5),
        point(MAPPING, LOCAL, "logits.logits", 1e-7, 2e-5),
    )
    whole = replace(report(1e-6), points=report(1e-6).points + more, probes=("8 sentences and pairs (8 × 57)",))
    card = render_card(replace(LOCAL_SOURCE, parity=whole))
    assert "| every hidden state, the pooler and the logits of its own head, against PyTorch |" in card
    assert "| each layer and its own head alone, against PyTorch |" in card
    assert "(real sentences and random ids, " in card


def test_compared_with_something_else_than_the_source_is_no_yes() -> None:
    facts = replace(LOCAL_SOURCE, source="team/bert", revision="a" * 40, parity=report(1e-6))
    card = render_card(facts)
    assert "**Not proven for the source**, only for another conversion of it: compared element by" in card
    assert "Yes" not in card


def test_a_reference_that_is_a_conversion_itself_is_said_to_be() -> None:
    whole = report(1e-6)
    again = replace(whole, provenance=replace(whole.provenance, origin="team/bert at " + "a" * 40))
    card = render_card(replace(LOCAL_SOURCE, parity=again))
    origin = f"`team/bert at {'a' * 40}`"
    assert f"with\n`model`, itself a conversion of {origin}, which was not compared, in PyTorch, over" in card
    assert "itself a conversion" not in render_card(replace(LOCAL_SOURCE, parity=whole))


def test_layers_that_kept_their_numbers_are_told_though_nothing_was_measured() -> None:
    reasons = {"embeddings.word_embeddings": "rows of 312", "pooler.dense": "config.json says so"}
    card = render_card(replace(LOCAL_SOURCE, quantized=True, skipped=reasons))
    assert "## What quantization cost\n\nIt was not measured on text. Not quantized:\n" in card
    assert "<summary>2 layers</summary>\n\n- `embeddings.word_embeddings`: rows of 312\n" in card
    assert "- `pooler.dense`: config.json says so\n\n</details>\n\n## Use\n" in card
    card = render_card(replace(LOCAL_SOURCE, quantized=True))
    assert "It was not measured on text.\n\n## Use\n" in card
    assert "<details>" not in card


def test_how_a_trained_head_is_used() -> None:
    facts = replace(
        LOCAL_SOURCE, place="alice/tweets", trained_head="binary", heads=("head.weight",), usage=Usage((LOAD, TRAINED))
    )
    card = render_card(replace(facts, classes=("no", "yes")))
    assert 'model = BertWithHead.load("alice/tweets")\n' in card
    assert 'print(model.predict(model(**tokenizer(["MLX runs BERT."]))))\n' in card
    assert "Its classes: `no`, `yes`." in card
    assert "Its classes" not in render_card(facts)


@pytest.mark.parametrize(("worst", "shown"), [(3e-3, "3.0e-03"), (None, "inf")])
def test_a_comparison_that_failed_is_never_a_yes(worst: float | None, shown: str) -> None:
    card = render_card(replace(LOCAL_SOURCE, parity=report(worst)))
    assert "**NO: the comparison failed**" in card
    assert "Yes" not in card
    assert f"against PyTorch | {shown} | 2e-05 |" in card
