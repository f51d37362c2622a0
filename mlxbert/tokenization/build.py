"""Build the `tokenizers` pipeline of a directory, with the ids of transformers' `AutoTokenizer`.

Where the files name a class that `KINDS` describes (or nothing, and the configuration is of a model with such a
class), the class's own pipeline is put around the vocabulary, as in transformers 5. Files that name another class
(`PreTrainedTokenizerFast`, `TokenizersBackend`, …) keep their `tokenizer.json` as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from mlxbert.errors import shown
from mlxbert.tokenization import byte_bpe, unigram, wordpiece
from mlxbert.tokenization.encoding import refuse_stop
from mlxbert.tokenization.files import SPECIAL_TOKENS, TokenizerError, TokenizerFiles, read_tokenizer_files
from mlxbert.tokenization.kind import Kind, special_token

KINDS = (*wordpiece.KINDS, *byte_bpe.KINDS, *unigram.KINDS)
_BY_CLASS = {name: kind for kind in KINDS for name in kind.classes}
# Word segmentation that the `tokenizers` package does not have: the same vocabulary would give other ids.
_NOT_WORDPIECE = {
    "BertJapaneseTokenizer": "MeCab",
    "RoCBertTokenizer": "shape and pronunciation ids",
    "TapasTokenizer": "table cells",
}


def kind_of(class_name: str | None) -> Kind | None:
    """Return what a class of transformers makes of a vocabulary; None: it keeps its `tokenizer.json`.

    Where no class is known, it is taken for WordPiece.
    """
    return KINDS[0] if class_name is None else _BY_CLASS.get(class_name)


def missing_tokenizer(directory: Path) -> str:
    """Return the message for a directory without a tokenizer: it names the files that would do.

    Raises:
        TokenizerError: the files that tell the class are damaged.
    """
    return _missing(read_tokenizer_files(directory))


def tokenizer_names(directory: Path, hf_config: Mapping[str, Any] | None = None) -> str:
    """Return the files that would be a tokenizer of this model, for messages: "tokenizer.json or spm.model".

    Args:
        directory: its files tell the tokenizer's class.
        hf_config: the content of its `config.json`, where that file is not written yet.
    """
    try:
        kind = kind_of(read_tokenizer_files(directory, hf_config).class_name)
    except TokenizerError:  # a file is damaged
        kind = None
    return "tokenizer.json" if kind is None else f"tokenizer.json or {kind.names}"


def _missing(files: TokenizerFiles) -> str:
    kind = kind_of(files.class_name)
    if kind is not None:
        return kind.missing(files.directory)
    return (
        f"{files.directory}: no tokenizer: tokenizer.json is not there, which {files.class_name} needs; "
        "fix: copy it from the model's source, or save it with transformers' save_pretrained"
    )


def has_types(files: TokenizerFiles) -> bool:
    """Return whether a call of the tokenizer gives token types, as in transformers 5; if not, every type is 0.

    Raises:
        TokenizerError: `model_input_names` in the files is not a list.
    """
    names = files.config.get("model_input_names")
    if names is None:
        kind = kind_of(files.class_name)
        return kind is not None and kind.has_types
    if not isinstance(names, list):
        raise TokenizerError(
            f"{files.directory / 'tokenizer_config.json'}: model_input_names must be a list, not {shown(names)}"
        )
    return "token_type_ids" in names


def build_backend(files: TokenizerFiles) -> tuple[tokenizers.Tokenizer, dict[str, AddedToken]]:
    """Return the pipeline, without truncation or padding, and its special tokens by attribute name ("cls_token", …).

    Raises:
        TokenizerError: no tokenizer files, corrupt ones, a vocabulary without the class's special tokens, or a
            tokenizer class that needs more than `tokenizers`.
    """
    if files.class_name in _NOT_WORDPIECE:
        raise TokenizerError(
            f"{files.directory}: {files.class_name} is not supported: it needs "
            f"{_NOT_WORDPIECE[files.class_name]}, which the tokenizers package does not have; "
            "fix: make the ids with transformers"
        )
    kind, stored = kind_of(files.class_name), files.pipeline
    if stored is None and kind is None:
        raise TokenizerError(_missing(files))
    if stored is not None and kind is not None:
        model = stored.get("model")
        model_type = model.get("type") if isinstance(model, dict) else None
        # A `tokenizer.json` older than tokenizers 0.9 does not name the type of its model.
        kind = kind if model_type in (None, kind.model) else None
    place = files.directory / "tokenizer.json" if kind is None else kind.place(files)
    try:
        if kind is None:
            special = dict(files.special)
            backend = tokenizers.Tokenizer.from_str(json.dumps(stored))
            _add_tokens(backend, files.added, special, files.extras or (), appends=False)
        else:
            special = kind.with_defaults(files)
            backend = kind.pipeline(kind, files, special)
            extras = [special_token("", content) for content in kind.extras] if files.extras is None else files.extras
            _add_tokens(backend, files.added, special, extras, appends=kind.appends)
            backend.post_processor = kind.template(files, backend, special)
    except TokenizerError:
        raise
    except BaseException as error:  # tokenizers raises a bare Exception, or panics
        refuse_stop(error)
        raise TokenizerError(f"{place}: cannot be read ({error}); fix: fetch the file again") from None
    # Some exporters store the truncation and padding of their test batch; every text would be cut or padded to it.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(files.flag("split_special_tokens", False))
    return backend, {name: special[name] for name in SPECIAL_TOKENS if name in special}


def _add_tokens(
    backend: tokenizers.Tokenizer,
    added: Iterable[AddedToken],
    special: Mapping[str, AddedToken],
    extras: Iterable[AddedToken],
    *,
    appends: bool,
) -> None:
    """Add tokens in the order of transformers, so that those that the vocabulary lacks get the same ids."""
    tokens = {token.content: token for token in added}
    present = {token.content for token in backend.get_added_tokens_decoder().values()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    for token in special.values():
        # transformers appends a special token that the vocabulary lacks; most embeddings have no row for it.
        if token.content not in present and (appends or token.content in vocabulary):
            tokens.setdefault(token.content, token)
    for token in extras:
        if token.content not in present:
            tokens.setdefault(token.content, token)
    named = {token.content for token in special.values()}
    for token in tokens.values():
        token.special = token.special or token.content in named
    backend.add_tokens(list(tokens.values()))
