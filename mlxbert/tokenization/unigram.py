"""Unigram vocabularies of SentencePiece: `XLMRobertaTokenizer`, `CamembertTokenizer`, `AlbertTokenizer`,
`DebertaV2Tokenizer`.

The vocabulary is that of `tokenizer.json`. Where a source has a SentencePiece model alone, the conversion has
transformers make its `tokenizer.json` (converter/tokenizer_json.py). Sources: transformers, `tokenization_NAME.py` in
https://github.com/huggingface/transformers/tree/v5.0.0/src/transformers/models, NAME: xlm_roberta, camembert, albert,
deberta_v2.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mlxbert.errors import shown
from mlxbert.tokenization.files import TokenizerError, TokenizerFiles
from mlxbert.tokenization.kind import Kind, Special, templates

Pieces = list[tuple[str, float]]


def _pieces(kind: Kind, files: TokenizerFiles) -> Pieces:
    """Return the vocabulary with its scores (log probabilities)."""
    if files.pipeline is None:
        raise TokenizerError(kind.missing(files.directory))
    model = files.pipeline.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, list) or not vocabulary or not all(map(_is_piece, vocabulary)):
        raise TokenizerError(f"{kind.place(files)}: has no Unigram vocabulary; fix: fetch the file again")
    return [(piece, float(score)) for piece, score in vocabulary]


def _is_piece(item: Any) -> bool:
    is_pair = isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
    return is_pair and type(item[1]) in (int, float) and math.isfinite(item[1])


def _charsmap(files: TokenizerFiles) -> list[Any]:
    """Return SentencePiece's own normalizer, compiled to a table, if `tokenizer.json` has one; else nothing."""
    stored = (files.pipeline or {}).get("normalizer") or {}
    steps = stored.get("normalizers") if stored.get("type") == "Sequence" else [stored]
    for step in steps or ():
        if step.get("type") == "Precompiled" and "precompiled_charsmap" in step:
            return [normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))]
    return []


def _words(files: TokenizerFiles, backend: tokenizers.Tokenizer) -> None:
    """Split at blanks; a word begins with "▁"."""
    scheme = "always" if files.flag("add_prefix_space", True) else "never"
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)


def _fairseq_pipeline(
    kind: Kind, files: TokenizerFiles, special: Special, *, unknown: Callable[[Pieces, str], int]
) -> tokenizers.Tokenizer:
    """Return a pipeline whose only normalizer is SentencePiece's own."""
    pieces = _pieces(kind, files)
    kind.require_tokens(files, special, dict(pieces))
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unknown(pieces, special["unk_token"].content), False))
    if charsmap := _charsmap(files):
        backend.normalizer = charsmap[0]
    _words(files, backend)
    return backend


def _first(pieces: Pieces, unknown: str) -> int:
    return next((index for index, (piece, _) in enumerate(pieces) if piece == unknown), 0)


def _fairseq_template(files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Special) -> Any:
    """Return the template <s> text </s>, and <s> text </s></s> second text </s>, without token types."""
    names = {"cls": special["bos_token"].content, "sep": special["eos_token"].content}
    return templates(backend, "{cls} $A {sep}", "{cls} $A {sep} {sep} $B {sep}", names)


def _albert_pipeline(kind: Kind, files: TokenizerFiles, special: Special) -> tokenizers.Tokenizer:
    pieces = _pieces(kind, files)
    kind.require_tokens(files, special, dict(pieces))
    backend = tokenizers.Tokenizer(models.Unigram(pieces, 1, False))
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not files.flag("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if files.flag("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    backend.normalizer = normalizers.Sequence(steps + _charsmap(files))
    _words(files, backend)
    return backend


_CLS_SEP = ("{cls}:0 $A:0 {sep}:0", "{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1")


def _albert_template(files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Special) -> Any:
    """Return the template that `tokenizer.json` has; else [CLS] text [SEP], and [CLS] text [SEP] second text [SEP]."""
    stored = files.pipeline or {}
    if stored.get("post_processor") is not None:
        model = {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}
        return tokenizers.Tokenizer.from_str(json.dumps({**stored, "model": model, "added_tokens": []})).post_processor
    single, pair = (text.format(cls="[CLS]", sep="[SEP]").split() for text in _CLS_SEP)
    ids = [(f"[{name.upper()}]", backend.token_to_id(special[f"{name}_token"].content)) for name in ("cls", "sep")]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)


def _deberta_pipeline(kind: Kind, files: TokenizerFiles, special: Special) -> tokenizers.Tokenizer:
    pieces = _pieces(kind, files)
    kind.require_tokens(files, special, dict(pieces))
    backend = tokenizers.Tokenizer(models.Unigram(pieces, _deberta_unknown(kind, files, special, pieces), False))
    lower = [normalizers.Lowercase()] if files.flag("do_lower_case", False) else []
    blanks = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    backend.normalizer = normalizers.Sequence(
        [*lower, blanks, normalizers.NFC(), normalizers.Strip(left=False, right=True)]
    )
    punctuation = [pre_tokenizers.Punctuation("isolated")] if files.flag("split_by_punct", False) else []
    scheme = "always" if files.flag("add_prefix_space", True) else "first"
    metaspace = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*punctuation, metaspace])
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return backend


def _deberta_unknown(kind: Kind, files: TokenizerFiles, special: Special, pieces: Pieces) -> int:
    """Return the place of the unknown token with the score 0; else what the configuration says."""
    unknown = (special["unk_token"].content, 0.0)
    index = pieces.index(unknown) if unknown in pieces else files.config.get("unk_id", 1)
    if type(index) is not int or not 0 <= index < len(pieces):
        raise TokenizerError(
            f"{files.directory / 'tokenizer_config.json'}: unk_id must be a place in the vocabulary of "
            f"{len(pieces)}, not {shown(index)}"
        )
    return index


def _deberta_template(files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Special) -> Any:
    """Return the template [CLS] text [SEP], and [CLS] text [SEP] second text [SEP]."""
    names = {name: special[f"{name}_token"].content for name in ("cls", "sep")}
    return templates(backend, *_CLS_SEP, names)


def _camembert_token(name: str, content: str) -> AddedToken:
    """Return a special token; that of a mask takes the blanks before it."""
    return AddedToken(content, special=True, lstrip=name == "mask_token")


_FAIRSEQ_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_BRACKET_TOKENS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "sep_token": "[SEP]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_XLM_ROBERTA = Kind(
    classes=("XLMRobertaTokenizer",),
    model="Unigram",
    vocabulary=("sentencepiece.bpe.model",),
    title="XLM-RoBERTa",
    tokens=_FAIRSEQ_TOKENS,
    pipeline=partial(_fairseq_pipeline, unknown=lambda pieces, token: 3),
    template=_fairseq_template,
    appends=True,
)
_CAMEMBERT = Kind(
    classes=("CamembertTokenizer",),
    model="Unigram",
    vocabulary=("sentencepiece.bpe.model",),
    title="CamemBERT",
    tokens=_FAIRSEQ_TOKENS,
    pipeline=partial(_fairseq_pipeline, unknown=_first),
    template=_fairseq_template,
    token=_camembert_token,
    extras=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    appends=True,
)
_ALBERT = Kind(
    classes=("AlbertTokenizer",),
    model="Unigram",
    vocabulary=("spiece.model",),
    title="ALBERT",
    tokens={**_BRACKET_TOKENS, "unk_token": "<unk>", "pad_token": "<pad>"},
    pipeline=_albert_pipeline,
    template=_albert_template,
    appends=True,
)
_DEBERTA = Kind(
    classes=("DebertaV2Tokenizer",),
    model="Unigram",
    vocabulary=("spm.model",),
    title="DeBERTa-v2",
    tokens={**_BRACKET_TOKENS, "unk_token": "[UNK]", "pad_token": "[PAD]"},
    pipeline=_deberta_pipeline,
    template=_deberta_template,
    appends=True,
    has_types=True,
)
KINDS = (_XLM_ROBERTA, _CAMEMBERT, _ALBERT, _DEBERTA)
