"""`Tokenizer`: text to the ids that the encoder reads, with the `tokenizers` package alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import tokenizers
from tokenizers import normalizers

from mlxbert.errors import first_ten
from mlxbert.tokenization.encoding import Encoding, padded
from mlxbert.tokenization.files import TokenizerError, read_tokenizer_files
from mlxbert.tokenization.text_input import check_texts, refuse_surrogates
from mlxbert.tokenization.truncation import TruncationWarning, encode_cut, warn_of_truncation
from mlxbert.tokenization.wordpiece import TokenizerWarning, build_backend

__all__ = ["Encoding", "Tokenizer", "TokenizerError", "TokenizerWarning", "TruncationWarning"]


class Tokenizer:
    """Ids and type ids equal to those of transformers' `AutoTokenizer` for the same files.

    Attributes:
        max_length: the longest input in tokens, special ones included, that a call cuts to; None for no limit.
        model_limit: the number of positions that the model has; None when it is not known.
        vocab_size: rows that the embedding matrix must have at least: the highest id plus one.
        pad_token_id, cls_token_id, sep_token_id, mask_token_id, unk_token_id: ids of the special tokens; None for
            one that the vocabulary lacks (padding is then id 0, which the mask hides).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str],
        *,
        max_length: int | None = None,
        model_limit: int | None = None,
        truncation_side: str = "right",
    ):
        self._backend = backend
        self._truncation_side = truncation_side
        self.max_length = max_length
        self.model_limit = model_limit
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        ids = {name: vocabulary.get(token) for name, token in special.items()}
        self.pad_token_id = ids.get("pad_token")
        self.cls_token_id = ids.get("cls_token")
        self.sep_token_id = ids.get("sep_token")
        self.mask_token_id = ids.get("mask_token")
        self.unk_token_id = ids.get("unk_token")

    @classmethod
    def from_directory(cls, path: str | Path, *, max_length: int | None = None) -> Tokenizer:
        """Read `tokenizer.json`, or a bare `vocab.txt`, and the settings beside it.

        Args:
            path: the directory.
            max_length: positions that the model has (`max_position_embeddings`); no call goes beyond it.

        Raises:
            TokenizerError: no tokenizer files, corrupt ones, or a kind that `tokenizers` alone cannot give.
        """
        files = read_tokenizer_files(Path(path))
        backend, special = build_backend(files)
        side = files.config.get("truncation_side", "right")
        if side not in ("right", "left"):
            raise TokenizerError(
                f"{files.directory / 'tokenizer_config.json'}: truncation_side must be 'right' or 'left', not {side!r}"
            )
        limits = [limit for limit in (files.model_max_length, max_length) if limit is not None]
        return cls(
            backend,
            {name: token.content for name, token in special.items()},
            max_length=min(limits, default=None),
            model_limit=max_length,
            truncation_side=side,
        )

    def __call__(
        self,
        texts: str | Iterable[str],
        pairs: str | Iterable[str] | None = None,
        *,
        max_length: int | None = None,
        truncation: bool = True,
        pad_to: int | None = None,
    ) -> dict[str, mx.array]:
        """Encode a batch; the result is what the model is called with: `model(**tokenizer(["…"]))`.

        Padding is always on the right: BERT's positions count from the left.

        Args:
            texts: one text or several.
            pairs: the second text of each, for two-text tasks.
            max_length: cut to this many tokens; default `self.max_length`. A pair is cut at its longer text
                first.
            truncation: False refuses a text that is too long instead of cutting it.
            pad_to: pad to this length; default: the longest of the batch.

        Returns:
            `input_ids`, `token_type_ids`, `attention_mask` (1 for real tokens): (B, L) int32. No texts: (0, 0).

        Raises:
            TokenizerError: something that is not text (its index is named), an impossible length, or a text that
                is too long with `truncation=False`.

        Warns:
            TruncationWarning: once a call, if texts were cut: how many, the longest, the limit.
        """
        rows, lengths, limit = self._rows(texts, pairs, max_length, offsets=False)
        over = [i for i, n in enumerate(lengths) if limit is not None and n > limit]
        if over and not truncation:
            raise TokenizerError(
                f"{len(over)} of {len(rows)} texts are longer than {limit} tokens; "
                "fix: shorten them, or pass truncation=True to have them cut\n"
                + first_ten(f"text {i}: {lengths[i]} tokens" for i in over)
            )
        if over:
            warn_of_truncation(len(over), len(rows), max(lengths), limit, stacklevel=2)
        longest = max((len(row.ids) for row in rows), default=0)
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
    ) -> list[Encoding]:
        """Encode without padding, one `Encoding` a text; what was cut off is counted there, and not warned of.

        Raises:
            TokenizerError: something that is not text (its index is named), or an impossible length.
        """
        rows, lengths, _ = self._rows(texts, pairs, max_length, offsets=True)
        return [
            Encoding(
                ids=tuple(row.ids),
                type_ids=tuple(row.type_ids),
                offsets=tuple(row.offsets),
                special_tokens_mask=tuple(row.special_tokens_mask),
                n_truncated=n - len(row.ids),
            )
            for row, n in zip(rows, lengths, strict=True)
        ]

    def decode(self, ids: Iterable[int] | mx.array | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Ids of one text back to text, for people to read: what the normalizer dropped does not come back.

        An id that the vocabulary does not have gives nothing, as in transformers.

        Raises:
            TokenizerError: not a flat list of ids, or a negative one.
        """
        values: Any = ids.tolist() if isinstance(ids, mx.array | np.ndarray) else list(ids)
        if not isinstance(values, list) or any(isinstance(one, list) for one in values):
            raise TokenizerError("decode takes the ids of one text; fix: call it for each row")
        values = [int(one) for one in values]
        if any(one < 0 for one in values):
            raise TokenizerError(f"decode: {min(values)} is no token id; fix: drop ignored positions such as -100")
        return self._backend.decode(values, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, index: int) -> str | None:
        """The token with this id; None if there is none."""
        return self._backend.id_to_token(index)

    def token_to_id(self, token: str) -> int | None:
        """The id of this token; None if the vocabulary does not have it."""
        return self._backend.token_to_id(token)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens, those added later included."""
        return frozenset(i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)

    def lowercased(self) -> Tokenizer:
        """The same tokenizer with all text in lower case first; sentence-transformers' `do_lower_case`."""
        backend = copy.deepcopy(self._backend)
        steps = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer is not None else [])]
        backend.normalizer = normalizers.Sequence(steps)
        other = copy.copy(self)
        other._backend = backend
        return other

    def _rows(
        self,
        texts: str | Iterable[str],
        pairs: str | Iterable[str] | None,
        max_length: int | None,
        *,
        offsets: bool,
    ) -> tuple[list[tokenizers.Encoding], list[int], int | None]:
        """Encodings cut to the limit, their lengths before that, and the limit."""
        first = check_texts(texts)
        second = None if pairs is None else check_texts(pairs, "pair")
        if second is not None and len(first) != len(second):
            raise TokenizerError(f"{len(first)} texts and {len(second)} pairs; fix: give one pair for each text")
        limit = self._limit(max_length, pair=second is not None)
        inputs: list[Any] = first if second is None else list(zip(first, second, strict=True))
        encode_batch = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        try:
            rows = encode_batch(inputs)
        except Exception as error:  # tokenizers raises bare exceptions that do not name the text
            refuse_surrogates(first, "text")
            refuse_surrogates(second or [], "pair")
            raise TokenizerError(f"the texts could not be encoded: {error}") from error
        lengths = [len(row.ids) for row in rows]
        if limit is not None:
            for i, n in enumerate(lengths):
                if n > limit:
                    rows[i] = encode_cut(
                        self._backend, first[i], second[i] if second else None, limit, self._truncation_side
                    )
        return rows, lengths, limit

    def _limit(self, max_length: int | None, *, pair: bool) -> int | None:
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
