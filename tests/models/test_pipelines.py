"""The pipelines against transformers' own on the same small models, and `answer` against a search of every span."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import decoders

import mlxbert
from converter.convert import convert
from mlxbert.pipelines import PipelineError
from mlxbert.pipelines.spans import Piece, aggregate, answer, best_spans, tag
from mlxbert.pipelines.texts import classify, fill_mask, windows
from mlxbert.pretrained import PretrainedBert
from mlxbert.tokenization.tokenizer import Tokenizer, TruncationWarning
from tests.support import recorded_answers
from tests.support.tiny import save_tiny

torch = pytest.importorskip("torch", reason="the reference is transformers on PyTorch")
transformers = pytest.importorskip("transformers")

Pair = tuple[Path, PretrainedBert, Tokenizer]
Make = Callable[..., Pair]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Pair] = {}

    def build(architecture: str, **options: Any) -> Pair:
        key = f"{architecture} {options}"
        if key not in made:
            directory = tmp_path_factory.mktemp("model")
            save_tiny(directory / "source", architecture, **options)
            transformers.BertTokenizer.from_pretrained(directory / "source").save_pretrained(directory / "source")
            convert(directory / "source", directory / "out", verify=False)
            made[key] = (directory / "source", *mlxbert.load_with_head(directory / "out"))
        return made[key]

    return build


def same(got: Any, expected: Any) -> None:
    """Equal in shape, keys, order and everything but the last digits of a number."""
    assert isinstance(got, list) == isinstance(expected, list)
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other)
        return
    assert list(got) == list(expected)
    for key, value in expected.items():
        if key == "score":
            assert isinstance(got[key], float)
            assert got[key] == pytest.approx(float(value), abs=2e-6)
        else:
            assert got[key] == value, key


# --- fill_mask ------------------------------------------------------------------------------------------------------

MASKED = [
    "a b [MASK] cab",
    ["a [MASK]"],
    ["a [MASK] b", "bad [MASK] [MASK] x", "[MASK]"],
    "a [MASK] b [MASK] [PAD]",
    ["a [MASK] [MASK]"],
]


@pytest.mark.parametrize("texts", MASKED, ids=str)
def test_fill_mask_is_transformers(make: Make, texts: Any) -> None:
    source, model, tokenizer = make("BertForMaskedLM")
    expected = transformers.pipeline("fill-mask", model=str(source))
    same(fill_mask(model, tokenizer, texts, 3), expected(texts, top_k=3))
    same(fill_mask(model, tokenizer, texts), expected(texts))


def test_fill_mask_takes_a_pre_training_model_too_and_more_words_than_there_are(make: Make) -> None:
    source, model, tokenizer = make("BertForPreTraining")
    expected = transformers.BertForPreTraining.from_pretrained(source)
    ids = transformers.BertTokenizer.from_pretrained(source)("a [MASK]", return_tensors="pt")
    with torch.inference_mode():
        scores = expected(**ids).prediction_logits[0, 2].softmax(-1)
    found: Any = fill_mask(model, tokenizer, "a [MASK]", top_k=1000)
    assert [one["token"] for one in found] == scores.argsort(descending=True).tolist()
    assert sum(one["score"] for one in found) == pytest.approx(1, abs=1e-5)


def test_fill_mask_refuses_what_it_cannot_do(make: Make) -> None:
    _, model, tokenizer = make("BertForMaskedLM")
    with pytest.raises(PipelineError, match=r"fill_mask: text 1 has no \[MASK\]; fix: write \[MASK\] for the word"):
        fill_mask(model, tokenizer, ["a [MASK]", "b"])
    with pytest.raises(PipelineError, match=r"text 0 has no \[MASK\] in its first 64 tokens, the limit of the model"):
        fill_mask(model, tokenizer, "a " * 80 + "[MASK]")
    with pytest.raises(PipelineError, match="top_k must be a positive whole number, not 0"):
        fill_mask(model, tokenizer, "a [MASK]", 0)
    other = make("BertForQuestionAnswering")[1]
    with pytest.raises(PipelineError, match=r"fill_mask needs BertForMaskedLM .*, and this model is BertForQ"):
        fill_mask(other, tokenizer, "a [MASK]")


# --- classify -------------------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {"num_labels": 3},
    {"num_labels": 1},
    {"num_labels": 1, "problem_type": "regression"},
    {"num_labels": 3, "problem_type": "regression"},
    {"num_labels": 4, "problem_type": "multi_label_classification"},
    {"id2label": {0: "BAD", 1: "GOOD"}, "problem_type": "single_label_classification"},
]
TEXTS: list[Any] = [
    "a bc",
    ["a bc"],
    ["a", "cab de fg"],
    {"text": "a", "text_pair": "b"},
    {"text": "a", "text_pair": ""},  # transformers leaves it out
    {"text": "", "text_pair": "b"},
    [{"text": "a", "text_pair": "bc"}, "c"],
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_classify_is_transformers(make: Make, kind: dict[str, Any]) -> None:
    source, model, tokenizer = make("BertForSequenceClassification", **kind)
    expected = transformers.pipeline("text-classification", model=str(source))
    for texts in TEXTS:
        for options in ({}, {"top_k": 2}, {"top_k": None}, {"top_k": 1}, {"function_to_apply": "sigmoid"}):
            same(classify(model, tokenizer, texts, **options), expected(texts, **options))  # type: ignore[arg-type]


def test_arguments_that_had_no_effect_or_a_raw_error_are_refused_by_name(make: Make) -> None:
    _, model, tokenizer = make("BertForSequenceClassification", num_labels=3)
    for top_k in ("2", 2.0, True, 0):
        with pytest.raises(PipelineError, match=r"^top_k must be a positive whole number, not "):
            classify(model, tokenizer, "a", top_k)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="function_to_apply '' is not known"):
        classify(model, tokenizer, "a", function_to_apply="")
    with pytest.raises(PipelineError, match="expected a text or several, not NoneType"):
        classify(model, tokenizer, None)  # type: ignore[arg-type]
    _, model, tokenizer = make("BertForTokenClassification", id2label=LABELS)
    every = tag(model, tokenizer, "cab, a de fgh b c", "none", ignore_labels=[])
    for label in {str(one["entity"]) for one in every}:  # one string was a set of letters
        got = tag(model, tokenizer, "cab, a de fgh b c", "none", ignore_labels=label)
        assert [one["entity"] for one in got] == [str(one["entity"]) for one in every if one["entity"] != label]  # type: ignore[index]


def test_classify_refuses_what_it_does_not_know_and_warns_of_a_cut(make: Make) -> None:
    _, model, tokenizer = make("BertForSequenceClassification", num_labels=3)
    with pytest.raises(PipelineError, match="function_to_apply 'tanh' is not known; known are sigmoid, softmax, none"):
        classify(model, tokenizer, "a", function_to_apply="tanh")
    with pytest.raises(PipelineError, match=r'expected a text or {"text": …, "text_pair": …}, not {\'a\': 1}'):
        classify(model, tokenizer, [{"a": 1}])  # type: ignore[dict-item, list-item]
    with pytest.warns(TruncationWarning, match="1 of 2 texts is longer than 64 tokens") as caught:
        classify(model, tokenizer, ["a", "b " * 100])
    assert caught[0].filename == __file__


# --- tag ------------------------------------------------------------------------------------------------------------

LABELS = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]))
SENTENCES: list[Any] = ["cab, a de ☃ fgh b c", ["cab"], ["cab de", "Zz yx wv. ab", "a"]]


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("seed", range(2))
def test_tag_is_transformers(make: Make, strategy: str, seed: int) -> None:
    source, model, tokenizer = make("BertForTokenClassification", id2label=LABELS, seed=seed)
    expected = transformers.pipeline("token-classification", model=str(source))
    for texts in SENTENCES:
        for ignored in (["O"], [], ["O", "PER", "B-LOC"]):
            options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
            got = tag(model, tokenizer, texts, strategy, ignore_labels=ignored)
            same(got, expected(texts, **options))


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
def test_tag_reads_long_texts_in_windows_as_transformers_does(make: Make, strategy: str) -> None:
    source, model, tokenizer = make("BertForTokenClassification", id2label=LABELS)
    text = " ".join("".join(chr(97 + (7 * i * j + i) % 26) for j in range(1 + i % 4)) for i in range(90))
    for stride in (0, 10, 30):
        pipeline = transformers.pipeline("token-classification", model=str(source), stride=stride,
                                         aggregation_strategy=strategy)  # fmt: skip
        pipeline.tokenizer.model_max_length = 64
        same(tag(model, tokenizer, [text, "cab"], strategy, stride=stride), pipeline([text, "cab"]))
    with pytest.warns(TruncationWarning, match="1 of 1 texts is longer than 64 tokens"):
        tag(model, tokenizer, text)


def test_b_and_i_labels_make_entities() -> None:
    def piece(token: str, label: int, index: int) -> Piece:
        scores = np.full(len(LABELS), 0.01, np.float32)
        scores[label] = 0.9
        return Piece(token, scores, index * 3, index * 3 + 2, index, token.startswith("##"))

    labelled = [("ab", 1), ("##cd", 0), ("ef", 2), ("gh", 1), ("ij", 4), ("kl", 4), ("mn", 5), ("op", 5), (".", 0)]
    pieces = [piece(token, label, i) for i, (token, label) in enumerate(labelled)]
    groups = [
        (e["entity_group"], e["word"], e["start"], e["end"])
        for e in aggregate(pieces, "first", LABELS, decoders.WordPiece().decode)
    ]
    assert groups == [
        ("PER", "abcd ef", 0, 8),
        ("PER", "gh", 9, 11),
        ("LOC", "ij kl", 12, 17),
        ("MISC", "mn op", 18, 23),
        ("O", ".", 24, 26),
    ]


def test_a_word_whose_normal_form_is_shorter_is_a_word_all_the_same(make: Make) -> None:
    # transformers takes a token for a piece where its length is not that of the text: "é" of two characters is.
    _, model, tokenizer = make("BertForTokenClassification", id2label=LABELS)
    found: Any = tag(model, tokenizer, "b e\u0301 b", "first", ignore_labels=[])
    ends = {entity["end"] for entity in found}
    apart: Any = tag(model, tokenizer, "b e b", "first", ignore_labels=[])
    assert len(found) == len(apart)
    assert max(ends) == 6


def test_tag_refuses_what_it_does_not_know(make: Make) -> None:
    _, model, tokenizer = make("BertForTokenClassification", id2label=LABELS)
    with pytest.raises(PipelineError, match="aggregation_strategy 'last' is not known; known are none, simple, first"):
        tag(model, tokenizer, "a", "last")
    with pytest.raises(PipelineError, match="with a stride, pieces seen twice are joined; fix: aggregation_strategy"):
        tag(model, tokenizer, "a", "none", stride=1)
    with pytest.raises(PipelineError, match="stride=62 leaves nothing of the 62 tokens that a window holds; fix: low"):
        tag(model, tokenizer, "a " * 80, stride=62)


# --- answer ---------------------------------------------------------------------------------------------------------

QUESTION = "abc de?"
CONTEXT = " ".join("".join(chr(97 + (5 * i * j + 3 * i) % 26) for j in range(1 + (i * i) % 4)) for i in range(70))


def every_span(
    source: Path, context: str, top_k: int, stride: int, longest: int, window: int, impossible: bool = False
) -> list[dict[str, Any]]:
    """Every window by transformers' tokenizer and model, every pair of tokens by two loops."""
    tokenizer = transformers.BertTokenizer.from_pretrained(source)
    model = transformers.BertForQuestionAnswering.from_pretrained(source).eval()
    encoded = tokenizer(
        QUESTION, context, truncation="only_second", max_length=window, stride=stride, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    whole = tokenizer(context, add_special_tokens=False)
    answers: dict[str, dict[str, Any]] = {}
    null = 1.0
    for w, ids in enumerate(encoded["input_ids"]):
        with torch.inference_mode():
            output = model(torch.tensor([ids]), token_type_ids=torch.tensor([encoded["token_type_ids"][w]]))
        allowed = [i for i, part in enumerate(encoded.sequence_ids(w)) if part == 1]
        counted = [0, *allowed]
        start = dict(zip(counted, output.start_logits[0, counted].double().softmax(-1).tolist(), strict=True))
        end = dict(zip(counted, output.end_logits[0, counted].double().softmax(-1).tolist(), strict=True))
        null = min(null, start[0] * end[0])
        spans = [(start[s] * end[e], s, e) for s in allowed for e in allowed if s <= e < s + longest]
        own: dict[str, dict[str, Any]] = {}
        for score, s, e in sorted(spans, key=lambda span: -span[0])[: 2 * top_k + 10]:
            characters = [encoded["offset_mapping"][w][i] for i in (s, e)]
            first, last = (whole.word_to_chars(whole.char_to_word(characters[n][0])) for n in (0, 1))
            text = context[first.start : last.end]
            own.setdefault(text, {"score": 0.0, "start": first.start, "end": last.end, "answer": text})
            own[text]["score"] += score
        for text, found in own.items():
            if text not in answers or found["score"] > answers[text]["score"]:
                answers[text] = found
    ranked = list(answers.values()) + ([{"score": null, "start": 0, "end": 0, "answer": ""}] if impossible else [])
    return sorted(ranked, key=lambda one: -one["score"])[:top_k]


@pytest.mark.parametrize("top_k", [1, 4, 40])
@pytest.mark.parametrize(("stride", "longest", "window"), [(10, 15, 64), (0, 3, 40), (20, 1, 50)])
@pytest.mark.parametrize("context", [CONTEXT, "cab de fgh. ab"], ids=["long", "short"])
def test_answer_is_the_best_of_every_legal_span(
    make: Make, context: str, top_k: int, stride: int, longest: int, window: int
) -> None:
    source, model, tokenizer = make("BertForQuestionAnswering")
    got = answer(model, tokenizer, QUESTION, context, top_k, stride, longest, max_seq_len=window)
    expected = every_span(source, context, top_k, stride, longest, window)
    same(got, expected[0] if len(expected) == 1 else expected)
    for one in got if isinstance(got, list) else [got]:
        assert one["answer"] == context[one["start"] : one["end"]]
        assert one["answer"].strip()
        assert 0 < one["score"] <= 1


def test_too_few_candidate_spans_gave_other_answers_than_the_last_pipeline(tmp_path: Path) -> None:
    """Scores and answers of transformers 4.57, recorded: one answer is made of several spans of its words."""
    convert(recorded_answers.write_checkpoint(tmp_path / "source"), tmp_path / "out", verify=False)
    model, tokenizer = mlxbert.load_with_head(tmp_path / "out")
    recorded = json.loads(recorded_answers.FILE.read_text())
    assert recorded["transformers"] == "4.57.6"
    assert len(recorded["answers"]) == 56
    for call, expected in zip(recorded_answers.calls(), recorded["answers"], strict=True):
        got: Any = answer(model, tokenizer, **call)
        got = got if isinstance(got, list) else [got]
        if "doc_stride" in call:  # a word that a window cuts is whole here, and was its second half there
            for one, other in zip(got, expected, strict=True):
                assert one["answer"].endswith(other["answer"]) or one["answer"].startswith(other["answer"])
                one.update(start=other["start"], end=other["end"], answer=other["answer"])
        same(got, expected)


def test_the_defaults_are_the_last_pipelines_and_the_empty_answer_can_be_had(make: Make) -> None:
    source, model, tokenizer = make("BertForQuestionAnswering")
    same(answer(model, tokenizer, QUESTION, CONTEXT), every_span(source, CONTEXT, 1, 32, 15, 64)[0])
    got = answer(model, tokenizer, QUESTION, CONTEXT, 500, handle_impossible_answer=True)
    same(got, every_span(source, CONTEXT, 500, 32, 15, 64, impossible=True))
    assert any(one["answer"] == "" for one in got if isinstance(one, dict))


def test_special_tokens_in_the_texts_are_text(make: Make) -> None:
    _, model, tokenizer = make("BertForQuestionAnswering")
    context = "ab [SEP] cd [SEP]"
    got: Any = answer(model, tokenizer, "a [SEP] b", context, 50)
    assert {context[one["start"] : one["end"]] for one in got} >= {"cd", "ab"}


def test_spans_that_cannot_be_an_answer_are_never_returned() -> None:
    starts, ends = np.array([0.0, 0.1, 0.9]), np.array([0.9, 0.1, 0.0])
    assert best_spans(starts, ends, 99, 2) == [
        *[(1, 1, pytest.approx(0.01))],
        *[(s, e, 0.0) for s, e in ((0, 0), (0, 1), (1, 2), (2, 2))],
    ]


def test_answer_refuses_what_leaves_no_room(make: Make) -> None:
    _, model, tokenizer = make("BertForQuestionAnswering")
    with pytest.raises(PipelineError, match="answer: the question is empty; fix: ask something"):
        answer(model, tokenizer, " ", "some context")
    with pytest.raises(PipelineError, match="answer: the context is empty; fix: pass the text to search"):
        answer(model, tokenizer, "a", "")
    with pytest.raises(PipelineError, match="the question takes 103 tokens of a window of 64; fix: shorten it"):
        answer(model, tokenizer, "a " * 100, "b")
    with pytest.raises(PipelineError, match="doc_stride=60 leaves nothing of the 60 tokens that a window holds"):
        answer(model, tokenizer, "a", "b " * 100, doc_stride=60)
    with pytest.raises(PipelineError, match="max_seq_len=65 is more than the model's 64 positions; fix: lower it"):
        answer(model, tokenizer, "a", "b", max_seq_len=65)
    with pytest.raises(PipelineError, match="max_answer_len must be a positive whole number, not 0"):
        answer(model, tokenizer, "a", "b", max_answer_len=0)


def test_windows_cover_everything_and_overlap_by_the_stride() -> None:
    assert windows(0, 4, 1) == [(0, 0)]
    assert windows(4, 4, 3) == [(0, 4)]
    assert windows(9, 4, 1) == [(0, 4), (3, 7), (6, 9)]
    assert windows(10, 4, 1) == [(0, 4), (3, 7), (6, 10)]


def test_batches_of_any_size_give_the_same(make: Make) -> None:
    _, model, tokenizer = make("BertForTokenClassification", id2label=LABELS)
    texts = ["cab de", "a", "fgh ij kl mn", "b c"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(tag(model, tokenizer, texts, batch_size=1), tag(model, tokenizer, texts, batch_size=3))
    with pytest.raises(PipelineError, match="batch_size must be a positive whole number, not 0"):
        tag(model, tokenizer, texts, batch_size=0)
