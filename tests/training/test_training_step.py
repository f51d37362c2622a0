"""The training step: accumulation, dropout, checkpointing, narrow dtypes, state, losses that are not numbers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from heads.base import Head
from heads.binary import BinaryClassificationHead
from heads.multiclass import MulticlassClassificationHead
from heads.multilabel import MultilabelClassificationHead
from heads.ordinal import OrdinalRegressionHead
from mlxbert.backend.device import BlasStatus
from mlxbert.model_arrays import InputError, named_parameters
from mlxbert.models.bert import BertConfig, BertCore
from mlxbert.training.gradients import AWP, FGM
from mlxbert.training.optimizer import ConfigurationError, Schedule, parameter_rules
from mlxbert.training.state import SaveError, restore_step, step_state
from mlxbert.training.step import NonFiniteLossError, StepReport, StepSettings, TrainingError, TrainStep
from mlxbert.with_head import BertWithHead

CONFIG = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
ROWS, LENGTH = 8, 9

WORD_EMBEDDINGS = "core.embeddings.word_embeddings.weight"


def make_step(dropout: float = 0.1, rate: float = 1e-3, freeze_layers: int = 0, **settings: Any) -> TrainStep:
    mx.random.seed(5)
    config = BertConfig(**CONFIG, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = BertWithHead(BertCore(config), BinaryClassificationHead(32, dropout=dropout), "mean")
    rules = parameter_rules(model, rate=rate, freeze_layers=freeze_layers)
    return TrainStep(model, rules, Schedule(20, "cosine", 3), StepSettings(**{"compiled": False, **settings}))


def batch(seed: int = 0, rows: int = ROWS) -> tuple[dict[str, Any], np.ndarray, None]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, LENGTH + 1, rows)
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, 61, (rows, LENGTH)) * mask
    return {"input_ids": ids, "attention_mask": mask}, rng.integers(0, 2, rows).astype(np.float32), None


def rows_of(given: tuple[dict[str, Any], np.ndarray, None], chosen: slice) -> tuple[dict[str, Any], np.ndarray, None]:
    return {name: array[chosen] for name, array in given[0].items()}, given[1][chosen], None


def as_bytes(arrays: dict[str, mx.array]) -> dict[str, bytes]:
    return {name: np.array(array).tobytes() for name, array in arrays.items()}


def largest_difference(first: dict[str, mx.array], second: dict[str, mx.array]) -> float:
    """Of all elements, relative to the largest element of each tensor's `second`."""
    assert set(first) == set(second)
    # A key's bias moves all scores of a query alike, which softmax does not see: its gradient is rounding errors.
    names = [name for name in second if not name.endswith("key.bias")]
    assert all(float(mx.abs(first[n] - second[n]).max().item()) < 1e-5 for n in second if n not in names)
    return max(
        float((mx.abs(first[n] - second[n]).max() / mx.maximum(mx.abs(second[n]).max(), 1e-6)).item()) for n in names
    )


def test_unequal_batches_accumulated_are_one_batch() -> None:
    whole, parts = make_step(dropout=0), make_step(dropout=0)
    given = batch()
    expected = whole([given])
    got = parts([rows_of(given, slice(0, 5)), rows_of(given, slice(5, 7)), rows_of(given, slice(7, 8))])
    assert got.rows == expected.rows == ROWS
    assert got.loss == pytest.approx(expected.loss, rel=1e-6)
    assert got.norm == pytest.approx(expected.norm, rel=1e-5)
    assert largest_difference(parts.means, whole.means) < 1e-5


def test_rows_that_fill_a_batch_up_count_nothing() -> None:
    whole, filled = make_step(dropout=0), make_step(dropout=0)
    given = batch()
    expected = whole([rows_of(given, slice(0, 3))])
    got = filled([(given[0], given[1], np.array([1, 1, 1, 0, 0, 0, 0, 0]))])
    assert got.rows == expected.rows == 3
    assert got.loss == pytest.approx(expected.loss, rel=1e-6)
    assert largest_difference(filled.means, whole.means) < 1e-5


def test_a_gradient_whose_square_is_too_large_changes_nothing() -> None:
    step = make_step(dropout=0, max_norm=None, on_nonfinite="skip")
    before = as_bytes(step.weights)
    step.accumulate(*batch())
    assert step.sums is not None
    gradients = step.sums["gradients"]
    gradients["head.output.bias"] = mx.full(gradients["head.output.bias"].shape, 1.7e19)
    step.sums["weight"] = mx.array(0.5)
    assert step.update().skipped
    assert as_bytes(step.weights) == before


def test_an_empty_batch_is_refused() -> None:
    inputs, targets, _ = batch()
    empty = {name: array[:, :0] for name, array in inputs.items()}
    with pytest.raises(InputError, match=r"input_ids has shape \(8, 0\)"):
        make_step().accumulate(empty, targets)


def test_the_compiled_step_is_the_plain_one_and_its_dropout_does_not_repeat() -> None:
    plain, compiled = make_step(), make_step(compiled=True)
    runs = []
    for step in (plain, compiled):
        mx.random.seed(1)
        runs.append([step([batch()]).loss for _ in range(4)])
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    still = make_step(rate=0.0, compiled=True)
    losses = [still([batch()]).loss for _ in range(4)]
    assert len(set(losses)) == 4
    assert all(np.isfinite(np.array(array)).all() for array in named_parameters(still.model).values())


def test_a_checkpointed_layer_drops_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed = make_step(dropout=0.3, checkpoint_layers=True)
    runs: list[list[str]] = []
    real = mx.checkpoint

    def counted(function: Any) -> Any:
        def run(*arrays: Any) -> mx.array:
            runs[-1].append("run")
            return function(*arrays)

        return real(run)

    monkeypatch.setattr(mx, "checkpoint", counted)
    runs.append([])
    mx.random.seed(2)
    recomputed([batch()])
    assert len(runs[-1]) == 2 * CONFIG["num_hidden_layers"], "each layer runs forward, and again backward"
    # Kept activations, the same keys: the truth.
    monkeypatch.setattr(mx, "checkpoint", lambda function: function)
    kept = make_step(dropout=0.3, checkpoint_layers=True)
    mx.random.seed(2)
    kept([batch()])
    assert largest_difference(recomputed.means, kept.means) < 1e-6
    assert [type(layer).__name__ for layer in kept.model.core.encoder.layer] == ["BertLayer"] * 2


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_narrow_dtypes_train_float32_masters(dtype: str, tolerance: float) -> None:
    wide, narrow = make_step(dropout=0), make_step(dropout=0, compute_dtype=dtype)
    for i in range(5):
        expected, got = wide([batch(i)]), narrow([batch(i)])
        assert got.loss == pytest.approx(expected.loss, rel=tolerance)
        assert got.loss != expected.loss
    assert {array.dtype for array in named_parameters(narrow.model).values()} == {mx.float32}
    assert {array.dtype for array in narrow.means.values()} == {mx.float32}


def test_a_float16_overflow_halves_the_loss_scale_and_leaves_the_weights() -> None:
    step = make_step(dropout=0, compute_dtype="float16")
    before, step.loss_scale = as_bytes(step.weights), 2.0**24
    report = step([batch()])
    assert report.skipped
    assert step.loss_scale == 2.0**23
    assert as_bytes(step.weights) == before
    while step([batch()]).skipped:
        pass
    assert as_bytes(step.weights) != before
    assert (step.updates, step.step) == (1, int(24 - np.log2(step.loss_scale)) + 1)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_half_accumulated_state_resumes_to_the_byte(tmp_path: Path, compiled: bool) -> None:
    def go_on(step: TrainStep) -> None:
        step.accumulate(*batch(2))
        step.update()
        step([batch(3), batch(4)])

    step = make_step(ema_decay=0.99, compiled=compiled)
    step([batch(0)])
    step.accumulate(*batch(1))
    mx.save_safetensors(str(tmp_path / "state.safetensors"), step_state(step))
    go_on(step)
    expected = as_bytes(step_state(step))
    other = make_step(ema_decay=0.99, compiled=compiled)
    other([batch(9)])
    saved: Any = mx.load(str(tmp_path / "state.safetensors"))
    restore_step(other, saved)
    go_on(other)
    assert as_bytes(step_state(other)) == expected
    assert as_bytes(named_parameters(other.model)) == as_bytes(named_parameters(step.model))


@pytest.mark.parametrize("compiled", [False, True])
def test_what_a_step_keeps_lies_in_the_order_of_its_indices(compiled: bool) -> None:
    """As a state read from a file does: products and sums could otherwise round differently after a resume."""
    step = make_step(compiled=compiled, ema_decay=0.9)
    for seed in range(2):
        step([batch(seed)])
    for kind in ("weights", "frozen", "means", "squares", "average"):
        for name, array in getattr(step, kind).items():
            assert memoryview(array).c_contiguous, (kind, name)


def test_another_models_state_is_refused() -> None:
    state = step_state(make_step())
    del state["step"]
    state["weights.head.output.bias"] = mx.zeros((7,))
    state["extra"] = mx.zeros((1,))
    step = make_step()
    before = as_bytes(step_state(step))
    with pytest.raises(SaveError) as caught:
        restore_step(step, state)
    assert str(caught.value).splitlines()[1:] == [
        "  missing: step",
        "  unknown: extra",
        "  weights.head.output.bias is (7,) mlx.core.float32, this run has (1,) mlx.core.float32",
    ]
    assert as_bytes(step_state(step)) == before


def broken() -> tuple[dict[str, Any], np.ndarray, None]:
    inputs, targets, rows = batch()
    targets[2] = np.nan
    return inputs, targets, rows


def test_a_nan_loss_stops_and_names_step_and_batch() -> None:
    step = make_step()
    step([batch()])
    before = as_bytes(step.weights)
    step.accumulate(*batch())
    with pytest.raises(NonFiniteLossError, match=r"^step 2, batch 2 of it: the loss is nan; the weights are those of"):
        step.accumulate(*broken())
    assert as_bytes(step.weights) == as_bytes({n: named_parameters(step.model)[n] for n in before}) == before


def test_a_nan_loss_is_left_out_if_asked() -> None:
    step, good = make_step(dropout=0, on_nonfinite="skip"), make_step(dropout=0)
    report = step([broken(), batch(1)])
    assert (report.rows, report.skipped) == (ROWS, False)
    assert report.loss == good([batch(1)]).loss
    assert as_bytes(step.weights) == as_bytes(good.weights)
    report = step([broken()])
    assert (report.step, report.skipped, step.updates) == (2, True, 1)
    assert as_bytes(step.weights) == as_bytes(good.weights)


def test_an_infinite_gradient_of_a_finite_loss_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    step = make_step()
    before = as_bytes(step.weights)
    monkeypatch.setattr(step, "_norm", lambda *_: mx.array(float("inf")))
    with pytest.raises(NonFiniteLossError, match=r"^step 1, 1 batch\(es\): the gradient's norm is inf; the weights"):
        step([batch()])
    assert as_bytes(step.weights) == before


def test_frozen_layers_and_the_unread_pooler_stay_and_have_no_state() -> None:
    step = make_step(freeze_layers=1)
    before = as_bytes(named_parameters(step.model))
    step([batch()])
    after = as_bytes(named_parameters(step.model))
    changed = {name for name in after if after[name] != before[name]}
    assert changed == set(step.means) == set(step.weights)
    assert {name.split(".")[1] for name in set(after) - changed} == {"embeddings", "encoder", "pooler"}
    assert all("layer.0." in n for n in set(after) - changed if n.startswith("core.encoder"))
    assert step.frozen.keys() == set(after) - changed


def test_the_average_follows_its_formula_and_is_shown_on_request() -> None:
    step = make_step(ema_decay=0.5)
    name = "head.output.weight"
    average = np.array(step.weights[name])
    for i in range(3):
        step([batch(i)])
        decay = min(0.5, (2 + i) / (11 + i))
        average = average * decay + (1 - decay) * np.array(step.weights[name])
        np.testing.assert_allclose(np.array(step.average[name]), average, rtol=1e-5, atol=1e-7)
    step.show(step.average)
    assert (step.model.head.output.weight == step.average[name]).all().item()
    step.show()
    assert (step.model.head.output.weight == step.weights[name]).all().item()


def test_adversarial_weights_are_the_papers() -> None:
    matrix, vector = mx.array([[3.0, 4.0]]), mx.array([1.0])
    weights = {WORD_EMBEDDINGS: matrix, "head.output.weight": 2 * matrix, "head.output.bias": vector}
    gradients = {WORD_EMBEDDINGS: mx.array([[0.0, 5.0]]), "head.output.weight": matrix, "head.output.bias": vector}
    fast = FGM(0.5).perturb(weights, gradients, WORD_EMBEDDINGS)
    np.testing.assert_allclose(fast[WORD_EMBEDDINGS].tolist(), [[3.0, 4.5]], rtol=1e-6)  # type: ignore[arg-type]
    assert fast["head.output.weight"] is weights["head.output.weight"]
    moved = AWP(0.1).perturb(weights, gradients, WORD_EMBEDDINGS)
    np.testing.assert_allclose(moved["head.output.weight"].tolist(), [[6.6, 8.8]], rtol=1e-6)  # type: ignore[arg-type]
    assert moved["head.output.bias"] is vector
    with pytest.raises(ConfigurationError, match=r"^FGM perturbs the word embeddings, which are frozen; fix: "):
        FGM().perturb(weights, {"head.output.bias": vector}, WORD_EMBEDDINGS)


@pytest.mark.parametrize("method", [FGM(0.5), AWP(0.05)])
def test_the_adversarial_step_takes_another_gradient_and_leaves_padding(method: FGM | AWP) -> None:
    plain, adversarial = make_step(dropout=0), make_step(dropout=0, adversarial=method)
    assert adversarial([batch()]).loss == plain([batch()]).loss
    assert largest_difference(adversarial.means, plain.means) > 1e-4
    assert float(mx.abs(adversarial.means[WORD_EMBEDDINGS][0]).max().item()) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compute_dtype": "int8"}, "compute_dtype 'int8' is unknown; known: float32, bfloat16, float16"),
        ({"on_nonfinite": "pray"}, "on_nonfinite must be 'stop' or 'skip', not 'pray'"),
        ({"max_norm": 0.0}, "max_norm must be above 0, or None for no clipping, not 0.0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, or None, not 1.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        StepSettings(**settings)
    assert str(caught.value) == message


def test_a_step_of_filling_rows_alone_changes_nothing() -> None:
    step = make_step()
    before = as_bytes(step.weights)
    report = step([(*batch()[:2], np.zeros(ROWS))])
    assert (report.rows, report.skipped, step.step, step.updates) == (0, True, 1, 0)
    assert as_bytes(step.weights) == before


def test_an_update_needs_a_batch() -> None:
    with pytest.raises(TrainingError, match=r"^step 1: nothing to update by; fix: accumulate a batch first$"):
        make_step().update()


@pytest.mark.parametrize(
    ("head", "targets"),
    [
        (MulticlassClassificationHead(32, classes=[0, 1, 2], class_weights=[0.2, 1.0, 5.0]), [0, 1, 2, 2, 0, 0, 0, 1]),
        (OrdinalRegressionHead(32, classes=[1, 2, 3, 4]), [0, 3, 3, 2, 0, 0, 0, 1]),
        (
            MultilabelClassificationHead(32, classes=["a", "b"]),
            [[0, 1], [-1, 1], [-1, -1], [1, 0], [-1, 0], [0, 0], [1, 1], [0, 0]],
        ),
    ],
    ids=["class weights", "corn", "unknown labels"],
)
def test_batches_whose_mean_is_not_over_rows_are_one_batch_too(head: Head, targets: list[Any]) -> None:
    def train_on(slices: list[slice]) -> tuple[StepReport, TrainStep]:
        mx.random.seed(5)
        core = BertCore(BertConfig(**CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
        model = BertWithHead(core, copy.deepcopy(head), "mean")
        model.head.drop = nn.Dropout(0.0)
        step = TrainStep(model, parameter_rules(model, rate=1e-3), Schedule(20), StepSettings(compiled=False))
        encoded = np.asarray(targets, np.float32 if isinstance(head, MultilabelClassificationHead) else np.int32)
        inputs, _, _ = batch()
        given = [({name: array[part] for name, array in inputs.items()}, encoded[part], None) for part in slices]
        return step(given), step

    expected, whole = train_on([slice(0, 8)])
    got, parts = train_on([slice(0, 5), slice(5, 7), slice(7, 8)])
    assert got.rows == expected.rows == ROWS
    assert got.loss == pytest.approx(expected.loss, rel=1e-5)
    assert got.norm == pytest.approx(expected.norm, rel=1e-4)
    assert largest_difference(parts.means, whole.means) < 1e-4


@pytest.mark.parametrize("compiled", [False, True])
def test_an_update_on_two_streams_has_the_bytes_of_one_on_one(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    results = []
    for threads in (1, 2):
        status = BlasStatus(True, None, "", threads)
        monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda status=status: status)
        step = make_step(ema_decay=0.9, compiled=compiled)
        assert len(step._parts) == threads
        norms = [step([batch(seed)]).norm for seed in range(3)]
        results.append((norms, *map(as_bytes, (step.weights, step.means, step.squares, step.average))))
    assert results[0] == results[1]
