"""The tokenizer files of a directory, and the `tokenizers` pipeline that is built from them, as in transformers.

The pipeline is in `tokenizer.json`; or there is only its vocabulary: `vocab.txt` (WordPiece), or `vocab.json` and
`merges.txt` (byte-level BPE). Beside it, three more files, of different ages, may name the special tokens and the
tokens added after training: `tokenizer_config.json`, which wins when it holds `added_tokens_decoder`, otherwise
`special_tokens_map.json` and `added_tokens.json`. Source, `_from_pretrained`:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/tokenization_utils_base.py

Where the files name `BertTokenizer` or `RobertaTokenizer` (or nothing, and the configuration is of such a model),
transformers 5 takes only the vocabulary of `tokenizer.json` and puts the class's own pipeline around it, with the
settings of `tokenizer_config.json`; it ignores the stored normalizer and pre-tokenizer. The same is done here, so
that the ids are the same. Files that name another class (`PreTrainedTokenizerFast`, `XLMRobertaTokenizer`, …) keep
their `tokenizer.json` as it is. Sources:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/bert/tokenization_bert.py
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/models/roberta/tokenization_roberta.py
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/tokenization_utils_tokenizers.py
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from mlxbert.errors import MLXBertError, MLXBertWarning, shown
from mlxbert.files.reading import read_json, read_text
from mlxbert.models.architecture import architecture, supported

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
"""All files of a tokenizer."""


def has_tokenizer(names: Iterable[str]) -> bool:
    """Return whether files of these names are a tokenizer: a pipeline, or a complete vocabulary."""
    files = set(names)
    return bool(files & {"tokenizer.json", "vocab.txt"}) or files >= {"vocab.json", "merges.txt"}


# The order in which transformers adds those that the vocabulary lacks, so that their ids are the same.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(MLXBertError):
    """Tokenizer files that cannot be used, or an input that is not text."""


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed tokenizer files of a directory.

    Attributes:
        directory: of the files.
        pipeline: `tokenizer.json`, parsed; None without one.
        config: `tokenizer_config.json`, parsed; empty without one.
        class_name: the tokenizer class that the files name, less "Fast"; None when they name none.
        special: the special tokens by attribute name ("cls_token", …).
        added: tokens added to the vocabulary, in the order of their ids, then the extra special ones.
    """

    directory: Path
    pipeline: dict[str, Any] | None
    config: dict[str, Any]
    class_name: str | None
    special: dict[str, AddedToken]
    added: tuple[AddedToken, ...]

    def flag(self, name: str, default: bool | None) -> bool | None:
        """Return a true/false field of `tokenizer_config.json`; null is allowed if the default is None."""
        value = self.config.get(name, default)
        if not isinstance(value, bool) and not (value is None and default is None):
            raise TokenizerError(
                f"{self.directory / 'tokenizer_config.json'}: {name} must be true or false, not {shown(value)}"
            )
        return value

    def vocabulary_file(self, name: str) -> Path:
        """Return the path of the vocabulary: `tokenizer.json`, or the file of this name."""
        return self.directory / (name if self.pipeline is None else "tokenizer.json")

    @property
    def model_max_length(self) -> int | None:
        """The longest input that the tokenizer's own files allow, in tokens; None for no limit."""
        value = self.config.get("model_max_length", self.config.get("max_len"))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
            raise TokenizerError(
                f"{self.directory / 'tokenizer_config.json'}: model_max_length must be a positive number, "
                f"not {shown(value)}"
            )
        # transformers writes 1e30 for "no limit".
        return int(value) if value < 2**31 else None


def read_tokenizer_files(directory: Path, hf_config: Mapping[str, Any] | None = None) -> TokenizerFiles:
    """Read the tokenizer files in `directory`.

    Args:
        directory: the directory.
        hf_config: the content of its `config.json`, where that file is not written yet.

    Raises:
        TokenizerError: a file is not valid JSON, not UTF-8, or has a field of the wrong type (named).
    """
    pipeline = read_json(directory / "tokenizer.json", TokenizerError)
    config = read_json(directory / "tokenizer_config.json", TokenizerError) or {}
    names = dict(config)
    by_id: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        by_id = _added_by_id(config["added_tokens_decoder"], directory / "tokenizer_config.json")
    else:
        names |= read_json(directory / "special_tokens_map.json", TokenizerError) or {}
        by_id = _legacy_added(directory, names, pipeline)
    by_content = {token.content: token for token in by_id.values()}
    special = {
        name: by_content.get(token.content, token)
        for name in SPECIAL_TOKENS
        if (token := _token(names.get(name), name, directory)) is not None
    }
    extra = names.get("extra_special_tokens") or names.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        extra = list(extra.values())
    if not isinstance(extra, list):
        raise TokenizerError(f"{directory}: extra_special_tokens must be a list of tokens, not {shown(extra)}")
    extras = [token for value in extra if (token := _token(value, "extra_special_tokens", directory)) is not None]
    extras = [token for token in extras if token.content not in by_content]
    return TokenizerFiles(
        directory=directory,
        pipeline=pipeline,
        config=config,
        class_name=_class_name(directory, config, hf_config),
        special=special,
        added=(*(by_id[i] for i in sorted(by_id)), *extras),
    )


def _class_name(directory: Path, config: dict[str, Any], hf_config: Mapping[str, Any] | None) -> str | None:
    # Before transformers 4.x, config.json named the class; if no file names one, the architecture's is used.
    model = read_json(directory / "config.json", TokenizerError) or {} if hf_config is None else hf_config
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if not name and model.get("model_type") in supported():
        name = architecture(model["model_type"]).tokenizer_class
    return name.removesuffix("Fast") if isinstance(name, str) else None


def _legacy_added(directory: Path, names: dict[str, Any], pipeline: dict[str, Any] | None) -> dict[int, AddedToken]:
    by_id: dict[int, AddedToken] = {}
    path = directory / "added_tokens.json"
    known = {
        token.content for name in SPECIAL_TOKENS if (token := _token(names.get(name), name, directory)) is not None
    }
    for content, index in (read_json(path, TokenizerError) or {}).items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise TokenizerError(f"{path}: the id of {shown(content)} must be a whole number, not {shown(index)}")
        special = content in known
        try:
            by_id[index] = AddedToken(content, normalized=not special, special=special)
        except ValueError as error:  # half a surrogate pair
            raise TokenizerError(f"{path}: {shown(content)} is no text ({error}); fix: fetch the file again") from None
    stored = (pipeline or {}).get("added_tokens") or []
    if not isinstance(stored, list) or not all(isinstance(t, dict) and type(t.get("id")) is int for t in stored):
        raise TokenizerError(f"{directory / 'tokenizer.json'}: added_tokens must be a list of tokens with ids")
    return by_id | _added_by_id({item["id"]: item for item in stored}, directory / "tokenizer.json")


def _added_by_id(tokens: Any, path: Path) -> dict[int, AddedToken]:
    try:
        return {int(index): _added_token(fields) for index, fields in tokens.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(f"{path}: an added token cannot be read ({error!r}); fix: fetch the file again") from None


def _added_token(fields: dict[str, Any]) -> AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(fields["content"], **{flag: fields[flag] for flag in flags if flag in fields})


def _token(value: Any, name: str, directory: Path) -> AddedToken | None:
    if value is None:
        return None
    try:
        return _added_token(({"content": value} if isinstance(value, str) else value) | {"special": True})
    except (KeyError, TypeError, ValueError):  # ValueError: half a surrogate pair
        raise TokenizerError(f"{directory}: {name} must be a token, not {shown(value)}") from None


# Names that transformers 5 resolves to BertTokenizer itself, or to a subclass that builds the same.
BERT_CLASSES = (
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "LayoutLMTokenizer", "LxmertTokenizer"),
    *("MobileBertTokenizer", "SqueezeBertTokenizer"),
)
# Word segmentation that the `tokenizers` package does not have: the same vocabulary would give other ids.
_NOT_WORDPIECE = {
    "BertJapaneseTokenizer": "MeCab",
    "RoCBertTokenizer": "shape and pronunciation ids",
    "TapasTokenizer": "table cells",
}
BPE_CLASS = "RobertaTokenizer"
# The special tokens of each class if no file names them.
_WORDPIECE_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"} | {
    "mask_token": "[MASK]"
}
_BPE_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"} | {
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


class TokenizerWarning(MLXBertWarning):
    """Tokenizer files that contradict each other; the ids follow transformers."""


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
    pipeline = files.pipeline
    kind = pipeline["model"].get("type") if pipeline and isinstance(pipeline.get("model"), dict) else None
    as_bpe = files.class_name == BPE_CLASS and kind in (None, "BPE")
    # A `tokenizer.json` older than tokenizers 0.9 does not name the kind of its model.
    as_wordpiece = not as_bpe and (
        pipeline is None or (files.class_name in (None, *BERT_CLASSES) and kind in (None, "WordPiece"))
    )
    try:
        if as_wordpiece:
            special = _with_defaults(files, _WORDPIECE_TOKENS)
            backend = _wordpiece_pipeline(files, special)
        elif as_bpe:
            special = _with_defaults(files, _BPE_TOKENS)
            backend = _bpe_pipeline(files, special)
        else:
            special = dict(files.special)
            backend = tokenizers.Tokenizer.from_str(json.dumps(pipeline))
        _add_tokens(backend, files.added, special)
        if as_wordpiece:
            backend.post_processor = _template(backend, special["cls_token"].content, special["sep_token"].content)
        elif as_bpe:
            backend.post_processor = _bpe_template(files, backend, special)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises a bare Exception
        path = files.vocabulary_file("vocab.json" if as_bpe else "vocab.txt")
        raise TokenizerError(f"{path}: cannot be read ({error}); fix: fetch the file again") from None
    # Some exporters store the truncation and padding of their test batch; every text would be cut or padded to it.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(files.flag("split_special_tokens", False))
    return backend, {name: special[name] for name in SPECIAL_TOKENS if name in special}


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


def _with_defaults(files: TokenizerFiles, defaults: Mapping[str, str]) -> dict[str, AddedToken]:
    absent = {
        name: AddedToken(content, special=True)
        for name, content in defaults.items()
        if name not in files.special and files.config.get(name, content) is not None
    }
    by_content = {token.content: token for token in files.added}
    return files.special | {name: by_content.get(token.content, token) for name, token in absent.items()}


def _vocabulary(files: TokenizerFiles) -> dict[str, int]:
    path = files.directory / "tokenizer.json"
    if files.pipeline is None:
        path = files.directory / "vocab.txt"
        vocabulary = read_vocabulary(path)
        if vocabulary is None:
            raise TokenizerError(
                f"{files.directory}: no tokenizer: neither tokenizer.json nor vocab.txt is there; "
                "fix: copy one of them from the model's source"
            )
        if files.class_name not in (None, *BERT_CLASSES):
            raise TokenizerError(
                f"{files.directory}: {files.class_name} cannot be built from a bare vocab.txt; "
                "fix: save its tokenizer.json with transformers' save_pretrained"
            )
    else:
        model = files.pipeline.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(vocabulary, dict) or not all(type(index) is int for index in vocabulary.values()):
            raise TokenizerError(f"{path}: has no WordPiece vocabulary; fix: fetch the file again")
    return vocabulary


def _require_tokens(
    files: TokenizerFiles, special: Mapping[str, AddedToken], vocabulary: Mapping[str, int], place: Path, kind: str
) -> None:
    """Raise TokenizerError if a special token that every text gets is not in the vocabulary."""
    present = vocabulary.keys() | {token.content for token in files.added}
    for name in ("unk_token", "cls_token", "sep_token"):
        if name not in special or special[name].content not in present:
            token = special[name].content if name in special else name
            raise TokenizerError(f"{place}: the vocabulary has no {token}; fix: check that it is a {kind} vocabulary")


def _bpe_pipeline(files: TokenizerFiles, special: Mapping[str, AddedToken]) -> tokenizers.Tokenizer:
    """Return byte-level BPE as transformers' `RobertaTokenizer` builds it."""
    place = files.vocabulary_file("vocab.json")
    if files.pipeline is None:
        vocabulary: Any = read_json(place, TokenizerError)
        merges: Any = read_text(files.directory / "merges.txt", TokenizerError)
        if vocabulary is None or merges is None:
            raise TokenizerError(
                f"{files.directory}: no tokenizer: neither tokenizer.json nor vocab.json with merges.txt is there; "
                "fix: copy them from the model's source"
            )
        merges = [line for line in merges.splitlines() if not line.startswith("#version")]
    else:
        model = files.pipeline.get("model")
        vocabulary, merges = (model.get(name) if isinstance(model, dict) else None for name in ("vocab", "merges"))
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges or ()]
    words = isinstance(vocabulary, dict) and all(type(index) is int for index in vocabulary.values())
    if not words or not all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        raise TokenizerError(f"{place}: has no byte-level BPE vocabulary with its merges; fix: fetch the file again")
    _require_tokens(files, special, vocabulary, place, "RoBERTa")
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


def _bpe_template(
    files: TokenizerFiles, backend: tokenizers.Tokenizer, special: Mapping[str, AddedToken]
) -> processors.RobertaProcessing:
    """Return the template <s> text </s>, and <s> text </s></s> second text </s>."""
    tokens = (special[name].content for name in ("sep_token", "cls_token"))
    sep, cls = (cast(tuple[str, int], (token, backend.token_to_id(token))) for token in tokens)  # they are there
    trim, prefix = files.flag("trim_offsets", True), files.flag("add_prefix_space", False)
    return processors.RobertaProcessing(sep, cls, trim_offsets=bool(trim), add_prefix_space=bool(prefix))


def _wordpiece_pipeline(files: TokenizerFiles, special: dict[str, AddedToken]) -> tokenizers.Tokenizer:
    vocabulary = _vocabulary(files)
    _require_tokens(files, special, vocabulary, files.vocabulary_file("vocab.txt"), "BERT")
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


def _template(backend: tokenizers.Tokenizer, cls: str, sep: str) -> processors.TemplateProcessing:
    """Return the template [CLS] text [SEP], and [CLS] text [SEP] second text [SEP]."""
    return processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls, sep)],
    )


def _add_tokens(backend: tokenizers.Tokenizer, added: tuple[AddedToken, ...], special: dict[str, AddedToken]) -> None:
    tokens = {token.content: token for token in added}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    # transformers appends a special token that the vocabulary lacks; its id would lie outside the embeddings.
    tokens |= {t.content: t for t in special.values() if t.content not in tokens and t.content in vocabulary}
    named = {token.content for token in special.values()}
    for token in tokens.values():
        token.special = token.special or token.content in named
    backend.add_tokens(list(tokens.values()))


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
