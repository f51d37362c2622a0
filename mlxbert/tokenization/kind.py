"""`Kind`: what a tokenizer class of transformers 5 makes of a vocabulary.

Most classes take only the vocabulary of `tokenizer.json` and put their own pipeline around it, with the settings of
`tokenizer_config.json`; they ignore the stored normalizer and pre-tokenizer. `wordpiece`, `byte_bpe` and `unigram`
describe these classes; the same is done here, so that the ids are the same. Source, `convert_to_native_format`:
https://github.com/huggingface/transformers/blob/v5.0.0/src/transformers/tokenization_utils_tokenizers.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from mlxbert.tokenization.files import SENTENCEPIECE_FILES, SPECIAL_TOKENS, TokenizerError, TokenizerFiles

Special = Mapping[str, AddedToken]


def special_token(name: str, content: str) -> AddedToken:
    """Return the special token with this attribute name, as most classes make it of a text."""
    return AddedToken(content, special=True)


@dataclass(frozen=True)
class Kind:
    """A tokenizer class of transformers.

    Attributes:
        classes: its names, less "Fast".
        model: the type of its model in `tokenizer.json`.
        vocabulary: the files that hold its vocabulary where there is no `tokenizer.json`.
        title: whose vocabulary it is, for messages.
        tokens: attribute name -> special token, where no file names it.
        pipeline: returns the pipeline without special tokens.
        template: returns what puts the special tokens around a text; the pipeline has all tokens by then.
        token: the special token that the class makes of a text.
        extras: special tokens without an attribute name, where no file names any.
        appends: whether a special token that the vocabulary lacks gets an id behind it.
        has_types: whether it gives token types where no file says so (`model_input_names` of the class).
    """

    classes: tuple[str, ...]
    model: str
    vocabulary: tuple[str, ...]
    title: str
    tokens: Mapping[str, str]
    pipeline: Callable[[Kind, TokenizerFiles, Special], tokenizers.Tokenizer]
    template: Callable[[TokenizerFiles, tokenizers.Tokenizer, Special], Any]
    token: Callable[[str, str], AddedToken] = special_token
    extras: tuple[str, ...] = ()
    appends: bool = False
    has_types: bool = False

    @property
    def is_sentencepiece(self) -> bool:
        """Whether its vocabulary is a SentencePiece model, which the `tokenizers` package does not read."""
        return self.vocabulary[0] in SENTENCEPIECE_FILES

    @property
    def names(self) -> str:
        """The files of the vocabulary, for messages."""
        return " with ".join(self.vocabulary)

    def place(self, files: TokenizerFiles) -> Path:
        """Return the path of the file that holds the vocabulary."""
        return files.directory / (self.vocabulary[0] if files.pipeline is None else "tokenizer.json")

    def with_defaults(self, files: TokenizerFiles) -> dict[str, AddedToken]:
        """Return the special tokens by attribute name: those of the files, and the class's own for the others."""
        by_content = {token.content: token for token in files.added}
        special = {}
        for name in SPECIAL_TOKENS:
            if name in files.special:
                token = files.special[name]
                special[name] = self.token(name, token.content) if name in files.plain else token
            elif name in self.tokens and files.config.get(name, "") is not None:
                content = self.tokens[name]
                special[name] = by_content.get(content) or self.token(name, content)
        return special

    def require_tokens(self, files: TokenizerFiles, special: Special, vocabulary: Mapping[str, float]) -> None:
        """Raise TokenizerError if a special token that every text gets is not in the vocabulary."""
        present = vocabulary.keys() | {token.content for token in (*files.added, *(files.extras or ()))}
        for name in ("unk_token", "cls_token", "sep_token"):
            if name not in special or special[name].content not in present:
                token = special[name].content if name in special else name
                fix = f"check that it is a {self.title} vocabulary"
                raise TokenizerError(f"{self.place(files)}: the vocabulary has no {token}; fix: {fix}")

    def missing(self, directory: Path) -> str:
        """Return the message for a directory without the files of this tokenizer; it names those that would do."""
        absent = f"{directory}: no tokenizer: neither tokenizer.json nor {self.names} is there"
        if not self.is_sentencepiece:
            them = "one of them" if len(self.vocabulary) == 1 else "them"
            return f"{absent}; fix: copy {them} from the model's source"
        if (directory / self.names).is_file():
            return (
                f"{directory}: no tokenizer.json, and the tokenizers package does not read {self.names}; "
                "fix: convert the model with mlxbert-convert, which makes tokenizer.json"
            )
        return (
            f"{absent}; fix: copy tokenizer.json from the model's source, or put {self.names} beside the source and "
            "convert it again"
        )


def templates(
    backend: tokenizers.Tokenizer, single: str, pair: str, special: Mapping[str, str]
) -> processors.TemplateProcessing:
    """Return the template of one text and of a pair.

    Args:
        backend: has the special tokens.
        single, pair: as `tokenizers` writes them, with {cls} and {sep} for special tokens.
        special: "cls" and "sep" -> the token.
    """
    return processors.TemplateProcessing(
        single=single.format(**special).split(),
        pair=pair.format(**special).split(),
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(special.values())],
    )
