"""Cutting texts that are longer than the model, and saying so."""

from __future__ import annotations

import warnings

import tokenizers

from mlxbert.errors import MLXBertWarning


class TruncationWarning(MLXBertWarning):
    """Texts were cut to the longest input that the model takes."""


def warn_of_truncation(cut: int, total: int, longest: int, limit: int | None, *, stacklevel: int) -> None:
    """Say once that texts were cut; `stacklevel` 1 is the function that calls this one, 2 its caller."""
    warnings.warn(
        f"{cut} of {total} texts {'is' if cut == 1 else 'are'} longer than {limit} tokens "
        f"(the longest has {longest}) and {'was' if cut == 1 else 'were'} cut",
        TruncationWarning,
        stacklevel=stacklevel + 1,
    )


def encode_cut(
    backend: tokenizers.Tokenizer, text: str, pair: str | None, limit: int, side: str
) -> tokenizers.Encoding:
    """Encode one text (or pair) to `limit` tokens, special ones included, cutting at `side`.

    Pairs are cut "longest_first", as transformers does by default: the shorter text keeps up to half of the room,
    and the longer one gets the rest. `limit` leaves room for the special tokens at least.
    """
    # The backend's own truncation is never switched on: another thread may be encoding with it.
    room = limit - backend.num_special_tokens_to_add(pair is not None)
    first = backend.encode(text, add_special_tokens=False)
    if pair is None:
        first.truncate(room, direction=side)
        return backend.post_process(first)
    second = backend.encode(pair, add_special_tokens=False)
    shorter = min(len(first.ids), len(second.ids), room // 2)
    keep = (shorter, room - shorter) if len(first.ids) <= len(second.ids) else (room - shorter, shorter)
    first.truncate(keep[0], direction=side)
    second.truncate(keep[1], direction=side)
    return backend.post_process(first, second)
