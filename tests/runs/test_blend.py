"""Blends of runs: weights that out-of-fold rows choose, honest scores, predictions like a run's."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from heads.calibration import best_threshold
from heads.metrics import METRICS
from mlxbert.cli import main
from mlxbert.data.infer_task import InferredTask
from mlxbert.runs import Run, RunError, train
from mlxbert.runs.blend import Blend, _truth, blend, cross_fitted_blend, selected_weights
from mlxbert.runs.files import write_csv
from mlxbert.runs.predict import write_submission
from mlxbert.runs.record import RunRecord
from mlxbert.training.held_out import Predictions
from tests.support import report_samples
from tests.support.run_samples import QUICK, options, sample


def noisy(truth: np.ndarray, noise: float, seed: int) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = 2.0 * truth - 1 + noise * rng.standard_normal(len(truth))
    return Predictions("binary", 1 / (1 + np.exp(-logits)))


def test_what_helps_is_weighed_and_what_does_not_is_left_out() -> None:
    truth = np.random.default_rng(0).integers(0, 2, 600)
    good, other, useless = noisy(truth, 1, 1), noisy(truth, 1, 2), noisy(0 * truth, 1, 3)
    metric = METRICS["roc_auc"]
    weights = selected_weights(truth, [good, other, useless], metric)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] < 0.1 < min(weights[:2])
    mean = sum(w * part.values for w, part in zip(weights, (good, other, useless), strict=True))
    assert metric(truth, mean) > max(metric(truth, good.values), metric(truth, other.values)) + 0.01


def test_losses_are_made_small_and_one_run_alone_has_all_the_weight() -> None:
    truth = np.linspace(0, 1, 50)
    right, wrong = Predictions("regression", truth + 0.01), Predictions("regression", -truth)
    np.testing.assert_array_equal(selected_weights(truth, [wrong, right], METRICS["rmse"]), [0, 1])


def test_a_fold_has_no_say_in_its_own_weights() -> None:
    truth = np.random.default_rng(0).integers(0, 2, 300)
    folds = np.arange(300) % 3
    parts = [noisy(truth, 1, 1), noisy(truth, 2, 2)]
    before = cross_fitted_blend(truth, parts, folds, METRICS["f1"])
    flipped = np.where(folds == 0, 1 - truth, truth)
    after = cross_fitted_blend(flipped, parts, folds, METRICS["f1"])
    np.testing.assert_array_equal(before.values[folds == 0], after.values[folds == 0])
    assert before.thresholds is not None
    assert after.thresholds is not None
    np.testing.assert_array_equal(before.thresholds[folds == 0], after.thresholds[folds == 0])
    assert (before.values[folds == 1] != after.values[folds == 1]).any()


def test_rows_of_one_fold_are_dealt_into_parts_that_weigh_one_another() -> None:
    truth = np.random.default_rng(0).integers(0, 2, 300)
    good, useless = noisy(truth, 1, 1), noisy(0 * truth, 1, 3)
    honest = cross_fitted_blend(truth, [good, useless], np.zeros(300, int), METRICS["roc_auc"])
    equal = (good.values + useless.values) / 2
    assert METRICS["roc_auc"](truth, honest.values) > METRICS["roc_auc"](truth, equal) + 0.02


def test_each_of_many_labels_is_weighed_and_decided_at_its_own_threshold() -> None:
    """Both labels are told well by probabilities far below one half, where no F1 is above 0."""
    truth = np.random.default_rng(0).integers(0, 2, (300, 2))
    low = np.array([0.05, 0.2]) * (0.5 + truth)
    good = Predictions("multilabel", low)
    useless = Predictions("multilabel", np.random.default_rng(1).random((300, 2)))
    np.testing.assert_array_equal(selected_weights(truth, [useless, good], METRICS["f1_macro"]), [0, 1])
    honest = cross_fitted_blend(truth, [useless, good], np.arange(300) % 3, METRICS["f1_macro"])
    assert METRICS["f1_macro"](truth, honest.labels()) == 1


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> list[Path]:
    root = tmp_path_factory.mktemp("blend")
    made = []
    for name, pooling in (("a", "mean"), ("b", "cls")):
        settings = {**options("binary"), **QUICK, "pooling": pooling, "metric": "f1"}
        made.append(train(sample("binary"), model=tiny_checkpoint, out=root / name, **settings).path)
    return made


def test_a_blend_predicts_like_a_run(pair: list[Path], tmp_path: Path) -> None:
    out, data = tmp_path / "blend", tmp_path / "test.csv"
    looked = CliRunner().invoke(main, ["blend", *map(str, pair), "--metric", "auc"])
    assert looked.exit_code == 0, looked.output
    assert "roc_auc" in looked.output
    result = CliRunner().invoke(main, ["blend", *map(str, pair), "--metric", "auc", "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "roc_auc" in result.output
    made = Blend.open(out)
    assert made.info["pooled"]["roc_auc"] == pytest.approx(
        METRICS["roc_auc"](*_truth_and(pd.read_csv(out / "oof.csv"))), abs=1e-12
    )
    sample("binary", 20, seed=3).drop(columns="y").to_csv(data, index=False)
    result = CliRunner().invoke(
        main, ["predict", str(out), str(data), "--values", "probabilities", "-o", str(tmp_path / "s.csv")]
    )
    assert result.exit_code == 0, result.output
    frames = [Run.open(path).predict(pd.read_csv(data), values="probabilities")["y"] for path in pair]
    expected = sum(weight * frame for weight, frame in zip(made.weights, frames, strict=True))
    np.testing.assert_allclose(pd.read_csv(tmp_path / "s.csv")["y"], expected, atol=1e-12)


def _truth_and(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return (table["target"] == "yes").to_numpy().astype(int), table["probability"].to_numpy()


def test_what_cannot_be_blended_is_refused(pair: list[Path], tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "blend"
    with pytest.raises(RunError, match="two runs or more"):
        blend(pair[:1], out=out)
    with pytest.raises(RunError, match="ranks are averaged for metrics of order, and f1 reads labels"):
        blend(pair, out=out, average="ranks")
    with pytest.raises(RunError, match="ranks are averaged for metrics of order, and log_loss reads probabilities"):
        blend(pair, out=out, metric="log_loss", average="ranks")
    settings = {**options("binary"), **QUICK, "epochs": 1}
    other = train(sample("binary", seed=9), model=tiny_checkpoint, out=tmp_path / "other", **settings)
    with pytest.raises(RunError, match="other out-of-fold rows or targets"):
        blend([pair[0], other.path], out=out)
    assert not out.exists()
    ranked = blend(pair, out=out, metric="auc", average="ranks")
    with pytest.raises(RunError, match="ranks are averaged, and the submission holds labels"):
        write_submission(ranked, "absent.csv", out=tmp_path / "s.csv")
    with pytest.raises(RunError, match="is there already"):
        blend(pair, out=out)
    with pytest.raises(RunError, match="is a blend, not a run; fix: give one of its runs"):
        Run.open(out)
    plain = blend(pair, out=tmp_path / "plain")
    with pytest.raises(RunError, match="ranks are averaged, and the submission holds labels"):
        write_submission(plain, "absent.csv", out=tmp_path / "s.csv", average="ranks")


def test_labels_that_look_like_numbers_are_words(tmp_path: Path) -> None:
    task = InferredTask("multiclass", "as asked for", ("code",), ("007", "1e3", "7"), 1, 3, 0)
    table = pd.DataFrame({"row": range(3), "target": ["7", "007", "1e3"], "label": ["007", "7", "7"]})
    info = json.loads((report_samples.write_run(tmp_path / "run", "multiclass") / "run.json").read_text())
    info["data"]["id"] = None
    run = Run(tmp_path, RunRecord.of(json.loads(json.dumps({**info, "task": asdict(task)}))))
    write_csv(run.files.oof, table.rename(columns={"target": "target:code"}))  # as older runs have it
    read = run.oof()
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    np.testing.assert_array_equal(_truth(task, read, run.files.oof), [2, 0, 1])
    numbers = replace(task, classes=(0.5, 1, 7))
    table["target"] = [7.0, 0.5, 1.0]
    np.testing.assert_array_equal(_truth(numbers, table, run.files.oof), [2, 0, 1])


def test_labels_are_decided_for_the_metric_of_the_runs(pair: list[Path]) -> None:
    """Weights may optimize another one, which has no threshold."""
    made = blend(pair, metric="auc")
    truth, _ = _truth_and(made.runs[0].oof())
    mean = sum(weight * run.oof()["probability"] for weight, run in zip(made.weights, made.runs, strict=True))
    assert made.info["thresholds"] == pytest.approx(best_threshold(mean.to_numpy(), truth, "f1", "test"))
    assert made.info["thresholds"] != 0.5
    parts = [Predictions("binary", run.oof()["probability"].to_numpy()) for run in made.runs]
    np.testing.assert_array_equal(made.combine(parts).labels(), mean >= made.info["thresholds"])
