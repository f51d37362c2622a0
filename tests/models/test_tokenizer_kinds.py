"""Every kind of tokenizer agrees with transformers' own for the same files, on text chosen to break tokenizers."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from mlxbert.tokenization.encoding import LongTexts
from mlxbert.tokenization.tokenizer import Tokenizer
from tests.support.tokenizer_files import SENTENCEPIECE_KINDS, write_tokenizer

_NASTY = Path(__file__).parents[1] / "support" / "data" / "nasty_texts.json"
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<s>NOTUSED")
TEXTS: list[str] = [
    *json.loads(_NASTY.read_text("utf-8")),
    *(text.format(token) for token in SPECIAL for text in ("{0}", "a  {0}  b", "a{0}b", "the {0}.")),
    *("▁the ▁▁ of", "Ġthe Ġ Ċ", "  the word  ", "word\u00a0of\u3000the\tand\r\nto", "ﬁve ½ Å café cafe\u0301 ＡＢＣ"),
    *(
        "``the'' ``of''",
        "it isn't , is it ? It ' s so .",
        "<MASK> <Mask>",
        "1,000 9, 3,",
        "a |||IP||| b|||ip|||    x",
        "Ｔｈｅ\x00of\x7f\ufffd",
        "\u200dthe\u200b of",
    ),
]
PAIRS = TEXTS[::-1]
KINDS = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "distilbert",
    "ElectraTokenizer": "electra",
    "MPNetTokenizer": "mpnet",
    "RobertaTokenizer": "roberta",
    "PreTrainedTokenizerFast": "modernbert",
    **{name: kind.model_type for name, kind in SENTENCEPIECE_KINDS.items()},
}
UNIGRAM = tuple(SENTENCEPIECE_KINDS)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of every kind."""
    root = tmp_path_factory.mktemp("kinds")
    for name, model_type in KINDS.items():
        write_tokenizer(root / name, name, 400)
        write_json(root / name / "config.json", {"model_type": model_type, "tokenizer_class": name})
    return root


@pytest.fixture
def files(tmp_path: Path, samples: Path) -> Callable[[str], Path]:
    """A copy of a kind's files."""
    return lambda name: shutil.copytree(samples / name, tmp_path / name)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def change(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    write_json(path, {**json.loads(path.read_text("utf-8")), **fields})


def agree(directory: Path, *, limits: tuple[int | None, ...] = (None, 8, 9)) -> Tokenizer:
    """Ids, type ids, offsets, masks and decoded text are those of transformers: alone, in pairs, cut and padded."""
    ours, theirs = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    theirs.model_max_length = 10**9
    special = (
        theirs.cls_token_id,
        theirs.sep_token_id,
        theirs.pad_token_id,
        theirs.unk_token_id,
        theirs.mask_token_id,
    )
    assert (ours.cls_token_id, ours.sep_token_id, ours.pad_token_id, ours.unk_token_id, ours.mask_token_id) == special
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert ours.special_ids == {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    wanted = ("offsets_mapping", "special_tokens_mask")
    for pairs in (None, PAIRS):
        for limit in limits:
            cut: dict[str, Any] = {"truncation": True, "max_length": limit} if limit else {"truncation": False}
            expected = theirs(TEXTS, pairs, **{f"return_{name}": True for name in wanted}, **cut)
            for i, row in enumerate(ours.encode(TEXTS, pairs, max_length=limit)):
                place = f"text {i} {TEXTS[i][:40]!r}, pairs: {pairs is not None}, limit {limit}"
                assert list(row.ids) == expected["input_ids"][i], place
                types = expected["token_type_ids"][i] if "token_type_ids" in expected else [0] * len(row)
                assert list(row.type_ids) == types, place
                assert list(row.special_tokens_mask) == expected["special_tokens_mask"][i], place
                assert list(row.sequences) == expected.sequence_ids(i), place
                assert list(row.offsets) == expected["offset_mapping"][i], place
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = ours(TEXTS, PAIRS, max_length=12)
    padded = theirs(TEXTS, PAIRS, truncation=True, max_length=12, padding=True)
    for key, value in batch.items():
        assert value.tolist() == padded.get(key, [[0] * len(row) for row in padded["input_ids"]]), key
    for row in ours.encode(TEXTS):
        for skip in (False, True):
            assert ours.decode(row.ids, skip) == theirs.decode(row.ids, skip_special_tokens=skip)
    return ours


@pytest.mark.parametrize("name", KINDS)
def test_the_kind(files: Callable[[str], Path], name: str) -> None:
    agree(files(name))


@pytest.mark.parametrize("name", KINDS)
def test_what_transformers_saves_of_it(files: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    source = files(name)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["new token", "UPPER"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<e1>"]}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(saved)
    assert (saved / "tokenizer.json").is_file()
    shutil.copy(source / "config.json", saved)
    ours = agree(saved, limits=(None,))
    texts = ["a new token<e1>", "an UPPER", "an upper"]
    assert [list(row.ids) for row in ours.encode(texts)] == AutoTokenizer.from_pretrained(saved)(texts)["input_ids"]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("name", ["BertTokenizer", "XLMRobertaTokenizer", "DebertaV2Tokenizer", "RobertaTokenizer"])
def test_a_class_that_is_not_the_usual_one_of_the_architecture(
    files: Callable[[str], Path], name: str, model_type: str
) -> None:
    """multilingual-e5-small is a BERT with XLM-RoBERTa's tokenizer; a ModernBERT keeps its tokenizer.json."""
    directory = files(name)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_json(directory / "config.json", {"model_type": model_type})
    settings = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    assert settings["tokenizer_class"] == name
    agree(directory, limits=(9,))


MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "MPNetTokenizer": (
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"mask_token": "<pad>"},
        {"mask_token": {"__type": "AddedToken", **MASK}},
        {"unk_token": "<unk>"},
    ),
    "RobertaTokenizer": ({"add_prefix_space": True}, {"trim_offsets": False}, {"clean_up_tokenization_spaces": True}),
    "PreTrainedTokenizerFast": ({"clean_up_tokenization_spaces": False}, {"mask_token": "[PAD]"}),
    "XLMRobertaTokenizer": (
        {"add_prefix_space": False},
        {"clean_up_tokenization_spaces": True},
        {"additional_special_tokens": ["the", "<new>"]},
        {"extra_special_tokens": ["<new>"]},
        {"bos_token": "<pad>", "eos_token": "<unk>"},
        {"mask_token": {"__type": "AddedToken", **MASK}},
        {"truncation_side": "left"},
        {"split_special_tokens": True},
    ),
    "CamembertTokenizer": (
        {"add_prefix_space": False},
        {"additional_special_tokens": ["<s>NOTUSED"]},
        {"extra_special_tokens": ["<new>"]},
        {"unk_token": "<pad>"},
    ),
    "AlbertTokenizer": (
        {"do_lower_case": False},
        {"keep_accents": True},
        {"keep_accents": True, "do_lower_case": False},
        {"add_prefix_space": False},
        {"mask_token": {"__type": "AddedToken", **MASK, "content": "[MASK]"}},
    ),
    "DebertaV2Tokenizer": (
        {"do_lower_case": True},
        {"split_by_punct": True},
        {"add_prefix_space": False},
        {"mask_token": "<mask>"},
        {"unk_token": "[PAD]", "unk_id": 7},
        {"sp_model_kwargs": {}, "vocab_type": "spm", "additional_special_tokens": ["[A]", "[B]"]},
    ),
}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, one) for name, all_of in SETTINGS.items() for one in all_of], ids=str
)
def test_settings(files: Callable[[str], Path], name: str, settings: dict[str, Any]) -> None:
    directory = files(name)
    path = directory / "tokenizer_config.json"
    write_json(path, {**(json.loads(path.read_text()) if path.is_file() else {}), **settings})
    agree(directory, limits=(None, 9))


@pytest.mark.parametrize("name", KINDS)
def test_token_types_that_a_file_names(files: Callable[[str], Path], name: str) -> None:
    directory = files(name)
    path = directory / "tokenizer_config.json"
    for names in (["input_ids", "token_type_ids", "attention_mask"], ["input_ids", "attention_mask"]):
        settings = json.loads(path.read_text()) if path.is_file() else {}
        write_json(path, {**settings, "model_input_names": names})
        agree(directory, limits=(9,))


@pytest.mark.parametrize("name", KINDS)
def test_the_older_files_of_special_and_added_tokens(files: Callable[[str], Path], name: str) -> None:
    directory = files(name)
    if name != "PreTrainedTokenizerFast":  # it has no special tokens but those that a file names
        (directory / "tokenizer_config.json").unlink(missing_ok=True)
    mask = AutoTokenizer.from_pretrained(directory).mask_token or "[MASK]"
    named = {"mask_token": {**MASK, "content": mask}, "additional_special_tokens": ["<extra>"]}
    write_json(directory / "special_tokens_map.json", named)
    write_json(directory / "added_tokens.json", {"Word": 1000, "<extra>": 1001})
    agree(directory, limits=(None,))


NORMALIZERS: dict[str, Any] = {
    "none": None,
    "lower": {"type": "Lowercase"},
    "without a table": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
}


@pytest.mark.parametrize("name", UNIGRAM)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_stored_normalizer_counts_only_by_its_table(
    files: Callable[[str], Path], name: str, normalizer: str
) -> None:
    directory = files(name)
    change(directory / "tokenizer.json", normalizer=NORMALIZERS[normalizer])
    agree(directory, limits=(None,))


@pytest.mark.parametrize("name", UNIGRAM)
def test_a_stored_table_inside_a_sequence(files: Callable[[str], Path], samples: Path, name: str) -> None:
    directory = files(name)
    stored = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    table = json.loads((samples / "XLMRobertaTokenizer" / "tokenizer.json").read_text("utf-8"))["normalizer"]
    assert table["type"] == "Precompiled"
    change(
        directory / "tokenizer.json",
        normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}, table]},
        pre_tokenizer={"type": "Whitespace"},
        decoder=None,
        post_processor={"type": "BertProcessing", "sep": ["x", 1], "cls": ["y", 2]},
        truncation={"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 20},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    )
    assert stored["post_processor"]["type"] == "TemplateProcessing"
    agree(directory, limits=(None,))


BITS = [
    *(
        "a",
        "the",
        "of",
        " ",
        "  ",
        "\n",
        "\t",
        "\r\n",
        "\u00a0",
        "\u3000",
        "\u200b",
        "\u200d",
        ".",
        ",",
        "''",
        "``",
        "'s",
    ),
    *(
        "東",
        "é",
        "e\u0301",
        "\u0301",
        "ﬁ",
        "İ",
        "½",
        "각",
        "🇫🇷",
        "👩\u200d👧",
        "▁",
        "Ġ",
        "\ufffd",
        "\0",
        "1",
        "9,",
        "Σ",
    ),
    *("<mask>", "[MASK]", "<s>", "[SEP", "Q", "Q x", "x", "x" * 40, " " * 40),
]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("DistilBertTokenizer", "ElectraTokenizer")])
def test_a_long_text_cut_by_characters_has_the_ids_and_offsets_of_the_whole_one(
    files: Callable[[str], Path], name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = files(name)
    tokenizer = AutoTokenizer.from_pretrained(directory, truncation_side=side)
    tokenizer.add_tokens(["Q x"])
    tokenizer.save_pretrained(directory)
    ours = Tokenizer.from_directory(directory)
    assert ours._long_texts._local or (name, side) == ("PreTrainedTokenizerFast", "left")  # its runs of blanks
    rng, read = np.random.default_rng(0), set()
    for i in range(150):
        bits = rng.choice(BITS, int(rng.integers(2, len(BITS))), replace=False)
        text, pair = ("".join(rng.choice(bits, int(rng.integers(3, 400)))) for _ in range(2))
        limit, pairs = int(rng.integers(6, 20)), [pair] if i % 2 else None
        monkeypatch.setattr(LongTexts, "whole", 10**9)
        (expected,) = ours.encode([text], pairs, max_length=limit)
        monkeypatch.setattr(LongTexts, "whole", int(rng.choice([8, 40, 200])))
        (got,) = ours.encode([text], pairs, max_length=limit)
        assert (got.ids, got.type_ids, got.offsets) == (expected.ids, expected.type_ids, expected.offsets), text
        read.add(got.uncounted)
    assert True in read or not ours._long_texts._local
