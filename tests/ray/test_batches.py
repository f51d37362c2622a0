"""`Embed` and `Predict` without Ray: batches in its three formats, what is refused, and how often is warned."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mlxbert.data.frames import DataError, DataWarning
from mlxbert.encode import SentenceEncoder
from mlxbert.encode.precision import PRECISIONS, PrecisionError, calibration_ranges, quantize
from mlxbert.errors import RunError
from mlxbert.ray import Embed, Predict
from mlxbert.runs import Run
from mlxbert.runs.blend import blend
from mlxbert.tokenization.encoding import TruncationWarning
from tests.support.run_samples import sample

TEXTS = ["a b c", "d", "e f a b c d"]
FORMATS: dict[str, Any] = {
    "numpy": lambda columns: {name: np.array(cells, object) for name, cells in columns.items()},
    "pandas": lambda columns: pd.DataFrame(columns, index=[7 + row for row in range(len(columns["text"]))]),
    "pyarrow": pa.table,
}


def vectors(batch: Any, column: str = "embedding") -> np.ndarray:
    """The embeddings of a batch, whatever its format."""
    cells = batch[column]
    return np.stack(cells.to_pylist() if isinstance(batch, pa.Table) else list(cells))


@pytest.fixture(scope="module")
def embed(tiny_checkpoint: Path) -> Embed:
    return Embed(tiny_checkpoint, pooling="mean")


@pytest.fixture(scope="module")
def expected(tiny_checkpoint: Path) -> np.ndarray:
    return SentenceEncoder.from_pretrained(tiny_checkpoint, pooling="mean").encode(TEXTS)


@pytest.mark.parametrize("form", FORMATS)
def test_a_batch_keeps_its_format_its_columns_and_their_order(form: str, embed: Embed, expected: np.ndarray) -> None:
    batch = FORMATS[form]({"n": [3, 1, 2], "text": TEXTS})
    found = embed(batch)
    assert type(found) is type(batch)
    names = list(found.column_names if form == "pyarrow" else found)
    assert names == ["n", "text", "embedding"]
    assert "embedding" not in (batch.column_names if form == "pyarrow" else batch)
    assert [int(n) for n in (found["n"].to_pylist() if form == "pyarrow" else found["n"])] == [3, 1, 2]
    assert np.abs(vectors(found) - expected).max() <= 1e-6


@pytest.mark.parametrize("form", FORMATS)
def test_no_rows_have_the_same_columns(form: str, embed: Embed) -> None:
    found = embed(FORMATS[form]({"text": []}))
    assert list(found.column_names if form == "pyarrow" else found) == ["text", "embedding"]
    assert embed({}) == {}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_is_that_of_the_project(precision: str, tiny_checkpoint: Path, expected: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ranges of three texts
        ranges = calibration_ranges(expected)
    embed = Embed(tiny_checkpoint, pooling="mean", precision=precision, ranges=ranges, column="v")
    found = embed(pa.table({"text": TEXTS}))["v"]
    wanted = quantize(expected, precision, ranges=ranges)
    assert found.type.value_type == pa.from_numpy_dtype(wanted.dtype)
    np.testing.assert_array_equal(np.stack(found.to_pylist()), wanted)


def test_int8_without_ranges_would_differ_between_batches(tiny_checkpoint: Path) -> None:
    with pytest.raises(PrecisionError, match="int8 needs ranges that are the same for every batch; fix: ranges="):
        Embed(tiny_checkpoint, pooling="mean", precision="int8")
    with pytest.raises(PrecisionError, match=r"ranges have the shape \(2, 5\)"):
        Embed(tiny_checkpoint, pooling="mean", precision="int8", ranges=np.zeros((2, 5)))
    with pytest.raises(PrecisionError, match="there is no precision named 'int4'"):
        Embed(tiny_checkpoint, pooling="mean", precision="int4")


def test_a_template_reads_several_columns(tiny_checkpoint: Path, expected: np.ndarray) -> None:
    batch = {"first": np.array(["a", "d", "e f"]), "n": np.array([1, 2, 3]), "text": np.array(TEXTS)}
    found = Embed(tiny_checkpoint, pooling="mean", text="{first} {n}")(batch)["embedding"]
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint, pooling="mean")
    assert np.abs(found - encoder.encode(["a 1", "d 2", "e f 3"])).max() <= 1e-6


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_wrong_is_named(form: str, embed: Embed, tiny_checkpoint: Path) -> None:
    batch = FORMATS[form]({"texts": TEXTS, "text": TEXTS, "n": [1, 2, 3], "embedding": TEXTS})
    with pytest.raises(DataError, match=r"'embedding' already; fix: column='another name', or before it ds\.drop"):
        embed(batch)
    other = Embed(tiny_checkpoint, pooling="mean", text="txt", column="v")
    with pytest.raises(DataError, match="the batch has no text column 'txt'; did you mean 'text'"):
        other(batch)
    numbers = Embed(tiny_checkpoint, pooling="mean", text="n", column="v")
    with pytest.raises(DataError, match=r"'n' holds other values than text; fix: text='\{n\}' writes numbers out\n  "):
        numbers(batch)


def test_bytes_and_other_things_are_refused(embed: Embed, tiny_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="'text' holds other values than text; fix: name a column of texts\n  row 0"):
        embed({"text": np.array([b"a", b"b"])})
    with pytest.raises(DataError, match="the batch is a list; fix: batch_format='numpy', 'pandas' or 'pyarrow'"):
        embed(TEXTS)
    with pytest.raises(ValueError, match="batch_size must be a positive whole number"):
        Embed(tiny_checkpoint, pooling="mean", batch_size=0)


@pytest.mark.parametrize("form", FORMATS)
def test_missing_texts_are_empty_ones_and_counted(form: str, embed: Embed) -> None:
    embed._warned.clear()
    with pytest.warns(DataWarning, match="the batch: 2 of 3 rows have no text; they are encoded as an empty one"):
        found = vectors(embed(FORMATS[form]({"text": ["a b", None, ""]})))
    assert np.abs(found[1] - found[2]).max() <= 1e-6


def test_of_many_batches_the_first_the_tenth_and_the_hundredth_warn(embed: Embed) -> None:
    embed._warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(120):
            embed({"text": np.array([""])})
    assert [str(warning.message).partition("empty one")[2] for warning in caught] == [
        "",
        " (10 batches of this actor had such a warning so far)",
        " (100 batches of this actor had such a warning so far)",
    ]
    with pytest.warns(TruncationWarning):
        embed({"text": np.array(["a " * 5000])})


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "regression", "ordinal"])
@pytest.mark.parametrize("form", FORMATS)
def test_predictions_are_those_of_the_run(task: str, form: str, runs: dict[str, Run]) -> None:
    frame = sample(task, rows=20, seed=5)[["id", "text"]]
    expected = runs[task].predict(frame)
    found = Predict(runs[task].path)(FORMATS[form](frame.to_dict("list")))
    found = found.to_pandas() if form == "pyarrow" else pd.DataFrame(found)
    assert list(found.columns) == ["id", "text", *expected.columns[1:]]
    for name in expected.columns[1:]:
        wanted, given = expected[name].to_numpy(), found[name].to_numpy()
        assert (given == wanted).all() if wanted.dtype == object else np.abs(given - wanted).max() <= 1e-6


def test_probabilities_and_a_prefix(runs: dict[str, Run]) -> None:
    frame = sample("binary", rows=5)
    with pytest.raises(DataError, match=r"a column 'y' already; fix: prefix='predicted_', or before it ds\.drop"):
        Predict(runs["binary"].path)(frame)
    found = Predict(runs["binary"].path, values="probabilities", prefix="p_")(frame)
    wanted = runs["binary"].predict(frame, values="probabilities")
    np.testing.assert_allclose(found["p_y"].to_numpy(), wanted["y"].to_numpy(), atol=1e-6)
    assert found["y"].tolist() == frame["y"].tolist()
    assert list(Predict(runs["binary"].path)({"text": np.array([], object)})) == ["text", "y"]


def test_a_blend_predicts_too_unless_it_averages_ranks(runs: dict[str, Run], tmp_path: Path) -> None:
    path = runs["binary"].path
    mixed = blend([path, path], out=tmp_path / "blend")
    frame = sample("binary", rows=6, seed=3)[["id", "text"]]
    found, wanted = Predict(tmp_path / "blend")(frame), mixed.predict(frame)
    assert found["y"].tolist() == wanted["y"].tolist()
    blend([path, path], out=tmp_path / "ranks", metric="auc", average="ranks")
    with pytest.raises(RunError, match="averages ranks among all rows, and Ray Data gives batches of rows; fix: "):
        Predict(tmp_path / "ranks")


def test_a_series_and_an_unfinished_run_are_refused(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="forecasts a series from its whole history, and Ray Data gives batches"):
        Predict(runs["time_series"].path)
    with pytest.raises(RunError, match="no such directory; fix: give a run"):
        Predict(runs["binary"].path / "nothing")
    record = replace(runs["binary"].record, members=(*runs["binary"].record.members, "fold9"))
    monkeypatch.setattr("mlxbert.runs.run.read_record", lambda root: record)
    with pytest.raises(RunError, match="is not finished"):
        Predict(runs["binary"].path)


def test_models_are_loaded_once(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Predict(runs["binary"].path)
    monkeypatch.setattr("mlxbert.with_head.BertWithHead.load", None)
    assert len(predict(sample("binary", rows=4)[["id", "text"]])) == 4


def test_the_module_needs_no_ray() -> None:
    code = "import sys, mlxbert.ray; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_tokenizers_get_the_threads_that_ray_gives(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("RAYON_NUM_THREADS", "x")  # taken back afterwards
    monkeypatch.delenv("RAYON_NUM_THREADS")
    Embed(tiny_checkpoint, pooling="mean")
    assert os.environ["RAYON_NUM_THREADS"] == "3"
