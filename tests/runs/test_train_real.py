"""Fine-tuning for real: the real all-MiniLM-L6-v2 on real rows, from a file to a submission."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_wine

from converter.convert import convert
from mlxbert.data.competitions import get_competition
from mlxbert.runs import train
from mlxbert.runs.predict import write_submission
from tests.support.competition_files import real_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory, minilm_source: Path) -> Path:
    return convert(minilm_source, tmp_path_factory.mktemp("minilm") / "converted", verify=False).path


def test_rows_of_a_table_are_read_as_text(tmp_path: Path, minilm: Path) -> None:
    data = load_wine(as_frame=True).frame.round(2)
    data["cultivar"] = np.array(["first", "second", "third"])[data.pop("target")]
    template = "flavanoids {flavanoids}, proline {proline:.0f}"
    run = train(
        data,
        model=minilm,
        text=template,
        target="cultivar",
        out=tmp_path / "run",
        folds=1,
        epochs=3,
        batch_size=8,
        rate=2e-4,
        progress=False,
    )
    assert run.info["task"]["task"] == "multiclass"
    assert run.scores is not None
    majority = float((data["cultivar"] == "second").mean())
    assert run.scores["pooled"]["accuracy"] > majority + 0.2


def test_disaster_tweets_from_train_csv_to_submission(tmp_path: Path, minilm: Path) -> None:
    tweets = get_competition("disaster-tweets")
    data, test = pd.read_csv(real_file(tweets, "train.csv")), pd.read_csv(real_file(tweets, "test.csv"))
    some = tmp_path / "train.csv"
    data.sample(400, random_state=0).to_csv(some, index=False)
    run = train(
        some,
        competition="disaster-tweets",
        model=minilm,
        out=tmp_path / "run",
        folds=1,
        epochs=1,
        batch_size=16,
        progress=False,
    )
    assert run.scores is not None
    assert run.scores["pooled"]["roc_auc"] > 0.75
    few = tmp_path / "test.csv"
    test[:60].to_csv(few, index=False)
    assert write_submission(run, few, out=tmp_path / "submission.csv").rows == 60
    sent = pd.read_csv(tmp_path / "submission.csv")
    assert list(sent.columns) == ["id", "target"]
    assert list(sent["id"]) == list(test["id"][:60])
    assert set(sent["target"]) == {0, 1}
