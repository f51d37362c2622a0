"""The tokenizer files of a directory, read as transformers' `AutoTokenizer` reads them.

The pipeline itself is in `tokenizer.json` or in a bare `vocab.txt`. Beside it, three more files of successive
ages may name the special tokens and the tokens added after training: `tokenizer_config.json`, which wins when
it holds `added_tokens_decoder`, otherwise `special_tokens_map.json` and `added_tokens.json`.
Source, `_from_pretrained`:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/tokenization_utils_base.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mlxbert.errors import MLXBertError, shown
from mlxbert.files.reading import read_json

# The order in which transformers adds those that the vocabulary lacks, so that their ids come out the same.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class TokenizerError(MLXBertError):
    """Tokenizer files that cannot be used, or an input that is not text."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say, nothing built yet.

    Attributes:
        directory: where they lie.
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
        """A true/false field of `tokenizer_config.json`; null is allowed where the default is None."""
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


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read what lies in `directory`.

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
    extras = [token for one in extra if (token := _token(one, "extra_special_tokens", directory)) is not None]
    extras = [token for token in extras if token.content not in by_content]
    return TokenizerFiles(
        directory=directory,
        pipeline=pipeline,
        config=config,
        class_name=_class_name(directory, config),
        special=special,
        added=(
            *(by_id[i] for i in sorted(by_id)),
            *(token for token in extras if token.content not in by_content),
        ),
    )


def _class_name(directory: Path, config: dict[str, Any]) -> str | None:
    # Before transformers 4.x the class stood in config.json.
    name = config.get("tokenizer_class") or (read_json(directory / "config.json", TokenizerError) or {}).get(
        "tokenizer_class"
    )
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
    if not isinstance(stored, list) or not all(isinstance(one, dict) and type(one.get("id")) is int for one in stored):
        raise TokenizerError(f"{directory / 'tokenizer.json'}: added_tokens must be a list of tokens with ids")
    return by_id | _added_by_id({one["id"]: one for one in stored}, directory / "tokenizer.json")


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
