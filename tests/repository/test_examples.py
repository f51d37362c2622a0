"""The examples run: in quick form, on a few rows that look like the competition's, with a tiny checkpoint."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlxbert.data.competitions import get_competition
from mlxbert.errors import MLXBertError
from mlxbert.runs import Run
from tests.support.competition_files import real_file

COMPETITIONS = {"titanic": "titanic", "house_prices": "house-prices", "jigsaw": "jigsaw-toxic"}


def sample(competition: str, rows: int = 60) -> pd.DataFrame:
    """A training file with the columns that the text and the target need."""
    ready, rng = get_competition(competition), np.random.default_rng(0)
    frame = pd.DataFrame({ready.id: np.arange(1, rows + 1)})
    for column in ready.text.columns:
        frame[column] = [f"{rng.choice(list('abcd'))}{row}" for row in range(rows)]
    for target in ready.target:
        prices = rng.integers(50_000, 500_000, rows)
        frame[target] = prices if ready.task == "regression" else rng.permutation(np.arange(rows) % 2)
    return frame


def run_quick(name: str, data: Path, model: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Run, str]:
    main = importlib.import_module(f"examples.{name}").main
    run = main([str(data), "--quick", "--model", str(model), "--out", str(out)])
    return run, capsys.readouterr().out


@pytest.mark.parametrize("name", COMPETITIONS)
def test_an_example_ends_in_a_score_and_a_submission(
    name: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = sample(COMPETITIONS[name])
    ready = get_competition(COMPETITIONS[name])
    frame.to_csv(tmp_path / "train.csv", index=False)
    asked = frame.drop(columns=list(ready.target)).head(7)
    asked.to_csv(tmp_path / "test.csv", index=False)
    run, printed = run_quick(name, tmp_path, tiny_checkpoint, tmp_path / "run", capsys)
    assert "out of fold: " in printed
    assert f"submission: {run.files.submission}" in printed
    submission = pd.read_csv(run.files.submission)
    assert list(submission.columns) == [ready.id, *ready.submission.columns]
    expected = asked if name == "titanic" else pd.read_csv(run.files.hold_out)
    assert list(submission[ready.id]) == list(expected[ready.id])
    assert 7 <= len(submission) <= 14
    assert not submission.isna().any().any()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPETITIONS)
def test_an_example_runs_on_the_real_file(
    name: str, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = real_file(get_competition(COMPETITIONS[name]), "train.csv")
    run, printed = run_quick(name, file.parent, tiny_checkpoint, tmp_path / "run", capsys)
    assert "out of fold: " in printed
    assert len(pd.read_csv(run.files.submission)) > 50


def test_a_run_is_not_replaced_unasked(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    main: Any = importlib.import_module("examples.titanic").main
    with pytest.raises(MLXBertError, match="is not empty, and no run"):
        main([str(tmp_path), "--quick", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "run")])
