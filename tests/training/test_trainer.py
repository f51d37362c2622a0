"""The training loop: what stops it, what it keeps, whom it tells, how memory and noise are traded."""

from __future__ import annotations

import json
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxbert.model_arrays import named_parameters
from mlxbert.runs import RunError, train
from mlxbert.runs.inputs import read_frame
from mlxbert.runs.members import new_model
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.progress import tracker
from mlxbert.runs.settings import RunSettings
from mlxbert.training.callbacks import Callback, EvaluationEvent, MemberEvent, StepEvent
from mlxbert.training.config import ConfigurationError, TrainingConfig
from mlxbert.training.control import WATCHED
from mlxbert.training.held_out import HeldOut
from mlxbert.training.parallel import World
from mlxbert.training.trainer import Member, Outcome, Trainer, TrainingError
from tests.support.run_samples import QUICK, options, sample

BASE = {name: value for name, value in QUICK.items() if name != "progress"}


class Recorder(Callback):
    """Keeps every event."""

    def __init__(self) -> None:
        self.steps: list[StepEvent] = []
        self.evaluations: list[EvaluationEvent] = []

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self.evaluations.append(event)


def prepared(checkpoint: Path, **changes: Any) -> tuple[Prepared, RunSettings, TrainingConfig]:
    config = TrainingConfig(**{**BASE, **changes})
    own = options("binary")
    settings = RunSettings(model=str(checkpoint), target=(own["target"],), id="id", task="binary")
    frame, _, _ = read_frame(sample("binary"), text=None, id_column="id", encoding=None, kinds=None)
    return prepare(frame[["id", "text", "y"]], settings, config), settings, config


def fitted(checkpoint: Path, directory: Path | None = None, **changes: Any) -> tuple[Trainer, Outcome, Recorder]:
    given, settings, config = prepared(checkpoint, **changes)
    recorder = Recorder()
    trainer = Trainer(
        new_model(given, settings, config, Member()),
        given.examples,
        given.folds[0],
        config,
        task="binary",
        directory=directory,
        callbacks=[recorder],
    )
    return trainer, trainer.fit(), recorder


def test_the_watchdog_does_not_count_the_time_of_scores(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds of many labels and rows may take minutes, in which no rank makes a step."""
    phases = ["start"]
    monkeypatch.setattr(World, "at", lambda self, phase, step=None: phases.append(phase))
    during = []
    for name in ("scores", "predictions", "calibrate"):
        method = getattr(HeldOut, name)

        def noted(self: HeldOut, *arguments: Any, method: Any = method) -> Any:
            during.append(phases[-1])
            return method(self, *arguments)

        monkeypatch.setattr(HeldOut, name, noted)
    fitted(tiny_checkpoint, epochs=1)
    assert len(during) == 5  # of the evaluation, and of the end
    assert not set(during) & set(WATCHED)


def test_the_best_weights_are_kept_and_the_last_on_request(tiny_checkpoint: Path) -> None:
    _, outcome, told = fitted(tiny_checkpoint, epochs=5, metric="log_loss")
    losses = [event.metrics["log_loss"] for event in told.evaluations]
    best = int(np.argmin(losses))
    assert outcome.step == told.evaluations[best].step
    assert outcome.metrics["log_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert [event.best for event in told.evaluations] == [
        loss == min(losses[: i + 1]) for i, loss in enumerate(losses)
    ]
    _, last, told = fitted(tiny_checkpoint, epochs=5, metric="log_loss", keep="last")
    assert last.step == told.evaluations[-1].step == told.steps[-1].steps


def test_early_stopping_counts_evaluations_without_a_better_one(tiny_checkpoint: Path) -> None:
    # A rate at which nothing is learned after the first evaluations, and a metric that cannot rise for ever.
    _, outcome, told = fitted(tiny_checkpoint, epochs=40, patience=2, metric="log_loss", rate=0.02)
    assert len(told.evaluations) < 40
    assert [event.best for event in told.evaluations[-2:]] == [False, False]
    assert outcome.step == told.evaluations[-3].step


def test_evaluations_are_spread_over_the_epoch_and_its_end_is_one(tiny_checkpoint: Path) -> None:
    _, _, told = fitted(tiny_checkpoint, epochs=2, evaluations=3)
    assert [event.step for event in told.evaluations] == [1, 2, 3, 4, 5, 6]
    assert told.evaluations[-1].epoch == 2


def test_accumulated_batches_are_one_large_one(tiny_checkpoint: Path) -> None:
    whole, _, told = fitted(tiny_checkpoint, epochs=1, batch_size=24, dropout=0.0)
    parts, _, others = fitted(tiny_checkpoint, epochs=1, batch_size=8, accumulation=3, dropout=0.0)
    assert len(told.steps) == len(others.steps) == 1
    assert others.steps[0].loss == pytest.approx(told.steps[0].loss, rel=1e-5)
    for name, array in named_parameters(whole.model).items():
        if name.endswith("self.key.bias"):  # its gradient is zero but for rounding, which Adam makes a step of
            continue
        other = named_parameters(parts.model)[name]
        np.testing.assert_allclose(np.array(other), np.array(array), rtol=2e-3, atol=2e-5, err_msg=name)


def test_the_moving_average_is_what_is_judged_and_kept(tiny_checkpoint: Path) -> None:
    trainer, _, _ = fitted(tiny_checkpoint, ema=0.9, keep="last")
    name = "head.output.weight"
    average, last = trainer.step.average[name], trainer.step.weights[name]
    assert float(mx.abs(average - last).max()) > 1e-5
    np.testing.assert_array_equal(np.array(named_parameters(trainer.model)[name]), np.array(average))


def test_frozen_layers_stay_and_reinitialized_ones_begin_anew(tiny_checkpoint: Path) -> None:
    given, settings, config = prepared(tiny_checkpoint)
    before = {n: np.array(a) for n, a in named_parameters(new_model(given, settings, config, Member())).items()}
    trainer, _, _ = fitted(tiny_checkpoint, freeze_layers=1)
    after = named_parameters(trainer.model)
    moved = {name for name in before if (before[name] != np.array(after[name])).any()}
    assert not any(name.startswith(("core.embeddings.", "core.encoder.layer.0.")) for name in moved)
    assert any(name.startswith("core.encoder.layer.1.") for name in moved)
    given, settings, config = prepared(tiny_checkpoint, reinitialize_layers=1)
    model = new_model(given, settings, config, Member())
    Trainer(model, given.examples, given.folds[0], config, task="binary")
    weight = np.array(named_parameters(model)["core.encoder.layer.1.intermediate.dense.weight"])
    assert weight.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"compute_dtype": "bfloat16"},
        {"compute_dtype": "float16"},
        {"checkpoint_layers": True},
        {"adversarial": "fgm"},
        {"adversarial": "awp", "adversarial_size": 0.01},
        {"layer_decay": 0.8, "head_rate": 1e-2, "schedule": "cosine", "weight_decay": 0.1},
        {"compiled": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_way_of_training_learns(tiny_checkpoint: Path, changes: dict[str, Any]) -> None:
    _, outcome, told = fitted(tiny_checkpoint, epochs=4, **changes)
    assert told.steps[-1].loss < told.steps[0].loss
    assert math.isfinite(outcome.metrics["log_loss"])


def test_a_loss_that_is_not_finite_names_step_batch_and_rows(tiny_checkpoint: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"seed0-fold0, epoch 1, batch [12].*the (loss|gradient).*; rows r\d+"
    ) as caught:
        fitted(tiny_checkpoint, rate=1e30, max_norm=0.0)
    assert "on_nonfinite='skip'" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number from 1, not 1.5"),
        ({"rate": "fast"}, "rate must be a number from 0, not 'fast'"),
        ({"rate": math.nan}, "rate must be a number from 0, not nan"),
        ({"schedule": "step"}, "schedule 'step' is unknown; known: linear, cosine, constant, polynomial"),
        ({"adversarial": "pgd"}, "adversarial 'pgd' is unknown; known: fgm, awp"),
        ({"adversarial_size": 1.0}, "adversarial_size goes with adversarial"),
        ({"valid_size": 0.2}, "valid_size goes with folds=1"),
        ({"seeds": (1, 1)}, "seeds must be different whole numbers"),
        ({"warmup": 1.5}, "warmup must be a number from 0 to 1, not 1.5"),
        ({"compiled": 1}, "compiled must be true or false, not 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        TrainingConfig(**settings)


def test_settings_survive_their_json() -> None:
    config = TrainingConfig(seeds=(3, 4), rate=1e-4, adversarial="awp", adversarial_size=0.02, folds=1, valid_size=0.1)
    assert TrainingConfig.make(json.loads(json.dumps(config.to_dict()))) == config


def test_tensorboard_has_the_numbers_of_the_log(tmp_path: Path, tiny_checkpoint: Path) -> None:
    pytest.importorskip("tensorboardX", reason="pip install tensorboardX")
    out = tmp_path / "run"
    settings = {**options("binary"), **QUICK, "folds": 1, "trackers": ("tensorboard",)}
    train(sample("binary"), model=tiny_checkpoint, out=out, **settings)
    data = b"".join(file.read_bytes() for file in (out / "tensorboard" / "seed0-fold0").iterdir())
    assert b"train/loss" in data
    assert b"train/padding" in data
    assert b"held_out/roc_auc" in data


def test_weights_and_biases_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((values, step)), finish=lambda: None)
    started: dict[str, Any] = {}
    fake = types.SimpleNamespace(init=lambda **given: started.update(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    told = tracker("wandb", tmp_path / "tweets")
    told.on_run_start({"config": {"epochs": 2}, "task": {"task": "binary"}, "metric": "f1"})
    told.on_member_start("seed0-fold1", 0, 1, 10, 0)
    told.on_evaluation(EvaluationEvent("seed0-fold1", 0, 1, 1.0, 5, 0.4, {"f1": 0.8}, True))
    told.on_member_end(MemberEvent("seed0-fold1", 0, 1, 1.0, 5, {"f1": 0.8}, 1.0))
    assert logged == [({"held_out/loss": 0.4, "held_out/f1": 0.8}, 5)]
    assert started["name"] == "tweets/seed0-fold1"
    assert started["config"]["metric"] == "f1"


def test_a_tracker_that_is_not_installed_costs_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(RunError, match=f"fix: pip install {module}"):
            tracker(name, tmp_path)
    with pytest.raises(RunError, match="tracker 'mlflow' is unknown; known: tensorboard, wandb"):
        tracker("mlflow", tmp_path)
