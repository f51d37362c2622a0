"""Tiny tokenizers of every kind, as the sources of each kind have them, and trained or written here.

A SentencePiece model is trained once per process for each size; training takes about 0.1 s.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
_NASTY = Path(__file__).parent / "data" / "nasty_texts.json"


@dataclass(frozen=True)
class SentencePieceKind:
    """How a family numbers the pieces of its SentencePiece model.

    Attributes:
        file: the name of its model.
        model_type: for `config.json`, from which transformers chooses the class.
        special: piece -> its id in the SentencePiece model; the unknown piece is named by `unknown`.
        symbols: further control symbols, which get the ids after those.
        extra: tokens that the tokenizer has more than the SentencePiece model.
    """

    file: str
    model_type: str
    special: Mapping[str, tuple[str, int]]
    symbols: tuple[str, ...]
    extra: int


_FAIRSEQ = {"unk": ("<unk>", 0), "bos": ("<s>", 1), "eos": ("</s>", 2)}
SENTENCEPIECE_KINDS = {
    "XLMRobertaTokenizer": SentencePieceKind("sentencepiece.bpe.model", "xlm-roberta", _FAIRSEQ, (), 2),
    "CamembertTokenizer": SentencePieceKind("sentencepiece.bpe.model", "camembert", _FAIRSEQ, (), 5),
    "AlbertTokenizer": SentencePieceKind(
        "spiece.model",
        "albert",
        {"pad": ("<pad>", 0), "unk": ("<unk>", 1), "bos": ("[CLS]", 2), "eos": ("[SEP]", 3)},
        ("[MASK]",),
        0,
    ),
    "DebertaV2Tokenizer": SentencePieceKind(
        "spm.model",
        "deberta-v2",
        {"pad": ("[PAD]", 0), "bos": ("[CLS]", 1), "eos": ("[SEP]", 2), "unk": ("[UNK]", 3)},
        (),
        1,  # [MASK]
    ),
}
"""transformers' class of a tokenizer -> its SentencePiece model."""


_WORDS = (
    "the of and to in is that it was for on are with as his they at be this from have or by one had not but "
    "what all were when we there can an your which their said if do will each about how up out them then she "
    "many some so these would other into has more her two like him see time could no make than first been its "
    "who now people my made over did down only way find use may water long little very after words called just "
    "where most know get through back much good new write our used me man too any day same right look think "
    "also around another came come work three word must because does part even place well such here take why "
    "things help put years different away again off went old number Paris London Kafka Über naïve café"
)


def _corpus() -> list[str]:
    """Sentences of common words in both cases, with digits and punctuation, and the nasty texts."""
    generator = random.Random(0)
    sentences = []
    for _ in range(1500):
        chosen = generator.choices(_WORDS.split(), k=generator.randint(3, 12))
        end = generator.choice([".", ".", "!", "?", f" {generator.randint(0, 2026)}.", ", etc.", ' "so"', "'s"])
        sentences.append(" ".join([chosen[0].capitalize(), *chosen[1:]]) + end)
    nasty = [" ".join(text.split())[:400] for text in json.loads(_NASTY.read_text("utf-8"))]
    return sentences + [text for text in nasty if text.isprintable() and text]


@cache
def sentencepiece_model(tokenizer_class: str, size: int, kind: str = "unigram") -> bytes:
    """Train a SentencePiece model whose tokenizer has at most `size` tokens.

    Args:
        tokenizer_class: a key of `SENTENCEPIECE_KINDS`.
        size: the most tokens of the tokenizer, so the rows of the embeddings.
        kind: the model's type, as SentencePiece names it.
    """
    import sentencepiece

    family = SENTENCEPIECE_KINDS[tokenizer_class]
    pieces = size - family.extra
    ids = {f"{name}_id": -1 for name in ("pad", "bos", "eos", "unk")}
    names = {}
    for name, (piece, index) in family.special.items():
        ids[f"{name}_id"], names[f"{name}_piece"] = index, piece
    sentences = _corpus()
    if pieces < 200:  # not more characters than there is room for
        sentences = [re.sub("[^a-z ]", "", sentence.lower()) for sentence in sentences]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type=kind,
        vocab_size=pieces,
        hard_vocab_limit=False,
        character_coverage=0.98,
        control_symbols=list(family.symbols),
        num_threads=1,
        minloglevel=3,
        **ids,
        **names,
    )
    return model.getvalue()


def write_sentencepiece(directory: Path, tokenizer_class: str, size: int, *, with_json: bool = True) -> None:
    """Write the SentencePiece model of a family, and the `tokenizer.json` that transformers makes of it.

    Args:
        directory: is created.
        tokenizer_class: a key of `SENTENCEPIECE_KINDS`.
        size: the most tokens of the tokenizer.
        with_json: whether the `tokenizer.json` is written; DeBERTa-v3's sources on the Hub have none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / SENTENCEPIECE_KINDS[tokenizer_class].file).write_bytes(sentencepiece_model(tokenizer_class, size))
    if with_json:
        (directory / "tokenizer.json").write_text(_pipeline(tokenizer_class, size), encoding="utf-8")


@cache
def _pipeline(tokenizer_class: str, size: int) -> str:
    import transformers

    with TemporaryDirectory() as folder:
        write_sentencepiece(Path(folder), tokenizer_class, size, with_json=False)
        tokenizer = getattr(transformers, tokenizer_class).from_pretrained(folder)
    return tokenizer.backend_tokenizer.to_str()


def byte_level(special: list[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary of `size` tokens (special ones, every byte, pieces of words), and its merges."""
    from tokenizers import pre_tokenizers

    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = [("Ġ", letter) for letter in "abcdefghilmnoprstuw"] + [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n")]
    merges = pairs[: max(size - len(tokens) - 1, 0)]
    tokens += ["".join(pair) for pair in merges]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_bpe(directory: Path, size: int) -> None:
    """Write RoBERTa's `vocab.json` of `size` tokens with its `merges.txt`."""
    vocabulary, merges = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], size)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_byte_level_json(directory: Path, size: int) -> None:
    """Write ModernBERT's `tokenizer.json` (byte-level BPE between [CLS] and [SEP]) and `tokenizer_config.json`.

    Its files on the Hub differ in size only: `answerdotai/ModernBERT-base`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    runs = ["   ", "  ", "|||IP|||"]  # runs of blanks and placeholders, behind the vocabulary
    vocabulary, merges = byte_level(special, size - len(runs))
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, lstrip=token == "[MASK]") for token in special]
    backend.add_special_tokens(added)
    backend.add_tokens([AddedToken(token, normalized=not token.startswith("|")) for token in runs])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:0 [SEP]:0",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 8192,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": True,
        "added_tokens_decoder": {
            str(index): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for index, token in backend.get_added_tokens_decoder().items()
        },
        **{f"{token.lower()[1:-1]}_token": token for token in special},
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def write_vocab(file: Path, size: int) -> None:
    """Write a `vocab.txt` of `size` lines: BERT's special tokens, letters, and pieces."""
    _write_lines(file, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], size)


def write_mpnet_vocab(file: Path, size: int) -> None:
    """Write a `vocab.txt` of `size` lines with MPNet's special tokens."""
    _write_lines(file, ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"], size)


def _write_lines(file: Path, special: list[str], size: int) -> None:
    tokens = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *(f"word{i}" for i in range(size))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(tokens[:size]) + "\n", encoding="utf-8")


def _vocab_txt(directory: Path, size: int) -> None:
    write_vocab(directory / "vocab.txt", size)


def _of_sentencepiece(tokenizer_class: str) -> Callable[[Path, int], None]:
    return lambda directory, size: write_sentencepiece(directory, tokenizer_class, size)


WRITERS: dict[str, Callable[[Path, int], Any]] = {
    "BertTokenizer": _vocab_txt,
    "DistilBertTokenizer": _vocab_txt,
    "ElectraTokenizer": _vocab_txt,
    "MPNetTokenizer": lambda directory, size: write_mpnet_vocab(directory / "vocab.txt", size),
    "RobertaTokenizer": write_bpe,
    **{name: _of_sentencepiece(name) for name in SENTENCEPIECE_KINDS},
    "PreTrainedTokenizerFast": write_byte_level_json,
    "TokenizersBackend": write_byte_level_json,
}
"""transformers' class of a tokenizer -> what writes its files, of at most so many tokens, into a directory."""


def write_tokenizer(directory: Path, tokenizer_class: str, size: int) -> None:
    """Write a tokenizer of transformers' class `tokenizer_class` with at most `size` tokens."""
    WRITERS[tokenizer_class.removesuffix("Fast") if tokenizer_class not in WRITERS else tokenizer_class](
        directory, size
    )
