"""Prediction intervals of a run: calibrated on rows that its models did not see, and true on new rows."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from heads.errors import HeadError
from mlxbert.cli import main
from mlxbert.runs import Run, RunError, train
from mlxbert.runs.blend import Blend, blend
from tests.support.run_samples import QUICK, options, sample


@pytest.fixture(scope="session")
def houses(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A regression of two folds."""
    out = tmp_path_factory.mktemp("intervals") / "houses"
    return train(sample("regression", 400), model=tiny_checkpoint, out=out, **options("regression"), **QUICK)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_about_the_promised_share_of_new_rows_lies_inside(houses: Run, level: float) -> None:
    """Of one model; the mean of two, each trained on half of the rows, errs less, and more lies inside."""
    new = sample("regression", 400, seed=1)
    alone = dataclasses.replace(houses.record, folds=dataclasses.replace(houses.record.folds, kind="forward"))
    shares = []
    for run in (Run(houses.path, alone), houses):
        table = run.predict(new, intervals=level)
        assert list(table.columns) == ["id", "y", "y_lower", "y_upper"]
        assert ((table["y_lower"] < table["y"]) & (table["y"] < table["y_upper"])).all()
        # Some rows are less certain than others.
        assert (table["y_upper"] - table["y_lower"]).std() > 0
        shares.append(((table["y_lower"] <= new["y"]) & (new["y"] <= table["y_upper"])).mean())
    assert level - 0.08 < shares[0] < level + 0.08
    assert level - 0.08 < shares[1] < level + 0.2


def test_the_predictions_are_those_without_intervals_and_chance_plays_no_part(houses: Run) -> None:
    new = sample("regression", 30, seed=2)
    mx.random.seed(5)
    plain, state = houses.predict(new), mx.random.state[0].tolist()  # type: ignore[attr-defined]
    mx.random.seed(5)
    table = houses.predict(new, intervals=0.9)
    assert mx.random.state[0].tolist() == state  # type: ignore[attr-defined]
    pd.testing.assert_frame_equal(table[["id", "y"]], plain)
    pd.testing.assert_frame_equal(table, houses.predict(new, intervals=0.9))
    wider = houses.predict(new, intervals=0.99)
    assert (wider["y_lower"] <= table["y_lower"]).all()
    assert (wider["y_upper"] >= table["y_upper"]).all()


def test_the_command_writes_both_ends_at_nine_tenths_if_no_level_is_given(houses: Run, tmp_path: Path) -> None:
    sample("regression", 12, seed=3).drop(columns="y").to_csv(tmp_path / "test.csv", index=False)
    command = ["predict", str(houses.path), str(tmp_path / "test.csv"), "--intervals", "-o", str(tmp_path / "out.csv")]
    assert CliRunner().invoke(main, command).exit_code == 0
    expected = houses.predict(tmp_path / "test.csv", intervals=0.9)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out.csv"), expected, check_dtype=False)


def test_a_forecast_has_intervals_too(runs: dict[str, Run]) -> None:
    run, frame = runs["time_series"], sample("time_series", 60)
    table = run.predict(frame, intervals=0.9)
    assert list(table.columns) == ["month", "y", "y_lower", "y_upper"]
    assert (table["y_lower"] < table["y_upper"]).all()
    assert table["y"].tolist() == run.predict(frame)["y"].tolist()


def test_a_blend_weighs_the_ends_like_the_predictions(houses: Run) -> None:
    new = sample("regression", 20, seed=4)
    twins = blend([houses.path, houses.path])
    assert isinstance(twins, Blend)
    pd.testing.assert_frame_equal(twins.predict(new, intervals=0.9), houses.predict(new, intervals=0.9))


def test_several_targets_have_their_ends_beside_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    frame = sample("regression", 48)
    frame["z"] = -frame["y"]
    told = {**options("regression"), "target": ("y", "z")}
    run = train(frame, model=tiny_checkpoint, out=tmp_path / "run", **told, **QUICK)
    columns = run.predict(frame[:6], intervals=0.9).columns
    assert list(columns) == ["id", "y", "y_lower", "y_upper", "z", "z_lower", "z_upper"]


def test_what_has_no_intervals_is_refused_before_anything_is_predicted(houses: Run, runs: dict[str, Run]) -> None:
    new = sample("regression", 6)
    with pytest.raises(HeadError, match=r"intervals: level is 90; fix: a number in \(0, 1\)"):
        houses.predict(new, intervals=90)
    with pytest.raises(RunError, match="the sample submission fixes the columns; fix: leave out one of the two"):
        houses.predict(new, intervals=0.9, sample_submission=new[["id", "y"]])
    with pytest.raises(RunError, match="are for numbers, and the task is binary; fix: leave out --intervals"):
        runs["binary"].predict(new, intervals=0.9)


def test_a_run_of_an_older_version_is_refused_by_name(houses: Run, tmp_path: Path) -> None:
    older = Run(shutil.copytree(houses.path, tmp_path / "older"), houses.record)
    for name in older.record.members:
        arrays = dict(np.load(older.files.logits(name)))
        assert arrays.pop("coverage")[-1] > 0.99
        np.savez(older.files.logits(name), **arrays)
    new = sample("regression", 6)
    with pytest.raises(RunError, match=r"seed0-fold0 has no calibrated intervals .* fix: train the run again"):
        older.predict(new, intervals=0.9)
    pd.testing.assert_frame_equal(older.predict(new), houses.predict(new))
