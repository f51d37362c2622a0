"""The beginning of a long text as tokens, without tokenizing all of it: `tokenizers` takes 200 bytes a character.

BERT's pipeline is local: its normalizer works character by character; words end at blanks, punctuation and Chinese
characters; WordPiece looks at one word. So the beginning of a text has the tokens of the whole text,
except for its last words: the word that was cut, and those that a longer added token would have joined (it spans at
most as many words as it has characters, and a character normalizes to at most four). Those words are dropped here. If
too few tokens remain, twice as many characters are read. Some long runs give few tokens: blanks give none, and a word
of more than 100 letters is one unknown word. Such runs are shortened in their middle first.

The other pipelines of this project (byte-level BPE, Unigram) are local in the same way, but a word may have any
length. Where a million characters do not have enough tokens, the whole text is tokenized.

`Encoding`, one text as ids, and `padded`, a batch of them as arrays.

Cut texts that are longer than the model, with a warning.

Check that items are text; errors name the first that is not.
"""

from __future__ import annotations

import json
import re
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from mlxbert.errors import MLXBertWarning
from mlxbert.tokenization.files import TokenizerError

_RUN, _KEPT = 512, 128
# Characters that BERT's normalizer turns into a blank, or drops; and letters that it keeps under all settings.
_BLANK = " \t\n\r\xa0\u2028\u2029\u3000"
_DROPPED = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufffd"
_LETTER = "A-Za-z0-9À-ÖØ-öø-ſΑ-ΡΣ-Ωα-ωА-я"
_LONG_RUN = re.compile(
    rf"(?<![{_LETTER}])[{_LETTER}]{{{_RUN},}}"
    rf"|(?<![{_BLANK}{_DROPPED}])(?P<blank>[{_BLANK}{_DROPPED}]{{{_RUN},}})"
    rf"|(?P<same>.)(?P=same){{{_RUN - 1},{2**16}}}"
)
_A_BLANK = re.compile(f"[{_BLANK}]")
_ONLY = re.compile(rf"[{_LETTER}]+|[{_BLANK}{_DROPPED}]+")


@dataclass(slots=True)
class Tokens:
    """Tokens of one text without special ones: all of them, or those of its beginning or end.

    Attributes:
        ids: token ids.
        offsets: start and end of each in the text, in characters.
        whole: whether these are all tokens of the text.
    """

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    whole: bool

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, count: int, side: str) -> Tokens:
        """Return the first `count` tokens, or with `side` "left" the last ones."""
        chosen = slice(len(self) - count, None) if side == "left" else slice(count)
        return Tokens(self.ids[chosen], self.offsets[chosen], self.whole)


class LongTexts:
    """Reads as much of a text as is needed, for one `tokenizers` pipeline.

    Attributes:
        whole: texts of at most this many characters are tokenized whole.
        most: no more characters than this (0.3 GB of memory) are tokenized at once.
    """

    whole: ClassVar[int] = 2**16
    most: ClassVar[int] = 2**20

    def __init__(self, backend: tokenizers.Tokenizer, side: str):
        """Set the side where texts are cut: "right" keeps their beginning, "left" their end."""
        self._backend, self._left = backend, side == "left"
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._margin = 4 + 4 * max(map(len, added), default=0)
        self._squeezes = not any(_ONLY.fullmatch(token) or len(token) > _KEPT for token in added)
        # Read from the end, a match must not be able to begin inside another one.
        overlaps = self._left and any(first[0] in second[1:] for first in added for second in added if first)
        is_bert = _is_wordpiece(backend)
        self._local = (is_bert or _is_local(backend)) and not overlaps
        self._squeezes, self._any_length = self._squeezes and is_bert, not is_bert

    def read(self, text: str, tokens: int) -> Tokens:
        """Return at least `tokens` tokens of `text`, or all that it has; fewer where `most` characters have fewer."""
        size, places, squeezed = min(max(self.whole, 8 * tokens), self.most), _Places(), not self._squeezes
        while self._local and size < len(text):
            tokens_read = self._part(text, size, places)
            if len(tokens_read) >= tokens or (squeezed and size >= self.most and not self._any_length):
                return tokens_read
            if squeezed and size >= self.most:
                break
            if squeezed:
                size = min(2 * size, self.most)
            else:
                text, places = self._squeezed(text)
                squeezed = True
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Tokens(encoding.ids, places.back(encoding.offsets), True)

    def _squeezed(self, text: str) -> tuple[str, _Places]:
        """Return `text` without the middle of long runs that have no token, or one token."""
        pieces, places, done = [], _Places(), 0
        for run in _LONG_RUN.finditer(text):
            if not self._left and places.length > self.most:
                break  # more is not read
            same = run["same"]
            if same is not None and len(self._backend.encode(same * _RUN, add_special_tokens=False)) > 1:
                continue  # such as full stops: each is a token
            head = text[done : run.start() + _KEPT]
            # Words on both sides of dropped characters are one word, on both sides of a blank two.
            middle = " " if run["blank"] is not None and _A_BLANK.search(run["blank"]) else ""
            done = run.end() - _KEPT
            pieces += [head, middle]
            places.add(len(head) + len(middle), done)
        return "".join([*pieces, text[done:]]), places

    def _part(self, text: str, size: int, places: _Places) -> Tokens:
        """Return the tokens of the first (or last) `size` characters, without words that the cut may have changed."""
        skipped = len(text) - size if self._left else 0
        encoding = self._backend.encode(text[skipped : skipped + size], add_special_tokens=False)
        words = [-1 if word is None else word for word in encoding.word_ids]
        if not words:
            return Tokens([], [], False)
        if self._left:
            whole_words = slice(bisect_right(words, self._margin - 1), None)
        else:
            whole_words = slice(bisect_right(words, words[-1] - self._margin))
        offsets = [(start + skipped, end + skipped) for start, end in encoding.offsets[whole_words]]
        return Tokens(encoding.ids[whole_words], places.back(offsets), False)


class _Places:
    """The places of a shortened text's characters in the original text."""

    def __init__(self) -> None:
        self._shorter, self._original = [0], [0]

    @property
    def length(self) -> int:
        """Characters of the shortened text so far."""
        return self._shorter[-1]

    def add(self, length: int, original: int) -> None:
        """Record that after `length` more characters the shortened text goes on at the text's character `original`."""
        self._shorter.append(self._shorter[-1] + length)
        self._original.append(original)

    def back(self, offsets: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Turn offsets in the shortened text into offsets in the original text."""
        if len(self._shorter) == 1:
            return offsets
        return [(self._at(start), self._at(end - 1) + 1 if end > start else self._at(end)) for start, end in offsets]

    def _at(self, place: int) -> int:
        piece = bisect_right(self._shorter, place) - 1
        return self._original[piece] + place - self._shorter[piece]


def _steps(part: Any, name: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer; `name` is their field in a sequence."""
    steps = [] if part is None else [json.loads(part.__getstate__())]
    while any(step["type"] == "Sequence" for step in steps):
        steps = [inner for step in steps for inner in (step[name] if step["type"] == "Sequence" else [step])]
    return steps


# Normalizers that look at neighbouring characters at most, and how words are split by the pipelines of this project.
_LOCAL = {"NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Lowercase", "Precompiled", "Strip"}
_LOCAL_PATTERNS = ({"String": "``"}, {"String": "''"}, {"Regex": r"\s{2,}|[\n\r\t]"})
_SPLITS = (["WhitespaceSplit", "Metaspace"], ["Metaspace"], ["Punctuation", "Metaspace"], ["ByteLevel"])


def _is_local(backend: tokenizers.Tokenizer) -> bool:
    """Return whether the tokens of a word depend on that word and its neighbours alone."""
    steps = _steps(backend.normalizer, "normalizers")
    splits = _steps(backend.pre_tokenizer, "pretokenizers")
    model = backend.model
    return (
        all(step["type"] in _LOCAL or step.get("pattern") in _LOCAL_PATTERNS for step in steps)
        and [step["type"] for step in splits] in _SPLITS
        and all(step.get("split", True) and step.get("use_regex", True) for step in splits)
        and (isinstance(model, models.Unigram) or (isinstance(model, models.BPE) and not model.dropout))
    )


def _is_wordpiece(backend: tokenizers.Tokenizer) -> bool:
    """Return whether this is BERT's pipeline, which is local as the module's docstring says."""
    steps = _steps(backend.normalizer, "normalizers")  # several: of `Tokenizer.lowercased`
    others = [step for step in steps if step["type"] != "Lowercase"]
    return (
        len(others) == 1
        and others[0]["type"] == "BertNormalizer"
        and others[0]["clean_text"]
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(backend.model, models.WordPiece)
        and backend.model.max_input_chars_per_word < 2 * _KEPT
    )


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text (or pair), not padded.

    Attributes:
        ids: token ids, special tokens included.
        type_ids: 0 for the first text, 1 for the second.
        offsets: start and end of each token in its own text, in characters; (0, 0) for a special token.
        special_tokens_mask: 1 for tokens that the tokenizer put in ([CLS], [SEP]), 0 for the text's own.
        n_truncated: tokens cut off because the text was longer than the limit.
        uncounted: whether even more was cut off: only the beginning of a text of more than 65,536 characters is read.
        sequences: 0 for a token of the first text, 1 for one of the second, None for a special token.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special_tokens_mask: tuple[int, ...]
    n_truncated: int
    uncounted: bool = False
    sequences: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around a text or a pair.

    Attributes:
        specials: id and type id of those before the first text, between both and after the second.
        types: the type id of each text's tokens.
    """

    specials: tuple[tuple[tuple[int, int], ...], ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, *, pair: bool) -> Frame:
        """Find what the pipeline puts around one token, or around two."""
        row = backend.encode("a", "a" if pair else None)
        specials: list[list[tuple[int, int]]] = [[]]
        types: list[int] = []
        sequence = None
        for token, kind, special, of in zip(
            row.ids, row.type_ids, row.special_tokens_mask, row.sequence_ids, strict=True
        ):
            if special:
                specials[-1].append((token, kind))
            elif of != sequence:
                sequence = of
                types.append(kind)
                specials.append([])
        return cls(tuple(map(tuple, specials)), tuple(types))

    def without_types(self) -> Frame:
        """Return the same frame with type 0 everywhere."""
        specials = tuple(tuple((token, 0) for token, _ in part) for part in self.specials)
        return Frame(specials, (0,) * len(self.types))

    @property
    def highest_type(self) -> int:
        """The highest type id of all."""
        return max([*self.types, *(kind for part in self.specials for _, kind in part)], default=0)

    def around(self, *texts: Tokens, n_truncated: int, uncounted: bool) -> Encoding:
        """Return the row of these texts' tokens."""
        ids: list[int] = []
        types: list[int] = []
        offsets: list[tuple[int, int]] = []
        mask: list[int] = []
        sequences: list[int | None] = []
        for i, specials in enumerate(self.specials):
            ids += [token for token, _ in specials]
            types += [kind for _, kind in specials]
            offsets += [(0, 0)] * len(specials)
            mask += [1] * len(specials)
            sequences += [None] * len(specials)
            if i < len(texts):
                ids += texts[i].ids
                types += [self.types[i]] * len(texts[i])
                offsets += texts[i].offsets
                mask += [0] * len(texts[i])
                sequences += [i] * len(texts[i])
        return Encoding(
            ids=tuple(ids),
            type_ids=tuple(types),
            offsets=tuple(offsets),
            special_tokens_mask=tuple(mask),
            n_truncated=n_truncated,
            uncounted=uncounted,
            sequences=tuple(sequences),
        )


def padded(
    ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]], *, length: int, pad_id: int
) -> dict[str, mx.array]:
    """Return a batch for the model: `input_ids`, `token_type_ids`, `attention_mask`, each (B, length) int32.

    Padding is always on the right: BERT's positions count from the left.
    """
    shape = (len(ids), length)
    token_ids = np.full(shape, pad_id, np.int32)
    types, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for i, (row, row_types) in enumerate(zip(ids, type_ids, strict=True)):
        n = len(row)
        token_ids[i, :n], types[i, :n], mask[i, :n] = row, row_types, 1
    return {"input_ids": mx.array(token_ids), "token_type_ids": mx.array(types), "attention_mask": mx.array(mask)}


STRATEGIES = ("longest_first", "only_first", "only_second", "do_not_truncate")
"""Which text of a pair is cut, with transformers' names."""


class TruncationWarning(MLXBertWarning):
    """Texts were cut to the longest input that the model takes, or are longer than that and were not cut.

    Attributes:
        cut: how many, where `warn_of_truncation` made it; likewise the tokens of the longest, the limit, and whether
            the longest may have more; for a sum over many pieces of a table.
    """

    cut: int | None = None
    longest: int = 0
    limit: int | None = None
    uncounted: bool = False


def strategy_of(truncation: object) -> str | None:
    """Return the strategy that the argument `truncation` names; None if long texts are refused.

    Raises:
        TokenizerError: it is neither True, False nor one of `STRATEGIES`.
    """
    if isinstance(truncation, bool):
        return "longest_first" if truncation else None
    if isinstance(truncation, str) and truncation in STRATEGIES:
        return truncation
    raise TokenizerError(f"truncation={truncation!r} is not known; fix: True, False or one of {', '.join(STRATEGIES)}")


def warn_of_truncation(
    over: int,
    total: int,
    longest: int,
    limit: int | None,
    *,
    stacklevel: int,
    at_least: bool = False,
    outcome: str = "cut",
) -> None:
    """Warn once that texts are too long; `stacklevel` 1 is the function that calls this one, 2 its caller.

    `at_least`: the longest may have more tokens than were counted. `outcome`: what happened to the texts.
    """
    warning = TruncationWarning(
        f"{over} of {total} texts {'is' if over == 1 else 'are'} longer than {limit} tokens "
        f"(the longest has {'at least ' if at_least else ''}{longest}) and {'was' if over == 1 else 'were'} {outcome}"
    )
    warning.cut, warning.longest, warning.limit, warning.uncounted = over, longest, limit, at_least
    warnings.warn(warning, stacklevel=stacklevel + 1)


def kept_tokens(first: int, second: int | None, room: int, strategy: str) -> tuple[int, int]:
    """Return how many tokens of each text are kept, as in `tokenizers`; both together have at most `room`.

    "longest_first": the shorter text keeps up to half of the room, and the longer one gets the rest.

    Args:
        first, second: tokens of each text, without special ones; None: there is no second text.
        room: for both together; they have more.
        strategy: one of `STRATEGIES`, but not "do_not_truncate".

    Raises:
        TokenizerError: the text to cut does not exist, or none of its tokens would remain.
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
    """Raise Ctrl-C and exits again; any other BaseException is a panic of `tokenizers`."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
