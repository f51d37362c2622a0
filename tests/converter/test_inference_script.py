"""`inference.py` itself: rows read and rendered as mlxbert does, submissions checked, mistakes told in one line."""

from __future__ import annotations

import csv
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from converter.convert import convert
from converter.export.inference_modules import predictor as predictor_module
from converter.export.inference_modules import submission_file, tables
from converter.export.inference_modules.predictor import Predictor, render
from converter.export.inference_modules.submission_file import write_submission
from converter.export.inference_modules.tables import InferenceError
from converter.export.inference_modules.torch_heads import Predictions
from converter.export.run import export_directory
from mlxbert.data.frames import DataWarning, Table
from mlxbert.data.reading import read_chunks, read_data
from mlxbert.data.text_columns import RowText
from mlxbert.factory import get_competition
from tests.support.exported_samples import months, run_json, series, texts, trained, write_run
from tests.support.tiny import save_tiny

FILES = {
    "plain.csv": b"id,n,t\n1,2,a\n2,,\n3,4,NA\n",
    "bom.csv": "\ufeffid , n,t\n007,2.50,  padded  \n8,1e3,None\n".encode(),
    "quoted.csv": b'id,n,t\n1,"2","line one\nline ""two"""\n\n   \n2,nan,"a,b"\n',
    "short.csv": b'id,n,t\n1\n2,3\n"",\n',
    "semicolon.csv": b"id;n;t\n1;-2;a\n2;x;b\n",
    "tabs.tsv": b'id\tn\tt\n1\t+5\ta, b\n2\t.5\t"q"\n',
    "crlf.csv": b"id,n,t\r\n1,0,a\r\n2,12345678901234,b\r\n",
    "cp1252.csv": "id,n,t\n1,2,caf\u00e9 \u20ac\n".encode("cp1252"),
    "latin.csv": b"id,n,t\n1,2,\x81\n",
    "utf16.csv": "id,n,t\n1,2,\u6a21\u578b\n".encode("utf-16"),
    "one.csv": b"t\na\n\nb\n",
    "truth.csv": b"b,t\nTrue,a\nfalse,b\n,c\nmaybe,d\n",
    "whole.csv": b"n,t\n3,a\n10,b\n",
    "index.csv": b",n,t\n0,1,a\n1,2,b\n",
    "lines.jsonl": b'{"id": 1, "n": 2.0, "t": "a"}\n\n{"id": "x", "t": null, "extra": [1, 2.5, null], " n ": NaN}\n',
    "lone.tsv": b'id\tn\tt\n1\t2\t"the cat\n2\t3\ta "dog" b\n3\t4\tend"\n',
    "escaped.csv": b'id,n,t\n1,2,"he \\"said\\", C:\\new \\\\ x"\n2,3,b\n',
    "nested.json": b'{"id": true, "n": 0.1, "t": 7}\n{"id": 2.0, "n": {"a": 1}, "t": "\\u00e9"}\n',
}
QUOTING: dict[str, Any] = {"lone.tsv": "none", "escaped.csv": "escaped"}
KINDS = {"id": "text", "n": "number", "b": "boolean", "t": "text"}


def rendered_by_both(path: Path, kinds: dict[str, Any], text: RowText) -> tuple[Any, Any]:
    """(texts, pairs) by mlxbert and by the script."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        frames = list(read_chunks(path, kinds))
    ours = [text.render(frame) for frame in frames]
    read = tables.read_columns(path, kinds, QUOTING.get(path.name))
    theirs = [render(text, Table(chunk)) for chunk in read]

    def joined(parts: list[Any]) -> list[str] | None:
        return None if parts[0] is None else [one for part in parts for one in part]

    return (
        (joined([one.texts for one in ours]), joined([one.pairs for one in ours])),
        (joined([one[0] for one in theirs]), joined([one[1] for one in theirs])),
    )


@pytest.mark.parametrize("name", FILES)
def test_rows_are_read_and_rendered_as_mlxbert_does(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        (frame, *_) = read_chunks(path, KINDS)  # type: ignore[arg-type]
    (chunk,) = tables.read_columns(path, KINDS, QUOTING.get(name))
    table = Table(frame)
    assert list(chunk) == list(table.names)
    for column in table.names:
        expected = table.column(column).values
        found = Table(chunk).column(column).values
        assert found == expected, column
        assert [type(one) for one in found] == [type(one) for one in expected], column
    names = tuple(column for column in ("id", "n", "b", "t") if column in table.names)
    for text in (
        RowText("t"),
        RowText(names),
        RowText(names, "t", missing="nothing"),
        RowText(" ".join(f"{{{one}}}" for one in names) + " {{x}}", names[:1]),
    ):
        ours, theirs = rendered_by_both(path, KINDS, text)
        assert theirs == ours


def test_a_lone_quote_is_refused_with_the_option_that_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(FILES["lone.tsv"].replace(b'end"', b"end"))
    with pytest.raises(
        InferenceError, match=r"line 3: a quote opens a cell and does not close it .*; fix: --quoting none"
    ):
        list(tables.read_columns(path, KINDS))
    assert Table(tables.read_whole(path, KINDS, "none")).rows == 3


def test_formats_in_templates(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("n,t\n3.14159,a\n2,b\n,c\n")
    ours, theirs = rendered_by_both(path, KINDS, RowText("{n:.2f} {t:>4}", missing="?"))
    assert theirs == ours == (["3.14    a", "2.00    b", "?    c"], None)
    with pytest.raises(InferenceError, match=r"row 0: column 't' is 'a', which \{t:d\} cannot format"):
        render(RowText("{t:d}"), Table({"t": ["a"]}))


@pytest.mark.skipif("MLXBERT_DATA" not in os.environ, reason="MLXBERT_DATA names no folder of competition data")
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("titanic", "titanic"),
        ("house-prices", "house-prices"),
        ("disaster-tweets", "disaster-tweets"),
        ("alexa-stars", "alexa-reviews"),
        ("airline-passengers", "airline-passengers"),
    ],
)
def test_real_files_are_rendered_as_mlxbert_does(name: str, folder: str) -> None:
    competition = get_competition(name)
    place = Path(os.environ["MLXBERT_DATA"]) / folder
    kinds = read_data(place / competition.train).kinds
    for file in {competition.train, competition.test or competition.train}:
        if (place / file).is_file():
            ours, theirs = rendered_by_both(place / file, kinds, competition.text)
            assert theirs == ours
            ours, theirs = rendered_by_both(place / file, kinds, RowText(tuple(competition.text.columns)))
            assert theirs == ours


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("script")
    save_tiny(root / "source", "BertForPreTraining")
    return convert(root / "source", root / "mlx", verify=False).path


@pytest.fixture(scope="module")
def classifier(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rows with `words` and an `id`: probabilities of three classes."""
    root = tmp_path_factory.mktemp("classifier")
    trained(converted, root / "run/members/a", "multiclass", "mean")
    submission = {"id_column": "Id", "columns": ["30", "10", "20"], "values": "probabilities"}
    info = run_json("multiclass", RowText("words"), ["a"], submission, id="id", kinds={"id": "number"})
    return export_directory(write_run(root / "run", info), root / "out").path


@pytest.fixture(scope="module")
def forecaster(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("forecaster")
    trained(converted, root / "run/members/a", "time_series", window=8, period=4, horizon=3, calendar=("year",))
    submission = {"id_column": "Month", "columns": ["target"], "values": "values"}
    kinds = {"Month": "text", "target": "number"}
    info = run_json("time_series", RowText("{Month}: {target}"), ["a"], submission, kinds=kinds, time="Month")
    return export_directory(write_run(root / "run", info), root / "out").path


def write_csv(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read_csv(path: Path) -> list[list[str]]:
    return list(csv.reader(path.read_text().splitlines()))


def test_probabilities_of_classes_go_to_their_columns(classifier: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = texts(11)
    test = write_csv(tmp_path / "test.csv", "words,id", [f"{word},0{i}" for i, word in enumerate(words)])
    predictor = Predictor(classifier, device="cpu")
    assert len(write_submission(predictor, test, tmp_path / "out.csv", batch_size=4).ids) == 11
    rows = read_csv(tmp_path / "out.csv")
    assert rows[0] == ["Id", "30", "10", "20"]
    assert [row[0] for row in rows[1:]] == [f"0{i}" for i in range(11)]  # text, whatever the kinds say
    found = predictor.predict(words)
    assert found.probabilities is not None
    written = np.array([row[1:] for row in rows[1:]], float)
    assert np.abs(written - found.probabilities[:, [2, 0, 1]]).max() < 1e-6
    assert found.labels == [[10, 20, 30][i] for i in found.probabilities.argmax(axis=1)]
    # In chunks of any size, from a frame, or as dicts: the same.
    monkeypatch.setattr(tables, "CHUNK", 3)
    write_submission(predictor, test, tmp_path / "again.csv", batch_size=4)
    assert np.abs(np.array([row[1:] for row in read_csv(tmp_path / "again.csv")[1:]], float) - written).max() < 1e-6
    frame = predictor.predict(pandas.DataFrame({"words": words}))
    assert frame.probabilities is not None
    assert np.array_equal(frame.probabilities, found.probabilities)
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_labels_and_targets_go_to_their_columns() -> None:
    settings = {"task": "multilabel", "classes": ["a", "b", "c"], "target": ["a", "b", "c"], "known_columns": True}

    def cells(predictions: Predictions, values: str, columns: list[str]) -> Any:
        form = {"id_column": "id", "columns": columns, "values": values}
        rules = submission_file.submission_rules({**settings, "submission": form})
        return submission_file.cells_of(rules.usual, rules, predictions)

    found = Predictions(np.array([[0.9, 0.1, 0.4]]), [[1, 0, 0]])
    assert cells(found, "labels", ["c", "a", "b"]) == [[0, 1, 0]]
    assert cells(found, "probabilities", ["c", "a", "b"]) == [[0.4, 0.9, 0.1]]
    settings |= {"task": "regression", "classes": None}
    numbers = Predictions(values=np.array([[1.0, 2.0, 3.0]]))
    assert cells(numbers, "values", ["c", "a", "b"]) == [[3.0, 1.0, 2.0]]
    assert cells(numbers, "values", ["x", "y", "z"]) == [[1.0, 2.0, 3.0]]


def test_a_single_column_of_ordinal_probabilities_is_the_expected_rank(converted: Path, tmp_path: Path) -> None:
    trained(converted, tmp_path / "run/members/a", "ordinal", "mean")
    submission = {"id_column": "id", "columns": ["rating"], "values": "probabilities"}
    run = write_run(tmp_path / "run", run_json("ordinal", RowText("words"), ["a"], submission))
    predictor = Predictor(export_directory(run, tmp_path / "out").path, device="cpu")
    test = write_csv(tmp_path / "test.csv", "words", ["cab", "dab zebra"])
    write_submission(predictor, test, tmp_path / "sub.csv")
    probabilities = predictor.predict(["cab", "dab zebra"]).probabilities
    assert probabilities is not None
    written = np.array([row[1] for row in read_csv(tmp_path / "sub.csv")[1:]], float)
    assert np.abs(written - probabilities @ np.arange(5)).max() < 1e-9


def test_rows_without_text_are_counted(classifier: Path, tmp_path: Path, capsys: Any) -> None:
    test = write_csv(tmp_path / "test.csv", "words,id", ["cab,1", ",2", "NA,3"])
    write_submission(Predictor(classifier, device="cpu"), test, tmp_path / "out.csv")
    assert f"{test}: 2 of 3 rows have no text; they are encoded as an empty one" in capsys.readouterr().err


def test_steps_ahead_are_named_by_the_times_that_go_on(forecaster: Path, tmp_path: Path) -> None:
    predictor = Predictor(forecaster, device="cpu")
    values = series(20).tolist()
    rows = [f"{month},{value}" for month, value in zip(months(20), values, strict=True)]
    test = write_csv(tmp_path / "test.csv", "Month,target", rows)
    assert len(write_submission(predictor, test, tmp_path / "out.csv").ids) == 3
    written = read_csv(tmp_path / "out.csv")
    assert [row[0] for row in written] == ["Month", "1950-09", "1950-10", "1950-11"]
    history = [{"Month": month, "target": value} for month, value in zip(months(20), values, strict=True)]
    every = predictor.predict(history).values
    assert every is not None
    assert every.shape == (13, 3)
    assert np.abs(np.array([row[1] for row in written[1:]], float) - every[-1]).max() < 1e-3
    sample = write_csv(tmp_path / "sample.csv", "target,Month", ["0,1950-11", "0,1950-09", "0,1950-10"])
    write_submission(predictor, test, tmp_path / "out.csv", sample=sample)
    again = read_csv(tmp_path / "out.csv")
    assert again == [["target", "Month"], *(written[row][::-1] for row in (3, 1, 2))]
    write_csv(sample, "Month,target", ["1951-01,0"])
    with pytest.raises(InferenceError, match=r"1 of the 1 ids of .* are missing and 3 of its(.|\n)*1951-01"):
        write_submission(predictor, test, tmp_path / "out.csv", sample=sample)


@pytest.mark.parametrize(
    ("times", "ahead"),
    [
        (["2020-01-01", "2020-02-01", "2020-03-01"], ["2020-04-01", "2020-05-01", "2020-06-01"]),
        (["2020-01-01", "2020-01-08", "2020-01-15"], ["2020-01-22", "2020-01-29", "2020-02-05"]),
        (["2020-01-01", "2020-01-02", "2020-01-09"], ["2020-01-16", "2020-01-23", "2020-01-30"]),
        (["1", "3", "5"], ["7", "9", "11"]),
    ],
)
def test_names_of_steps(times: list[str], ahead: list[str], forecaster: Path, tmp_path: Path) -> None:
    test = write_csv(tmp_path / "test.csv", "Month,target", [f"{time},1" for time in times])
    kinds = {"Month": "number" if times[0] == "1" else "text", "target": "number"}
    assert submission_file._future(Predictor(forecaster, device="cpu"), test, kinds) == ahead


class TestMistakes:
    def message(self, directory: Path, monkeypatch: Any, capsys: Any, *arguments: object) -> str:
        """The one line that the command answers."""
        monkeypatch.setattr(predictor_module, "__file__", str(directory / "inference_modules/predictor.py"))
        assert submission_file.main([str(one) for one in (*arguments, "--device", "cpu")]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("inference.py: error: ").rstrip("\n")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.xlsx", "x", "{path}: '.xlsx' is not read; fix: give .csv, .tsv, .tab, .jsonl, .ndjson, .json, or a"),
            ("a.csv", "", "{path}: no header; fix: is it empty?"),
            ("a.csv", "words,id\n", "{path} has no rows; fix: is it the right file?"),
            ("a.csv", "Word,id\na,1\n", "{path} has no text column 'words'; did you mean 'Word'?"),
            ("a.csv", "x,y\na,1\n", "{path} has no text column 'words'; its columns: 'x', 'y'"),
            ("a.csv", "words,Idd\na,1\n", "{path} has no id column 'id'; did you mean 'Idd'?"),
            (
                "a.csv",
                "words,id\na,1\nb,2,3\n",
                "{path}: line 3 has 3 cells, the header 2; fix: mend quotes or",
            ),
            ("a.csv", "words,words\na,1\n", "{path}: column 'words' comes twice; fix: rename one"),
            ("a.csv", "words,id\na,\n", "{path}: row 0 has no id in column 'id'; fix: fill it, or leave"),
            (
                "a.csv",
                "words,id\na,1\nb,1\n",
                "{path}: 1 ids of column 'id' come more than once; fix: drop the repeated rows, or name another "
                "column: --id COLUMN (1)",
            ),
            ("a.csv", "words,id\na\0,1\n", "{path} is not text: it has zero bytes; fix: unpack it, or convert it"),
            ("a.jsonl", '{"words": "a", "id": 1}\n{"words"\n', "{path}: line 2 is not JSON ("),
            ("a.jsonl", "[1]\n", "{path}: line 1 is no object; fix: one object a line"),
            (
                "a.jsonl",
                '{"words": "\\ud800", "id": 1}\n',
                "{path}: row 0 holds an unpaired surrogate, no text; fix: drop it",
            ),
        ],
    )
    def test_files(
        self, name: str, content: str, message: str, classifier: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        path, out = tmp_path / name, tmp_path / "out.csv"
        path.write_text(content)
        found = self.message(classifier, monkeypatch, capsys, path, "-o", out)
        assert found.startswith(message.format(path=path))
        assert not out.exists()

    @pytest.mark.parametrize(
        ("header", "ids", "message"),
        [
            (
                "Id,a,b,c",
                "12",
                "{path} has the columns a, b, c, and the model predicts 10, 20, 30; fix: the sample of this",
            ),
            (
                "Id,10,20,30",
                "1",
                "{test}: 1 of its ids are not in {path} (column 'id'); fix: give the files that belong together, or "
                "--id COLUMN (not in {path}: 2)",
            ),
            (
                "Id,10,20,30",
                "1234",
                "{test}: 2 of the 4 ids of {path} are missing (column 'id'); fix: give the files that belong "
                "together, or --id COLUMN (missing: 3, 4)",
            ),
            (
                "Id,10,20,30",
                "13",
                "{test}: 1 of the 2 ids of {path} are missing and 1 of its ids are not in {path} (column 'id'); fix: "
                "give the files that belong together, or --id COLUMN (missing: 3; not in {path}: 2)",
            ),
            ("Id,10,20,30", "122", "{path}: id '2' comes twice or is missing in column 'Id'; fix: download"),
        ],
    )
    def test_sample_submissions(
        self, header: str, ids: str, message: str, classifier: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
    ) -> None:
        test = write_csv(tmp_path / "test.csv", "words,id", ["a,1", "b,2"])
        sample = write_csv(tmp_path / "sample.csv", header, [f"{one},0,0,0" for one in ids])
        out = tmp_path / "out.csv"
        found = self.message(classifier, monkeypatch, capsys, test, "--sample-submission", sample, "-o", out)
        assert found.startswith(message.format(path=sample, test=test))
        assert not out.exists()

    def test_places(self, classifier: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        test = write_csv(tmp_path / "test.csv", "words,id", ["a,1"])
        out = tmp_path / "absent/out.csv"
        found = self.message(classifier, monkeypatch, capsys, test, "-o", out)
        assert found == f"{out} cannot be written: No such file or directory; fix: another place"
        assert (
            self.message(classifier, monkeypatch, capsys, tmp_path)
            == f"{tmp_path} is a directory; fix: check the path"
        )
        assert self.message(tmp_path, monkeypatch, capsys, test) == (
            f"{tmp_path}/inference.json is not there; fix: give a directory that mlxbert-export wrote"
        )
        found = self.message(classifier, monkeypatch, capsys, test, "--text", "words")
        assert found == "the export knows its text already; fix: leave --text out"
        with pytest.raises(InferenceError, match=r"device 'banana': .*; fix: --device cpu"):
            Predictor(classifier, device="banana")

    def test_a_model_without_its_run(self, converted: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
        out = export_directory(trained(converted, tmp_path / "model", "binary"), tmp_path / "out").path
        test = write_csv(tmp_path / "test.csv", "words", ["cab", "dab"])
        assert self.message(out, monkeypatch, capsys, test) == (
            "a model exported without its run knows no column; fix: --text COLUMN"
        )
        with pytest.raises(InferenceError, match="knows no column; fix: Predictor"):
            Predictor(out, device="cpu").predict(["cab"])
        sample = write_csv(tmp_path / "sample.csv", "PassengerId,Survived", ["0,0", "1,0"])
        arguments = [str(test), "--text", "words", "-o", str(tmp_path / "sub.csv"), "--sample-submission", str(sample)]
        assert submission_file.main([*arguments, "--device", "cpu"]) == 0
        assert [row[0] for row in read_csv(tmp_path / "sub.csv")] == ["PassengerId", "0", "1"]
        said = capsys.readouterr()
        assert said.out == f"Written   {tmp_path / 'sub.csv'}: 2 rows of probabilities, rows numbered from 0\n"
        assert f"{sample} holds 0, and the labels are 'no', 'yes': probabilities are written" in said.err

    def test_damage(self, classifier: Path, converted: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        out = export_directory(trained(converted, tmp_path / "model", "binary"), tmp_path / "out").path
        tensors = load_file(out / "model.safetensors")
        del tensors["encoder.layer.1.output.dense.bias"]
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InferenceError, match=r"layer\.1\.output\.dense\.bias is missing, or one too many"):
            Predictor(out, device="cpu", text="a").predict(["cab"])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (7, "a forecast reads 8 values, and the series has 7; fix: a longer one"),
            ("time", "column 'Month' must have times that increase; fix: sort by it"),
            ("words", "column 'Month': not dates"),
            ("value", "column 'target' has a value that is no number; fix: mend it"),
            ("missing", "the history has a value that is missing, or that has no logarithm; fix: fill it in"),
            (0, "there are no rows"),
        ],
    )
    def test_series(self, rows: Any, message: str, forecaster: Path) -> None:
        count = rows if isinstance(rows, int) else 9
        made = [{"Month": month, "target": 5.0} for month in months(24)[:count]]
        if rows == "time":
            made[3]["Month"] = made[2]["Month"]
        elif not isinstance(rows, int):
            key = "Month" if rows == "words" else "target"
            made[4][key] = {"words": "soon", "value": "much", "missing": None}[rows]  # type: ignore[assignment]
        with pytest.raises(InferenceError) as caught:
            Predictor(forecaster, device="cpu").predict(made)
        assert message in str(caught.value)


def test_a_link_stays_a_link_and_a_device_a_device(classifier: Path, tmp_path: Path) -> None:
    predictor, test = Predictor(classifier, device="cpu"), write_csv(tmp_path / "test.csv", "words,id", ["cab,1"])
    (tmp_path / "place").mkdir()
    real = tmp_path / "place" / "real.csv"
    real.write_text("old")
    real.chmod(0o640)
    (tmp_path / "out.csv").symlink_to(real)
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    for out in (tmp_path / "out.csv", device):
        assert write_submission(predictor, test, out).ids == ["1"]
    assert (tmp_path / "out.csv").is_symlink()
    assert read_csv(real)[1][0] == "1"
    assert real.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in real.parent.iterdir()] == ["real.csv"]
    assert device.is_symlink()
    assert Path("/dev/null").is_char_device()


def test_an_import_leaves_no_obstacle_to_exporting_again(converted: Path, tmp_path: Path) -> None:
    model = trained(converted, tmp_path / "model", "binary")
    out = export_directory(model, tmp_path / "out").path
    (out / "__pycache__").mkdir()
    (out / "__pycache__/inference.cpython-311.pyc").write_bytes(b"")
    export_directory(model, out, overwrite=True)
    assert not (out / "__pycache__").exists()
    assert json.loads((out / "head.json").read_text())["name"] == "binary"
