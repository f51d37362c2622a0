"""`TokenRows`: the texts of a data set as token ids, which a cache file keeps.

The cache's key has everything that the ids depend on: the texts, the tokenizer's files, the length limit, and the
version of the tokenizers package. A file that is damaged, or has another key, is made again.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import tokenizers

from mlxbert.data.frames import DataError
from mlxbert.errors import MLXBertWarning
from mlxbert.files.output_file import WriteError, replacing
from mlxbert.files.reading import read_json
from mlxbert.files.safetensors import read_array_file
from mlxbert.tokenization.encoding import warn_of_truncation
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError

# Change it when the same texts and files give other arrays.
_FORMAT = b"mlxbert token rows 2"
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt")
_PART = 1024


class CacheWarning(MLXBertWarning):
    """The token cache cannot be used; the texts are tokenized without it."""


@dataclass(frozen=True, eq=False)
class TokenRows:
    """N rows of ids, one after the other.

    Attributes:
        ids: (T,) int32, special tokens included.
        type_ids: (T,) uint8.
        starts: (N + 1,) int64: row i is `ids[starts[i]:starts[i + 1]]`.
        cut: number of rows that were longer than the limit.
        longest: tokens of the longest row before the cut.
        limit: the most tokens of a row.
        pad_id: the id of the padding token.
        uncounted: whether the longest row may have had more tokens: see `Encoding.uncounted`.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    starts: np.ndarray
    cut: int
    longest: int
    limit: int
    pad_id: int
    uncounted: bool = False

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (N,) int64."""
        return np.diff(self.starts)


def token_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    max_length: int,
    directory: str | Path | None = None,
    cache: str | Path | None = None,
) -> TokenRows:
    """Return the tokens of texts, from the cache if it has them.

    Args:
        tokenizer: loaded from `directory`.
        texts: N of them.
        pairs: N second texts.
        max_length: the most tokens of a row, special ones included; the model's own limit holds, too.
        directory: of the tokenizer's files, which are part of the cache's key.
        cache: a folder, which is made if necessary; None: no cache.

    Raises:
        DataError: there is a cache without `directory`.
        TokenizerError: a text is no text, the length is impossible, `directory` has no tokenizer files, or the texts
            are pairs and the model has one token type.

    Warns:
        TruncationWarning: rows were cut; the message has their number, the longest, the limit.
        CacheWarning: the cache file is damaged, or cannot be written.
    """
    tokenizer.check_types(pair=pairs is not None)
    limit = max_length if tokenizer.max_length is None else min(max_length, tokenizer.max_length)
    rows, file = None, None
    if cache is not None:
        if directory is None:
            raise DataError("a token cache needs the tokenizer's directory for its key; fix: give directory=")
        key = _key(texts, pairs, tokenizer_sha256(directory), limit)
        file = Path(cache) / f"tokens-{key[:32]}.npz"
        rows = _read(file, key, len(texts), limit, tokenizer)
    if rows is None:
        rows = _tokenized(tokenizer, texts, pairs, limit)
        if file is not None:
            _write(file, key, rows)
    if rows.cut:
        warn_of_truncation(rows.cut, len(rows), rows.longest, limit, stacklevel=2, at_least=rows.uncounted)
    return rows


def tokenizer_sha256(directory: str | Path) -> str:
    """Return a digest of the tokenizer's files with their names, and of the tokenizer class in config.json.

    Raises:
        TokenizerError: there are no tokenizer files.
    """
    directory = Path(directory)
    digest = hashlib.sha256()
    found = [name for name in _FILES if (directory / name).is_file()]
    if not {"tokenizer.json", "vocab.txt"} & set(found):
        raise TokenizerError(f"{directory} has neither tokenizer.json nor vocab.txt; fix: convert it again")
    for name in found:
        _add(digest, name.encode(), (directory / name).read_bytes())
    config = read_json(directory / "config.json", TokenizerError) or {}
    _add(digest, str(config.get("tokenizer_class")).encode())
    return digest.hexdigest()


def _add(digest: hashlib._Hash, *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _key(texts: Sequence[str], pairs: Sequence[str] | None, files: str, limit: int) -> str:
    digest = hashlib.sha256(_FORMAT)
    _add(digest, tokenizers.__version__.encode(), files.encode(), str(limit).encode())
    for part in (texts, pairs):
        digest.update(b"-" if part is None else len(part).to_bytes(8, "little"))
        for text in part or ():
            # The tokenizer refuses a value that is no text, and names its row.
            _add(digest, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b"")
    return digest.hexdigest()


def _tokenized(tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, limit: int) -> TokenRows:
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"{len(pairs)} second texts for {len(texts)} texts; fix: one a row")
    ids, types, lengths, cut, longest, uncounted = [], [], [], 0, 0, False
    for start in range(0, len(texts), _PART):
        part = slice(start, start + _PART)
        try:
            rows = tokenizer.encode(list(texts[part]), None if pairs is None else list(pairs[part]), max_length=limit)
        except TokenizerError as error:
            raise TokenizerError(f"rows {start} to {min(start + _PART, len(texts)) - 1}: {error}") from None
        ids.append(np.fromiter(chain.from_iterable(row.ids for row in rows), np.int32))
        types.append(np.fromiter(chain.from_iterable(row.type_ids for row in rows), np.uint8))
        lengths += [len(row) for row in rows]
        cut += sum(row.n_truncated > 0 for row in rows)
        longest = max(longest, *(len(row) + row.n_truncated for row in rows))
        uncounted = uncounted or any(row.uncounted for row in rows)
    return TokenRows(
        ids=np.concatenate([np.zeros(0, np.int32), *ids]),
        type_ids=np.concatenate([np.zeros(0, np.uint8), *types]),
        starts=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        cut=cut,
        longest=longest,
        limit=limit,
        pad_id=tokenizer.pad_token_id or 0,
        uncounted=uncounted,
    )


def _read(file: Path, key: str, rows: int, limit: int, tokenizer: Tokenizer) -> TokenRows | None:
    """Return the rows of the cache file; None if there is none, or its content is wrong."""
    try:
        arrays = read_array_file(file, DataError, fix="it is made again")
        if arrays is None:
            return None
        ids, types, starts = arrays["ids"], arrays["type_ids"], arrays["starts"]
        cut, longest, uncounted = (int(number) for number in arrays["counts"])
        # The checksums of a ZIP do not stop an attack, and MLX reads foreign memory for an id beyond the embedding.
        is_good = (
            str(arrays["key"]) == key
            and (ids.dtype, types.dtype, starts.dtype) == (np.int32, np.uint8, np.int64)
            and ids.shape == types.shape == (int(starts[-1]),)
            and starts.shape == (rows + 1,)
            and starts[0] == 0
            and (not rows or 0 < np.diff(starts).min() <= np.diff(starts).max() <= limit)
            and (not len(ids) or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size)
            and (not len(types) or types.max() < (tokenizer.type_limit or 2))
        )
    except DataError as error:
        _warn(str(error))
        return None
    except (KeyError, ValueError, TypeError, IndexError):
        is_good = False
    if not is_good:
        _warn(f"{file} is damaged (its content is not what its name says); it is made again")
        return None
    return TokenRows(
        ids=ids,
        type_ids=types,
        starts=starts,
        cut=cut,
        longest=longest,
        limit=limit,
        pad_id=tokenizer.pad_token_id or 0,
        uncounted=bool(uncounted),
    )


def _write(file: Path, key: str, rows: TokenRows) -> None:
    """Write the cache file, whole or not at all; a failure is a warning."""
    counts = np.array([rows.cut, rows.longest, rows.uncounted])
    try:
        with replacing(file, fix="the next run tokenizes again", follow_links=False) as out:
            np.savez(out, ids=rows.ids, type_ids=rows.type_ids, starts=rows.starts, counts=counts, key=key)
    except WriteError as error:
        _warn(str(error))


def _warn(message: str) -> None:
    warnings.warn(message, CacheWarning, stacklevel=4)
