"""Masks of dropout: the expected share, independent over rows, places and batches, alike however a batch is split."""

from __future__ import annotations

from itertools import combinations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from heads.dropout import Dropout, RowKeys, by_rows, current_keys, shared_by_rows
from heads.errors import HeadError

KEEP, UNITS = 0.9, 4096


def keys(seed: int = 0, rows: int = 8, first: int = 0, place: int = 0) -> RowKeys:
    return RowKeys(mx.random.key(seed), first + mx.arange(rows, dtype=mx.uint32), place)


def test_the_share_of_kept_units_is_the_expected_one() -> None:
    row_keys = keys(rows=64)
    kept = np.stack([np.array(row_keys.mask(KEEP, (64, UNITS))) for _ in range(4)])
    deviation = (KEEP * (1 - KEEP)) ** 0.5
    assert abs(kept.mean() - KEEP) < 4 * deviation / kept.size**0.5
    for axis in (0, 1, 2):  # of every place, every row, every unit
        others = tuple(other for other in range(3) if other != axis)
        scores = (kept.mean(axis=others) - KEEP) / deviation * (kept.size / kept.shape[axis]) ** 0.5
        assert np.abs(scores).max() < 5
        assert 0.7 < scores.std() < 1.3 or axis == 0


def test_masks_are_independent_over_rows_places_and_batches() -> None:
    drawn = []
    for key in mx.random.split(mx.random.key(0), 3):  # as the batches of a training get theirs
        row_keys = RowKeys(key, mx.arange(6, dtype=mx.uint32))
        drawn += [row for _ in range(4) for row in np.array(row_keys.mask(KEEP, (6, UNITS)))]
    centred = (np.array(drawn, np.float64) - KEEP) / (KEEP * (1 - KEEP)) ** 0.5
    pairs = np.array([first @ second for first, second in combinations(centred, 2)]) / UNITS**0.5
    assert len(pairs) == 72 * 71 // 2
    assert np.abs(pairs).max() < 5
    assert pairs.std() == pytest.approx(1, abs=0.1)


def test_a_row_keeps_its_mask_however_the_batch_is_split() -> None:
    whole = np.array(keys(rows=7).mask(KEEP, (7, 3, 5)))
    for sizes in ((7,), (4, 3), (1, 5, 1), (1,) * 7):
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        found = [keys(rows=n, first=start).mask(KEEP, (n, 3, 5)) for n, start in zip(sizes, starts, strict=True)]
        assert np.array_equal(np.concatenate(found), whole)
    texts = np.array(keys(rows=7).mask(KEEP, (14, 3, 5)))  # two texts a row
    assert np.array_equal(np.array(keys(rows=3, first=4).mask(KEEP, (6, 3, 5))), texts[8:])


def test_what_all_rows_share_has_one_mask_in_all_shards() -> None:
    found = []
    for n, start in ((8, 0), (1, 0), (1, 5)):
        row_keys = keys(rows=n, first=start)
        with by_rows(row_keys), shared_by_rows():
            found.append(Dropout(1 - KEEP)(mx.ones((1, 99))) > 0)
        assert row_keys.per_row
    with shared_by_rows():  # without keys: the global stream
        assert Dropout(0.1)(mx.ones((1, 99))).shape == (1, 99)
    assert all(np.array_equal(found[0], other) for other in found)
    assert not np.array_equal(found[0], keys(rows=1).mask(KEEP, (1, 99)))


def test_the_module_takes_its_masks_from_the_keys_and_else_from_the_global_stream() -> None:
    x, module = mx.ones((4, 50)), Dropout(0.1)
    reference = nn.Dropout(0.1)
    mx.random.seed(4)
    expected = [reference(x), reference(x)]
    mx.random.seed(4)
    assert all(mx.array_equal(module(x), other) for other in expected)
    with by_rows(keys(rows=4)):
        first, second = module(x), module(x)
        row_keys = current_keys()
        assert row_keys is not None
        assert row_keys.place == 2
        assert Dropout(0.0)(x) is x
        assert module.eval()(x) is x
        assert row_keys.place == 2
    assert current_keys() is None
    again = keys(rows=4)
    for output in (first, second):
        assert mx.allclose(output, again.mask(0.9, x.shape) / 0.9)
    assert not mx.array_equal(first, second)
    narrow = Dropout(0.5)
    with by_rows(keys(rows=4)):
        assert narrow(x.astype(mx.float16)).dtype == mx.float16


def test_an_array_without_the_axis_of_the_batch_is_refused() -> None:
    message = (
        r"^dropout of an array \(3, 50\) in a batch of 4 rows: its first axis is not that of the batch; fix: drop "
        r"where it is, or inside heads.dropout.shared_by_rows\(\) if all rows share the array$"
    )
    with by_rows(keys(rows=4)), pytest.raises(HeadError, match=message):
        Dropout(0.1)(mx.ones((3, 50)))
