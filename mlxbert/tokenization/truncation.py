"""Cutting texts that are longer than the model, and saying so."""

from __future__ import annotations

import warnings

from mlxbert.errors import MLXBertWarning
from mlxbert.tokenization.files import TokenizerError

STRATEGIES = ("longest_first", "only_first", "only_second", "do_not_truncate")
"""transformers' names: which text of a pair is cut."""


class TruncationWarning(MLXBertWarning):
    """Texts were cut to the longest input that the model takes, or are longer than that and were not cut."""


def strategy_of(truncation: object) -> str | None:
    """Return the strategy that the argument `truncation` of a call names; None where long texts are refused.

    Raises:
        TokenizerError: it is neither True, False nor one of `STRATEGIES`.
    """
    if isinstance(truncation, bool):
        return "longest_first" if truncation else None
    if isinstance(truncation, str) and truncation in STRATEGIES:
        return truncation
    raise TokenizerError(f"truncation={truncation!r} is not known; fix: True, False or one of {', '.join(STRATEGIES)}")


def warn_of_truncation(
    cut: int, total: int, longest: int, limit: int | None, *, stacklevel: int, at_least: bool = False
) -> None:
    """Say once that texts were cut; `stacklevel` 1 is the function that calls this one, 2 its caller.

    `at_least`: not every token of the longest was counted.
    """
    warnings.warn(
        f"{cut} of {total} texts {'is' if cut == 1 else 'are'} longer than {limit} tokens "
        f"(the longest has {'at least ' if at_least else ''}{longest}) and {'was' if cut == 1 else 'were'} cut",
        TruncationWarning,
        stacklevel=stacklevel + 1,
    )


def warn_of_no_truncation(over: int, total: int, longest: int, limit: int, *, stacklevel: int) -> None:
    """Say once that texts are longer than the model takes; arguments as for `warn_of_truncation`."""
    warnings.warn(
        f"{over} of {total} texts {'is' if over == 1 else 'are'} longer than {limit} tokens (the longest has "
        f"{longest}) and {'was' if over == 1 else 'were'} not cut: a model refuses more tokens than it has positions",
        TruncationWarning,
        stacklevel=stacklevel + 1,
    )


def kept_tokens(first: int, second: int | None, room: int, strategy: str) -> tuple[int, int]:
    """Return how many tokens of each text stay, so that both have at most `room`, as `tokenizers` decides it.

    "longest_first": the shorter text keeps up to half of the room, and the longer one gets the rest.

    Args:
        first, second: tokens of each text, without special ones; None: there is no second text.
        room: for both together; they have more.
        strategy: one of `STRATEGIES` that cuts.

    Raises:
        TokenizerError: the text to cut is not there, or none of its tokens would be left.
    """
    if strategy == "only_second" and second is None:
        raise TokenizerError('truncation="only_second" needs pairs; fix: give pairs=, or truncation=True')
    if second is None:
        return room, 0
    if strategy == "longest_first":
        shorter = min(first, second, room // 2)
        return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
    kept, other, which = (first, second, "first") if strategy == "only_first" else (second, first, "second")
    left = room - other
    if left < 1 or kept < 1:
        raise TokenizerError(
            f'truncation="{strategy}": the other text has {other} tokens and there is room for {room}, so nothing of '
            f"the {which} text would be left; fix: truncation=True, or raise max_length"
        )
    return (left, other) if strategy == "only_first" else (other, left)
