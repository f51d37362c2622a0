"""`Tokenizer`: turn text into the ids that the encoder reads, with only the `tokenizers` package."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import tokenizers
from tokenizers import models, normalizers

from mlxbert.errors import first_ten, shown
from mlxbert.tokenization.build import build_backend, has_types
from mlxbert.tokenization.encoding import (
    Encoding,
    Frame,
    LongTexts,
    Tokens,
    TruncationWarning,
    kept_tokens,
    padded,
    refuse_stop,
    refuse_surrogates,
    strategy_of,
    warn_of_truncation,
)
from mlxbert.tokenization.files import TokenizerError, TokenizerWarning, read_tokenizer_files

__all__ = ["Encoding", "Tokenizer", "TokenizerError", "TokenizerWarning", "TruncationWarning"]

# What `clean_up_tokenization_spaces` takes the blank away from, in transformers' order; from "' " on both sides.
_PUNCTUATION = (".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re")
# Characters that are tokenized at once.
_PART = 2**17


class Tokenizer:
    """Ids and type ids equal to those of transformers' `AutoTokenizer` for the same files.

    Attributes:
        max_length: the longest input in tokens, special ones included, that a call cuts to; None for no limit.
        model_limit: the most tokens that the model takes; None when it is not known.
        longest: the most tokens that both the model and the files of the tokenizer allow; None for no limit.
        type_limit: the number of token types that the model has; None when it is not known. If it has none, or if the
            tokenizer gives none (in transformers 5 only those of BERT and of DeBERTa-v2 do, unless `model_input_names`
            in `tokenizer_config.json` says otherwise), it is 0, and all types are 0.
        vocab_size: rows that the embedding matrix must have at least: the highest id plus one.
        pad_token_id, cls_token_id, sep_token_id, mask_token_id, unk_token_id: ids of the special tokens; None for
            one that the vocabulary lacks (padding is then id 0, which the mask hides).
    """

    # Setting an unknown attribute, such as transformers' `padding_side`, is an error.
    __slots__ = (
        *("_backend", "_frames", "_joins_punctuation", "_long_texts", "_truncation_side"),
        *("longest", "max_length", "model_limit", "type_limit"),
        *("vocab_size", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id", "unk_token_id"),
    )

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str],
        *,
        max_length: int | None = None,
        model_limit: int | None = None,
        longest: int | None = None,
        type_limit: int | None = None,
        truncation_side: str = "right",
        joins_punctuation: bool = False,
    ):
        self._backend = backend
        self._joins_punctuation = joins_punctuation
        self._truncation_side = truncation_side
        self._long_texts = LongTexts(backend, truncation_side)
        self._frames: dict[bool, Frame] = {}
        self.type_limit = type_limit
        self.max_length = max_length
        self.model_limit = model_limit
        self.longest = longest
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        ids = {name: vocabulary.get(token) for name, token in special.items()}
        self.pad_token_id = ids.get("pad_token")
        self.cls_token_id = ids.get("cls_token")
        self.sep_token_id = ids.get("sep_token")
        self.mask_token_id = ids.get("mask_token")
        self.unk_token_id = ids.get("unk_token")

    @classmethod
    def from_directory(
        cls,
        path: str | Path,
        *,
        max_length: int | None = None,
        model_limit: int | None = None,
        type_limit: int | None = None,
        hf_config: Mapping[str, Any] | None = None,
    ) -> Tokenizer:
        """Read `tokenizer.json`, or a bare vocabulary, and the settings beside it.

        Args:
            path: the directory.
            max_length: the longest input of a call that names none.
            model_limit: no call may exceed it; None: `max_length`.
            type_limit: token types of the model; no call may exceed it.
            hf_config: the content of `config.json`, where that file is not written yet.

        Raises:
            TokenizerError: no tokenizer files, corrupt ones, or a kind that needs more than `tokenizers`.
        """
        files = read_tokenizer_files(Path(path), hf_config)
        backend, special = build_backend(files)
        side = files.config.get("truncation_side", "right")
        if side not in ("right", "left"):
            raise TokenizerError(
                f"{files.directory / 'tokenizer_config.json'}: truncation_side must be 'right' or 'left', not "
                f"{shown(side)}"
            )
        model_limit = max_length if model_limit is None else model_limit
        limits, all_limits = (
            [limit for limit in (files.model_max_length, limit) if limit is not None]
            for limit in (max_length, model_limit)
        )
        tokenizer = cls(
            backend,
            {name: token.content for name, token in special.items()},
            max_length=min(limits, default=None),
            model_limit=model_limit,
            longest=min(all_limits, default=None),
            type_limit=type_limit if has_types(files) else 0,
            truncation_side=side,
            # transformers leaves BPE out, whose blanks are parts of its tokens.
            joins_punctuation=bool(files.flag("clean_up_tokenization_spaces", False))
            and not isinstance(backend.model, models.BPE),
        )
        try:
            for pair in (False, True):
                tokenizer._frame(pair)
        except BaseException as error:
            refuse_stop(error)
            raise TokenizerError(
                f"{files.directory / 'tokenizer.json'}: it cannot encode a text ({error}); fix: fetch the file again"
            ) from None
        return tokenizer

    def __call__(
        self,
        texts: str | Iterable[str],
        pairs: str | Iterable[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: bool | str = True,
        pad_to: int | None = None,
    ) -> dict[str, mx.array]:
        """Encode a batch into the arguments of the model: `model(**tokenizer(["…"]))`.

        Padding is always on the right: BERT's positions count from the left.

        Args:
            texts: one text or several.
            pairs: the second text of each, for two-text tasks.
            max_length: cut to this many tokens; default `self.max_length`.
            truncation: True, or "longest_first": cut a pair at its longer text first. "only_first", "only_second": cut
                that text of a pair alone. "do_not_truncate": cut nothing, with a warning. False: refuse a text that is
                too long.
            pad_to: pad to this length; default: the longest of the batch.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask` (1 for real tokens): (B, L) int32. No texts: (0, 0).

        Raises:
            TokenizerError: something that is not text (its index is named), an impossible length, a text that is too
                long with `truncation=False`, or pairs for a model with one token type.

        Warns:
            TruncationWarning: once a call, if texts were cut, or are too long: how many, the longest, the limit.
        """
        strategy = strategy_of(truncation)
        rows, limit = self._rows(texts, pairs, max_length, strategy or "longest_first", offsets=False)
        lengths = [len(row) + row.n_truncated for row in rows]
        over = [i for i, n in enumerate(lengths) if limit is not None and n > limit]
        if over and strategy is None:
            raise TokenizerError(
                f"{len(over)} of {len(rows)} texts are longer than {limit} tokens; "
                "fix: shorten them, or pass truncation=True to have them cut\n"
                + first_ten(f"text {i}: {lengths[i]} tokens{' or more' * rows[i].uncounted}" for i in over)
            )
        if over and limit is not None:
            uncut = "not cut: a model refuses more tokens than it has positions"
            outcome = uncut if strategy == "do_not_truncate" else "cut"
            more = any(row.uncounted for row in rows)
            warn_of_truncation(len(over), len(rows), max(lengths), limit, stacklevel=2, at_least=more, outcome=outcome)
        longest = max(map(len, rows), default=0)
        if pad_to is not None and (isinstance(pad_to, bool) or not isinstance(pad_to, int)):
            raise TokenizerError(f"pad_to must be a whole number, not {pad_to!r}")
        if pad_to is not None and pad_to < longest:
            raise TokenizerError(f"pad_to={pad_to} is less than the longest text's {longest} tokens; fix: raise it")
        return padded(
            [row.ids for row in rows],
            [row.type_ids for row in rows],
            length=longest if pad_to is None else pad_to,
            pad_id=self.pad_token_id or 0,
        )

    def encode(
        self,
        texts: str | Iterable[str],
        pairs: str | Iterable[str] | None = None,
        *,
        max_length: int | None = None,
        offsets: bool = True,
    ) -> list[Encoding]:
        """Encode without padding, one `Encoding` a text, which counts the tokens cut off; there is no warning.

        Without `offsets`, a fifth faster, the places of tokens and the mask of special tokens may be empty.

        Raises:
            TokenizerError: something that is not text (its index is named), an impossible length, or pairs for a model
                with one token type.
        """
        return self._rows(texts, pairs, max_length, "longest_first", offsets=offsets)[0]

    def check_types(self, *, pair: bool) -> None:
        """Refuse texts (or pairs) if the model lacks one of their token types.

        Raises:
            TokenizerError: the model has fewer token types than the tokenizer gives.
        """
        highest = self._frame(pair).highest_type
        if not self.type_limit or highest < self.type_limit:
            return
        if self.type_limit == 1 and pair:
            raise TokenizerError(
                "this model has one token type, so it cannot take pairs; "
                "fix: join both texts into one, or use a model with two token types"
            )
        raise TokenizerError(
            f"the tokenizer gives token type {highest}, and the model has {self.type_limit}; "
            "fix: use the tokenizer that belongs to this model"
        )

    def decode(self, ids: Iterable[int] | mx.array | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Return the text of ids, for people to read; what the normalizer dropped is lost.

        An id outside the vocabulary is skipped, as in transformers.

        Raises:
            TokenizerError: not a flat list of whole numbers from 0.
        """
        values: Any = ids.tolist() if isinstance(ids, mx.array | np.ndarray) else ids
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise TokenizerError(f"decode takes the ids of one text, not {type(values).__name__}")
        values = [index.item() if isinstance(index, mx.array | np.generic) else index for index in values]
        if any(isinstance(index, Iterable) and not isinstance(index, str) for index in values):
            raise TokenizerError("decode takes the ids of one text; fix: call it for each row")
        for index in values:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 2**32:
                raise TokenizerError(f"decode: {index!r} is no token id; fix: drop ignored positions such as -100")
        text = self._backend.decode(values, skip_special_tokens=skip_special_tokens)
        if self._joins_punctuation:
            for end in _PUNCTUATION:
                text = text.replace(f" {end}", end.rstrip() if end == "' " else end)
        return text

    def id_to_token(self, index: int) -> str | None:
        """Return the token with this id; None if there is none."""
        return self._backend.id_to_token(index) if 0 <= index < 2**32 else None

    def token_to_id(self, token: str) -> int | None:
        """Return the id of this token; None if the vocabulary does not have it."""
        return self._backend.token_to_id(token)

    @property
    def continuing_prefix(self) -> str:
        """The beginning of a token that continues a word, such as "##"; empty: tokens do not show it."""
        return str(getattr(self._backend.model, "continuing_subword_prefix", None) or "")

    def word_starts(self, text: str) -> list[int]:
        """Return the character at which each word of a text begins, as the pre-tokenizer splits it."""
        splitter = self._backend.pre_tokenizer
        return [0] if splitter is None else [start for _, (start, _) in splitter.pre_tokenize_str(text)]

    def join(self, tokens: Sequence[str]) -> str:
        """Return tokens of the vocabulary as text, for people to read."""
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens, including those added later."""
        return frozenset(i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)

    def lowercased(self) -> Tokenizer:
        """Return the same tokenizer, but with all text in lower case first; sentence-transformers' `do_lower_case`."""
        backend = copy.deepcopy(self._backend)
        steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer is not None else [])]
        backend.normalizer = normalizers.Sequence(steps)
        other = copy.copy(self)
        other._backend, other._frames = backend, {}
        other._long_texts = LongTexts(backend, self._truncation_side)
        return other

    def _rows(
        self,
        texts: str | Iterable[str],
        pairs: str | Iterable[str] | None,
        max_length: int | None,
        strategy: str,
        *,
        offsets: bool,
    ) -> tuple[list[Encoding], int | None]:
        """Return rows cut to the limit, and the limit; without `offsets`, offsets and mask may be empty."""
        first = check_texts(texts)
        second = None if pairs is None else check_texts(pairs, "pair")
        if second is not None and len(first) != len(second):
            raise TokenizerError(f"{len(first)} texts and {len(second)} pairs; fix: give one pair for each text")
        self.check_types(pair=second is not None)
        limit = self.checked_limit(max_length, pair=second is not None)
        room = None if limit is None or strategy == "do_not_truncate" else limit
        rows: list[Encoding] = []
        for part in _parts(first, second):
            seconds = None if second is None else second[part]
            try:
                rows += self._part(first[part], seconds, room, strategy, offsets=offsets)
            except TokenizerError:
                raise
            except BaseException as error:  # tokenizers raises bare exceptions that do not name the text
                refuse_stop(error)
                refuse_surrogates(first, "text")
                refuse_surrogates(second or [], "pair")
                raise TokenizerError(f"the texts could not be encoded: {error}") from error
        return rows, limit

    def _part(
        self, first: list[str], second: list[str] | None, limit: int | None, strategy: str, *, offsets: bool
    ) -> list[Encoding]:
        """Encode some rows; only these are in memory at their full length."""
        pairs: list[str | None] = [None] * len(first) if second is None else [*second]
        if limit is not None and len(first) == 1 and _characters(first[0], pairs[0]) > LongTexts.whole:
            return [self._cut(first[0], pairs[0], limit, strategy)]
        inputs: list[Any] = first if second is None else list(zip(first, second, strict=True))
        encode_batch = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        rows = []
        for i, row in enumerate(encode_batch(inputs)):
            if limit is not None and len(row) > limit:
                rows.append(self._cut(first[i], pairs[i], limit, strategy))
            elif offsets:
                rows.append(
                    Encoding(
                        ids=tuple(row.ids),
                        type_ids=self._types(row),
                        offsets=tuple(row.offsets),
                        special_tokens_mask=tuple(row.special_tokens_mask),
                        n_truncated=0,
                        sequences=tuple(row.sequence_ids),
                    )
                )
            else:
                rows.append(Encoding(tuple(row.ids), self._types(row), (), (), 0))
        return rows

    def _cut(self, text: str, pair: str | None, limit: int, strategy: str) -> Encoding:
        """Encode one text (or pair) in at most `limit` tokens, special ones included.

        If two texts both have more than 200,000 characters, the one with more tokens in that part counts as longer.
        """
        frame, read, side = self._frame(pair is not None), self._long_texts.read, self._truncation_side
        specials = sum(map(len, frame.specials))
        room = limit - specials
        first = read(text, room + 1)
        second = None if pair is None else read(pair, room + 1)
        if second is not None and pair is not None and strategy == "longest_first" and room % 2:
            first, second = self._compared(text, pair, first, second)  # which text gets the odd token
        parts: tuple[Tokens, ...] = (first,) if second is None else (first, second)
        if any(not part.whole and len(part) <= room for part in parts):
            raise TokenizerError(
                f"a text of {_characters(text, pair)} characters has less than {room} tokens in a million of them; "
                "fix: is it text? drop what is not"
            )
        total = sum(map(len, parts))
        if total > room:
            counts = kept_tokens(len(first), None if second is None else len(second), room, strategy)
            parts = tuple(part.cut(count, side) for part, count in zip(parts, counts, strict=False))
        more = not all(part.whole for part in parts)
        return frame.around(*parts, n_truncated=max(total - room, 0), uncounted=more)

    def _compared(self, text: str, pair: str, first: Tokens, second: Tokens) -> tuple[Tokens, Tokens]:
        """Read more until it is known which text has more tokens."""
        while not (first.whole and second.whole):
            if (first.whole and len(second) > len(first)) or (second.whole and len(first) > len(second)):
                break
            known = len(first) + len(second)
            if not (first.whole or second.whole) and 4 * known > LongTexts.most // 4:
                break
            first = first if first.whole else self._long_texts.read(text, known)
            second = second if second.whole else self._long_texts.read(pair, known)
            if len(first) + len(second) <= known:  # the largest part has been read
                break
        return first, second

    def _frame(self, pair: bool) -> Frame:
        if pair not in self._frames:
            frame = Frame.of(self._backend, pair=pair)
            self._frames[pair] = frame.without_types() if self.type_limit == 0 else frame
        return self._frames[pair]

    def _types(self, row: tokenizers.Encoding) -> tuple[int, ...]:
        return (0,) * len(row) if self.type_limit == 0 else tuple(row.type_ids)

    def checked_limit(self, max_length: int | None, *, pair: bool = False) -> int | None:
        """Return the limit in tokens of a call with this `max_length`; None for no limit.

        Raises:
            TokenizerError: it leaves no room for text, or is more than the model has positions.
        """
        limit = self.max_length if max_length is None else max_length
        if limit is None:
            return None
        added = self._backend.num_special_tokens_to_add(pair)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit <= added:
            raise TokenizerError(
                f"max_length must be a whole number above {added}, the special tokens alone, not {limit!r}"
            )
        if self.model_limit is not None and limit > self.model_limit:
            raise TokenizerError(
                f"max_length={limit} is more than the model's {self.model_limit} positions; fix: lower it"
            )
        return limit


def _characters(text: str, pair: str | None) -> int:
    return len(text) + len(pair or "")


def _parts(first: list[str], second: list[str] | None) -> Iterator[slice]:
    """Yield slices of the rows that can be tokenized at once (200 bytes a character); a long row is a slice alone."""
    start = total = 0
    alone = False
    for i, text in enumerate(first):
        size = _characters(text, None if second is None else second[i])
        if i > start and (alone or size > LongTexts.whole or total + size > _PART):
            yield slice(start, i)
            start, total = i, 0
        total, alone = total + size, size > LongTexts.whole
    if start < len(first):
        yield slice(start, len(first))


def check_texts(texts: str | Iterable[str], what: str = "text") -> list[str]:
    """Return any sequence of strings as a list; one string becomes a list of one.

    Raises:
        TokenizerError: not a sequence of strings; names index and type of the first item that is not a string.
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
