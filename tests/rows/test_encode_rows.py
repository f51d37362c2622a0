"""`mlxbert encode DATA --text COLUMN`: tables in pieces, shards, resuming, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet
from sentence_transformers.util.quantization import quantize_embeddings

from mlxbert.checkpoint import CheckpointError
from mlxbert.cli import main
from mlxbert.data.frames import DataError, DataWarning
from mlxbert.encode.encoder import SentenceEncoder, SentenceEncoderWarning
from mlxbert.encode.precision import PRECISIONS, PrecisionError
from mlxbert.encode.rows import encode_table
from mlxbert.errors import MLXBertError, MLXBertWarning
from mlxbert.files.output_file import WriteError
from mlxbert.rows.parts import RowsError, Shard

ROOT = Path(__file__).parents[2]
RECORD = "_mlxbert.json"
WORDS = np.array(["a", "b", "c", "d", "e", "f", "w1", "w2"])


@pytest.fixture(autouse=True)
def _mean_pooling() -> Iterator[None]:
    """The tiny checkpoint is no sentence-transformers model: each load warns of that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SentenceEncoderWarning)
        yield


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(rows)]
    return pd.DataFrame({"key": [f"k{i}" for i in range(rows)], "n": np.arange(rows), "text": texts})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """300 rows in row groups of 70."""
    path = tmp_path / "data.parquet"
    table(300).to_parquet(path, row_group_size=70)
    return path


def read(out: Path) -> pa.Table:
    return parquet.read_table(out)


def vectors(out: Path) -> np.ndarray:
    column = read(out).column("embedding").combine_chunks()
    return np.asarray(column.values).reshape(len(column), -1)


def digests(out: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())}


def refused(kind: type[MLXBertError], message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        encode_table(*arguments, **{"text": "text", **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value).split("; fix:")[0]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_have_the_embeddings_of_encode(tiny_checkpoint: Path, data: Path, tmp_path: Path, precision: Any) -> None:
    out = tmp_path / "out"
    options = {"precision": precision, "calibrate": 120, "id": "key", "rows_per_file": 100}
    for shard in ("1/2", "0/2"):
        written = encode_table(tiny_checkpoint, data, out, text="text", shard=shard, **options)
    assert (written.rows, written.kept, written.files, written.present, written.expected) == (150, 0, 2, 4, 4)
    full = SentenceEncoder.from_pretrained(tiny_checkpoint).encode(list(table(300)["text"]))
    got = vectors(out)
    assert read(out).column("key").to_pylist() == list(table(300)["key"])
    if precision in ("float32", "float16"):
        assert got.dtype == precision
        np.testing.assert_allclose(got, full.astype(precision), atol=1e-5 if precision == "float32" else 4e-3)
    elif precision in ("int8", "uint8"):
        ranges = np.stack([full[:120].min(axis=0), full[:120].max(axis=0)])
        expected = quantize_embeddings(full, precision, ranges=ranges)
        assert np.abs(got.astype(int) - np.asarray(expected).astype(int)).max() <= 1
    else:
        expected = np.asarray(quantize_embeddings(full, precision))
        assert got.dtype == expected.dtype
        assert (got != expected).mean() < 0.01
    record = json.loads(parquet.read_metadata(out / "part-00001-of-00002-00001.parquet").metadata[b"mlxbert"])
    assert (record["shard"], record["rows"]) == ("1/2", [250, 300])
    assert record["settings"]["precision"] == precision
    assert len(record["model"]["sha256"]) == len(record["data"]["sha256"]) == 64


def test_every_format_gives_the_same_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A CSV, JSON lines, one Parquet file, a directory and a pattern of them: one result, in order."""
    frame = table(90)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    frame.to_parquet(tmp_path / "a.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, start in enumerate(range(0, 90, 40)):
        frame[start : start + 40].to_parquet(folder / f"{number}.parquet")
    (folder / "_metadata.parquet").write_bytes(b"")
    sources = ["a.csv", "a.jsonl", "a.parquet", "folder", "folder/[0-9].parquet"]
    for number, source in enumerate(sources):
        out = tmp_path / f"out{number}"
        encode_table(tiny_checkpoint, tmp_path / source, out, text="{key}: {text}", rows_per_file=25)
        assert sorted(digests(out)) == sorted(digests(tmp_path / "out0"))
        assert read(out).equals(read(tmp_path / "out0")), source
    assert read(out).schema.names == ["id", "embedding"]
    assert read(out).column("id").to_pylist() == [*range(90)]
    encoder = SentenceEncoder.from_pretrained(tiny_checkpoint)
    expected = encoder.encode([f"{key}: {text}" for key, text in zip(frame["key"], frame["text"], strict=True)])
    np.testing.assert_allclose(vectors(out), expected, atol=1e-5)


def test_the_files_read_elsewhere(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """The lines that the command shows: pandas and polars read the directory."""
    polars = pytest.importorskip("polars")
    out = tmp_path / "out"
    shown = CliRunner().invoke(
        main, ["encode", str(data), "--model", str(tiny_checkpoint), "--text", "text", "-o", f"{out}/", "--id", "n"]
    )
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [
        f"300 rows, 1 file of shard 0/1 in {out}",
        f"Next   pandas.read_parquet({str(out)!r})   polars.scan_parquet({str(out / '*.parquet')!r})",
    ]
    frame = pd.read_parquet(out)
    assert list(frame["n"]) == [*range(300)]
    assert np.stack(list(frame["embedding"])).shape == (300, 48)
    assert polars.scan_parquet(str(out / "*.parquet")).collect().shape == (300, 2)


def test_a_killed_call_ends_in_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A real process with 10,000 rows, killed when its third file is there."""
    table(10_000).to_parquet(tmp_path / "data.parquet")
    command = [sys.executable, "-m", "mlxbert", "encode", str(tmp_path / "data.parquet"), "--model"]
    command += [str(tiny_checkpoint), "--text", "text", "--rows-per-file", "500", "--precision", "int8", "--id", "key"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "-o", str(killed)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while len(list(killed.glob("part-*"))) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    finished = len(list(killed.glob("part-*")))
    assert 3 <= finished < 20
    done = subprocess.run(
        [*command, "-o", str(killed), "--resume"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"{500 * finished:,} of them kept" in done.stdout
    encode_table(
        tiny_checkpoint, tmp_path / "data.parquet", whole, text="text", rows_per_file=500, precision="int8", id="key"
    )
    expected = digests(whole)
    assert {name: digest for name, digest in digests(killed).items() if name.startswith("part")} == {
        name: digest for name, digest in expected.items() if name.startswith("part")
    }


def test_a_second_call_computes_nothing_and_mends_what_is_damaged(
    tiny_checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"text": "text", "rows_per_file": 100}
    encode_table(tiny_checkpoint, data, out, **options)
    before = digests(out)
    written = encode_table(tiny_checkpoint, data, out, resume=True, **options)
    assert (written.rows, written.kept) == (0, 300)
    # A copy of the model elsewhere is the same model.
    copy = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    first, second, third = sorted(path for path in out.iterdir() if path.name.startswith("part"))
    content = bytearray(first.read_bytes())
    content[200] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-30])
    third.unlink()
    with pytest.warns(DataWarning) as caught:
        written = encode_table(copy, data, out, resume=True, **options)
    told = [str(warning.message) for warning in caught]
    assert f"{first} is damaged (its bytes have changed); it is written again" in told
    assert any(line.startswith(f"{second} is damaged (") for line in told)
    assert (written.rows, written.kept) == (300, 0)
    assert digests(out) == before


def test_results_of_another_call_are_refused_by_name(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other.parquet"
    table(300, seed=1).to_parquet(other)
    table(299).to_parquet(tmp_path / "shorter.parquet")
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    encode_table(tiny_checkpoint, data, out, text="text", rows_per_file=100)
    fix = "; fix: give another directory with -o, or the same model, settings and data as before"
    same: dict[str, Any] = {"rows_per_file": 100, "resume": True}
    for resume in (True, False):
        refused(
            RowsError,
            f"{out} has results of another call: precision 'float32', now 'binary'{fix}",
            *(tiny_checkpoint, data, out),
            **{**same, "precision": "binary", "resume": resume},
        )
    refused(RowsError, "another call: another model (sha256 ", model, data, out, **same)
    refused(
        RowsError, "another call: other data of as many rows (another sha256)", tiny_checkpoint, other, out, **same
    )
    shorter = tmp_path / "shorter.parquet"
    refused(RowsError, "another call: other data: rows 300, now 299", tiny_checkpoint, shorter, out, **same)
    refused(RowsError, "another call: shards 1, now 2", tiny_checkpoint, data, out, shard="0/2", **same)
    refused(
        RowsError,
        f"{out} has results of shard 0/1 already; fix: --resume keeps the finished files and goes on",
        *(tiny_checkpoint, data, out),
        rows_per_file=100,
    )
    (out / RECORD).unlink()
    refused(RowsError, f"{out} has results without {RECORD}; fix: ", tiny_checkpoint, data, out, **same)
    refused(RowsError, "has other files, such as ", tiny_checkpoint, data, tiny_checkpoint)
    refused(RowsError, f"{data} is a file, not a directory; fix: ", tiny_checkpoint, data, data)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (
            "16/16",
            "the shard '16/16' does not exist: 16 shards are counted from 0 to 15; fix: --shard 15/16 is the last",
        ),
        ("1/1", "the shard '1/1' does not exist: the only one of 1 is 0/1; fix: leave --shard out"),
        ("-1/4", "the shard '-1/4' is not K/N; fix: --shard 0/16 is the first of 16, --shard 15/16 the last"),
        ("3", "the shard '3' is not K/N"),
        ("0/0", "the shard '0/0': N must be from 1 to 99999"),
    ],
)
def test_shards_that_do_not_exist(tiny_checkpoint: Path, data: Path, tmp_path: Path, shard: str, message: str) -> None:
    refused(RowsError, message, tiny_checkpoint, data, tmp_path / "out", shard=shard)
    assert not (tmp_path / "out").exists()


def test_shards_share_all_rows() -> None:
    for total, count in ((10, 3), (2, 5), (100_000_000, 16)):
        ends = [Shard(index, count).rows(total) for index in range(count)]
        assert [start for start, _ in ends] == [0, *(stop for _, stop in ends[:-1])]
        assert ends[-1][1] == total
        assert max(stop - start for start, stop in ends) - min(stop - start for start, stop in ends) <= 1


def test_more_shards_than_rows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    table(2).to_parquet(tmp_path / "two.parquet")
    for index in range(4):
        written = encode_table(
            tiny_checkpoint, tmp_path / "two.parquet", tmp_path / "o", text="text", shard=f"{index}/4"
        )
    assert (written.present, written.expected) == (2, 2)
    assert read(tmp_path / "o").column("id").to_pylist() == [0, 1]


def test_bad_tables(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    def wrong(name: str, message: str, kind: type[MLXBertError] = DataError, **options: Any) -> None:
        refused(kind, message, tiny_checkpoint, tmp_path / name, tmp_path / "out", **options)

    wrong("data.parquet", "data.parquet has no text column 'txt'; did you mean 'text'?", text="txt")
    wrong("data.parquet", "data.parquet has no text column 'title'; ", text="{title}: {text}")
    wrong("data.parquet", "data.parquet has no id column 'ky'; did you mean 'key'?", id="ky")
    wrong("absent.parquet", "absent.parquet is not there; fix: check the path")
    wrong("no*.parquet", "no file has a name like ")
    content = data.read_bytes()
    (tmp_path / "short.parquet").write_bytes(content[:-100])
    wrong("short.parquet", "short.parquet is damaged (")
    # The footer is whole, and a page in the middle is not: only reading shows it.
    (tmp_path / "torn.parquet").write_bytes(content[:4] + bytes(3000) + content[3004:])
    wrong("torn.parquet", "torn.parquet is damaged (")
    table(0).to_parquet(tmp_path / "empty.parquet")
    wrong("empty.parquet", "empty.parquet has no rows; fix: is the file empty")
    (tmp_path / "empty.csv").write_text("key,text\n")
    wrong("empty.csv", "empty.csv has no rows; fix: is the file empty")
    (tmp_path / "none").mkdir()
    wrong("none", "none is a directory without *.parquet files; fix: name a file in it, or a pattern")
    lists = table(3).assign(text=[["a"], ["b", "c"], []], bytes=[b"a", b"b", b"c"])
    lists.to_parquet(tmp_path / "lists.parquet")
    wrong("lists.parquet", "column 'text' holds nested values (list<")
    wrong("lists.parquet", "column 'bytes' holds bytes (binary), not one value a row; fix: ", text="bytes")
    lists.drop(columns="bytes").to_json(tmp_path / "lists.jsonl", orient="records", lines=True)
    wrong("lists.jsonl", "lists.jsonl: row 0 has a list in column 'text', not one value; fix: ")
    folder = tmp_path / "folder"
    folder.mkdir()
    table(3).to_parquet(folder / "a.parquet")
    table(3).assign(key=[1, 2, 3]).to_parquet(folder / "b.parquet")
    wrong("folder", "b.parquet: its columns are 'text' (", id="key")
    wrong("data.parquet", "there is no precision named 'int9': did you mean 'int8'", PrecisionError, precision="int9")
    wrong("data.parquet", "the rows for calibration must be 2 or more, not 1", PrecisionError, calibrate=1)
    wrong("data.parquet", "rows per file must be a positive whole number, not 0", RowsError, rows_per_file=0)
    refused(CheckpointError, "no such directory", tmp_path / "nothing", data, tmp_path / "out2")


def test_a_parquet_file_with_two_columns_of_one_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    columns = [pa.array(["k1", "k2"]), pa.array(["a", "b"]), pa.array(["c", "d"])]
    parquet.write_table(pa.Table.from_arrays(columns, names=["key", "text", "text"]), tmp_path / "two.parquet")
    message = "two.parquet has 2 columns named 'text'; fix: rename them"
    refused(DataError, message, tiny_checkpoint, tmp_path / "two.parquet", tmp_path / "out")
    encode_table(tiny_checkpoint, tmp_path / "two.parquet", tmp_path / "out", text="key")


_UUIDS = pa.array([bytes(15) + bytes([i]) for i in (1, 2, 1)], pa.binary(16))


@pytest.mark.parametrize(
    "ids",
    [
        pa.ExtensionArray.from_storage(pa.uuid(), _UUIDS),
        pa.array(["1.00", "2.00", "1.00"]).cast(pa.decimal32(5, 2)),
        pa.array([1, 2, 1], pa.timestamp("ns", "UTC")),
    ],
    ids=lambda array: str(array.type),
)
def test_ids_keep_their_type(tiny_checkpoint: Path, tmp_path: Path, ids: pa.Array) -> None:
    """Also where pyarrow itself cannot count values: UUIDs, narrow decimals."""
    parquet.write_table(pa.table({"key": ids, "text": ["a", "b", "c"]}), tmp_path / "ids.parquet")
    given: dict[str, Any] = {"text": "text", "id": "key"}
    with pytest.warns(DataWarning, match="1 row has an id of column 'key' that an earlier row"):
        encode_table(tiny_checkpoint, tmp_path / "ids.parquet", tmp_path / "out", **given)
    assert read(tmp_path / "out").column("key").combine_chunks().equals(ids)
    assert encode_table(tiny_checkpoint, tmp_path / "ids.parquet", tmp_path / "out", resume=True, **given).kept == 3


def test_another_call_that_begins_before_the_first_file(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Both see an empty directory; the one whose record is replaced stops before it writes a file."""

    def other(*_: int) -> None:
        if not list((tmp_path / "out").glob("part-*")):
            encode_table(tiny_checkpoint, data, tmp_path / "out", text="text", shard="1/2", precision="float16")

    message = "out has results of another call: precision 'float16', now 'float32'; fix: "
    refused(RowsError, message, tiny_checkpoint, data, tmp_path / "out", shard="0/2", progress=other)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [RECORD, "part-00001-of-00002-00000.parquet"]


def test_rows_that_are_odd_are_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    frame = table(50)
    frame.loc[[3, 30], "text"] = [None, " "]
    frame.loc[40, "text"] = "w1 " * 400
    frame.loc[[5, 6], "key"] = ["k1", None]
    frame.to_parquet(tmp_path / "odd.parquet")
    with pytest.warns(MLXBertWarning) as caught:
        encode_table(
            tiny_checkpoint, tmp_path / "odd.parquet", tmp_path / "out", text="text", id="key", rows_per_file=20
        )
    told = [
        str(warning.message).removeprefix(f"{tmp_path}/")
        for warning in caught
        if warning.category is not SentenceEncoderWarning
    ]
    cut = [line for line in told if line.startswith("1 of 50 texts is longer than ")]
    assert len(cut) == 1
    assert sorted(set(told) - {*cut}) == [
        "odd.parquet: 1 row has an id of column 'key' that an earlier row of the same file of results has, such as k1",
        "odd.parquet: 1 row has no id in column 'key'",
        "odd.parquet: 2 of 50 rows have no text; they are encoded as an empty one",
    ]
    assert read(tmp_path / "out").column("key")[6].as_py() is None


def test_a_full_disk_keeps_what_is_finished(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, hard))
    try:
        refused(
            WriteError,
            f"{out}: no room for part-00000-of-00001-00000.parquet (File too large): ",
            *(tiny_checkpoint, data, out),
            rows_per_file=100,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in out.iterdir()] == [RECORD]
    assert encode_table(tiny_checkpoint, data, out, text="text", rows_per_file=100, resume=True).rows == 300


def test_wrong_arguments(tiny_checkpoint: Path, data: Path) -> None:
    model, file = str(tiny_checkpoint), str(data)
    for arguments, message in (
        ([model], "with --text give MODEL and DATA, or DATA and --model MODEL"),
        ([model, file, "more", "-o", "o"], "with --text give MODEL and DATA, or DATA and --model MODEL"),
        ([model, file], "with --text give -o DIRECTORY"),
        ([file, model, "-o", "o"], "the model comes first, then the data: mlxbert encode "),
    ):
        result = CliRunner().invoke(main, ["encode", *arguments, "--text", "text"])
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_table_without_text_is_no_text(tiny_checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for words, message in (
        ([str(data)], "data.parquet is a file, not a text; fix: --text COLUMN -o DIRECTORY embeds its rows"),
        (["a", "-o", f"{tmp_path}/out/"], "out/ is a directory; fix: -o FILE.npy for TEXTS, or --text COLUMN for a"),
    ):
        result = CliRunner().invoke(main, ["encode", str(tiny_checkpoint), *words])
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_options_of_a_table_need_a_table(tiny_checkpoint: Path) -> None:
    result = CliRunner().invoke(main, ["encode", str(tiny_checkpoint), "a", "b", "--shard", "0/2"])
    assert result.exit_code == 2
    assert "--shard is for a table; fix: mlxbert encode MODEL DATA --text COLUMN -o DIRECTORY" in result.stderr
