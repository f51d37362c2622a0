"""`mlxbert predict RUN DATA -o out/`: the predictions of a submission, as Parquet files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from mlxbert.cli import main
from mlxbert.errors import MLXBertWarning, RunError
from mlxbert.rows.parts import RowsError
from mlxbert.runs import Run
from mlxbert.runs.blend import blend
from mlxbert.runs.predict_rows import predict_parts
from tests.support.run_samples import sample


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.parquet"
    sample("binary", rows=120, seed=7).drop(columns="y").to_parquet(path, row_group_size=50)
    return path


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("binary", {}),
        ("binary", {"values": "labels"}),
        ("multiclass", {"values": "probabilities"}),
        ("multiclass", {"values": "labels"}),
        ("multilabel", {}),
        ("multilabel", {"values": "labels"}),
        ("regression", {"intervals": 0.9}),
        ("ordinal", {"values": "labels"}),
    ],
)
def test_files_hold_the_predictions_of_a_submission(
    runs: dict[str, Run], data: Path, tmp_path: Path, task: str, options: dict[str, Any]
) -> None:
    run, out = runs[task], tmp_path / "out"
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    for shard in ("1/2", "0/2"):
        result = command(run.path, data, "-o", f"{out}/", "--shard", shard, "--rows-per-file", 25, *flags)
        assert result.exit_code == 0, result.output
    got = pd.read_parquet(out)
    assert len(list(out.glob("part-*"))) == 6
    # Shards and files of these sizes make other batches than one table: the numbers are equal to rounding.
    expected = run.predict(data, **options)
    assert list(got.columns) == list(expected.columns)
    for name in expected.columns:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(got[name], expected[name], rtol=2e-3 if options.get("intervals") else 1e-4)
        else:
            assert list(got[name]) == list(expected[name])


def test_predictions_go_on_and_end_in_the_same_bytes(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "out", runs["binary"]
    arguments = [run.path, data, "-o", out, "--rows-per-file", 30]
    assert command(*arguments).exit_code == 0
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()}
    assert len(before) == 5
    (out / "part-00000-of-00001-00002.parquet").unlink()
    result = command(*arguments)
    assert result.exit_code == 2
    assert f"{out} has results of shard 0/1 already; fix: --resume keeps the finished files" in result.stderr
    result = command(*arguments, "--resume")
    assert result.stdout.splitlines()[0] == f"120 rows, 90 of them kept, 4 files of shard 0/1 in {out}"
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir()} == before
    other = command(runs["multiclass"].path, data, "-o", out, "--rows-per-file", 30, "--resume")
    assert other.exit_code == 2
    assert "has results of another call: another model (sha256 " in other.stderr
    assert len(other.stderr.splitlines()) == 1


def test_a_blend_predicts_into_files(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    both = blend([runs["binary"].path, runs["binary"].path], out=tmp_path / "blend")
    result = command(tmp_path / "blend", data, "-o", f"{tmp_path / 'out'}/")
    assert result.exit_code == 0, result.output
    expected = both.predict(data)
    got = pd.read_parquet(tmp_path / "out")
    assert list(got.columns) == list(expected.columns)
    np.testing.assert_allclose(got[got.columns[1]], expected[expected.columns[1]], rtol=1e-5)


def test_odd_rows_are_counted_once(runs: dict[str, Run], tmp_path: Path) -> None:
    frame = sample("binary", rows=60, seed=3).drop(columns="y")
    frame.loc[[2, 50], "text"] = ""
    frame.to_csv(tmp_path / "data.csv", index=False)
    with pytest.warns(MLXBertWarning) as caught:
        predict_parts(runs["binary"], tmp_path / "data.csv", tmp_path / "out", rows_per_file=20)
    told = [str(warning.message) for warning in caught]
    assert [line for line in told if "no text" in line] == [
        f"{tmp_path / 'data.csv'}: 2 of 60 rows have no text; they are encoded as an empty one"
    ]
    table = parquet.read_table(tmp_path / "out")
    assert str(table.schema.field(0).type) == "string"
    assert table.column(0).to_pylist() == list(frame["id"])


def test_what_needs_all_rows_is_refused(runs: dict[str, Run], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RunError, match="ranks need all rows at once; fix: name a CSV file with -o"):
        predict_parts(runs["binary"], data, out, average="ranks")
    with pytest.raises(RunError, match="a forecast of a series has few rows; fix: name a CSV file with -o"):
        predict_parts(runs["time_series"], data, out)
    with pytest.raises(RowsError, match="the shard '2/2' does not exist"):
        predict_parts(runs["binary"], data, out, shard="2/2")
    result = command(runs["binary"].path, data, "-o", f"{out}/", "--sample-submission", data)
    assert result.exit_code == 2
    assert "--sample-submission is for a CSV file; fix: leave it out, or name a CSV file with -o" in result.stderr
    result = command(runs["binary"].path, data, "-o", f"{out}/", "--id", "idd")
    assert "has no id column 'idd'; did you mean 'id'? (fix: --id COLUMN)" in result.stderr
    assert not out.exists()
