"""Training of every architecture: rates by depth, checkpointing, adversarial steps, and going on to the bit."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from converter.convert import convert
from heads.binary import BinaryClassificationHead
from heads.dropout import Dropout
from mlxbert.adapters import LoRA, add_adapters
from mlxbert.backend.device import BlasStatus, use_fast_blas
from mlxbert.model_arrays import named_parameters
from mlxbert.models.architecture import architecture, supported
from mlxbert.models.base import POOLER
from mlxbert.models.config_fields import EncoderConfig
from mlxbert.runs import resume, train
from mlxbert.training.gradients import AWP, FGM
from mlxbert.training.optimizer import CORE, SMALL_HEAD_RATE, SMALL_RATE, Schedule, default_rates, parameter_rules
from mlxbert.training.state import restore_step, step_state
from mlxbert.training.step import StepSettings, TrainStep
from mlxbert.training.word_rows import INDEX, word_rows
from mlxbert.with_head import BertWithHead
from tests.support.run_samples import QUICK, sample
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.parametrize("model_type", supported())

ROWS, LENGTH = 8, 9
Given = tuple[dict[str, Any], np.ndarray, None]


def config_of(model_type: str) -> EncoderConfig:
    declared = architecture(model_type)
    return declared.config.from_hf({"model_type": model_type, **declared.tiny})


def make_step(model_type: str, dropout: float = 0.1, rate: float = 1e-3, **settings: Any) -> TrainStep:
    mx.random.seed(5)
    core = architecture(model_type).encoder(config_of(model_type))
    core.set_dropout(dropout)
    model = BertWithHead(core, BinaryClassificationHead(core.config.hidden_size, dropout=dropout), "mean")
    freeze = settings.pop("freeze_layers", 0)
    rules = parameter_rules(model, rate=rate, freeze_layers=freeze)
    return TrainStep(model, rules, Schedule(20, "cosine", 3), StepSettings(**{"compiled": False, **settings}))


def batch(model_type: str, seed: int = 0) -> Given:
    config, rng = config_of(model_type), np.random.default_rng(seed)
    pad, vocabulary = config.pad_token_id or 0, config.vocab_size
    mask = (np.arange(LENGTH) < rng.integers(3, LENGTH + 1, ROWS)[:, None]).astype(np.int32)
    ids = (pad + rng.integers(1, vocabulary, (ROWS, LENGTH)) * mask) % vocabulary
    return {"input_ids": ids, "attention_mask": mask}, rng.integers(0, 2, ROWS).astype(np.float32), None


def rows_of(given: Given, chosen: slice) -> Given:
    return {name: array[chosen] for name, array in given[0].items()}, given[1][chosen], None


def as_bytes(arrays: dict[str, mx.array]) -> dict[str, bytes]:
    return {name: np.array(array).tobytes() for name, array in arrays.items()}


def largest_difference(first: dict[str, mx.array], second: dict[str, mx.array]) -> float:
    """Of all elements, relative to the largest element of all tensors of `second`."""
    assert set(first) == set(second)
    scale = max(float(mx.abs(array).max()) for array in second.values())
    return max(float(mx.abs(first[name] - second[name]).max()) for name in second) / scale


def test_rates_fall_from_the_top_layer_to_the_embeddings(model_type: str) -> None:
    model = make_step(model_type).model
    rules = parameter_rules(model, rate=1.0, head_rate=7.0, layer_decay=0.5)
    rates = {model.core.depth_of(name.removeprefix(CORE)): rule.rate for name, rule in rules.items() if CORE in name}
    in_order = [rates[depth] for depth in sorted(rates)]
    assert in_order == sorted(in_order)
    assert in_order[-1] == 1.0
    # Each depth that has parameters is half as fast as the next one.
    assert all(low == high / 2 for low, high in pairwise(in_order))
    assert rates[0] == min(in_order)
    assert {rule.rate for name, rule in rules.items() if not name.startswith(CORE)} == {7.0}


def test_norms_and_biases_do_not_decay_and_all_else_does(model_type: str) -> None:
    model = make_step(model_type).model
    rules = parameter_rules(model, rate=1.0, weight_decay=0.1)
    for name, array in named_parameters(model).items():
        assert rules[name].weight_decay == (0.1 if array.ndim > 1 and not name.endswith(".bias") else 0.0), name
        assert rules[name].frozen == name.startswith(f"{CORE}{POOLER}"), name


def test_the_default_rate_follows_the_size(model_type: str) -> None:
    config = config_of(model_type)
    assert default_rates(config) == (SMALL_RATE, SMALL_HEAD_RATE)
    wide = {"model_type": model_type, **architecture(model_type).tiny}
    key = config.ALIASES.get("hidden_size", "hidden_size")
    wide[key if key in wide else "hidden_size"] = 4 * 768 * 12 // config.num_layers
    assert default_rates(config.from_hf(wide)) == (2e-5, 2e-5)  # four times base: half its rate, in one digit


def test_frozen_layers_stay_and_have_no_state(model_type: str) -> None:
    step = make_step(model_type, freeze_layers=1)
    before = as_bytes(named_parameters(step.model))
    step([batch(model_type)])
    after = as_bytes(named_parameters(step.model))
    changed = {name for name in after if after[name] != before[name]}
    # Of a bias that shifts all scores of a query alike, the gradient is rounding, or 0.
    assert changed <= set(step.means)
    assert all(name.endswith(".bias") for name in set(step.means) - changed)
    core = step.model.core
    assert all(core.depth_of(name.removeprefix(CORE)) > 1 for name in changed if name.startswith(CORE))
    assert any(name.startswith(CORE) for name in changed)


@pytest.mark.parametrize("padding", ["at the end", "inside"])
def test_gradients_by_rows_are_those_of_the_whole_table(model_type: str, padding: str) -> None:
    """Where positions, masks or widths depend on the ids, too: to the bit."""
    step = make_step(model_type, dropout=0)
    inputs, targets, _ = batch(model_type)
    if padding == "inside":
        inputs["input_ids"][:, 1] = step.model.core.config.pad_token_id or 0
    arrays = {name: mx.array(array) for name, array in inputs.items()}
    rest = (mx.array(targets), mx.ones((ROWS,)), mx.array(1.0), mx.random.key(0), mx.array(0, mx.uint32))
    dense = step._gradients.of(step.weights, step.frozen, arrays, *rest)
    table = step._gradients.words
    rows, places = word_rows(arrays["input_ids"], len(step.weights[table]))
    by_rows = step._gradients.of(step.weights, step.frozen, {**arrays, INDEX: places}, *rest, rows.ids)
    step.show()
    found = by_rows["gradients"]
    found[table] = rows.whole(found[table], len(step.weights[table]))
    assert by_rows["loss"].item() == dense["loss"].item()
    assert as_bytes(found) == as_bytes(dense["gradients"])


def test_accumulated_parts_are_one_batch(model_type: str) -> None:
    whole, parts = make_step(model_type, dropout=0), make_step(model_type, dropout=0)
    given = batch(model_type)
    expected = whole([given])
    got = parts([rows_of(given, slice(0, 5)), rows_of(given, slice(5, 8))])
    assert got.loss == pytest.approx(expected.loss, rel=1e-6)
    assert got.norm == pytest.approx(expected.norm, rel=1e-5)
    assert largest_difference(parts.means, whole.means) < 1e-5


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU computes a batch whole")
@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_shards_drop_the_same_as_the_batch(
    model_type: str, checkpoint_layers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxbert.training.gradients._LEAST_TOKENS", 1)
    reports, means = [], []
    for threads in (1, ROWS):  # as many shards as rows: nothing may be mistaken for a batch of one
        status = BlasStatus(True, use_fast_blas().library, "", threads)
        monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda status=status: status)
        step = make_step(model_type, dropout=0.3, checkpoint_layers=checkpoint_layers)
        reports.append(step([batch(model_type)]))
        means.append(step.means)
    assert reports[1].loss == pytest.approx(reports[0].loss, rel=1e-6)
    assert largest_difference(*means) < 1e-5


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU computes a batch whole")
def test_adapters_drop_the_same_in_shards(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a layer runs on an array that all rows share."""
    monkeypatch.setattr("mlxbert.training.gradients._LEAST_TOKENS", 1)
    losses = []
    for threads in (1, ROWS):
        status = BlasStatus(True, use_fast_blas().library, "", threads)
        monkeypatch.setattr("mlxbert.backend.threads.use_fast_blas", lambda status=status: status)
        core = architecture(model_type).encoder(config_of(model_type))
        core.set_dropout(0)
        mx.random.seed(5)
        core.load_weights([(name, 0.3 * mx.random.normal(a.shape)) for name, a in named_parameters(core).items()])
        add_adapters(core, LoRA(rank=2, dropout=0.3, layers=("all",)))
        model = BertWithHead(core, BinaryClassificationHead(core.config.hidden_size, dropout=0), "mean")
        step = TrainStep(model, parameter_rules(model, rate=1e-2), Schedule(20), StepSettings(compiled=False))
        losses.append([step([batch(model_type)]).loss for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_every_dropout_is_one_that_belongs_to_the_rows(model_type: str) -> None:
    model = make_step(model_type).model
    assert all(type(module) is Dropout for module in model.modules() if isinstance(module, nn.Dropout))


def test_a_checkpointed_layer_drops_the_same_twice(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []
    for recomputed in (True, False):
        step = make_step(model_type, dropout=0.3, checkpoint_layers=True)
        mx.random.seed(2)
        with monkeypatch.context() as patch:
            if not recomputed:  # the same keys, and activations that are kept: the truth
                patch.setattr(mx, "checkpoint", lambda function: function)
            step([batch(model_type)])
        sides.append(step.means)
    assert largest_difference(*sides) < 1e-6


@pytest.mark.parametrize("method", [FGM(0.5), AWP(0.05)], ids=["fgm", "awp"])
def test_an_adversarial_step_takes_another_gradient_and_leaves_padding(model_type: str, method: FGM | AWP) -> None:
    plain, adversarial = make_step(model_type, dropout=0), make_step(model_type, dropout=0, adversarial=method)
    given = batch(model_type)
    assert adversarial([given]).loss == plain([given]).loss
    assert largest_difference(adversarial.means, plain.means) > 1e-4
    for name, row in plain.model.core.padding_rows.items():
        assert float(mx.abs(adversarial.means[CORE + name][row]).max()) == 0, name


def test_a_half_accumulated_state_goes_on_to_the_bit(model_type: str, tmp_path: Path) -> None:
    """With dropout, a moving average, checkpointing and adversarial steps, through a file."""
    settings: dict[str, Any] = {"ema_decay": 0.99, "checkpoint_layers": True, "adversarial": FGM(0.5)}

    def go_on(step: TrainStep) -> None:
        step.accumulate(*batch(model_type, 2))
        step.update()
        step([batch(model_type, 3)])

    step = make_step(model_type, **settings)
    step([batch(model_type)])
    step.accumulate(*batch(model_type, 1))
    mx.save_safetensors(str(tmp_path / "state.safetensors"), step_state(step))
    go_on(step)
    other = make_step(model_type, **settings)
    other([batch(model_type, 9)])
    restore_step(other, dict(mx.load(str(tmp_path / "state.safetensors"))))  # type: ignore[arg-type]
    go_on(other)
    assert as_bytes(step_state(other)) == as_bytes(step_state(step))
    assert as_bytes(named_parameters(other.model)) == as_bytes(named_parameters(step.model))


def test_an_interrupted_run_goes_on_to_the_bytes_of_one_that_was_not(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="transformers makes the checkpoint")
    save_tiny(tmp_path / "source", architecture(model_type).encoder_class)
    converted = convert(tmp_path / "source", tmp_path / "converted", verify=False).path
    settings = QUICK | {"epochs": 1, "dropout": 0.1, "save_every": 1}
    given: dict[str, Any] = {"model": converted, "text": "text", "target": "y", "id": "id", **settings}
    frame = sample("binary", 24)
    train(frame, out=tmp_path / "straight", **given)

    class Stopped(BaseException):
        """What a kill is to the code that runs: nothing handles it."""

    real, calls = TrainStep.update, [0]

    def stopped(self: TrainStep) -> Any:
        report = real(self)
        calls[0] += 1
        if calls[0] == 3:  # in the second fold
            raise Stopped
        return report

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", stopped)
        with pytest.raises(Stopped):
            train(frame, out=tmp_path / "run", **given)
    assert not (tmp_path / "run/scores.json").exists()
    resume(tmp_path / "run", frame, progress=False)
    assert contents(tmp_path / "run") == contents(tmp_path / "straight")


def contents(run: Path) -> dict[str, Any]:
    """The bytes of weights and predictions, and the scores."""
    files = [path for path in sorted(run.rglob("*")) if path.suffix in (".safetensors", ".csv", ".npz", ".npy")]
    scores = json.loads((run / "scores.json").read_text())
    found: dict[str, Any] = {path.relative_to(run).as_posix(): path.read_bytes() for path in files}
    return found | {"scores": {name: value for name, value in scores.items() if "second" not in name}}
