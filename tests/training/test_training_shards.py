"""A batch in shards: the same loss and gradients, random numbers of their own, the same bytes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxbert.backend.device import BlasStatus, use_fast_blas
from mlxbert.training.gradients import FGM, seed_of, split_batch, split_state
from mlxbert.training.state import restore_step, step_state
from mlxbert.training.step import NonFiniteLossError, TrainStep
from tests.training.test_training_step import as_bytes, batch, largest_difference, make_step

pytestmark = pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU computes a batch whole")


def sharded(monkeypatch: pytest.MonkeyPatch, threads: int, **settings: Any) -> TrainStep:
    """A step that splits even these small batches, among this many threads."""
    status = BlasStatus(True, use_fast_blas().library, "", threads)
    monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda: status)
    monkeypatch.setattr("mlxbert.training.gradients._LEAST_TOKENS", 1)
    return make_step(**settings)


def random_state() -> list[int]:
    state: Any = mx.random.state
    key: list[int] = state[0].tolist()
    return key


@pytest.mark.parametrize(
    ("compiled", "dtype", "checkpoint_layers"),
    [
        (False, "float32", False),
        (True, "float32", False),
        (False, "float32", True),
        (False, "bfloat16", True),
        (True, "bfloat16", False),
    ],
)
def test_shards_are_together_the_batch(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, dtype: str, checkpoint_layers: bool
) -> None:
    settings = {"compiled": compiled, "compute_dtype": dtype, "checkpoint_layers": checkpoint_layers, "ema_decay": 0.9}
    inputs, targets, _ = batch()
    rows = np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)  # of three shards, the last has none but filling
    steps, reports = [], []
    for threads in (1, 3):
        steps.append(sharded(monkeypatch, threads, dropout=0.2, **settings))
        steps[-1].model.head.dropout_samples = 2
        reports.append([steps[-1]([(inputs, targets, rows)]) for _ in range(3)])
    whole, split = reports
    assert len({report.loss for report in whole}) == 3
    rounding = 1e-5 if dtype == "float32" else 2e-2
    for one, other in zip(whole, split, strict=True):
        assert other.rows == one.rows == 5
        assert other.loss == pytest.approx(one.loss, rel=rounding)
        assert other.norm == pytest.approx(one.norm, rel=10 * rounding)
    if dtype == "float32":  # in a narrow one some gradients, as the key bias's, are nothing but rounding
        assert largest_difference(steps[1].means, steps[0].means) < 1e-4


def test_the_loss_curve_of_one_two_and_three_shards_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    curves, means, states = [], [], []
    for threads in (1, 2, 3):
        step = sharded(monkeypatch, threads, dropout=0.1)
        # The batch's length is the longest row's, for every shard.
        curves.append([step([batch(2 * i), batch(2 * i + 1, rows=5)]).loss for i in range(8)])
        means.append(step.means)
        states.append(random_state())
    assert states[0] == states[1] == states[2]
    for curve, other in zip(curves[1:], means[1:], strict=True):
        assert curve == pytest.approx(curves[0], rel=2e-6)
        assert largest_difference(other, means[0]) < 1e-4


def test_a_part_of_a_batch_drops_as_in_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process computes it that has only some of the rows; even one with none takes the same random numbers."""
    inputs, targets, _ = batch()
    arrays = {name: mx.array(array) for name, array in inputs.items()}
    losses, states = [], []
    for parts in ([slice(0, 8)], [slice(0, 3), slice(3, 8)], [slice(0, 8), slice(8, 8)]):
        found = []
        for part in parts:
            step = sharded(monkeypatch, 2, dropout=0.3)
            own = {name: array[part] for name, array in arrays.items()}
            count = part.stop - part.start
            given = own, mx.array(targets[part]), mx.ones((count,)), step._streams
            shards = split_batch(*given, first=part.start) if count else []
            found += step._compute(shards)
            states.append(random_state())
        losses.append(sum(float(sums["loss"].item()) for sums in found))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert all(state == states[0] for state in states)


def test_a_head_that_draws_from_the_global_stream_draws_anew_in_every_shard_and_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = sharded(monkeypatch, 2, dropout=0.0, rate=0.0, compiled=True)
    step.model.head.dropout, step.model.head.drop = 0.5, nn.Dropout(0.5)
    inputs, targets, _ = batch(rows=4)
    arrays = {name: mx.array(np.concatenate([array, array])) for name, array in inputs.items()}
    shards = split_batch(arrays, mx.array(np.tile(targets, 2)), mx.ones((8,)), step._streams)
    losses = [float(sums["loss"].item()) for _ in range(3) for sums in step._compute(shards)]
    assert len(set(losses)) == 6


def test_no_two_shards_drop_the_same_and_the_same_seed_drops_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    (inputs, targets, _), results = batch(rows=4), []
    twice = ({name: np.concatenate([array, array]) for name, array in inputs.items()}, np.tile(targets, 2), None)
    for _ in range(2):
        step = sharded(monkeypatch, 2, compiled=True)
        arrays = {name: mx.array(array) for name, array in twice[0].items()}
        shards = split_batch(arrays, mx.array(twice[1]), mx.ones((8,)), step._streams)
        first, second = (float(sums["loss"].item()) for sums in step._compute(shards))
        assert first != second
        reports = [step([twice]) for _ in range(3)]
        results.append((first, second, reports, as_bytes(step.weights), random_state()))
    assert results[0] == results[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_half_accumulated_state_of_shards_resumes_to_the_byte(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiled: bool
) -> None:
    def go_on(step: TrainStep) -> None:
        step.accumulate(*batch(2))
        step.update()
        step([batch(3)])

    step = sharded(monkeypatch, 2, compiled=compiled)
    step([batch(0)])
    step.accumulate(*batch(1))
    mx.save_safetensors(str(tmp_path / "state.safetensors"), step_state(step))
    go_on(step)
    expected = as_bytes(step_state(step))
    resumed = sharded(monkeypatch, 2, compiled=compiled)
    restore_step(resumed, mx.load(str(tmp_path / "state.safetensors")))  # type: ignore[arg-type]
    go_on(resumed)
    assert as_bytes(step_state(resumed)) == expected


def test_a_nan_in_the_last_shard_stops_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = sharded(monkeypatch, 2)
    inputs, targets, _ = batch()
    before = as_bytes(step.weights)
    with pytest.raises(NonFiniteLossError, match=r"^step 1, batch 1 of it: the loss is nan; the weights are"):
        step([(inputs, np.where(np.arange(8) == 7, np.nan, targets), None)])
    assert as_bytes(step.weights) == before
    assert step.sums is None


def test_a_batch_is_split_where_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sharded(monkeypatch, 12)._streams
    assert len(found) == 8
    monkeypatch.undo()

    def sizes(rows: int, length: int) -> list[int]:
        ids = mx.zeros((rows, length), mx.int32)
        shards = split_batch({"input_ids": ids}, mx.arange(rows), mx.ones((rows,)), found[:2])
        assert np.concatenate([np.array(shard.targets) for shard in shards]).tolist() == list(range(rows))
        return [len(shard.rows) for shard in shards]

    assert sizes(9, 64) == [5, 4]
    assert sizes(8, 63) == [8]  # 504 tokens, and a shard has at least 256
    assert sizes(1, 512) == [1]
    assert len(sharded(monkeypatch, 2, adversarial=FGM(0.5))._streams) == 1  # it is of the whole batch's gradient


def test_the_random_state_is_split_without_being_used() -> None:
    mx.random.seed(3)
    state: Any = mx.random.state
    assert seed_of(state[0].tolist()) == 3
    keys = split_state(3)
    assert len({tuple(key) for key in keys}) == 3
    assert split_state(3) == keys
    mx.random.seed(2**63 + 5)
    assert seed_of(state[0].tolist()) == 2**63 + 5
