"""No held-out row teaches: shuffled targets score at chance, and held-out targets move no weight, scaler or label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from heads.binary import BinaryClassificationHead
from heads.metrics import METRICS
from mlxbert.checkpoint import read_config
from mlxbert.runs import Run, train
from mlxbert.training import held_out as judging
from mlxbert.training.held_out import cross_fitted
from tests.support.run_samples import QUICK, options, sample


def auc(run: Run) -> float:
    assert run.scores is not None
    return float(run.scores["pooled"]["roc_auc"])


@pytest.mark.slow
def test_shuffled_targets_score_at_chance(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """With the true targets the same training learns, so that it is not for want of learning.

    At chance the area under the curve is 0.5 with variance (n + p + 1) / (12 n p) (Hanley and McNeil 1982): three
    deviations are allowed.
    """
    frame = sample("binary", 200)
    shuffled = frame.assign(y=np.random.default_rng(0).permutation(frame["y"]))
    own: dict[str, Any] = {**QUICK, **options("binary"), "model": tiny_checkpoint, "epochs": 6, "batch_size": 16}
    learned = train(frame, out=tmp_path / "true", **own)
    chance = train(shuffled, out=tmp_path / "shuffled", **own)
    p = int((frame["y"] == "yes").sum())
    n = len(frame) - p
    deviation = ((n + p + 1) / (12 * n * p)) ** 0.5
    assert abs(auc(chance) - 0.5) < 3 * deviation < 0.15
    assert auc(learned) > 0.5 + 6 * deviation


# With what is learned from targets beside the weights.
HEADS: dict[str, dict[str, Any]] = {
    "binary": {"pos_weight": "balanced"},
    "multiclass": {"class_weights": "balanced"},
    "multilabel": {},
    "regression": {},
    "ordinal": {},
}


@pytest.mark.parametrize("task", HEADS)
def test_held_out_targets_move_nothing_that_is_trained(task: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Weights, scaler and class weights are the same bytes whatever the held-out rows' targets are.

    Folds that do not look at targets, and the last weights: what is chosen by a held-out score depends on it.
    """
    frame, told = sample(task, 80), options(task)  # in whose halves every class is
    names = [told["target"]] if isinstance(told["target"], str) else list(told["target"])
    fixed = {"fold_kind": "plain", "folds": 1, "valid_size": 0.5, "keep": "last", "calibrate": False, "epochs": 1}
    own: dict[str, Any] = {**QUICK, **told, **fixed, "model": tiny_checkpoint, "head": HEADS[task]}
    before = train(frame, out=tmp_path / "before", **own)
    rows = np.load(before.files.logits("seed0-fold0"))["rows"]
    changed = frame.copy()
    for name in names:
        # A far outlier among numbers; other frequencies of classes, none of which is lost.
        values = frame.loc[rows, name]
        first = ~values.duplicated().to_numpy()
        one_class = [value if i % 2 or first[i] else values.iloc[0] for i, value in enumerate(values)]
        changed.loc[rows, name] = values * 1e6 if task == "regression" else one_class
        assert changed[name].value_counts().to_dict() != frame[name].value_counts().to_dict()
    after = train(changed, out=tmp_path / "after", **own)
    assert before.info["folds"]["sha256"] == after.info["folds"]["sha256"]
    one, other = before.members[0], after.members[0]
    for file in ("model.safetensors", "heads.safetensors"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert read_config(one)["mlxbert"]["head"] == read_config(other)["mlxbert"]["head"]


def test_the_scaler_is_the_training_rows(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Each fold's own: mean and deviation of what it learns from."""
    frame = sample("regression")
    run = train(frame, out=tmp_path / "run", model=tiny_checkpoint, **options("regression"), **QUICK)
    for member in run.members:
        held_out = np.load(run.files.logits(member.name))["rows"]
        learned = frame["y"].to_numpy()[np.setdiff1d(np.arange(len(frame)), held_out)]
        fitted = read_config(member)["mlxbert"]["head"]
        numbers = [float(one) for one in _numbers(fitted)]
        for expected in (learned.mean(), learned.std()):
            assert any(abs(one - expected) < 1e-3 * abs(expected) for one in numbers), (expected, fitted)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [one for each in value.values() for one in _numbers(each)]
    if isinstance(value, list):
        return [one for each in value for one in _numbers(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_a_rows_own_truth_has_no_say_in_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its part, which is dealt by class, given."""
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, 60)
    logits = (rng.normal(size=(60, 1)) + 0.8 * targets[:, None] - 1).astype(np.float32)
    head = BinaryClassificationHead(4)
    parts = judging._parts(targets)
    monkeypatch.setattr(judging, "_parts", lambda _: parts)
    honest = cross_fitted("binary", head, logits, targets, "f1")
    assert honest.thresholds is not None
    assert len(np.unique(honest.thresholds)) > 1, "thresholds are learned, part by part"
    for row in range(60):
        lied = targets.copy()
        lied[row] = 1 - lied[row]
        assert cross_fitted("binary", head, logits, lied, "f1").labels()[row] == honest.labels()[row]


@pytest.mark.parametrize("metric", ["roc_auc", "f1"])
def test_a_model_that_knows_nothing_scores_one_half_on_few_rows_too(metric: str) -> None:
    rng = np.random.default_rng(3)
    head, areas = BinaryClassificationHead(4), []
    for _ in range(150):
        targets = rng.permutation(np.arange(30) % 2)
        logits = rng.normal(size=(30, 1)).astype(np.float32)
        areas.append(METRICS["roc_auc"](targets, cross_fitted("binary", head, logits, targets, metric).values))
    # The deviation of one area of 15 × 15 pairs is 0.108 (Hanley and McNeil 1982), of the mean of 150 it is 0.009.
    assert abs(np.mean(areas) - 0.5) < 0.027


def test_equal_texts_are_never_on_both_sides(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary", 40)
    twice = pd.concat([frame, frame.assign(id=frame["id"] + "x", text=frame["text"].str.upper())], ignore_index=True)
    run = train(twice, out=tmp_path / "run", model=tiny_checkpoint, **options("binary"), **QUICK)
    fold = run.oof()["fold"].to_numpy()
    assert (fold[:40] == fold[40:]).all()
