"""What counts as text: checks that name the item that does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxbert.tokenization.files import TokenizerError


def check_texts(texts: str | Iterable[str], what: str = "text") -> list[str]:
    """A list of strings, whatever sequence they came in; one string is a list of one.

    Raises:
        TokenizerError: not a sequence of strings; the first item that is none is named with its index and type.
    """
    if isinstance(texts, str):
        return [texts]
    if (
        isinstance(texts, bytes | bytearray | Mapping | set | frozenset)
        or not isinstance(texts, Iterable)
        or getattr(texts, "ndim", 1) != 1
    ):
        raise TokenizerError(f"{what}s must be a string or a sequence of strings, not {type(texts).__name__}")
    items: Sequence[Any] = list(texts)
    for i, item in enumerate(items):
        if not isinstance(item, str):
            fix = "decode it" if isinstance(item, bytes) else "drop it, or replace it by ''"
            if isinstance(item, tuple | list):
                fix = "join both texts, or give the tokenizer second texts as pairs="
            raise TokenizerError(f"{what} {i} is {_shown(item)}, not a string; fix: {fix}")
    return list(items)


def _shown(item: Any) -> str:
    text = repr(item)
    return f"{text if len(text) <= 40 else text[:39] + '…'} ({type(item).__name__})"


def refuse_surrogates(texts: Sequence[str], what: str) -> None:
    """Raise for the first text with half a surrogate pair, which UTF-8 (and so a tokenizer) cannot hold.

    Raises:
        TokenizerError: names the text and the character.
    """
    for i, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"{what} {i} holds an unpaired surrogate (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}, which is no text; "
                "fix: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
            ) from None


def refuse_stop(error: BaseException) -> None:
    """Raise Ctrl-C and exits again; what else is no Exception is a panic of `tokenizers`."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
