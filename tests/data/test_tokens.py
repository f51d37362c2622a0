"""Token rows and their cache; batches: every row once, few shapes, a pure function of seed, epoch and place."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxbert.data import tokens as module
from mlxbert.data.competitions import get_competition
from mlxbert.data.frames import DataError
from mlxbert.data.reading import read_data
from mlxbert.data.tokens import (
    Batch,
    CacheWarning,
    PredictionBatches,
    TokenRows,
    TrainingBatches,
    padded_lengths,
    token_rows,
    tokenizer_sha256,
)
from mlxbert.tokenization.tokenizer import Tokenizer, TokenizerError, TruncationWarning
from tests.support.competition_files import real_file

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d"]
TEXTS = ["a b", "", "c c c c d", "b", "a b c d a b c d", "d"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (made / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return made


@pytest.fixture
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(directory, max_length=64)


def rows_of(lengths: Any, pad_id: int = 0) -> TokenRows:
    """Rows of these lengths, whose first id is the row's number + 1."""
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(starts[-1], dtype=np.int32) % 7 + 1000
    ids[starts[:-1]] = np.arange(len(lengths)) + 1
    return TokenRows(ids, (np.arange(starts[-1]) % 2).astype(np.uint8), starts, 0, 0, 512, pad_id)


LENGTHS = np.random.default_rng(0).geometric(0.03, 997).clip(2, 200)
ROWS = rows_of(LENGTHS, pad_id=9)


def same(one: TokenRows, two: TokenRows) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ("ids", "type_ids", "starts"))
    return arrays and (one.cut, one.longest, one.limit, one.pad_id) == (two.cut, two.longest, two.limit, two.pad_id)


def bytes_of(batch: Batch) -> bytes:
    return b"".join(
        array.tobytes()
        for array in (batch.rows, batch.weights, batch.input_ids, batch.token_type_ids, batch.attention_mask)
    )


@pytest.mark.parametrize("pairs", [None, ["d", "a", "", "b b", "c", "d d d"]])
def test_rows_are_what_the_tokenizer_gives(tokenizer: Tokenizer, pairs: list[str] | None) -> None:
    rows = token_rows(tokenizer, TEXTS, pairs, max_length=64)
    assert len(rows) == len(TEXTS)
    assert (rows.cut, rows.limit, rows.pad_id) == (0, 64, 0)
    for i, encoding in enumerate(tokenizer.encode(TEXTS, pairs)):
        assert rows.ids[rows.starts[i] : rows.starts[i + 1]].tolist() == list(encoding.ids)
        assert rows.type_ids[rows.starts[i] : rows.starts[i + 1]].tolist() == list(encoding.type_ids)
    assert rows.lengths.tolist() == [len(encoding) for encoding in tokenizer.encode(TEXTS, pairs)]
    assert (rows.type_ids.max() == 1) == (pairs is not None)


def test_parts_are_joined_and_the_models_limit_holds(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = token_rows(tokenizer, TEXTS, max_length=64)
    monkeypatch.setattr(module, "_PART", 4)
    assert same(token_rows(tokenizer, TEXTS, max_length=1000), whole)
    with pytest.raises(TokenizerError, match=r"^rows 4 to 5: text 1 is None \(NoneType\), not a string; fix: drop it"):
        token_rows(tokenizer, [*TEXTS[:5], None], max_length=64)  # type: ignore[list-item]
    assert len(token_rows(tokenizer, [], max_length=8)) == 0


def test_the_cache_gives_the_same_rows_and_the_same_warning(
    tokenizer: Tokenizer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "new" / "cache"
    made = []
    for _ in range(2):
        with pytest.warns(TruncationWarning) as caught:
            made.append(token_rows(tokenizer, TEXTS, max_length=6, directory=directory, cache=cache))
        assert [str(one.message) for one in caught] == [
            "2 of 6 texts are longer than 6 tokens (the longest has 10) and were cut"
        ]
        assert caught[0].filename == __file__
        monkeypatch.setattr(Tokenizer, "encode", None)  # the second time, it is not called
    assert same(*made)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    with np.load(next(cache.iterdir()), allow_pickle=False) as held:
        assert set(held) == {"ids", "type_ids", "starts", "counts", "key"}


def test_everything_that_the_ids_depend_on_is_in_the_key(
    tokenizer: Tokenizer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(texts: list[str] = TEXTS, pairs: list[str] | None = None, max_length: int = 64) -> int:
        token_rows(tokenizer, texts, pairs, max_length=max_length, directory=directory, cache=tmp_path / "cache")
        return len(list((tmp_path / "cache").iterdir()))

    assert files() == 1
    assert files() == 1
    assert files(max_length=99) == 1  # the model's limit is 64
    assert files(max_length=63) == 2
    assert files(TEXTS[1:]) == 3
    assert files(["a b", "c"]) == 4
    assert files(["a ", "bc"]) == 5
    assert files(["a b"], ["c"]) == 6
    (directory / "vocab.txt").write_text("\n".join([*WORDS, "e"]) + "\n")
    assert files() == 7
    (directory / "tokenizer_config.json").unlink()
    assert files() == 8
    (directory / "config.json").write_text('{"model_type": "roberta"}')  # another class
    assert files() == 9
    (directory / "config.json").write_text('{"model_type": "roberta", "hidden_size": 3}')
    assert files() == 9
    (directory / "config.json").write_text('{"model_type": "roberta", "tokenizer_class": "BertTokenizer"}')
    assert files() == 10
    monkeypatch.setattr(module.tokenizers, "__version__", "0")
    assert files() == 11


def test_a_damaged_cache_is_made_again(tokenizer: Tokenizer, directory: Path, tmp_path: Path) -> None:
    def read() -> TokenRows:
        return token_rows(tokenizer, TEXTS, max_length=64, directory=directory, cache=tmp_path / "cache")

    whole = read()
    (file,) = (tmp_path / "cache").iterdir()
    good = file.read_bytes()
    for damaged in (b"", b"PK", good[:-30], good[: len(good) // 2], good.replace(b"<i4", b"<i9")):
        file.write_bytes(damaged)
        with pytest.warns(CacheWarning, match=r"is damaged \(.*\); it is made again$") as caught:
            assert same(read(), whole)
        assert caught[0].filename == __file__
        assert file.read_bytes() == good
    rng = np.random.default_rng(0)
    for place in rng.permutation(len(good))[:300]:
        flipped = bytearray(good)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            assert same(read(), whole)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.array([5, 99999], np.int32), "type_ids": np.zeros(2, np.uint8), "starts": np.array([0, 1, 2])},
        {"ids": np.array([5, -1], np.int32), "type_ids": np.zeros(2, np.uint8), "starts": np.array([0, 1, 2])},
        {"type_ids": np.full(6, 2, np.uint8)},
        {"starts": np.array([0, 7, 6])},
        {"starts": np.array([0, 6])},
        {"starts": np.array([0, 0, 6])},
        {"ids": np.zeros(6, np.int64)},
        {"key": "another"},
        {"ids": np.array([{}] * 6, object)},
    ],
)
def test_a_cache_file_with_other_content_is_not_believed(
    tokenizer: Tokenizer, directory: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    def read() -> TokenRows:
        return token_rows(tokenizer, ["a", "b"], max_length=64, directory=directory, cache=tmp_path / "cache")

    whole = read()
    (file,) = (tmp_path / "cache").iterdir()
    with np.load(file) as held:
        arrays = dict(held)
    np.savez(file, **{**arrays, **change})
    with pytest.warns(CacheWarning, match="is damaged"):
        assert same(read(), whole)


def test_a_cache_that_cannot_be_written_does_not_stop_the_run(
    tokenizer: Tokenizer, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(CacheWarning, match=r"cannot be written: .*; the next run tokenizes again$") as caught:
        rows = token_rows(tokenizer, TEXTS, max_length=64, directory=directory, cache=tmp_path / "file")
    assert len(rows) == 6
    assert caught[0].filename == __file__

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(CacheWarning, match=r"\(No space left on device\)"):
        token_rows(tokenizer, TEXTS, max_length=64, directory=directory, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_tokenizing_refuses(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^a token cache needs the tokenizer's directory for its key; fix: give"):
        token_rows(tokenizer, TEXTS, max_length=8, cache=tmp_path)
    with pytest.raises(DataError, match=r"^1 second texts for 6 texts; fix: one a row$"):
        token_rows(tokenizer, TEXTS, ["a"], max_length=8)
    with pytest.raises(
        TokenizerError,
        match=r"neither tokenizer.json nor vocab.txt is there; fix: copy one of them from the model's source$",
    ):
        tokenizer_sha256(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_the_lengths_to_pad_to_are_those_with_least_padding(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(2, 61, 40)
    ends = [*range(4, lengths.max(), 4), int(lengths.max())]

    def padding(chosen: tuple[int, ...]) -> int:
        return sum(min(end for end in chosen if end >= length) for length in lengths)

    for shapes in (1, 2, 3, 4, 20):
        made = padded_lengths(lengths, shapes)
        assert len(made) <= shapes
        best = min(
            padding((*some, ends[-1]))
            for count in range(min(shapes, len(ends)))
            for some in itertools.combinations(ends[:-1], count)
        )
        assert padding(made) == best
    assert padded_lengths(np.array([512] * 3)) == (512,)
    assert padded_lengths(np.array([3, 3])) == (3,)


def check(batch: Batch, rows: TokenRows = ROWS) -> None:
    """Ids, types and mask are the rows' own; fillers come last and weigh nothing."""
    B, L = batch.input_ids.shape
    assert batch.rows.shape == batch.weights.shape == (B,)
    assert batch.real >= 1
    assert batch.weights.tolist() == [1.0] * batch.real + [0.0] * (B - batch.real)
    for i, row in enumerate(batch.rows):
        own = rows.ids[rows.starts[row] : rows.starts[row + 1]].tolist()
        types = rows.type_ids[rows.starts[row] : rows.starts[row + 1]].tolist()
        assert batch.input_ids[i].tolist() == own + [rows.pad_id] * (L - len(own))
        assert batch.token_type_ids[i].tolist() == types + [0] * (L - len(own))
        assert batch.attention_mask[i].tolist() == [1] * len(own) + [0] * (L - len(own))
    assert {name: value.shape for name, value in batch.inputs().items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (B, L)
    )


@pytest.mark.parametrize("batch_size", [1, 8, 32, 500, 2000])
def test_every_epoch_has_each_row_once_in_few_shapes(batch_size: int) -> None:
    fold = np.arange(3, 997, 2)
    batches = TrainingBatches(ROWS, fold, batch_size=batch_size, seed=7, shapes=4)
    assert len(batches) == -(-len(fold) // batch_size)
    for epoch in range(2):
        made = list(batches.epoch(epoch))
        for batch in made[:: max(1, len(made) // 8)]:
            check(batch)
        real = [row for batch in made for row in batch.rows[: batch.real]]
        assert sorted(real) == fold.tolist()
        assert sum(batch.real < len(batch.rows) for batch in made) <= 1
        assert {batch.input_ids.shape for batch in made} <= {(batches.batch_size, L) for L in batches.lengths}
        assert len(batches.lengths) <= 4


def test_a_batch_is_a_function_of_seed_epoch_and_place_alone() -> None:
    def batches(seed: int = 0) -> TrainingBatches:
        return TrainingBatches(ROWS, np.arange(997), batch_size=16, seed=seed)

    straight = batches()
    whole = [[bytes_of(batch) for batch in straight.epoch(epoch)] for epoch in range(3)]
    for epoch, k in ((2, 5), (0, 0), (1, 62), (2, 6), (0, 31)):
        assert bytes_of(batches().batch(epoch, k)) == whole[epoch][k]
    assert [bytes_of(batch) for batch in batches().epoch(1, start=40)] == whole[1][40:]
    assert len({tuple(epoch) for epoch in whole}) == 3
    assert bytes_of(batches(1).batch(0, 0)) != whole[0][0]


def test_batches_have_little_padding_and_are_not_the_same_each_epoch() -> None:
    batches = TrainingBatches(ROWS, np.arange(997), batch_size=16, seed=0)
    made = list(batches.epoch(0))
    padding = sum(batch.input_ids.size for batch in made) - LENGTHS.sum()
    order = np.random.default_rng(0).permutation(997)
    at_random = sum(len(part) * LENGTHS[part].max() for part in np.array_split(order, 63)) - LENGTHS.sum()
    assert padding < 0.3 * at_random
    assert batches.padding(0, range(len(batches))) == pytest.approx(1 - LENGTHS.sum() / (padding + LENGTHS.sum()))
    one = made[3]
    assert batches.padding(0, [3]) == pytest.approx(1 - one.attention_mask[: one.real].sum() / one.input_ids.size)
    together = Counter(
        frozenset(pair)
        for epoch in range(2)
        for batch in batches.epoch(epoch)
        for pair in itertools.combinations(batch.rows[: batch.real].tolist(), 2)
    )
    assert sum(count == 2 for count in together.values()) / len(together) < 0.1


@pytest.mark.parametrize("batch_size", [1, 7, 32, 2000])
def test_prediction_puts_rows_back_in_order(batch_size: int) -> None:
    rows = np.random.default_rng(1).permutation(997)[:300]
    batches = PredictionBatches(ROWS, rows, batch_size=batch_size)
    made = list(batches)
    assert len(made) == len(batches)
    for batch in made[::10]:
        check(batch)
    lengths = [int(batch.attention_mask.sum(axis=1).max()) for batch in made]
    assert lengths == sorted(lengths, reverse=True)
    first = batches.restore(batch.input_ids[:, 0] for batch in made)
    assert first.tolist() == (rows + 1).tolist()
    table = batches.restore(np.stack([batch.rows, batch.rows * 2], axis=1).astype(np.float32) for batch in made)
    assert table.tolist() == np.stack([rows, rows * 2], axis=1).tolist()
    with pytest.raises(DataError, match=r"; fix: one output a batch, fillers included$"):
        batches.restore(batch.rows[:-1] for batch in made)


def test_prediction_takes_the_shapes_of_training() -> None:
    few = PredictionBatches(ROWS, [0, 1], batch_size=32, lengths=(64, 256))
    assert [batch.input_ids.shape for batch in few] == [(32, 64 if LENGTHS[:2].max() <= 64 else 256)]
    assert few.lengths == (64, 256)
    assert PredictionBatches(ROWS, batch_size=32, lengths=(16,)).lengths == (16, LENGTHS.max())
    assert PredictionBatches(ROWS, [4, 5], batch_size=32).batch_size == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on, not 0"),
        ({"batch_size": True}, "batch_size must be a whole number from 1 on, not True"),
        ({"seed": -1}, "seed must be a whole number from 0 on, not -1"),
        ({"shapes": 0}, "shapes must be a whole number from 1 on, not 0"),
        ({"rows": []}, "there are no rows to make batches of"),
        ({"rows": [0, 997]}, "rows 0 to 997 are asked for; there are 0 to 996"),
    ],
)
def test_what_batches_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        TrainingBatches(ROWS, **{"rows": [0, 1], "batch_size": 2, "seed": 0, **options})
    assert str(caught.value) == message


def test_there_is_no_such_batch() -> None:
    batches = TrainingBatches(ROWS, [0, 1, 2], batch_size=2, seed=0)
    for epoch, k in ((0, 2), (0, -1), (-1, 0)):
        with pytest.raises(DataError) as caught:
            batches.batch(epoch, k)
        assert str(caught.value) == f"there is no batch {k} of epoch {epoch}; an epoch has 2, from 0"
    with pytest.raises(DataError, match=r"^there are no rows to make batches of$"):
        padded_lengths(np.zeros(0))


def test_real_tweets_with_the_real_tokenizer(minilm_source: Path, tmp_path: Path) -> None:
    competition = get_competition("disaster-tweets")
    texts = competition.text.render(read_data(real_file(competition, competition.train)).frame).texts[:2000]
    tokenizer = Tokenizer.from_directory(minilm_source)
    rows = token_rows(tokenizer, texts, max_length=128, directory=minilm_source, cache=tmp_path)
    assert same(rows, token_rows(tokenizer, texts, max_length=128, directory=minilm_source, cache=tmp_path))
    batches = TrainingBatches(rows, np.arange(2000), batch_size=32, seed=0)
    batch = batches.batch(0, 3)
    check(batch, rows)
    expected = tokenizer([texts[row] for row in batch.rows], pad_to=batch.input_ids.shape[1])
    for name, value in batch.inputs().items():
        assert np.array_equal(value, expected[name])
    assert sum(one.input_ids.size for one in batches.epoch(0)) / rows.lengths.sum() < 1.25
