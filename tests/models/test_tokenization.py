"""Ids and type ids equal transformers' own, on text chosen to break tokenizers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer

from mlxbert.tokenization.encoding import LongTexts
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError, TokenizerWarning, TruncationWarning

TEXTS: list[str] = json.loads((Path(__file__).parents[1] / "support" / "data" / "nasty_texts.json").read_text("utf-8"))
PAIRS = TEXTS[::-1]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def small_vocabulary() -> list[str]:
    """Every character of the texts, whole and as a continuation, and words in both cases, with and without accents."""
    characters = sorted({c for text in TEXTS for form in (text, text.lower()) for c in form if not c.isspace()})
    words = {w for text in TEXTS for w in re.findall(r"\w+", text) if len(w) < 12}
    stripped = normalizers.BertNormalizer(lowercase=True)
    words |= {piece for w in words for piece in stripped.normalize_str(w).split()}
    characters += sorted({c for w in words for c in w} - set(characters))
    # A third of the characters is left out, so that [UNK] is met as well.
    kept = [c for i, c in enumerate(characters) if i % 3]
    pieces = ["##ing", "##able", "##s", "##ation", "##ed"]
    return list(dict.fromkeys([*SPECIAL, *kept, *(f"##{c}" for c in kept), *pieces, *sorted(words)]))


@pytest.fixture(scope="module")
def vocabulary() -> list[str]:
    return small_vocabulary()


def write(directory: Path, vocabulary: list[str] | None = None, **files: object) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "bert"}))
    if vocabulary is not None:
        (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def pipeline(vocabulary: list[str], **normalizer: object) -> dict[str, object]:
    """A tokenizer.json as one saves it that padded and truncated a batch of its own."""
    backend = Backend(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(**normalizer)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(SPECIAL)
    backend.enable_truncation(7)
    backend.enable_padding(length=7)
    return json.loads(backend.to_str())


def assert_same(ours: Tokenizer, reference: AutoTokenizer, limit: int | None = None) -> None:
    """Ids, type ids and special-token masks of single texts and pairs."""
    cut = {"truncation": True, "max_length": limit} if limit else {"truncation": False}
    for pairs in (None, PAIRS):
        expected = reference(TEXTS, pairs, padding=False, return_special_tokens_mask=True, **cut)
        got = ours.encode(TEXTS, pairs, max_length=limit)
        for i, encoding in enumerate(got):
            where = f"text {i} {TEXTS[i][:40]!r}, pairs: {pairs is not None}"
            assert list(encoding.ids) == expected["input_ids"][i], where
            assert list(encoding.type_ids) == expected["token_type_ids"][i], where
            assert list(encoding.special_tokens_mask) == expected["special_tokens_mask"][i], where


@pytest.mark.parametrize("lower", [True, False], ids=["uncased", "cased"])
@pytest.mark.parametrize("strip", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
def test_bare_vocabulary_with_settings(
    tmp_path: Path, vocabulary: list[str], lower: bool, strip: bool | None, chinese: bool
) -> None:
    settings = {"do_lower_case": lower, "strip_accents": strip, "tokenize_chinese_chars": chinese}
    directory = write(tmp_path, vocabulary, tokenizer_config=settings)
    ours = Tokenizer.from_directory(directory)
    assert_same(ours, AutoTokenizer.from_pretrained(directory))
    assert_same(ours, BertTokenizer(str(directory / "vocab.txt"), **settings))


def test_bare_vocabulary_alone_is_uncased(tmp_path: Path, vocabulary: list[str]) -> None:
    directory = write(tmp_path, vocabulary)
    ours = Tokenizer.from_directory(directory)
    assert_same(ours, BertTokenizer(str(directory / "vocab.txt")))
    assert_same(ours, AutoTokenizer.from_pretrained(directory))
    encoding = ours.encode("HELLO")[0]
    assert ours.id_to_token(encoding.ids[1]) == "hello"


@pytest.mark.parametrize("limit", [4, 5, 6, 7, 8, 9, 16, 33])
def test_pairs_are_cut_longest_first(tmp_path: Path, vocabulary: list[str], limit: int) -> None:
    directory = write(tmp_path, vocabulary, tokenizer_config={"model_max_length": 512})
    reference = AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.from_directory(directory, max_length=512)
    assert_same(ours, reference, limit)


def test_truncation_side_is_read(tmp_path: Path, vocabulary: list[str]) -> None:
    directory = write(tmp_path, vocabulary, tokenizer_config={"truncation_side": "left"})
    assert_same(Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory), limit=9)


def test_minilm(minilm_source: Path, tmp_path: Path) -> None:
    """The real vocabulary: tokenizer.json (whose padding to 128 is reset), then vocab.txt alone, then cased."""
    ours = Tokenizer.from_directory(minilm_source)
    assert ours.vocab_size == 30522
    assert_same(ours, AutoTokenizer.from_pretrained(minilm_source, model_max_length=10**9))
    assert len(ours.encode("short")[0]) == 3
    shutil.copy(minilm_source / "vocab.txt", tmp_path)
    assert_same(Tokenizer.from_directory(tmp_path), BertTokenizer(str(tmp_path / "vocab.txt")))
    write(tmp_path, tokenizer_config={"do_lower_case": False})
    assert_same(Tokenizer.from_directory(tmp_path), AutoTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("lower", [True, False], ids=["uncased", "cased"])
def test_stored_truncation_and_padding_are_reset(tmp_path: Path, vocabulary: list[str], lower: bool) -> None:
    directory = write(
        tmp_path, tokenizer=pipeline(vocabulary, lowercase=lower), tokenizer_config={"do_lower_case": lower}
    )
    ours = Tokenizer.from_directory(directory)
    assert ours.max_length is None
    reference = AutoTokenizer.from_pretrained(directory)
    reference.model_max_length = 10**9
    assert_same(ours, reference)
    assert ours("a")["input_ids"].shape == (1, 3)


def test_config_overrides_stored_normalizer_as_transformers_does(tmp_path: Path, vocabulary: list[str]) -> None:
    directory = write(tmp_path, tokenizer=pipeline(vocabulary, lowercase=False), tokenizer_config={})
    with pytest.warns(
        TokenizerWarning,
        match=r"tokenizer.json says lowercase=False, transformers' default for a missing field says True",
    ):
        ours = Tokenizer.from_directory(directory)
    assert_same(ours, AutoTokenizer.from_pretrained(directory))


@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizerFast"])
def test_bert_classes_rebuild_the_pipeline(tmp_path: Path, vocabulary: list[str], name: str) -> None:
    config = {"tokenizer_class": name, "do_lower_case": True}
    directory = write(tmp_path, tokenizer=pipeline(vocabulary, lowercase=False), tokenizer_config=config)
    with pytest.warns(TokenizerWarning):
        ours = Tokenizer.from_directory(directory)
    reference = AutoTokenizer.from_pretrained(directory)
    expected = reference(TEXTS, truncation=False)["input_ids"]
    assert [list(e.ids) for e in ours.encode(TEXTS)] == expected


def test_other_classes_keep_the_stored_pipeline(tmp_path: Path, vocabulary: list[str]) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True, "unk_token": "[UNK]"}
    directory = write(tmp_path, tokenizer=pipeline(vocabulary, lowercase=False), tokenizer_config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TokenizerWarning)
        ours = Tokenizer.from_directory(directory)
    reference = AutoTokenizer.from_pretrained(directory)
    expected = reference(TEXTS, truncation=False)["input_ids"]
    assert [list(e.ids) for e in ours.encode(TEXTS)] == expected


@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_written_in_text(tmp_path: Path, vocabulary: list[str], split: bool) -> None:
    directory = write(tmp_path, vocabulary, tokenizer_config={"split_special_tokens": split})
    ours = Tokenizer.from_directory(directory)
    assert_same(ours, AutoTokenizer.from_pretrained(directory))
    assert (ours.mask_token_id in ours.encode("[MASK]")[0].ids) is not split


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"newtoken": 5000, "UPPER": 5001}},
        {"special_tokens_map": {"additional_special_tokens": ["[E1]", "newtoken"]}},
        {"special_tokens_map": {"mask_token": {"content": "[MASK]", "lstrip": True, "single_word": True}}},
        {"tokenizer_config": {"added_tokens_decoder": {"9": {"content": "fox", "special": False, "lstrip": True}}}},
        {"tokenizer_config": {"additional_special_tokens": ["newtoken"]}},
        {"tokenizer_config": {"extra_special_tokens": ["[E1]"]}},
        {"tokenizer_config": {"mask_token": {"__type": "AddedToken", "content": "[MASK]", "lstrip": True}}},
    ],
    ids=lambda files: "-".join(files),
)
@pytest.mark.parametrize("stored", [True, False], ids=["tokenizer.json", "vocab.txt"])
def test_added_tokens(tmp_path: Path, vocabulary: list[str], files: dict[str, object], stored: bool) -> None:
    base = {"tokenizer": pipeline(vocabulary, lowercase=True)} if stored else {}
    directory = write(tmp_path, None if stored else vocabulary, **base, **files)
    ours = Tokenizer.from_directory(directory)
    reference = AutoTokenizer.from_pretrained(directory)
    texts = ["a newtoken b", "UPPER newtokens [E1]x", "the  fox  jumps [E1] foxes", "x  [MASK]  y", "x[MASK]y", *TEXTS]
    expected = reference(texts, truncation=False)["input_ids"]
    for text, encoding, ids in zip(texts, ours.encode(texts), expected, strict=True):
        assert list(encoding.ids) == ids, text


def test_other_special_tokens(tmp_path: Path) -> None:
    names = {"unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<m>"}
    directory = write(tmp_path, ["<s>", "<pad>", "</s>", "<unk>", "<m>", "hello"], tokenizer_config=names)
    ours = Tokenizer.from_directory(directory)
    assert_same(ours, AutoTokenizer.from_pretrained(directory))
    ids = (ours.cls_token_id, ours.pad_token_id, ours.sep_token_id, ours.unk_token_id, ours.mask_token_id)
    assert ids == (0, 1, 2, 3, 4)
    assert ours(["hello", "hello hello"])["input_ids"].tolist() == [[0, 5, 2, 1], [0, 5, 5, 2]]
    assert ours.special_ids == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
def test_vocabulary_line_endings(tmp_path: Path, vocabulary: list[str], ending: str, mark: str) -> None:
    expected = Tokenizer.from_directory(write(tmp_path / "a", vocabulary)).encode(TEXTS)
    odd = write(tmp_path / "b")
    (odd / "vocab.txt").write_bytes((mark + ending.join(vocabulary) + ending * 2).encode())
    ours = Tokenizer.from_directory(odd)
    assert ours.encode(TEXTS) == expected
    assert ours.vocab_size == len(vocabulary)


def test_vocabulary_with_duplicates_and_blank_lines(tmp_path: Path) -> None:
    directory = write(tmp_path, [*SPECIAL, "hello", "", "world", "hello", "x "])
    ours = Tokenizer.from_directory(directory)
    assert_same(ours, BertTokenizer(str(directory / "vocab.txt")))
    assert ours.token_to_id("hello") == 8
    assert ours.vocab_size == 10


def test_special_token_outside_the_vocabulary_gets_no_id(tmp_path: Path) -> None:
    """transformers appends it, beyond the last row of the embedding matrix."""
    ours = Tokenizer.from_directory(write(tmp_path, ["[UNK]", "[CLS]", "[SEP]", "a"]))
    assert ours.vocab_size == 4
    assert (ours.mask_token_id, ours.pad_token_id) == (None, None)
    assert ours(["a", "a a"])["input_ids"].tolist() == [[1, 3, 2, 0], [1, 3, 3, 2]]


def test_offsets_point_into_the_text(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    reference = BertTokenizer(str(tmp_path / "vocab.txt"))
    expected = reference(TEXTS, return_offsets_mapping=True)["offset_mapping"]
    assert [list(e.offsets) for e in ours.encode(TEXTS)] == [[tuple(o) for o in row] for row in expected]


def test_call_pads_to_the_longest(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    reference = BertTokenizer(str(tmp_path / "vocab.txt"))
    batch = ours(TEXTS, PAIRS)
    expected = reference(TEXTS, PAIRS, padding=True)
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask"}
    for name, array in batch.items():
        assert array.dtype == mx.int32
        assert np.array_equal(np.array(array), np.array(expected[name])), name
    assert ours(["a", "b c"], pad_to=9)["attention_mask"].sum(axis=1).tolist() == [3, 4]
    with pytest.raises(TokenizerError, match=r"^pad_to=3 is less than the longest text's 4 tokens; fix: raise it$"):
        ours(["a", "b c"], pad_to=3)


def test_input_forms(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    expected = ours(["a b", "c"])["input_ids"].tolist()
    for texts in (("a b", "c"), np.array(["a b", "c"]), np.array(["a b", "c"], object), iter(["a b", "c"])):
        assert ours(texts)["input_ids"].tolist() == expected
    assert ours("a b")["input_ids"].tolist() == ours(["a b"])["input_ids"].tolist()
    assert ours("a", "b")["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert [ours([])[name].shape for name in ("input_ids", "attention_mask")] == [(0, 0), (0, 0)]
    assert ours.encode([]) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], "text 1 is None (NoneType), not a string; fix: drop it, or replace it by ''"),
        ([float("nan")], "text 0 is nan (float), not a string; fix: drop it, or replace it by ''"),
        (["a", b"b"], "text 1 is b'b' (bytes), not a string; fix: decode it"),
        (
            [("a", "b")],
            "text 0 is ('a', 'b') (tuple), not a string; "
            "fix: join both texts, or give the tokenizer second texts as pairs=",
        ),
        (b"a", "texts must be a string or a sequence of strings, not bytes"),
        (None, "texts must be a string or a sequence of strings, not NoneType"),
        ({"a": 1}, "texts must be a string or a sequence of strings, not dict"),
        (np.array([["a"]]), "texts must be a string or a sequence of strings, not ndarray"),
        (
            ["fine", "ab\ud800"],
            "text 1 holds an unpaired surrogate (U+D800) at character 2, which is no text; "
            "fix: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')",
        ),
    ],
)
def test_what_is_not_text_is_named(tmp_path: Path, vocabulary: list[str], texts: list[str], message: str) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    for use in (ours, ours.encode):
        with pytest.raises(TokenizerError) as caught:
            use(texts)
        assert str(caught.value) == message


def test_pairs_that_do_not_match(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    with pytest.raises(TokenizerError, match=r"^2 texts and 1 pairs; fix: give one pair for each text$"):
        ours(["a", "b"], "c")
    with pytest.raises(TokenizerError, match=r"^pair 1 is None"):
        ours(["a", "b"], ["c", None])
    with pytest.raises(TokenizerError, match=r"^pair 1 holds an unpaired surrogate"):
        ours(["a", "b"], ["c", "\udfff"])


def test_long_texts_are_not_cut_in_silence(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary), max_length=8)
    texts = ["a", "a " * 20, "a " * 30, "a " * 6]
    with pytest.warns(TruncationWarning) as caught:
        batch = ours(texts)
    assert [str(w.message) for w in caught] == [
        "2 of 4 texts are longer than 8 tokens (the longest has 32) and were cut"
    ]
    assert caught[0].filename == __file__
    assert batch["attention_mask"].sum(axis=1).tolist() == [3, 8, 8, 8]
    assert [e.n_truncated for e in ours.encode(texts)] == [0, 14, 24, 0]
    with pytest.raises(TokenizerError) as refused:
        ours(texts, truncation=False)
    assert str(refused.value) == (
        "2 of 4 texts are longer than 8 tokens; fix: shorten them, or pass truncation=True to have them cut\n"
        "  text 1: 22 tokens\n  text 2: 32 tokens"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(texts[:1], truncation=False)
        ours(["a " * 6])


@pytest.mark.parametrize(("config", "model", "expected"), [({}, 512, 512), ({"model_max_length": 128}, 512, 128)])
def test_the_lower_limit_counts(
    tmp_path: Path, vocabulary: list[str], config: dict[str, object], model: int, expected: int
) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary, tokenizer_config=config), max_length=model)
    assert ours.max_length == expected
    assert len(ours.encode("a " * 700)[0]) == expected
    assert len(ours.encode("a " * 700, max_length=300)[0]) == 300
    with pytest.raises(
        TokenizerError, match=r"^max_length=513 is more than the model's 512 positions; fix: lower it$"
    ):
        ours("a", max_length=513)
    for wrong in (2, 0, -1, True, 3.0):
        with pytest.raises(TokenizerError, match=r"^max_length must be a whole number above 2, the special tokens"):
            ours("a", max_length=wrong)


CUT_PAIRS = [
    ("a b c d e f g h", "a b c"),
    ("a", "b c d e f g h i"),
    ("a b c", "d e f"),
    ("a b c d e", None),
    ("a", ""),
]


@pytest.mark.parametrize("side", ["right", "left"])
def test_every_truncation_strategy_cuts_as_transformers_does(tmp_path: Path, vocabulary: list[str], side: str) -> None:
    directory = write(tmp_path, vocabulary, tokenizer_config={"truncation_side": side, "do_lower_case": False})
    ours, reference = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
    seen = 0
    for text, pair in CUT_PAIRS:
        for limit in range(4, 13):
            for strategy in (True, "longest_first", "only_first", "only_second", "do_not_truncate"):
                pairs = None if pair is None else [pair]
                try:
                    expected = reference([text], pairs, truncation=strategy, max_length=limit)
                except Exception as error:  # tokenizers' own
                    fix = "truncation=True" if "too short" in str(error) else "give pairs="
                    with pytest.raises(TokenizerError, match=rf'^truncation="{strategy}".*; fix: .*{fix}'):
                        ours([text], pairs, truncation=strategy, max_length=limit)
                    continue
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", TruncationWarning)
                    got = ours([text], pairs, truncation=strategy, max_length=limit)
                for name in ("input_ids", "token_type_ids", "attention_mask"):
                    assert got[name].tolist() == expected[name], (text, pair, limit, strategy)
                seen += 1
    assert seen > 150


def test_a_truncation_that_there_is_not_is_refused_and_an_uncut_text_is_said(
    tmp_path: Path, vocabulary: list[str]
) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary), max_length=8)
    for wrong in ("only_third", None, 1, "True", ["only_first"]):
        with pytest.raises(
            TokenizerError, match=r"^truncation=.* is not known; fix: True, False or one of longest_first"
        ):
            ours("a", truncation=wrong)  # type: ignore[arg-type]
    with pytest.warns(
        TruncationWarning, match=r"^1 of 2 texts is longer than 8 tokens \(the longest has 22\) and was not"
    ):
        assert ours(["a " * 20, "a"], truncation="do_not_truncate")["input_ids"].shape == (2, 22)


def test_a_setting_that_there_is_not_is_no_silent_attribute(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    for name in ("padding_side", "truncation_side", "model_max_length", "pad_token"):
        with pytest.raises(AttributeError, match=name):
            setattr(ours, name, "left")
    ours.max_length = 4
    with pytest.warns(TruncationWarning):
        assert ours("a b c d e")["input_ids"].shape == (1, 4)


# --- texts that are too long to be tokenized whole ------------------------------------------------------------------

RUNS = ["x" * 600, "ab" * 300, " " * 600, "\n" * 600, "\0" * 600, "🙂" * 600, "." * 600, "Я" * 300 + " " * 300]
BITS = [
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "\u200b",
    ".",
    "#",
    "[MASK]",
    "[MASK",
    "New York",
    "New",
    "York",
    "<x>",
    "東",
    "é",
    "e\u0301",
]
BITS += ["\u0301", "ﬁ", "İ", "x" * 101, "ing", "able", "\ufffd", "각", "\u3000", *RUNS]


def added(content: str, **options: bool) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"content": content, **flags, **options}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("settings", [{"strip_accents": False}, {"do_lower_case": False, "added": True}], ids=str)
def test_a_text_cut_by_characters_has_the_ids_and_offsets_of_the_whole_one(
    tmp_path: Path, vocabulary: list[str], monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], side: str
) -> None:
    config: dict[str, object] = {**settings, "truncation_side": side}
    if config.pop("added", False):
        tokens = [*(added(token, special=True) for token in SPECIAL), added("New York"), added("<x>", lstrip=True)]
        tokens += [added("é a", normalized=True, single_word=True)]
        config["added_tokens_decoder"] = {str(i): token for i, token in enumerate(tokens[:5])}
        config["added_tokens_decoder"] |= {str(len(vocabulary) + i): token for i, token in enumerate(tokens[5:])}
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary, tokenizer_config=config))
    rng = np.random.default_rng(0)
    for i in range(40):
        bits = rng.choice(BITS, int(rng.integers(2, len(BITS))), replace=False)
        text, pair = ("".join(rng.choice(bits, int(rng.integers(3, 120)))) for _ in range(2))
        limit, pairs = int(rng.integers(4, 20)), [pair] if i % 2 else None
        monkeypatch.setattr(LongTexts, "whole", 10**9)
        (expected,) = ours.encode([text], pairs, max_length=limit)
        monkeypatch.setattr(LongTexts, "whole", int(rng.choice([8, 40, 200])))
        (got,) = ours.encode([text], pairs, max_length=limit)
        assert (got.ids, got.type_ids, got.offsets) == (expected.ids, expected.type_ids, expected.offsets), (
            text,
            pair,
        )
        assert got.special_tokens_mask == expected.special_tokens_mask
        assert got.n_truncated == expected.n_truncated or (
            got.uncounted and 0 < got.n_truncated < expected.n_truncated
        )


LONG = """
import pathlib, resource, sys
import mlxbert
from mlxbert.tokenization.tokenizer import Tokenizer

def kib(name):  # not ru_maxrss, which begins at the size that the parent had when it was forked
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(name))

resource.setrlimit(resource.RLIMIT_AS, (kib("VmHWM") * 1024 + 3 * 2**30,) * 2)
tokenizer = Tokenizer.from_directory(sys.argv[1], max_length=64)
for unit, tokens in (("hello wonderful, world ", 32), ("a", 3), (" ", 2), ("🙂", 3), ("東京", 32)):
    (row,) = tokenizer.encode([unit * (20_000_000 // len(unit))], max_length=32)
    assert len(row) == tokens, (unit, len(row))
print(kib("VmHWM") // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as Linux does it")
def test_a_text_of_20_million_characters_takes_no_gigabytes(tmp_path: Path, vocabulary: list[str]) -> None:
    """It took 4.1 GB; one of 100 million characters aborted the process."""
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(write(tmp_path, vocabulary))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-400:]
    assert int(done.stdout) < 700


def test_of_a_text_that_is_read_in_part_the_count_is_a_lower_bound(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary), max_length=8)
    with pytest.warns(
        TruncationWarning, match=r"^1 of 2 texts is longer than 8 tokens \(the longest has at least \d+\)"
    ):
        ours(["a " * 100_000, "b"])
    with pytest.raises(TokenizerError, match=r"text 0: \d+ tokens or more$"):
        ours(["a " * 100_000, "b"], truncation=False)


def test_thousands_of_random_strings(tmp_path: Path, vocabulary: list[str]) -> None:
    """3,000 seeded strings of every Unicode plane, a third of them with a second text."""
    rng = np.random.default_rng(4000)
    blocks = [(0, 0x80), (0x80, 0x500), (0x500, 0x2000), (0x2000, 0x3000), (0x3000, 0xD800), (0xE000, 0x30000)]
    points = [[chr(c) for c in rng.integers(*block, 400)] for block in blocks]

    def draw() -> str:
        chosen = points[int(rng.integers(len(points)))] + ["a", " ", "the", "é"] * 40
        return "".join(rng.choice(chosen, int(rng.integers(0, 12))))

    texts, pairs = [draw() for _ in range(3000)], [draw() for _ in range(1000)]
    for lower in (True, False):
        directory = write(tmp_path, vocabulary, tokenizer_config={"do_lower_case": lower})
        ours, reference = Tokenizer.from_directory(directory), AutoTokenizer.from_pretrained(directory)
        for first, second in ((texts[1000:], None), (texts[:1000], pairs)):
            expected = reference(first, second, padding=False, truncation=True, max_length=12)
            got = ours.encode(first, second, max_length=12)
            assert [list(row.ids) for row in got] == expected["input_ids"]
            assert [list(row.type_ids) for row in got] == expected["token_type_ids"]


def test_no_limit_written_as_a_huge_number(tmp_path: Path, vocabulary: list[str]) -> None:
    directory = write(tmp_path, vocabulary, tokenizer_config={"model_max_length": 1e30})
    assert Tokenizer.from_directory(directory).max_length is None


def test_decode(tmp_path: Path, vocabulary: list[str]) -> None:
    ours = Tokenizer.from_directory(write(tmp_path, vocabulary))
    reference = BertTokenizer(str(tmp_path / "vocab.txt"))
    for encoding in ours.encode(TEXTS):
        for skip in (True, False):
            assert ours.decode(encoding.ids, skip) == reference.decode(list(encoding.ids), skip_special_tokens=skip)
    row = ours("Hello world")["input_ids"][0]
    assert ours.decode(row) == ours.decode(np.array(row)) == "hello world"
    with pytest.raises(TokenizerError, match=r"^decode takes the ids of one text; fix: call it for each row$"):
        ours.decode(row[None])
    with pytest.raises(
        TokenizerError, match=r"^decode: -100 is no token id; fix: drop ignored positions such as -100$"
    ):
        ours.decode([2, -100])


def test_lowercased(tmp_path: Path, vocabulary: list[str]) -> None:
    cased = Tokenizer.from_directory(write(tmp_path, vocabulary, tokenizer_config={"do_lower_case": False}))
    assert cased.lowercased().encode("Hello [MASK]")[0].ids == cased.encode("hello [MASK]")[0].ids
    assert cased.encode("Hello")[0].ids != cased.encode("hello")[0].ids


def garbage(directory: Path, name: str, data: bytes) -> Path:
    (directory / name).write_bytes(data)
    return directory / name


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer.json", b"{", "{path}: not valid JSON (Expecting property name"),
        ("tokenizer.json", b"[]", "{path}: expected a JSON object, found list"),
        ("tokenizer.json", b"{}", "{path}: has no WordPiece vocabulary; fix: fetch the file again"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}}}', "{path}: has no WordPiece vocabulary"),
        (
            "tokenizer.json",
            b'{"model": {"type": "WordPiece", "vocab": {"a": -1}}}',
            "{path}: the vocabulary has no [UNK]",
        ),
        ("tokenizer.json", b'{"model": {"type": "Unigram"}}', "{path}: cannot be read ("),
        (
            "tokenizer.json",
            b'{"added_tokens": [{"id": 1}]}',
            "{path}: an added token cannot be read (KeyError('content'))",
        ),
        ("tokenizer.json", b'{"added_tokens": 3}', "{path}: added_tokens must be a list of tokens with ids"),
        ("tokenizer.json", b"[" * 100_000, "{path}: not valid JSON ("),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "{path}: a Git-LFS pointer"),
        ("vocab.txt", b"version https://git-lfs.github.com/spec/v1\n", "{path}: a Git-LFS pointer"),
        ("vocab.txt", b"[PAD]\n[UNK]\n\xff\xfe\n", "{path}: not UTF-8 at line 3; fix: save it as UTF-8"),
        ("vocab.txt", "[PAD]\n".encode("utf-16"), "{path}: not UTF-8 at line 1; fix: save it as UTF-8"),
        ("vocab.txt", b"", "{path}: empty; fix: fetch the file again"),
        ("vocab.txt", b"a\nb\n", "{path}: the vocabulary has no [UNK]; fix: check that it is a BERT vocabulary"),
        ("vocab.txt", b"<html>\n", "{path}: the vocabulary has no [UNK]"),
        ("tokenizer_config.json", b'{"do_lower_case": "no"}', "{path}: do_lower_case must be true or false, not 'no'"),
        ("tokenizer_config.json", b'{"model_max_length": "x"}', "{path}: model_max_length must be a positive number"),
        ("tokenizer_config.json", b'{"truncation_side": "up"}', "{path}: truncation_side must be 'right' or 'left'"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}', "{path}: an added token cannot be read"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": []}', "{path}: an added token cannot be read"),
        ("tokenizer_config.json", b'{"mask_token": 3}', "{parent}: mask_token must be a token, not 3"),
        ("tokenizer_config.json", b'{"extra_special_tokens": 3}', "{parent}: extra_special_tokens must be a list"),
        ("added_tokens.json", b'{"\\ud800": 7}', "{path}: '\\ud800' is no text ("),
        (
            "tokenizer.json",
            b'{"added_tokens": [{"id": [1], "content": "x"}]}',
            "{path}: added_tokens must be a list of",
        ),
        (
            "tokenizer.json",
            b'{"added_tokens": [{"id": 9, "content": "\\udfff"}]}',
            "{path}: an added token cannot be read",
        ),
        ("tokenizer_config.json", b'{"cls_token": "\\ud800"}', "{parent}: cls_token must be a token, not '"),
        (
            "tokenizer_config.json",
            b'{"cls_token": {"content": "\\ud800"}}',
            "{parent}: cls_token must be a token, not",
        ),
        (
            "tokenizer_config.json",
            b'{"extra_special_tokens": ["\\ud800"]}',
            "{parent}: extra_special_tokens must be a",
        ),
        ("added_tokens.json", b'{"x": "y"}', "{path}: the id of 'x' must be a whole number, not 'y'"),
        ("special_tokens_map.json", b"nope", "{path}: not valid JSON"),
    ],
)
def test_damaged_files(tmp_path: Path, vocabulary: list[str], name: str, data: bytes, message: str) -> None:
    write(tmp_path, vocabulary)
    path = garbage(tmp_path, name, data)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_directory(tmp_path)
    text = str(caught.value)
    assert text.startswith(message.format(path=path, parent=path.parent)), text
    assert "\n" not in text


def test_a_pipeline_that_panics_is_refused_when_it_is_loaded(tmp_path: Path, vocabulary: list[str]) -> None:
    stored = pipeline(vocabulary)
    stored["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
    stored["model"]["vocab"] = {}  # type: ignore[index]
    directory = write(tmp_path, tokenizer=stored, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    with pytest.raises(
        TokenizerError, match=r"tokenizer.json: it cannot encode a text \(.*; fix: fetch the file again$"
    ):
        Tokenizer.from_directory(directory)


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_directory(write(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path}: no tokenizer: neither tokenizer.json nor vocab.txt is there; "
        "fix: copy one of them from the model's source"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("BertJapaneseTokenizer", "BertJapaneseTokenizer is not supported: it needs MeCab"),
        ("XLMRobertaTokenizerFast", "no tokenizer: neither tokenizer.json nor sentencepiece.bpe.model is there"),
        ("OtherTokenizer", "no tokenizer: tokenizer.json is not there, which OtherTokenizer needs"),
    ],
)
def test_kinds_that_cannot_be_given(tmp_path: Path, vocabulary: list[str], name: str, message: str) -> None:
    directory = write(tmp_path, vocabulary, tokenizer_config={"tokenizer_class": name})
    with pytest.raises(TokenizerError, match=f"^{re.escape(f'{tmp_path}: {message}')}.*fix: "):
        Tokenizer.from_directory(directory)
