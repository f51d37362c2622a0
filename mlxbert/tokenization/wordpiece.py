"""WordPiece: `BertTokenizer` and `MPNetTokenizer`, from `vocab.txt` or the vocabulary of `tokenizer.json`.

Sources: transformers
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/tokenization_bert.py
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/mpnet/tokenization_mpnet.py
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from mlxbert.files.reading import read_text
from mlxbert.tokenization.files import TokenizerError, TokenizerFiles, TokenizerWarning
from mlxbert.tokenization.kind import Kind, Special, templates


def read_vocabulary(path: Path) -> dict[str, int] | None:
    """Read a `vocab.txt`: the token on line i has id i. Return None if there is no such file.

    Any line ending and a byte-order mark are read. If a token occurs twice, the last line counts, as in transformers.

    Raises:
        TokenizerError: not UTF-8, empty, or not a list of tokens.
    """
    text = read_text(path, TokenizerError)
    if text is None:
        return None
    text = text.replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line.rstrip() for line in text.rstrip("\n").split("\n")]
    if not any(lines):
        raise TokenizerError(f"{path}: empty; fix: fetch the file again")
    return {token: index for index, token in enumerate(lines)}


def _vocabulary(kind: Kind, files: TokenizerFiles) -> dict[str, int]:
    if files.pipeline is None:
        vocabulary = read_vocabulary(files.directory / "vocab.txt")
        if vocabulary is None:
            raise TokenizerError(kind.missing(files.directory))
        return vocabulary
    model = files.pipeline.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
        raise TokenizerError(f"{kind.place(files)}: has no WordPiece vocabulary; fix: fetch the file again")
    return vocabulary


def _pipeline(kind: Kind, files: TokenizerFiles, special: Special) -> tokenizers.Tokenizer:
    vocabulary = _vocabulary(kind, files)
    kind.require_tokens(files, special, vocabulary)
    settings: dict[str, Any] = {
        "lowercase": files.flag("do_lower_case", True),
        "strip_accents": files.flag("strip_accents", None),
        "handle_chinese_chars": files.flag("tokenize_chinese_chars", True),
    }
    _warn_of_contradiction(files, settings)
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk_token"].content))
    backend.normalizer = normalizers.BertNormalizer(clean_text=True, **settings)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _bert_template(files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Special) -> Any:
    """Return the template [CLS] text [SEP], and [CLS] text [SEP] second text [SEP]."""
    names = {name: special[f"{name}_token"].content for name in ("cls", "sep")}
    return templates(backend, "{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", names)


def _mpnet_template(files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Special) -> Any:
    """Return the template <s> text </s>, and <s> text </s></s> second text </s>."""
    tokens = (special[name].content for name in ("sep_token", "cls_token"))
    sep, cls = (cast(tuple[str, int], (token, backend.token_to_id(token))) for token in tokens)  # they are there
    return processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)


def _mpnet_token(name: str, content: str) -> AddedToken:
    """Return a token that is looked for in the normalized text; that of a mask takes the blanks before it."""
    return AddedToken(content, lstrip=name == "mask_token", rstrip=False)


def _warn_of_contradiction(files: TokenizerFiles, settings: dict[str, Any]) -> None:
    stored = (files.pipeline or {}).get("normalizer")
    if not isinstance(stored, dict) or stored.get("type") != "BertNormalizer":
        return
    names = {"lowercase": "do_lower_case", "strip_accents": "strip_accents"}
    names["handle_chinese_chars"] = "tokenize_chinese_chars"
    for field, name in names.items():
        if field in stored and stored[field] != settings[field]:
            origin = "tokenizer_config.json" if name in files.config else "transformers' default for a missing field"
            warnings.warn(
                f"{files.directory}: tokenizer.json says {field}={stored[field]}, {origin} says "
                f"{settings[field]}, and transformers follows the latter; so do the ids here. "
                f"fix: set {name} in tokenizer_config.json to what the model was trained with",
                TokenizerWarning,
                stacklevel=5,  # the caller of `Tokenizer.from_directory`
            )


_BERT = Kind(
    # Names that transformers 5 resolves to BertTokenizer itself, or to a subclass that builds the same.
    classes=(
        *("BertTokenizer", "ConvBertTokenizer", "ElectraTokenizer", "LayoutLMTokenizer", "LxmertTokenizer"),
        *("MobileBertTokenizer", "SqueezeBertTokenizer"),
    ),
    model="WordPiece",
    vocabulary=("vocab.txt",),
    title="BERT",
    tokens={
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    pipeline=_pipeline,
    template=_bert_template,
    has_types=True,
)
_DISTILBERT = replace(_BERT, classes=("DistilBertTokenizer",), has_types=False)
_MPNET = Kind(
    classes=("MPNetTokenizer",),
    model="WordPiece",
    vocabulary=("vocab.txt",),
    title="MPNet",
    tokens={
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "[UNK]",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    pipeline=_pipeline,
    template=_mpnet_template,
    token=_mpnet_token,
)
KINDS = (_BERT, _DISTILBERT, _MPNET)
