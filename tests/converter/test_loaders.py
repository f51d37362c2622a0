"""The table of `converter/loaders.py` against the packages themselves: what loads, what refuses, what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.card import loaders
from converter.card.loaders import DIFFERS, REFUSES, WORKS, Reading
from converter.convert import convert
from mlxbert.checkpoint import INDEX
from mlxbert.encode.encoder import SentenceEncoder
from tests.support.swift_rules import swift_problems
from tests.support.tiny import save_tiny, save_tokenizer

torch = pytest.importorskip("torch", reason="the sources are built by transformers")
transformers = pytest.importorskip("transformers")
mlx_embeddings = pytest.importorskip("mlx_embeddings")
mlx_vlm_loader = pytest.importorskip("mlx_vlm.embedding_loader")
sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = ["a b c d e f g", "h i"]
SIZE = 64
ONES = {"num_labels": 1}
TAGS = dict(enumerate(("O", "B-PER", "I-PER")))
SEQUENCE, TAGGER, SPANS, MASKED = (
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMaskedLM",
)
POOLING_FLAGS = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "lasttoken": "lasttoken",
    "weightedmean": "weightedmean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}


def pooling(*modes: str, normalize: bool = True, dense: bool = False, **more: Any) -> Callable[[Path], None]:
    """Add the files of sentence-transformers, the pooling in both of its spellings."""

    def add(directory: Path) -> None:
        kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
        modules = [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ]
        (directory / "modules.json").write_text(json.dumps(modules))
        flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in POOLING_FLAGS.items()}
        config = {
            "word_embedding_dimension": SIZE,
            **flags,
            "pooling_mode": list(modes) if modes[1:] else modes[0],
            **more,
        }
        (directory / "1_Pooling").mkdir()
        (directory / "1_Pooling/config.json").write_text(json.dumps(config))
        if dense:
            (directory / "2_Dense").mkdir()
            layer = sentence_transformers.models.Dense(SIZE, 8)
            layer.save(str(directory / "2_Dense"))

    return add


def nothing(directory: Path) -> None:
    """Add no file."""


def without_tokenizer(directory: Path) -> None:
    for file in directory.iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            file.unlink()


# name -> (class, options of the model, what to add, options of `convert`)
DIRECTORIES: dict[str, tuple[str, dict[str, Any], Callable[[Path], None], dict[str, Any]]] = {
    "encoder": ("BertModel", {}, nothing, {}),
    "encoder without pooler": ("BertModel", {"pooler": False}, nothing, {}),
    "masked LM": (MASKED, {}, nothing, {}),
    "masked LM, full": (MASKED, {}, nothing, {"layout": "full"}),
    "pre-training": ("BertForPreTraining", {}, nothing, {}),
    "pre-training, full": ("BertForPreTraining", {}, nothing, {"layout": "full"}),
    "tagger": (TAGGER, {}, nothing, {}),
    "tagger, full": (TAGGER, {"id2label": TAGS}, nothing, {"layout": "full"}),
    "tagger without tags, full": (TAGGER, {}, nothing, {"layout": "full"}),
    "question answering": (SPANS, {}, nothing, {}),
    "question answering, full": (SPANS, {}, nothing, {"layout": "full"}),
    "reranker": (SEQUENCE, ONES, nothing, {}),
    "reranker, full": (SEQUENCE, ONES, nothing, {"layout": "full"}),
    "reranker, full, relu": (SEQUENCE, {**ONES, "hidden_act": "relu"}, nothing, {"layout": "full"}),
    "three classes, full": (SEQUENCE, {"num_labels": 3}, nothing, {"layout": "full"}),
    "tanh-GELU": ("BertModel", {"hidden_act": "gelu_new"}, nothing, {}),
    "relu": ("BertModel", {"hidden_act": "relu"}, pooling("mean"), {}),
    "no tokenizer": ("BertModel", {}, without_tokenizer, {}),
    "quantized": ("BertModel", {}, pooling("mean"), {"quantize": "mixed", "calibration": "none"}),
    "mean": ("BertModel", {}, pooling("mean"), {}),
    "mean, any length": ("BertModel", {}, pooling("mean", normalize=False), {}),
    "mean without the prompt": ("BertModel", {}, pooling("mean", include_prompt=False), {}),
    "cls": ("BertModel", {}, pooling("cls"), {}),
    "max": ("BertModel", {}, pooling("max"), {}),
    "last": ("BertModel", {}, pooling("lasttoken"), {}),
    "weighted": ("BertModel", {}, pooling("weightedmean"), {}),
    "by square root": ("BertModel", {}, pooling("mean_sqrt_len_tokens", normalize=False), {}),
    "two": ("BertModel", {}, pooling("cls", "mean"), {}),
    "dense": ("BertModel", {}, pooling("mean", dense=True), {}),
    "RoBERTa": ("RobertaModel", {}, nothing, {}),
    "RoBERTa without pooler": ("RobertaModel", {"pooler": False}, nothing, {}),
    "RoBERTa, mean": ("RobertaModel", {}, pooling("mean"), {}),
    "RoBERTa, quantized": ("RobertaModel", {}, pooling("mean"), {"quantize": "mixed", "calibration": "none"}),
    "RoBERTa, masked LM": ("RobertaForMaskedLM", {}, nothing, {}),
    "RoBERTa, masked LM, full": ("RobertaForMaskedLM", {}, nothing, {"layout": "full"}),
    "RoBERTa, reranker": ("RobertaForSequenceClassification", ONES, nothing, {}),
    "RoBERTa, reranker, full": ("RobertaForSequenceClassification", ONES, nothing, {"layout": "full"}),
    "RoBERTa, tagger, full": ("RobertaForTokenClassification", {"id2label": TAGS}, nothing, {"layout": "full"}),
    "XLM-R": ("XLMRobertaModel", {}, nothing, {}),
    "XLM-R without pooler": ("XLMRobertaModel", {"pooler": False}, nothing, {}),
    "XLM-R, mean": ("XLMRobertaModel", {}, pooling("mean"), {}),
    "XLM-R, cls": ("XLMRobertaModel", {}, pooling("cls"), {}),
    "XLM-R, mean, any length": ("XLMRobertaModel", {}, pooling("mean", normalize=False), {}),
    "XLM-R, dense": ("XLMRobertaModel", {}, pooling("mean", dense=True), {}),
    "XLM-R, relu": ("XLMRobertaModel", {"hidden_act": "relu"}, nothing, {}),
    "XLM-R, quantized": ("XLMRobertaModel", {}, pooling("mean"), {"quantize": "mixed", "calibration": "none"}),
    "XLM-R, masked LM": ("XLMRobertaForMaskedLM", {}, nothing, {}),
    "XLM-R, masked LM, full": ("XLMRobertaForMaskedLM", {}, nothing, {"layout": "full"}),
    "XLM-R, reranker": ("XLMRobertaForSequenceClassification", ONES, nothing, {}),
    "XLM-R, reranker, full": ("XLMRobertaForSequenceClassification", ONES, nothing, {"layout": "full"}),
    "XLM-R, three classes, full": (
        "XLMRobertaForSequenceClassification",
        {"num_labels": 3},
        nothing,
        {"layout": "full"},
    ),
    "XLM-R, tagger": ("XLMRobertaForTokenClassification", {"id2label": TAGS}, nothing, {}),
    "XLM-R, tagger, full": ("XLMRobertaForTokenClassification", {"id2label": TAGS}, nothing, {"layout": "full"}),
    "XLM-R, question answering, full": ("XLMRobertaForQuestionAnswering", {}, nothing, {"layout": "full"}),
    "CamemBERT": ("CamembertModel", {}, nothing, {}),
    "CamemBERT, mean": ("CamembertModel", {}, pooling("mean"), {}),
    "CamemBERT, masked LM, full": ("CamembertForMaskedLM", {}, nothing, {"layout": "full"}),
    "ModernBERT": ("ModernBertModel", {}, nothing, {}),
    "ModernBERT, tanh-GELU": ("ModernBertModel", {"hidden_act": "gelu_pytorch_tanh"}, nothing, {}),
    "ModernBERT, tanh-GELU, mean": ("ModernBertModel", {"hidden_act": "gelu_pytorch_tanh"}, pooling("mean"), {}),
    "ModernBERT, cls": ("ModernBertModel", {"hidden_act": "gelu_pytorch_tanh"}, pooling("cls"), {}),
    "ModernBERT, no regular order": (
        "ModernBertModel",
        {"layer_types": ["full_attention", "full_attention", "sliding_attention"], "global_attn_every_n_layers": None},
        nothing,
        {},
    ),
    "ModernBERT, quantized": ("ModernBertModel", {}, pooling("mean"), {"quantize": "mixed", "calibration": "none"}),
    "ModernBERT, masked LM": ("ModernBertForMaskedLM", {}, nothing, {}),
    "ModernBERT, masked LM, full": ("ModernBertForMaskedLM", {}, nothing, {"layout": "full"}),
    "ModernBERT, reranker": ("ModernBertForSequenceClassification", ONES, nothing, {}),
    "ModernBERT, reranker, full": ("ModernBertForSequenceClassification", ONES, nothing, {"layout": "full"}),
    "ModernBERT, tagger, full": ("ModernBertForTokenClassification", {"id2label": TAGS}, nothing, {"layout": "full"}),
}
# What the test cannot see: with these texts no prompt is given, and numbers are compared after normalization.
UNSEEN = {("mean without the prompt", "mlx-embeddings"), ("mean without the prompt", "mlx-vlm (load_embedding_model)")}


@pytest.fixture(scope="module", params=DIRECTORIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Name, path and conversion of a directory."""
    architecture, sizes, add, options = DIRECTORIES[request.param]
    root = tmp_path_factory.mktemp("loaders")
    save_tiny(root / "source", architecture, hidden_size=SIZE, **sizes)
    save_tokenizer(root / "source")
    add(root / "source")
    return request.param, root / "out", convert(root / "source", root / "out", verify=False, **options)


def test_what_becomes_of_a_directory_in_every_loader(directory: tuple[str, Path, Any]) -> None:
    name, path, result = directory
    said = {reading.loader.name: reading for reading in result.readings}
    found = {loader: attempt(LOAD[loader], path) for loader in said}
    expected = {loader: reading.effect for loader, reading in said.items()}
    for unseen in UNSEEN:
        if unseen[0] == name:
            assert (expected[unseen[1]], found[unseen[1]]) == (DIFFERS, WORKS)
            found[unseen[1]] = DIFFERS
    assert found == expected
    assert all(bool(reading.reasons) == (reading.effect != WORKS) for reading in said.values())


def attempt(load: Callable[[Path], bool], path: Path) -> str:
    """What happens: it refuses, gives the numbers of ours, or others."""
    try:
        return WORKS if load(path) else DIFFERS
    except (ValueError, OSError, KeyError, RuntimeError, TypeError):
        return REFUSES


# `TEXTS` as the tokenizers of `write_vocab` and `write_bpe` have them: "a" is 5 and 69, " b" 6 and 262.
ALL_IDS = {
    "bert": mx.array([[2, 5, 6, 7, 8, 9, 10, 11, 3], [2, 12, 13, 3, 0, 0, 0, 0, 0]]),
    "roberta": mx.array([[0, 69, 262, 263, 264, 265, 266, 267, 2], [0, 76, 269, 2, 1, 1, 1, 1, 1]]),
}


def same(found: Any, expected: Any, mask: Any = None) -> bool:
    found, expected = (
        np.array(value.astype(mx.float32) if isinstance(value, mx.array) else value) for value in (found, expected)
    )
    if found.shape != expected.shape:
        return False
    if mask is not None:
        found, expected = found[np.array(mask).astype(bool)], expected[np.array(mask).astype(bool)]
    return bool(np.abs(found - expected).max() < 1e-4)


def ids_of(path: Path) -> mx.array:
    model_type = json.loads((path / "config.json").read_text())["model_type"]
    if model_type not in ALL_IDS:  # its tokenizer is trained by a package, whose versions may differ
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent / "source")
        ALL_IDS[model_type] = mx.array(tokenizer(TEXTS, padding=True)["input_ids"])
    return ALL_IDS[model_type]


def mask_of(path: Path) -> mx.array:
    ids = ids_of(path)
    return (ids != ids[1, -1]).astype(mx.int32)  # the second text is the shorter one


def hidden(path: Path) -> mx.array:
    config = json.loads((path / "config.json").read_text())
    core = mlxbert.checkpoint.load_core(path, config=config)
    return core(ids_of(path), mask_of(path)).last_hidden_state


def embeds(output: Any, path: Path) -> bool:
    """Whether another package's hidden states and sentence vectors are ours."""
    packed = "quantization" in json.loads((path / "config.json").read_text())
    ours = hidden(path)
    if packed:  # it computes in half precision
        difference = np.array(output.last_hidden_state.astype(mx.float32)) - np.array(ours)
        return bool(np.abs(difference)[np.array(mask_of(path)).astype(bool)].max() < 0.1)
    if not same(output.last_hidden_state, ours, mask_of(path)):
        return False
    if not (path / "modules.json").is_file():
        return True
    encoder = SentenceEncoder.from_pretrained(path)
    return same(output.text_embeds, encoder.encode(TEXTS))


def in_torch(model: Any, path: Path) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        output = model.eval()(
            torch.tensor(np.array(ids_of(path))).long(), attention_mask=torch.tensor(np.array(mask_of(path)))
        )
    return {name: value.numpy() for name, value in output.items() if hasattr(value, "numpy")}


def auto_model(path: Path) -> bool:
    model, info = transformers.AutoModel.from_pretrained(path, output_loading_info=True)
    equal = same(in_torch(model, path)["last_hidden_state"], hidden(path), mask_of(path))
    return equal and tokenizes(transformers.AutoTokenizer.from_pretrained(path), path) and not info["missing_keys"]


def tokenizes(tokenizer: Any, path: Path) -> bool:
    return list(tokenizer(TEXTS[1])["input_ids"]) == ids_of(path)[1, : int(mask_of(path)[1].sum())].tolist()


def embeddings(path: Path) -> bool:
    model, tokenizer = mlx_embeddings.load(str(path))
    return tokenizes(tokenizer, path) and embeds(model(ids_of(path), attention_mask=mask_of(path)), path)


def auto_head(path: Path) -> bool:
    ours, _ = mlxbert.load_with_head(path)
    model, info = getattr(transformers, ours.architecture).from_pretrained(path, output_loading_info=True)
    theirs, output = in_torch(model, path), ours(ids_of(path), mask_of(path))
    logits = {name: getattr(output, name) for name in vars(output) if name.endswith("logits")}
    pairs = [(theirs[name], value) for name, value in logits.items() if value is not None]
    mask = mask_of(path)
    masks = [mask if found.ndim > 1 and found.shape[1] == mask.shape[1] else None for found, _ in pairs]
    assert pairs
    return not info["missing_keys"] and all(same(*pair, mask) for pair, mask in zip(pairs, masks, strict=True))


def sentence_transformer(path: Path) -> bool:
    theirs = sentence_transformers.SentenceTransformer(str(path), device="cpu").encode(TEXTS)
    return same(theirs, SentenceEncoder.from_pretrained(path).encode(TEXTS))


def reranker(path: Path) -> bool:
    from mlx_vlm.reranker_loader import load_reranker

    theirs, _ = load_reranker(path)
    ours, _ = mlxbert.load_with_head(path)
    return same(theirs(ids_of(path), attention_mask=mask_of(path)).logits, ours(ids_of(path), mask_of(path)).logits)


def tagger(path: Path) -> bool:
    from mlx_vlm.token_classification import load_token_classifier

    theirs = load_token_classifier(path).model
    ours, _ = mlxbert.load_with_head(path)
    return same(
        theirs(ids_of(path), attention_mask=mask_of(path)).logits,
        ours(ids_of(path), mask_of(path)).logits,
        mask_of(path),
    )


def swift(path: Path) -> bool:
    problems = swift_problems(path)
    if any(problem.startswith("refuses") for problem in problems):
        raise ValueError(problems[0])
    return not problems


LOAD: dict[str, Callable[[Path], bool]] = {
    loaders.OURS.name: lambda path: mlxbert.checkpoint.load_core(path) is not None and (path / INDEX).is_file(),
    loaders.AUTO_MODEL.name: auto_model,
    loaders.AUTO_HEAD.name: auto_head,
    loaders.SENTENCE_TRANSFORMER.name: sentence_transformer,
    loaders.MLX_EMBEDDINGS.name: embeddings,
    loaders.MLX_VLM.name: lambda path: embeds(
        mlx_vlm_loader.load_embedding_model(path)(ids_of(path), attention_mask=mask_of(path)), path
    ),
    loaders.MLX_VLM_RERANKER.name: reranker,
    loaders.MLX_VLM_TAGGER.name: tagger,
    loaders.SWIFT.name: swift,
}


class TestTraitsOfSwiftAlone:
    """What no package in Python minds."""

    def converted(self, tmp_path: Path, add: Callable[[Path], None], **config: Any) -> tuple[list[Reading], list[str]]:
        save_tiny(tmp_path / "source", SEQUENCE, **ONES, hidden_size=SIZE)
        save_tokenizer(tmp_path / "source")
        add(tmp_path / "source")
        convert(tmp_path / "source", tmp_path / "out", layout="full", verify=False)
        file = tmp_path / "out/config.json"
        parsed = json.loads(file.read_text()) | config
        file.write_text(json.dumps(parsed))
        found = loaders.readings(
            loaders.traits_of(tmp_path / "out", parsed, ("classifier.weight", "classifier.bias")), "bert"
        )
        return [reading for reading in found if reading.effect != WORKS], swift_problems(tmp_path / "out")

    def test_pooling_in_the_newer_spelling_alone(self, tmp_path: Path) -> None:
        self.converted(tmp_path, pooling("mean"))
        (tmp_path / "out/1_Pooling/config.json").write_text(
            json.dumps({"embedding_dimension": SIZE, "pooling_mode": "mean"})
        )
        parsed = json.loads((tmp_path / "out/config.json").read_text())
        found = loaders.readings(loaders.traits_of(tmp_path / "out", parsed, ("classifier.weight",)), "bert")
        differs = [reading for reading in found if reading.effect == DIFFERS]
        assert [reading.loader for reading in differs] == [loaders.SWIFT]
        assert "does not find the pooling" in differs[0].reasons[0]
        assert swift_problems(tmp_path / "out") == [
            "differs: without word_embedding_dimension the pooling is not read"
        ]

    def test_labels_that_are_numbers(self, tmp_path: Path) -> None:
        found, problems = self.converted(tmp_path, nothing, id2label={"0": 1})
        assert [reading.loader for reading in found if "id2label" in reading.reasons[0]] == [loaders.SWIFT]
        assert problems == ["refuses: id2label with values that are no text"]


@pytest.mark.parametrize(
    ("class_name", "task", "auto_class"),
    [
        ("RobertaModel", "feature-extraction", "AutoModel"),
        ("RobertaForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
        ("RobertaForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
        ("RobertaForMultipleChoice", "multiple-choice", "AutoModelForMultipleChoice"),
    ],
)
def test_the_card_of_roberta(class_name: str, task: str, auto_class: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", class_name)
    save_tokenizer(tmp_path / "source")
    layout = "encoder" if class_name == "RobertaModel" else "full"
    result = convert(tmp_path / "source", tmp_path / "out", verify=False, layout=layout)
    assert not result.usage.failed
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert f"pipeline_tag: {task}\ntags:\n- mlx\n- mlxbert\n- roberta\n" in card
    assert f"{class_name} in float32" in card
    assert ("mlxbert.load_with_head(" in card) == (class_name != "RobertaModel")
    assert f"from transformers import {auto_class}, AutoTokenizer" in card
    assert "Of each text the first 64 tokens are read" in card
    assert "| mlx-embeddings | **no**: it does not have this architecture |" in card
    assert "from mlx_embeddings" not in card
