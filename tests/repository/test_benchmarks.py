"""Every benchmark can be called by `make bench`; none is run here, since no test depends on a time."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import benchmarks
from benchmarks import airline, baselines, quantize_quality
from benchmarks.__main__ import NOT_BENCHMARKS
from benchmarks.family_sizes import BASE_SIZES
from benchmarks.inputs import MissingInputError, training_file
from converter.quantize.quality import Quality
from mlxbert.models.architecture import config_from_hf, supported

NAMES = sorted({module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - NOT_BENCHMARKS)


@pytest.mark.parametrize("name", NAMES)
def test_its_main_takes_arguments_and_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert caught.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_verdicts_name_the_limit_and_the_best_uniform_recipe_of_the_same_bytes() -> None:
    def found(row: quantize_quality.Row, size: int, mean: float, smallest: float = 0.9) -> quantize_quality.Found:
        return quantize_quality.Found(row, size, (Quality("everyday", 64, mean, smallest, None),))

    limit = quantize_quality.Limit(0.996, 0.992)
    rows = {
        "4bit, rounded": found(quantize_quality.Row("4bit", {}), 12, 0.970),
        "4bit, calibrated": found(quantize_quality.Row("4bit", {}), 12, 0.990),
        "5bit, calibrated": found(quantize_quality.Row("5bit", {}), 15, 0.998),
        "mixed, calibrated": found(quantize_quality.Row("mixed", {}), 11, 0.999),
        "auto, 14.3MB": found(quantize_quality.Row("auto", {}, limit), 14, 0.997, 0.991),
        "auto, bytes of 4bit": found(quantize_quality.Row("auto", {}, equal="4bit, calibrated"), 12, 0.992),
        "auto, bytes of 5bit": found(quantize_quality.Row("auto", {}, equal="5bit, calibrated"), 15, 0.998),
    }
    assert quantize_quality.verdicts(rows) == [
        "auto, 14.3MB, everyday: mean 0.99700, MET by 0.00100 (+25%): at least 0.99600",
        "auto, 14.3MB, everyday: min 0.99100, MISSED by 0.00100 (-12%): at least 0.99200",
        "auto, bytes of 4bit, everyday: mean 0.99200, MET by 0.00200 (+20%): more than 0.99000 of 4bit, calibrated",
        "auto, bytes of 5bit, everyday: mean 0.99800, MISSED by 0.00000 (+0%): more than 0.99800 of 5bit, calibrated",
    ]


@pytest.mark.parametrize("rows", quantize_quality.ONLY.values(), ids=quantize_quality.ONLY)
def test_a_part_of_the_quality_table_has_what_it_is_compared_with(rows: dict[str, quantize_quality.Row]) -> None:
    names = list(rows)
    assert set(names) <= set(quantize_quality.EVERYTHING)
    for name, row in rows.items():
        assert row.equal is None or names.index(row.equal) < names.index(name)


def test_missing_data_are_said_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLXBERT_DATA", raising=False)
    with pytest.raises(MissingInputError, match="no data; fix: --data or MLXBERT_DATA"):
        training_file("titanic")
    with pytest.raises(MissingInputError, match=r"train\.csv is not there; the data come from https"):
        training_file("titanic", tmp_path)


def test_the_naive_forecasts_of_a_series_that_grows_by_a_fifth() -> None:
    year = np.arange(100.0, 112.0)
    block = airline.Block("", 1.44 * year[None], np.concatenate([year, 1.2 * year])[None])
    np.testing.assert_allclose(airline.naive(block), 1.2 * year[None])
    np.testing.assert_allclose(airline.growing(block), block.truth)
    assert airline.error([airline.growing(block)], [block]) == pytest.approx(0, abs=1e-9)


def test_what_bert_adds_is_said_by_the_numbers() -> None:
    helps = airline.verdict([8.0, 9.0], [10.0, 10.0], 3, 4)
    assert helps.startswith("BERT helps here: the encoder improves the folds' MAE by +20.0%, +10.0% (2 seeds), and ")
    assert "is better in 3 of 4 folds. One series is no proof" in helps
    assert airline.verdict([11.0, 12.0], [10.0, 10.0], 0, 4).startswith("BERT does harm here: ")
    assert airline.verdict([9.0, 11.0], [10.0, 10.0], 2, 4).startswith("BERT adds nothing here that can be told from ")


def rows(task: str) -> baselines.Rows:
    """A hundred rows whose first word, and first column, tell the truth."""
    truth: Any = np.tile([0, 1], 50)
    columns = pd.DataFrame({"x": truth.astype(float), "name": [f"n{row}" for row in range(100)]})
    texts = np.array([f"{'yes' if one else 'no'} word{row % 3}" for row, one in enumerate(truth)], object)
    if task == "multilabel":
        truth = np.stack([truth, 1 - truth], axis=1)
    if task == "regression":
        truth = 100.0 + 50.0 * truth
    if task == "ordinal":
        truth = 2 * truth
    return baselines.Rows(task, 3 if task == "ordinal" else 2, texts, columns[["x"]], truth, task == "regression")


@pytest.mark.parametrize(
    ("task", "fit"),
    [
        ("binary", baselines.logistic),
        ("binary", baselines.boosting),
        ("multilabel", baselines.logistic),
        ("ordinal", baselines.logistic),
        ("ordinal", baselines.ridge),
        ("regression", baselines.ridge),
        ("regression", baselines.boosting),
    ],
)
def test_a_baseline_learns_what_is_there(task: str, fit: baselines.Fit) -> None:
    pytest.importorskip("sklearn")
    from threadpoolctl import threadpool_limits  # scikit-learn's own

    known = rows(task)
    learn, ask = known[np.arange(80)], known[np.arange(80, 100)]
    with threadpool_limits(1):  # on a busy machine threads that wait for each other take 17 s for 100 rows
        found = fit(learn, ask)
    assert found.shape == baselines.constant(learn, ask).shape
    truth = np.eye(3)[ask.truth] if task == "ordinal" else ask.truth
    limit = 10 if task == "regression" else 0.5
    assert np.abs(found - truth).max() < limit
    assert np.abs(baselines.constant(learn, ask) - truth).max() >= limit


def test_names_and_their_like_are_no_categories() -> None:
    frame = pd.DataFrame({"id": range(300), "name": [f"n{row}" for row in range(300)], "sex": ["m", "f", None] * 100})
    made = baselines.raw_columns(frame, drop=["id"])
    assert list(made.columns) == ["sex"]
    assert made["sex"].dtype == "category"


def test_every_architecture_has_its_published_size() -> None:
    assert set(BASE_SIZES) >= set(supported())
    for model_type in supported():
        config = config_from_hf({"model_type": model_type, **BASE_SIZES[model_type]})
        assert config.hidden_size == 768
