"""The tokenizer files of a directory, read as transformers reads them.

The pipeline is in `tokenizer.json`; or there is only its vocabulary: `vocab.txt` (WordPiece), `vocab.json` and
`merges.txt` (byte-level BPE), or a SentencePiece model, which a conversion turns into `tokenizer.json`. Beside it,
three more files, of different ages, may name the special tokens and the tokens added after training:
`tokenizer_config.json`, which wins when it holds `added_tokens_decoder`, otherwise `special_tokens_map.json` and
`added_tokens.json`. `build` makes the pipeline. Source, `_from_pretrained`:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/tokenization_utils_base.py
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mlxbert.errors import MLXBertError, MLXBertWarning, shown
from mlxbert.files.reading import read_json
from mlxbert.models.architecture import architecture, supported

SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model")
"""Names of a SentencePiece model."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    *SENTENCEPIECE_FILES,
)
"""All files of a tokenizer."""


# Classes that keep `tokenizer.json` as it is; a model that names one has no other, whatever its files say.
GENERIC_CLASSES = ("PreTrainedTokenizer", "TokenizersBackend")
# The order in which transformers adds those that the vocabulary lacks, so that their ids are the same.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(MLXBertError):
    """Tokenizer files that cannot be used, or an input that is not text."""


class TokenizerWarning(MLXBertWarning):
    """Tokenizer files that contradict each other; the ids follow transformers."""


def has_tokenizer(names: Iterable[str], *, sentencepiece: bool = False) -> bool:
    """Return whether files of these names are a tokenizer: a pipeline, or a complete vocabulary.

    Args:
        names: of the files.
        sentencepiece: whether a SentencePiece model counts, which a conversion can turn into a pipeline.
    """
    files = set(names)
    if sentencepiece and not files.isdisjoint(SENTENCEPIECE_FILES):
        return True
    return bool(files & {"tokenizer.json", "vocab.txt"}) or files >= {"vocab.json", "merges.txt"}


@dataclass(frozen=True)
class TokenizerFiles:
    """The parsed tokenizer files of a directory.

    Attributes:
        directory: of the files.
        pipeline: `tokenizer.json`, parsed; None without one.
        config: `tokenizer_config.json`, parsed; empty without one.
        class_name: the tokenizer class that the files name, less "Fast"; None when they name none.
        special: the special tokens by attribute name ("cls_token", …).
        plain: the names of those that the files give as a text alone; a class may make another token of it.
        added: tokens added to the vocabulary, in the order of their ids.
        extras: special tokens without an attribute name that `added` lacks; None: the files do not say.
    """

    directory: Path
    pipeline: dict[str, Any] | None
    config: dict[str, Any]
    class_name: str | None
    special: dict[str, AddedToken]
    plain: frozenset[str]
    added: tuple[AddedToken, ...]
    extras: tuple[AddedToken, ...] | None

    def flag(self, name: str, default: bool | None) -> bool | None:
        """Return a true/false field of `tokenizer_config.json`; null is allowed if the default is None."""
        value = self.config.get(name, default)
        if not isinstance(value, bool) and not (value is None and default is None):
            raise TokenizerError(
                f"{self.directory / 'tokenizer_config.json'}: {name} must be true or false, not {shown(value)}"
            )
        return value

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
        TokenizerError: a file is not valid JSON, not UTF-8, or has a field of the wrong type (named), or the tokenizer
            is Python code of the checkpoint's own.
    """
    pipeline = read_json(directory / "tokenizer.json", TokenizerError)
    config = read_json(directory / "tokenizer_config.json", TokenizerError) or {}
    code = config.get("auto_map")
    if code := code.get("AutoTokenizer") if isinstance(code, dict) else code:
        raise TokenizerError(
            f"{directory / 'tokenizer_config.json'}: auto_map asks for a tokenizer of the checkpoint's own code, "
            f"{shown(code)}, which is never run; fix: if its other files alone give the model's ids, take auto_map out"
        )
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
        plain=frozenset(
            name for name, token in special.items() if isinstance(names[name], str) and token.content not in by_content
        ),
        added=tuple(by_id[i] for i in sorted(by_id)),
        extras=tuple(extras) if names.keys() & {"extra_special_tokens", "additional_special_tokens"} else None,
    )


def _class_name(directory: Path, config: dict[str, Any], hf_config: Mapping[str, Any] | None) -> str | None:
    # Before transformers 4.x, config.json named the class; if no file names one, the architecture's is used.
    model = read_json(directory / "config.json", TokenizerError) or {} if hf_config is None else hf_config
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if model.get("model_type") in supported():
        own = architecture(model["model_type"]).tokenizer_class.removesuffix("Fast")
        name = own if own in GENERIC_CLASSES else name or own
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
