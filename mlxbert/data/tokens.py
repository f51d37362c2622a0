"""`TokenRows`: the texts of a data set as token ids, which a cache file keeps; and batches of these rows.

The cache's key has everything that the ids depend on: the texts, the tokenizer's files, the length limit, and the
version of the tokenizers package. A file that is damaged, or has another key, is made again.

Batches have rows of similar length, padded to few lengths, and no row is dropped. Batch k of epoch e depends only on
the rows, the seed, e and k. So a run that goes on at (e, k) sees the batches of an uninterrupted run, without a saved
state of the shuffling.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import mlx.core as mx
import numpy as np
import tokenizers

from mlxbert.data.frames import DataError
from mlxbert.errors import MLXBertWarning
from mlxbert.files.output_file import WriteError, replacing
from mlxbert.files.reading import read_bytes
from mlxbert.files.safetensors import read_array_file
from mlxbert.tokenization.build import missing_tokenizer
from mlxbert.tokenization.encoding import warn_of_truncation
from mlxbert.tokenization.files import TOKENIZER_FILES, has_tokenizer, read_tokenizer_files
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError

# Change it when the same texts and files give other arrays.
_FORMAT = b"mlxbert token rows 2"
_PART = 1024
# Lengths are multiples of `_STEP`, and there are at most `_SHAPES`: a step is compiled for every length, and a token
# of padding costs as much as a real one.
_STEP, _SHAPES = 4, 10
# The rows of so many batches, but at most a quarter of an epoch, are sorted by length together: this leaves little
# padding, and batches stay random.
_POOL = 32


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
    limit = max_length if tokenizer.longest is None else min(max_length, tokenizer.longest)
    rows, file = None, None
    if cache is not None:
        if directory is None:
            raise DataError("a token cache needs the tokenizer's directory for its key; fix: give directory=")
        # The same files give other types for a model without token types.
        files = tokenizer_sha256(directory) + ("" if tokenizer.type_limit != 0 else " without types")
        key = _key(texts, pairs, files, limit)
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
    """Return a digest of the tokenizer's files with their names, and of the tokenizer's class.

    Raises:
        TokenizerError: there are no tokenizer files.
    """
    directory = Path(directory)
    digest = hashlib.sha256()
    names = [name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if not has_tokenizer(names):
        raise TokenizerError(missing_tokenizer(directory))
    for name in names:
        _add(digest, name.encode(), read_bytes(directory / name, TokenizerError) or b"")
    _add(digest, str(read_tokenizer_files(directory).class_name).encode())
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


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one call of the model; fillers complete the last batch.

    Attributes:
        rows: (B,) int64 numbers of the rows in `TokenRows`; a filler has the number of the first row.
        weights: (B,) float32: 1 for a row, 0 for a filler, which must not count.
        input_ids, token_type_ids, attention_mask: (B, L) int32.
    """

    rows: np.ndarray
    weights: np.ndarray
    input_ids: np.ndarray
    token_type_ids: np.ndarray
    attention_mask: np.ndarray

    @property
    def real(self) -> int:
        """The number of rows that are no fillers; they come first."""
        return int(self.weights.sum())

    def inputs(self) -> dict[str, mx.array]:
        """Return the keyword arguments of the model: `model(**batch.inputs())`."""
        return {
            "input_ids": mx.array(self.input_ids),
            "token_type_ids": mx.array(self.token_type_ids),
            "attention_mask": mx.array(self.attention_mask),
        }


def padded_lengths(lengths: np.ndarray, shapes: int = _SHAPES) -> tuple[int, ...]:
    """Return at most `shapes` lengths to pad to, increasing, with the least padding; the last fits the longest row.

    Each is a multiple of 4, except the last if the longest row is cut to an odd limit.

    Raises:
        DataError: no rows, or `shapes` below 1.
    """
    _whole("shapes", shapes)
    if not len(lengths):
        raise DataError("there are no rows to make batches of")
    longest = int(lengths.max())
    ends = [int(end) for end in np.unique(np.minimum(-(-lengths // _STEP) * _STEP, longest))]
    # rows[i]: number of rows of at most ends[i] tokens.
    rows = np.searchsorted(np.sort(lengths), ends, side="right")
    # cost[j]: padded tokens of all rows up to ends[j]; each round adds one length. before[k][j]: the next lower.
    cost = rows * np.array(ends)
    before: list[list[int]] = []
    for _ in range(min(shapes, len(ends)) - 1):
        choices = [[cost[i] + (rows[j] - rows[i]) * ends[j] for i in range(j)] + [cost[j]] for j in range(len(ends))]
        before.append([int(np.argmin(row)) for row in choices])
        cost = np.array([min(row) for row in choices])
    chosen = [len(ends) - 1]
    for table in reversed(before):
        chosen.append(table[chosen[-1]])
    return tuple(ends[i] for i in sorted(set(chosen)))


class TrainingBatches:
    """The batches of every epoch.

    Attributes:
        batch_size: rows a batch, fillers included.
        lengths: to which batches are padded.
    """

    def __init__(
        self, tokens: TokenRows, rows: Sequence[int] | np.ndarray, *, batch_size: int, seed: int, shapes: int = _SHAPES
    ):
        """Plan batches of the rows of `tokens` with these numbers (a fold's), shuffled in each epoch.

        Raises:
            DataError: there are no rows, a number is no row, or a size or seed is impossible.
        """
        self._tokens, self._rows = tokens, _numbers(tokens, rows)
        _whole("batch_size", batch_size)
        _whole("seed", seed, 0)
        self.batch_size = min(batch_size, len(self._rows))
        self._seed = seed
        self.lengths = padded_lengths(tokens.lengths[self._rows], shapes)
        self._plan: tuple[int, list[np.ndarray]] | None = None

    def __len__(self) -> int:
        """Return the number of batches in an epoch, with the last one, which fillers may complete."""
        return -(-len(self._rows) // self.batch_size)

    def batch(self, epoch: int, k: int) -> Batch:
        """Return batch `k` of `epoch`, both from 0.

        Raises:
            DataError: there is no such batch.
        """
        return _batch(self._tokens, self._row_numbers(epoch, k), self.batch_size, self.lengths)

    def padding(self, epoch: int, batches: Iterable[int]) -> float:
        """Return the share of padding among the tokens of these batches of `epoch`; fillers are padding.

        Raises:
            DataError: there is no such batch.
        """
        computed = real = 0
        for k in batches:
            lengths = self._tokens.lengths[self._row_numbers(epoch, k)]
            computed += self.batch_size * _padded_length(int(lengths.max()), self.lengths)
            real += int(lengths.sum())
        return 1 - real / computed

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from `start` on."""
        for k in range(start, len(self)):
            yield self.batch(epoch, k)

    def _row_numbers(self, epoch: int, k: int) -> np.ndarray:
        if not 0 <= k < len(self) or epoch < 0:
            raise DataError(f"there is no batch {k} of epoch {epoch}; an epoch has {len(self)}, from 0")
        if self._plan is None or self._plan[0] != epoch:
            self._plan = (epoch, self._epoch(epoch))
        return self._plan[1][k]

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the row numbers of each batch of an epoch."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self._seed, epoch])))
        order = rng.permutation(self._rows)
        lengths = self._tokens.lengths
        pool = self.batch_size * max(1, min(_POOL, len(self) // 4))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            part = order[start : start + pool]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]


class PredictionBatches:
    """Each row once, the longest first, so that too little memory shows at once; `restore` restores the order.

    Attributes:
        batch_size: rows a batch, fillers included.
        lengths: to which batches are padded.
    """

    def __init__(
        self,
        tokens: TokenRows,
        rows: Sequence[int] | np.ndarray | None = None,
        *,
        batch_size: int,
        lengths: Sequence[int] | None = None,
        shapes: int = _SHAPES,
    ):
        """Plan batches of the rows of `tokens` with these numbers.

        Args:
            tokens: all rows.
            rows: numbers, in the order that `restore` gives; None: all.
            batch_size: rows a batch.
            lengths: to pad to, increasing (those of the training, so that nothing is compiled anew); longer rows get
                one more length; None: `shapes` new ones.
            shapes: number of lengths without `lengths`.

        Raises:
            DataError: there are no rows, a number is no row, or a size is impossible.
        """
        self._tokens = tokens
        self._rows = _numbers(tokens, np.arange(len(tokens)) if rows is None else rows)
        _whole("batch_size", batch_size)
        row_lengths = tokens.lengths[self._rows]
        if lengths is None:
            self.batch_size = min(batch_size, len(self._rows))
            self.lengths = padded_lengths(row_lengths, shapes)
        else:
            self.batch_size = batch_size
            longest = int(row_lengths.max())
            more = {min(-(-longest // _STEP) * _STEP, tokens.limit)} if longest > max(lengths) else set()
            self.lengths = tuple(sorted({*lengths, *more}))
        self._order = np.argsort(-row_lengths, kind="stable")

    def __len__(self) -> int:
        return -(-len(self._rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.every(1)

    def every(self, step: int, first: int = 0) -> Iterator[Batch]:
        """Yield each `step`-th batch, from batch `first` on."""
        for start in range(first * self.batch_size, len(self._rows), step * self.batch_size):
            rows = self._rows[self._order[start : start + self.batch_size]]
            yield _batch(self._tokens, rows, self.batch_size, self.lengths)

    def restore(self, outputs: Iterable[np.ndarray]) -> np.ndarray:
        """Return the batches' outputs, each (B, …) with fillers, as one (N, …) array in the order of the given rows.

        Raises:
            DataError: the number of outputs is not that of the batches, or one has another length.
        """
        parts = list(outputs)
        if [len(part) for part in parts] != [self.batch_size] * len(self):
            raise DataError(
                f"{len(parts)} outputs of {', '.join(map(str, sorted({len(part) for part in parts})))} rows for "
                f"{len(self)} batches of {self.batch_size}; fix: one output a batch, fillers included"
            )
        sorted_outputs = np.concatenate(parts)[: len(self._rows)]
        restored = np.empty_like(sorted_outputs)
        restored[self._order] = sorted_outputs
        return restored


def _batch(tokens: TokenRows, rows: np.ndarray, batch_size: int, lengths: Sequence[int]) -> Batch:
    real = len(rows)
    L = _padded_length(int(tokens.lengths[rows].max()), lengths)
    rows = np.concatenate([rows, np.full(batch_size - len(rows), rows[0])])
    ids = np.full((batch_size, L), tokens.pad_id, np.int32)
    types, mask = np.zeros((batch_size, L), np.int32), np.zeros((batch_size, L), np.int32)
    for i, row in enumerate(rows):
        start, stop = tokens.starts[row], tokens.starts[row + 1]
        n = stop - start
        ids[i, :n], types[i, :n], mask[i, :n] = tokens.ids[start:stop], tokens.type_ids[start:stop], 1
    weights = (np.arange(batch_size) < real).astype(np.float32)
    return Batch(rows, weights, ids, types, mask)


def _padded_length(longest: int, lengths: Sequence[int]) -> int:
    return lengths[int(np.searchsorted(lengths, longest))]


def _numbers(tokens: TokenRows, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(rows, np.int64)
    if numbers.ndim != 1 or not len(numbers):
        raise DataError("there are no rows to make batches of")
    if numbers.min() < 0 or numbers.max() >= len(tokens):
        raise DataError(f"rows {numbers.min()} to {numbers.max()} are asked for; there are 0 to {len(tokens) - 1}")
    return numbers


def _whole(name: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError(f"{name} must be a whole number from {least} on, not {value!r}")
