"""Heads, tokenizer and pipelines of every architecture that is registered, against transformers' own."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import mlxbert
from converter.convert import convert
from mlxbert.models.architecture import HeadKind, architecture, supported
from mlxbert.pipelines import answer, classify, fill_mask, tag
from mlxbert.pretrained import PretrainedBert
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError
from tests.support.tiny import declared_of, save_tiny, save_tokenizer, write_bpe

torch = pytest.importorskip("torch", reason="the reference is transformers on PyTorch")
transformers = pytest.importorskip("transformers")

Make = Callable[..., tuple[Path, PretrainedBert, Tokenizer]]
CLASSES = [name for model_type in supported() for name in architecture(model_type).heads]
TEXTS = ["a bc", "the tin hat, then", "in  it \n was", "", "don't: 12.50 €", "<s>it</s> [SEP]", "é́𝔸 🙂 東京"]
LIMIT = 2e-5
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")


def classes(kind: HeadKind) -> list[str]:
    return [name for name in CLASSES if declared_of(name).heads[name].kind is kind]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, tuple[Path, PretrainedBert, Tokenizer]] = {}

    def build(name: str, **options: Any) -> tuple[Path, PretrainedBert, Tokenizer]:
        key = f"{name} {options}"
        if key not in made:
            directory = tmp_path_factory.mktemp("registered")
            save_tiny(directory / "source", name, **options)
            save_tokenizer(directory / "source")
            convert(directory / "source", directory / "out", verify=False)
            made[key] = (directory / "source", *mlxbert.load_with_head(directory / "out"))
        return made[key]

    return build


def options_of(name: str) -> dict[str, Any]:
    return {"num_labels": 3} if declared_of(name).heads[name].labels else {}


def same(got: Any, expected: Any) -> None:
    """Equal in shape, keys, order and everything but the last digits of a number."""
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            same(one, other)
        return
    assert list(got) == list(expected)
    for key, value in expected.items():
        assert got[key] == (pytest.approx(float(value), abs=2e-6) if key == "score" else value), key


@pytest.mark.parametrize("name", CLASSES)
def test_the_logits_of_every_head_are_transformers(make: Make, name: str) -> None:
    source, model, _ = make(name, **options_of(name))
    theirs = getattr(transformers, name).from_pretrained(source).eval()
    random = np.random.default_rng(0)
    ids = random.integers(5, model.config.vocab_size, (4, 11))
    mask = (np.arange(11) < np.array([11, 7, 2, 1])[:, None]).astype(np.int64)
    ids = np.where(mask, ids, model.config.pad_token_id or 0)
    if model.kind is HeadKind.CHOICE:
        ids, mask = ids.reshape(2, 2, 11), mask.reshape(2, 2, 11)
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    output = model(ids, mask)
    names = [field for field in expected if field.endswith("logits")]
    assert names
    for field in names:
        ours, reference = np.array(getattr(output, field)), expected[field].numpy()
        scaled = np.abs(ours - reference) / np.maximum(1, np.abs(reference))
        assert (scaled[mask == 1] if scaled.shape[:2] == mask.shape else scaled).max() < LIMIT


@pytest.mark.parametrize("name", CLASSES)
def test_a_head_is_saved_as_it_was_and_its_class_is_told_by_its_tensors(make: Make, name: str, tmp_path: Path) -> None:
    source, model, _ = make(name, **options_of(name))
    saved = model.save(tmp_path / "saved")
    again, _ = mlxbert.load_with_head(saved)
    assert again.architecture == model.architecture == name
    for file in ("model.safetensors", "heads.safetensors"):
        before, after = (load_file(directory / file) for directory in (source.parent / "out", saved))
        assert set(before) == set(after)
        assert all(before[key].tobytes() == after[key].tobytes() for key in before)


@pytest.fixture(params=supported())
def tokenizers_of(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with the tokenizer of an architecture, in the form of a bare vocabulary."""
    save_tiny(tmp_path, architecture(request.param).encoder_class)
    return tmp_path


def agree(directory: Path) -> None:
    """Ids, types and masks are transformers' for texts, pairs and cut texts, decoded texts too.

    transformers gives a model without token types none, or a class's own, which the model then leaves out.
    """
    model_type = json.loads((directory / "config.json").read_text())["model_type"]
    has_types = architecture(model_type).has_token_types
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.from_directory(directory, max_length=64, type_limit=None if has_types else 0)
    for name in ("pad", "cls", "sep", "mask", "unk"):
        assert getattr(ours, f"{name}_token_id") == getattr(theirs, f"{name}_token_id")
    for pairs in (None, TEXTS[::-1]):
        for limit in (64, 9):
            expected = theirs(TEXTS, pairs, truncation=True, max_length=limit, padding=True)
            if not has_types or "token_type_ids" not in expected:
                expected["token_type_ids"] = [[0] * len(row) for row in expected["input_ids"]]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = ours(TEXTS, pairs, max_length=limit)
            for key, value in got.items():
                assert value.tolist() == expected[key], (key, pairs, limit)
    rows = ours.encode(TEXTS, TEXTS[::-1])
    expected = theirs(TEXTS, TEXTS[::-1], return_offsets_mapping=True, return_special_tokens_mask=True)
    assert [list(row.offsets) for row in rows] == expected["offset_mapping"]
    assert [list(row.special_tokens_mask) for row in rows] == expected["special_tokens_mask"]
    assert [list(row.sequences) for row in rows] == [expected.sequence_ids(i) for i in range(len(TEXTS))]
    assert [ours.decode(row.ids) for row in rows] == theirs.batch_decode([row.ids for row in rows], True)


def test_a_bare_vocabulary_and_what_transformers_makes_of_it(tokenizers_of: Path) -> None:
    agree(tokenizers_of)
    save_tokenizer(tokenizers_of)
    assert (tokenizers_of / "tokenizer.json").is_file()
    agree(tokenizers_of)


def test_without_a_class_in_any_file_the_architecture_tells_it(tokenizers_of: Path) -> None:
    save_tokenizer(tokenizers_of)
    path = tokenizers_of / "tokenizer_config.json"
    kept = {}
    if architecture(json.loads((tokenizers_of / "config.json").read_text())["model_type"]).tokenizer_class in GENERIC:
        # A class without tokens of its own.
        kept = {key: value for key, value in json.loads(path.read_text()).items() if key.endswith("_token")}
    path.write_text(json.dumps(kept))
    agree(tokenizers_of)


@pytest.mark.parametrize(
    "settings", ['{"add_prefix_space": true}', '{"trim_offsets": false}', '{"mask_token": "<unk>"}'], ids=str
)
def test_settings_of_byte_level_bpe(settings: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, "RobertaModel")
    (tmp_path / "tokenizer_config.json").write_text(settings)
    agree(tmp_path)


def test_damaged_byte_level_bpe_is_refused_by_name(tmp_path: Path) -> None:
    save_tiny(tmp_path, "RobertaModel")
    merges = (tmp_path / "merges.txt").read_text()
    (tmp_path / "merges.txt").write_text(merges + "a b c\n")
    with pytest.raises(TokenizerError, match=r"vocab\.json: has no byte-level BPE vocabulary with its merges; fix: "):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "merges.txt").write_text(merges + "é q\n")
    with pytest.raises(TokenizerError, match=r"vocab\.json: cannot be read \(.*\); fix: fetch the file again"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor vocab\.json with merges\.txt is there"):
        Tokenizer.from_directory(tmp_path)
    write_bpe(tmp_path, 300)
    vocabulary = (tmp_path / "vocab.json").read_text()
    (tmp_path / "vocab.json").write_text(vocabulary.replace('"</s>"', '"<end>"'))
    with pytest.raises(TokenizerError, match="the vocabulary has no </s>; fix: check that it is a RoBERTa vocabulary"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("name", classes(HeadKind.MASKED_LM))
def test_fill_mask_is_transformers(make: Make, name: str) -> None:
    source, model, tokenizer = make(name)
    theirs = transformers.pipeline("fill-mask", model=str(source))
    mask = theirs.tokenizer.mask_token
    for texts in (f"a b {mask} cab", [f"the {mask} in", f"{mask} {mask} x", mask]):
        same(fill_mask(model, tokenizer, texts, 3), theirs(texts, top_k=3))


@pytest.mark.parametrize("name", classes(HeadKind.SEQUENCE))
@pytest.mark.parametrize("labels", [1, 3])
def test_classify_is_transformers(make: Make, name: str, labels: int) -> None:
    source, model, tokenizer = make(name, num_labels=labels)
    theirs = transformers.pipeline("text-classification", model=str(source))
    for texts in ("a bc", ["a", "the tin de fg"], {"text": "the", "text_pair": "in it"}):
        same(classify(model, tokenizer, texts, top_k=2), theirs(texts, top_k=2))


@pytest.mark.parametrize("name", classes(HeadKind.TOKEN))
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_tag_is_transformers(make: Make, name: str, strategy: str) -> None:
    labels = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
    source, model, tokenizer = make(name, id2label=labels, label2id={label: i for i, label in labels.items()})
    theirs = transformers.pipeline("token-classification", model=str(source), aggregation_strategy=strategy)
    texts = ["the tin hat, then", "a bc def. ghi", "don't stop the thing in it"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no words
        same(tag(model, tokenizer, texts, strategy), theirs(texts))


@pytest.mark.parametrize("name", classes(HeadKind.SPAN))
def test_answer_is_whole_words_of_the_context(make: Make, name: str) -> None:
    _, model, tokenizer = make(name)
    context = "the tin hat is in the house, and then it was not there. " * 6
    found: Any = answer(model, tokenizer, "where is it", context, top_k=3, max_seq_len=60, doc_stride=10)
    assert found
    for one in found:
        assert context[one["start"] : one["end"]] == one["answer"]
        assert one["start"] == 0 or not (context[one["start"] - 1].isalnum() and one["answer"][0].isalnum())
        after = context[one["end"] : one["end"] + 1]
        assert not (after.isalnum() and one["answer"][-1].isalnum())
