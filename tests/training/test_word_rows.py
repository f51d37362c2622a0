"""The gradient of the word embeddings by rows: the same bits as with the whole table."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from heads.binary import BinaryClassificationHead
from mlxbert.models.bert import BertConfig, BertCore
from mlxbert.training.gradients import AWP, FGM
from mlxbert.training.optimizer import Schedule, parameter_rules
from mlxbert.training.state import step_state
from mlxbert.training.step import StepSettings, TrainStep
from mlxbert.training.word_rows import INDEX, WordRows, word_rows
from mlxbert.with_head import BertWithHead
from tests.training.test_training_step import CONFIG, WORD_EMBEDDINGS, as_bytes, batch, largest_difference

WORDS = 300


def make_step(words: int = WORDS, dropout: float = 0.1, layer_decay: float = 1.0, **settings: Any) -> TrainStep:
    mx.random.seed(5)
    fields: dict[str, Any] = {**CONFIG, "vocab_size": words}
    config = BertConfig(**fields, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = BertWithHead(BertCore(config), BinaryClassificationHead(32, dropout=dropout), "mean")
    rules = parameter_rules(model, rate=1e-3, weight_decay=0.1, layer_decay=layer_decay)
    return TrainStep(model, rules, Schedule(60, "cosine", 3), StepSettings(**{"compiled": False, **settings}))


def test_the_rows_in_use_and_the_places_of_the_ids_in_them() -> None:
    ids = mx.array([[7, 0, 7], [2, 9, 0]])
    rows, places = word_rows(ids, 100)
    assert rows.ids.tolist() == [0, 2, 7, 9, 0, 0]
    assert rows.used.tolist() == [0, 2, 7, 9]
    np.testing.assert_array_equal(np.array(rows.ids)[np.array(places)], np.array(ids))
    assert word_rows(ids, 5)[0].ids.tolist() == [0, 2, 7, 9, 0]  # a table has no more rows than it has
    gradient = mx.array([[1.0], [2.0], [3.0], [4.0], [0.0], [0.0]])
    whole = rows.whole(gradient, 10)
    assert whole[:, 0].tolist() == [1, 0, 2, 0, 0, 0, 0, 3, 0, 4]
    assert rows.add(whole, gradient)[:, 0].tolist() == [2, 0, 4, 0, 0, 0, 0, 6, 0, 8]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "settings",
    [{}, {"ema_decay": 0.9, "max_norm": None}, {"layer_decay": 0.5, "compute_dtype": "float16"}, {"words": 61}],
    ids=["plain", "average", "float16", "small vocabulary"],
)
def test_rows_train_to_the_bits_of_the_whole_table(settings: dict[str, Any], compiled: bool) -> None:
    """50 steps of AdamW with weight decay: by rows, and given the same gradient as a whole table."""
    by_rows, dense = make_step(compiled=compiled, **settings), make_step(compiled=compiled, **settings)
    for seed in range(50):
        reports = []
        for step in (by_rows, dense):
            mx.random.seed(seed)
            step.accumulate(*batch(seed % 7))
            assert isinstance(step.words, WordRows)
            if step is dense:
                assert step.sums is not None
                step.sums["gradients"], step.words = step.whole_gradients(), None
                assert step.sums["gradients"][WORD_EMBEDDINGS].shape == step.weights[WORD_EMBEDDINGS].shape
            reports.append(step.update())
        assert reports[0] == reports[1]
    assert as_bytes(step_state(by_rows)) == as_bytes(step_state(dense))
    moved = by_rows.means[WORD_EMBEDDINGS].abs().sum(axis=1)
    assert moved[0].item() == 0  # the padding token
    assert 0 < np.count_nonzero(np.array(moved)) < len(moved)


@pytest.mark.parametrize("adversarial", [None, FGM(0.5), AWP(0.1)])
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_the_gradients_by_rows_are_those_of_the_whole_table(adversarial: Any, checkpoint_layers: bool) -> None:
    step = make_step(dropout=0, adversarial=adversarial, checkpoint_layers=checkpoint_layers)
    inputs, targets, _ = batch()
    arrays = {name: mx.array(array) for name, array in inputs.items()}
    key, first = mx.random.key(0), mx.array(0, mx.uint32)
    rest = (mx.array(targets), mx.ones((len(targets),)), mx.array(1.0), key, first)
    dense = step._gradients.of(step.weights, step.frozen, arrays, *rest)
    rows, places = word_rows(arrays["input_ids"], WORDS)
    by_rows = step._gradients.of(step.weights, step.frozen, {**arrays, INDEX: places}, *rest, rows.ids)
    step.show()
    found = by_rows["gradients"]
    found[WORD_EMBEDDINGS] = rows.whole(found[WORD_EMBEDDINGS], WORDS)
    assert by_rows["loss"].item() == dense["loss"].item()
    if adversarial is None:
        assert as_bytes(found) == as_bytes(dense["gradients"])
    else:
        assert largest_difference(found, dense["gradients"]) < 1e-4


def test_accumulated_rows_are_the_sum_of_tables() -> None:
    step, alone = make_step(dropout=0), make_step(dropout=0)
    expected = mx.zeros((WORDS, 32))
    for seed in range(3):
        step.accumulate(*batch(seed))
        alone.sums = None
        alone.accumulate(*batch(seed))
        expected = expected + alone.whole_gradients()[WORD_EMBEDDINGS]
    assert step.words is None
    assert step.sums is not None
    assert step.sums["gradients"][WORD_EMBEDDINGS].tolist() == expected.tolist()
