"""The beginning of a long text as tokens, without tokenizing all of it: `tokenizers` takes 200 bytes a character.

BERT's pipeline is local. Its normalizer works character by character; words end at blanks, punctuation and Chinese
characters; WordPiece looks at one word. So a text that is cut anywhere has the tokens of the whole text, but for its
last words: the one that was cut, and those that a longer added token would have joined (it spans at most as many words
as it has characters, and a character normalizes to at most four). Those words are dropped here, and if too few tokens
are left, twice as many characters are read. Some texts have few tokens however much is read: a run of blanks has no
token, and a word of more than 100 letters is one unknown word. Such runs are shortened in their middle first.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import tokenizers
from tokenizers import models, pre_tokenizers

_RUN, _KEPT = 512, 128
# Characters that BERT's normalizer makes a blank of, or drops; and letters that it keeps whatever its settings are.
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
        whole: whether these are all.
    """

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]
    whole: bool

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, count: int, side: str) -> Tokens:
        """The first `count` of them, or with `side` "left" the last ones."""
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
        """`side` is where texts are cut: "right" keeps their beginning, "left" their end."""
        self._backend, self._left = backend, side == "left"
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._margin = 4 + 4 * max(map(len, added), default=0)
        self._squeezes = not any(_ONLY.fullmatch(token) or len(token) > _KEPT for token in added)
        # Read from the end, a match must not be able to begin inside another one.
        overlaps = self._left and any(first[0] in second[1:] for first in added for second in added if first)
        self._local = _is_local(backend) and not overlaps

    def read(self, text: str, tokens: int) -> Tokens:
        """Return at least `tokens` tokens of `text`, or all that it has; fewer where `most` characters have fewer."""
        size, places, squeezed = min(max(self.whole, 8 * tokens), self.most), _Places(), not self._squeezes
        while self._local and size < len(text):
            found = self._part(text, size, places)
            if len(found) >= tokens or (squeezed and size >= self.most):
                return found
            if squeezed:
                size = min(2 * size, self.most)
            else:
                text, places = self._squeezed(text)
                squeezed = True
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Tokens(encoding.ids, places.back(encoding.offsets), True)

    def _squeezed(self, text: str) -> tuple[str, _Places]:
        """`text` without the middle of runs that have no token, or one token, however long they are."""
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
        """The tokens of the first (or last) `size` characters, less the words that the cut may have changed."""
        skipped = len(text) - size if self._left else 0
        encoding = self._backend.encode(text[skipped : skipped + size], add_special_tokens=False)
        words = [-1 if word is None else word for word in encoding.word_ids]
        if not words:
            return Tokens([], [], False)
        if self._left:
            kept = slice(bisect_right(words, self._margin - 1), None)
        else:
            kept = slice(bisect_right(words, words[-1] - self._margin))
        offsets = [(start + skipped, end + skipped) for start, end in encoding.offsets[kept]]
        return Tokens(encoding.ids[kept], places.back(offsets), False)


class _Places:
    """Where the characters of a shortened text are in the text itself."""

    def __init__(self) -> None:
        self._shorter, self._original = [0], [0]

    @property
    def length(self) -> int:
        """Characters of the shortened text so far."""
        return self._shorter[-1]

    def add(self, length: int, original: int) -> None:
        """Note that after `length` more characters the shortened text goes on with the text's character `original`."""
        self._shorter.append(self._shorter[-1] + length)
        self._original.append(original)

    def back(self, offsets: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Offsets in the shortened text as offsets in the text itself."""
        if len(self._shorter) == 1:
            return offsets
        return [(self._at(start), self._at(end - 1) + 1 if end > start else self._at(end)) for start, end in offsets]

    def _at(self, place: int) -> int:
        piece = bisect_right(self._shorter, place) - 1
        return self._original[piece] + place - self._shorter[piece]


def _is_local(backend: tokenizers.Tokenizer) -> bool:
    """Whether this is BERT's pipeline, of which the module's docstring is true."""
    steps = [] if backend.normalizer is None else [json.loads(backend.normalizer.__getstate__())]
    if steps and steps[0]["type"] == "Sequence":  # of `Tokenizer.lowercased`
        steps = steps[0]["normalizers"]
    bert = [step for step in steps if step["type"] != "Lowercase"]
    return (
        len(bert) == 1
        and bert[0]["type"] == "BertNormalizer"
        and bert[0]["clean_text"]
        and isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and isinstance(backend.model, models.WordPiece)
        and backend.model.max_input_chars_per_word < 2 * _KEPT
    )
