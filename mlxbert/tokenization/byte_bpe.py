"""Byte-level BPE: `RobertaTokenizer`, from `vocab.json` and `merges.txt` or the vocabulary of `tokenizer.json`.

Source: transformers
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/roberta/tokenization_roberta.py
"""

from __future__ import annotations

from typing import Any, cast

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from mlxbert.files.reading import read_json, read_text
from mlxbert.tokenization.files import TokenizerError, TokenizerFiles
from mlxbert.tokenization.kind import Kind, Special


def _pipeline(kind: Kind, files: TokenizerFiles, special: Special) -> tokenizers.Tokenizer:
    place = kind.place(files)
    if files.pipeline is None:
        vocabulary: Any = read_json(place, TokenizerError)
        merges: Any = read_text(files.directory / "merges.txt", TokenizerError)
        if vocabulary is None or merges is None:
            raise TokenizerError(kind.missing(files.directory))
        merges = [line for line in merges.splitlines() if not line.startswith("#version")]
    else:
        model = files.pipeline.get("model")
        vocabulary, merges = (model.get(name) if isinstance(model, dict) else None for name in ("vocab", "merges"))
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges or ()]
    words = isinstance(vocabulary, dict) and all(type(index) is int for index in vocabulary.values())
    if not words or not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise TokenizerError(f"{place}: has no byte-level BPE vocabulary with its merges; fix: fetch the file again")
    kind.require_tokens(files, special, vocabulary)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            cast(list[tuple[str, str]], pairs),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(files.flag("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    return backend


def _template(files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Special) -> Any:
    """Return the template <s> text </s>, and <s> text </s></s> second text </s>."""
    tokens = (special[name].content for name in ("sep_token", "cls_token"))
    sep, cls = (cast(tuple[str, int], (token, backend.token_to_id(token))) for token in tokens)  # they are there
    trim, prefix = files.flag("trim_offsets", True), files.flag("add_prefix_space", False)
    return processors.RobertaProcessing(sep, cls, trim_offsets=bool(trim), add_prefix_space=bool(prefix))


_ROBERTA = Kind(
    # Names that transformers 5 resolves to RobertaTokenizer.
    classes=("RobertaTokenizer", "BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "MvpTokenizer"),
    model="BPE",
    vocabulary=("vocab.json", "merges.txt"),
    title="RoBERTa",
    tokens={
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    pipeline=_pipeline,
    template=_template,
)
KINDS = (_ROBERTA,)
