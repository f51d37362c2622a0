"""Submissions as a competition wants them: ids, names, order, labels or probabilities; by `predict`, by the script."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.metrics import f1_score

import mlxbert
from converter.export.inference_modules import submission_file
from converter.export.inference_modules.predictor import Predictor
from converter.export.run import export_directory
from mlxbert.cli import main
from mlxbert.data.frames import Table
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.submission import Sample, Submission, SubmissionRules, SubmissionWarning
from mlxbert.data.text_columns import id_columns, is_called_id, names_rows
from mlxbert.errors import MLXBertError
from mlxbert.factory import make_problem
from mlxbert.runs import Run, RunError, resume, train
from mlxbert.runs.blend import blend
from mlxbert.runs.files import escaped_formula, plain_cell
from mlxbert.runs.inputs import compared_values
from mlxbert.runs.predict import write_submission
from mlxbert.runs.progress import decision
from tests.support.run_samples import QUICK, options, sample

IDS = ["0012", "12", "1.0", "1e3", "90071992547409931", " x", "true"]
WRITERS = ("predict", "script")


def zeros_and_ones(rows: int = 48, seed: int = 0) -> pd.DataFrame:
    """`sample("binary")` with labels 0 and 1."""
    frame = sample("binary", rows, seed)
    return frame.assign(y=(frame["y"] == "yes").astype(int))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Run:
    """Trained without a metric and without an id; a quarter of the rows is held out of everything."""
    root = tmp_path_factory.mktemp("run")
    settings = {**options("binary"), **QUICK, "id": None, "hold_out": 0.25}
    with pytest.warns(UserWarning, match="column 'id' names the rows"):
        return train(zeros_and_ones(80), model=tiny_checkpoint, out=root / "run", **settings)


@pytest.fixture(scope="module")
def script(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor(export_directory(run.path, tmp_path_factory.mktemp("export") / "out").path, device="cpu")


class Place:
    """A test file and a sample, and what is written of them by one of the two."""

    def __init__(self, root: Path, run: Run, script: Predictor, writer: str) -> None:
        self.root, self.run, self.script, self.writer = root, run, script, writer
        self.test, self.sample, self.out = root / "test.csv", root / "sample.csv", root / "out.csv"
        self.said = ""

    def write(self, test: pd.DataFrame, sample: pd.DataFrame | None = None, **options: Any) -> pd.DataFrame:
        """The submission as text cells; what was said is in `said`."""
        test.to_csv(self.test, index=False)
        if sample is not None:
            sample.to_csv(self.sample, index=False)
        given = None if sample is None else self.sample
        if self.writer == "predict":
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                write_submission(self.run, self.test, out=self.out, sample_submission=given, **options)
            self.said = "\n".join(str(one.message) for one in caught)
        else:
            submission_file.write_submission(self.script, self.test, self.out, sample=given, **options)
        return pd.read_csv(self.out, dtype=str, keep_default_na=False)

    def refused(self, test: pd.DataFrame, sample: pd.DataFrame | None = None, **options: Any) -> str:
        self.out.unlink(missing_ok=True)
        with pytest.raises(MLXBertError) as caught:
            self.write(test, sample, **options)
        assert not self.out.exists()
        return str(caught.value)


@pytest.fixture(params=WRITERS)
def place(request: pytest.FixtureRequest, tmp_path: Path, run: Run, script: Predictor) -> Place:
    return Place(tmp_path, run, script, request.param)


def rows(ids: list[str], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"id": ids, "text": ["a b c", "b b", "a", "c d", "e", "f a", "a a b"][: len(ids)], **columns})


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        ("id ID Id ids idx index uuid GUID qid uid pid tweetid textID PassengerId user_id USER_ID id_code", True),
        ("row-id Unnamed:~0 sample.uuid rowIndex docid ImageId identifier row rownumber imageUUID", True),
        ("text paid valid bid grid acid Android solid COVID width idea video ideas aid kid said humid", False),
        ("target label Name hidden madrid identity_hate qid1 price", False),
    ],
)
def test_columns_that_are_called_an_id(names: str, ids: bool) -> None:
    for name in [one.replace("~", " ") for one in names.split()]:
        assert is_called_id(name) is ids, name


def test_an_id_is_different_in_every_row() -> None:
    frame = {
        "user_id": ["a", "a", "b"],
        "weight_id": [0.5, 1.5, 2.5],
        "essay_id": ["long " * 30 + str(i) for i in range(3)],
        "part_id": [1, None, 2],
        "index": [0, 1, 2],
        "PassengerId": [7, 8, 9],
        "id": ["x", "y", "z"],
    }
    assert id_columns(Table(frame)) == ("id", "PassengerId", "index")
    assert id_columns(Table(frame), {"id"}) == ("PassengerId", "index")
    for name, values in frame.items():
        assert names_rows(values) is (name in ("id", "PassengerId", "index"))


def test_an_id_is_no_text_of_a_frame_either() -> None:
    columns = {"PassengerId": range(4), "Name": list("abcd"), "Sex": list("fmfm"), "y": [0, 1, 0, 1]}
    frame = pd.DataFrame(columns)
    assert make_problem(frame, target="y").text.columns == ("Name", "Sex")
    assert make_problem(frame, target="y", text="{PassengerId} {Name}").text.columns == ("PassengerId", "Name")


def test_an_id_that_nobody_named_is_found_said_and_written(run: Run) -> None:
    assert run.record.data.id == "id"
    assert run.record.data.id_found
    assert list(run.oof().columns) == ["row", "id", "fold", "target", "probability", "label"]
    frame = zeros_and_ones(6, seed=3)
    assert list(run.predict(frame)["id"]) == list(frame["id"])


def test_ids_keep_their_text_and_the_sample_its_order(place: Place) -> None:
    made = place.write(rows(IDS))
    assert list(made.columns) == ["id", "y"]
    assert list(made["id"]) == IDS
    expected = dict(zip(IDS, made["y"], strict=True))
    wanted = pd.DataFrame({"y": [0.5] * 7, "id": IDS[::-1]})
    again = place.write(rows(IDS), wanted)
    assert list(again.columns) == ["y", "id"]
    assert list(again["id"]) == IDS[::-1]
    assert list(again["y"]) == [expected[one] for one in IDS[::-1]]


def test_the_samples_first_column_names_the_rows_where_the_test_file_has_it(place: Place) -> None:
    test = rows(IDS, key=list("abcdefg"))
    made = place.write(test, pd.DataFrame({"key": list("gfedcba"), "y": 0.5}))
    assert list(made["key"]) == list("gfedcba")
    assert list(place.write(test, id="key")["key"]) == list("abcdefg")
    assert "has no" in place.refused(test, id="kee")
    assert "did you mean 'key'?" in place.refused(test, id="kee")
    assert "--id COLUMN" in place.refused(test.assign(id="1"))


@pytest.mark.parametrize("name", ["Id", "tweet_id"])
def test_a_sample_with_other_names_is_followed(place: Place, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = place.write(rows(IDS), pd.DataFrame({name: IDS, "prediction": 0.5}))
    said = place.said + capsys.readouterr().err
    assert list(made.columns) == [name, "prediction"]
    assert list(made["id" if name == "id" else name]) == IDS
    assert f"sample.csv calls the ids '{name}'" in said
    assert "sample.csv calls the predictions 'prediction', not 'y': they are written under that name" in said


def test_rows_without_any_id_are_numbered_under_no_name_of_an_id(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    made = place.write(rows(IDS).drop(columns="id"))
    assert list(made.columns) == ["row", "y"]
    assert list(made["row"]) == list("0123456")
    assert (
        "has no column 'id': the rows are numbered as 'row'; fix: --id COLUMN" in place.said + capsys.readouterr().err
    )
    numbered = pd.DataFrame({"Id": list("0123456"), "y": 0.5})
    assert list(place.write(rows(IDS).drop(columns="id"), numbered)["Id"]) == list("0123456")
    message = place.refused(rows(IDS).drop(columns="id"), numbered.assign(Id=IDS))
    assert "has no column that names its rows, so they are numbered from 0, and" in message
    assert "fix: --id COLUMN" in message


def test_ids_that_became_fractions_are_said(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    made = place.write(rows(["892.0", "893.0"]))
    assert list(made["id"]) == ["892.0", "893.0"]
    said = place.said + capsys.readouterr().err
    assert (
        "the ids of column 'id' are written as they stand there, 892.0 and not 892; fix: --sample-submission" in said
    )
    place.write(rows(["892.0", "893.5"]))
    assert "as they stand there" not in place.said + capsys.readouterr().err


def test_a_run_and_data_in_the_wrong_order(run: Run, tmp_path: Path) -> None:
    rows(["1"]).to_csv(tmp_path / "test.csv", index=False)
    result = CliRunner().invoke(main, ["predict", f"{tmp_path}/test.csv", str(run.path), "-o", f"{tmp_path}/out.csv"])
    assert result.exit_code == 2
    assert f"the run comes first, then the data: mlxbert predict {run.path} {tmp_path}/test.csv" in result.stderr


def test_each_prediction_warns_of_quotes_and_only_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text('id\ttext\n1\t"a\n2\tb\n')
    for _ in range(2):
        with pytest.warns(UserWarning, match="quotes are read as characters") as caught:
            assert len(run.predict(tmp_path / "test.tsv")) == 2
        assert sum("quotes" in str(one.message) for one in caught) == 1


def test_missing_and_surplus_ids_are_told_apart(place: Place) -> None:
    wanted = pd.DataFrame({"id": ["a", "b", "c"], "y": 0})
    message = place.refused(rows(["b", "d", "e", "f"]), wanted)
    assert f"2 of the 3 ids of {place.sample} are missing" in message
    assert f"3 of its ids are not in {place.sample}" in message
    if place.writer == "predict":
        assert message.endswith(f"\n  missing:\n  a\n  c\n  not in {place.sample}:\n  d\n  e\n  f")
    for theirs in (["1.0", "2.0"], ["001", "002"], [" 1", " 2"]):
        message = place.refused(rows(["1", "2"]), pd.DataFrame({"id": theirs, "y": 0}))
        assert message.startswith(f"the same ids are written in two ways, '1' in {place.test} and '{theirs[0]}' in")
    assert "id 'a' comes twice or is missing in column 'id'" in place.refused(
        rows(["a", "b"]), pd.DataFrame({"id": ["a", "a"], "y": 0})
    )


BINARY = InferredTask("binary", "as asked for", ("y",), (0, 1), 1, 9, 0)
WORDS = replace(BINARY, classes=("no", "yes"))
LABELS = InferredTask("multilabel", "as asked for", ("a", "b"), ("a", "b"), 2, 9, 0)
STARS = InferredTask("ordinal", "as asked for", ("y",), (1, 2, 3, 4, 5), 1, 9, 0)


@pytest.mark.parametrize(
    ("task", "cells", "metric", "values", "warned"),
    [
        (BINARY, "0 1 1", None, "labels", ""),
        (BINARY, "0 1 1", "f1", "labels", ""),
        (BINARY, "0 1 1", "roc_auc", "labels", "--values probabilities"),
        (BINARY, "0 0 0", None, "labels", "--values probabilities"),
        (BINARY, "1 1 1", None, "labels", "--values probabilities"),
        (BINARY, "0 0 0", "accuracy", "labels", ""),
        (BINARY, "0 0 0", "log_loss", "probabilities", "--values labels"),
        (BINARY, "0.0 0.0 0.0", None, "probabilities", "--values labels"),
        (BINARY, "0.0 1.0 1.0", None, "labels", ""),
        (BINARY, "0.5 0.5 0.5", None, "probabilities", ""),
        (BINARY, "0.5 0.5 0.5", "f1", "probabilities", "--values labels"),
        (BINARY, "0 1 0.25", None, "probabilities", ""),
        (BINARY, "0,5 0,5 0,5", None, "probabilities", ""),
        (BINARY, "1e-05 1e-05 1e-05", None, "probabilities", ""),
        (WORDS, "no yes no", None, "labels", ""),
        (WORDS, "no no no", None, "labels", ""),
        (WORDS, "No No No", None, "labels", "none of"),
        (WORDS, "nan nan nan", None, None, ""),
        (BINARY, "NA nan NULL", None, None, ""),
        (replace(BINARY, classes=("None", "some")), "None None None", None, "labels", ""),
        (WORDS, "0 1 0", None, "probabilities", "the labels are 'no', 'yes'"),
        (replace(BINARY, classes=(False, True)), "True False True", None, "labels", ""),
        (LABELS, "0 1 1", None, "labels", ""),
        (LABELS, "0.5 0.5 0.5", None, "probabilities", ""),
        (LABELS, "0 0 0", "f1_macro", "labels", ""),
        (LABELS, "0 0 0", "roc_auc_macro", "probabilities", "--values labels"),
        (STARS, "1 5 3", None, "labels", ""),
        (STARS, "0 0 0", None, "labels", ""),
        (STARS, "7 0 0", None, "labels", "none of"),
    ],
)
def test_a_sample_says_whether_labels_or_probabilities_are_wanted(
    task: InferredTask,
    cells: str,
    metric: str | None,
    values: str | None,
    warned: str,
) -> None:
    usual = Submission("id", task.target, "labels" if metric in ("f1", "accuracy", "f1_macro") else "probabilities")
    names = list(task.target)
    table = pd.DataFrame({"id": list("abc"), **{name: cells.split() for name in names}})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compares = None if metric is None else compared_values(metric)
        rules = SubmissionRules(task, usual, metric, False, compares=compares)
        if task is STARS:
            rules = replace(rules, usual=Submission("id", task.target, "labels"))
        form = rules.fitted(Sample("sample.csv", table), "id")
    said = " ".join(str(one.message) for one in caught)
    # The exported script has the same rules, without a data frame.
    settings = {
        "task": task.task,
        "classes": task.classes,
        "target": task.target,
        "submission": vars(rules.usual),
        "wanted": compares,
        "known_columns": True,
    }
    script = submission_file.submission_rules(settings)
    columns = Sample("sample.csv", table.to_dict("list"))
    assert script.values_of(columns, tuple(names), None)[0] == values
    assert form.values == (values or usual.values)
    assert bool(said) == bool(warned), said
    assert warned in said


def test_labels_that_are_asked_for_and_are_not_the_samples_are_said() -> None:
    task = replace(BINARY, classes=(False, True))
    rules = SubmissionRules(task, Submission("id", ("y",), "probabilities"), None, False)
    table = pd.DataFrame({"id": list("ab"), "y": ["0", "1"]})
    said = "sample.csv holds '0', which is none of the model's labels: its own are written, such as 'False' and 'True'"
    with pytest.warns(SubmissionWarning, match=said):
        assert rules.fitted(Sample("sample.csv", table), "id", "labels").values == "labels"
    for cells, values in (("0.5", "labels"), ("0", "probabilities"), ("True", "labels")):
        table = pd.DataFrame({"id": list("ab"), "y": cells})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert rules.fitted(Sample("sample.csv", table), "id", values).values == values


@pytest.mark.parametrize(
    "content",
    [
        "id,y,\nb,0.5,\na,0.5,\n",
        "id,y\nb,0.5,\na,0.5,\n",
        '"id|x"|y\nb|0.5\na|0.5\n',
        "\ufeffid;y;;\r\nb;0,5;;\r\na;0,5;;\r\n",
    ],
)
def test_a_sample_with_separators_too_many_is_read(place: Place, content: str) -> None:
    place.sample.write_text(content)
    test, source = rows(["a", "b"]), place.sample
    test.to_csv(place.test, index=False)
    if place.writer == "predict":
        write_submission(place.run, place.test, out=place.out, sample_submission=source)
    else:
        submission_file.write_submission(place.script, place.test, place.out, sample=source)
    made = pd.read_csv(place.out, dtype=str)
    assert list(made.columns) == ["id|x" if "|" in content else "id", "y"]
    assert list(made.iloc[:, 0]) == ["b", "a"]


def test_a_sample_with_another_column_is_refused_for_that_alone(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ({"Usage": "Public"}, {"Unnamed: 0": [0, 1]}):
        message = place.refused(rows(["a", "b"]), pd.DataFrame({"id": ["a", "b"], "y": 0, **more}))
        assert f"has the columns y, {next(iter(more))}, and" in message
        assert "fix: take the other columns out of it" in message
    assert place.said + capsys.readouterr().err == ""


def test_what_was_asked_for_in_training_outweighs_a_sample() -> None:
    rules = SubmissionRules(BINARY, Submission("id", ("y",), "probabilities"), None, False, "probabilities")
    wanted = Sample("s", pd.DataFrame({"id": ["a", "b"], "y": [0, 1]}))
    assert rules.fitted(wanted, "id").values == "probabilities"
    assert rules.fitted(wanted, "id", "labels").values == "labels"
    assert replace(rules, values=None).fitted(wanted, "id").values == "labels"


def test_classes_side_by_side_are_probabilities_and_one_column_is_labels() -> None:
    task = InferredTask("multiclass", "as asked for", ("y",), ("low", "top"), 1, 9, 0)
    rules = SubmissionRules(task, Submission("id", ("y",), "labels"), None, False)
    wide = Sample("s", pd.DataFrame({"id": ["a"], "TOP": [0], "LOW": [0]}))
    assert rules.fitted(wide, "id") == Submission("id", ("LOW", "TOP"), "probabilities")
    assert rules.fitted(Sample("s", pd.DataFrame({"id": ["a"], "y": ["low"]})), "id").values == "labels"
    with pytest.raises(RunError, match=r"the sample has no:\n  top\n  the model predicts no:\n  high"):
        rules.fitted(Sample("s", pd.DataFrame({"id": ["a"], "high": [0], "low": [0]})), "id")


def test_labels_score_what_the_run_says(run: Run, place: Place) -> None:
    """The metric is the default, roc_auc, and one half is far from the best threshold."""
    assert run.record.metric == "roc_auc"
    assert run.scores is not None
    oof = run.oof()
    assert f1_score(oof["target"], oof["label"]) == pytest.approx(run.scores["pooled"]["f1"])
    assert oof["label"].sum() > (oof["probability"] >= 0.5).sum()
    frame = zeros_and_ones(80)
    held = pd.read_csv(run.files.hold_out)
    test = frame[frame["id"].isin(held["id"])]
    wanted = pd.DataFrame({"id": test["id"], "y": [row % 2 for row in range(len(test))]})
    made = place.write(test.drop(columns="y"), wanted)
    assert set(made["y"]) <= {"0", "1"}
    assert f1_score(test["y"], made["y"].astype(int)) == pytest.approx(run.scores["hold_out"]["metrics"]["f1"])
    assert decision(run.record) == "decided at thresholds fitted for f1 on held-out rows"


def test_a_blend_follows_the_sample_too(run: Run, tmp_path: Path) -> None:
    made = blend([run.path, run.path], out=tmp_path / "blend")
    assert list(pd.read_csv(tmp_path / "blend/oof.csv", dtype=str)["id"]) == list(run.oof()["id"])
    wanted = pd.DataFrame({"Id": IDS[::-1], "prediction": [0, 1, 0, 1, 0, 1, 0]})
    with pytest.warns(SubmissionWarning, match="calls the predictions 'prediction'"):
        found = made.predict(rows(IDS), sample_submission=wanted)
    assert list(found.columns) == ["Id", "prediction"]
    assert list(found["Id"]) == IDS[::-1]
    assert set(found["prediction"]) <= {0, 1}


def frames_of(library: str) -> Callable[[pd.DataFrame], Any]:
    if library == "polars":
        polars = pytest.importorskip("polars")
        return lambda frame: polars.DataFrame(frame.to_dict("list"))
    return (lambda frame: frame.to_dict("list")) if library == "dict" else (lambda frame: frame)


@pytest.mark.parametrize("library", ["pandas", "polars", "dict"])
def test_every_table_may_be_a_frame(library: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    made, frame = frames_of(library), zeros_and_ones(60)
    test = zeros_and_ones(6, seed=3).drop(columns="y")
    wanted = pd.DataFrame({"id": test["id"][::-1], "y": [0, 1, 0, 1, 0, 1]})
    tables = {"valid": made(frame[40:]), "test": made(test), "sample_submission": made(wanted)}
    settings = {**options("binary"), **QUICK, "epochs": 1, "folds": 1}
    run = train(made(frame[:40]), model=tiny_checkpoint, out=tmp_path / "run", **tables, **settings)
    assert list(run.oof()["id"]) == list(frame["id"][40:])
    sent = pd.read_csv(run.files.submission)
    assert list(sent["id"]) == list(wanted["id"])
    assert set(sent["y"]) <= {0, 1}
    again = run.predict(tables["test"], sample_submission=tables["sample_submission"])
    pd.testing.assert_frame_equal(again, sent)
    if library == "pandas":
        run.files.scores.unlink()
        with pytest.raises(RunError, match=r"fix: resume\(path, frame, valid=frame, test=frame, sample_sub"):
            resume(run.path)
        resume(run.path, frame[:40], **tables, progress=False)
        run.files.scores.unlink()
        with pytest.raises(RunError, match="the test frame has changed since the run began"):
            resume(run.path, frame[:40], **{**tables, "test": test.assign(text="z")}, progress=False)


@pytest.mark.parametrize("name", ["data", "valid", "test", "sample_submission"])
def test_what_is_no_table_is_told_in_a_line(name: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = zeros_and_ones()
    settings = {**options("binary"), **QUICK, "folds": 1, "model": tiny_checkpoint, "out": tmp_path / "run"}
    for wrong in (frame["text"], list(frame["text"]), frame.to_numpy(), 7, {"text": "a b"}, {}, pd.DataFrame()):
        given = {"data": frame, "test": frame[["id", "text"]], name: wrong}
        with pytest.raises(MLXBertError) as caught:
            train(**given, **settings)
        assert len(str(caught.value)) < 200
        assert "; fix: " in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("cell", "escaped"),
    [("=1+1", True), ("@SUM(A1)", True), ("-cmd", True), ("+49 170", True), ("\t=1", True), ("＝1", True), ("-", True)]
    + [(cell, False) for cell in ("-1.5", "+3", "-1e-5", "-.5", "-1,5", "text", "a=1", "", "'=1", "-5%")],
)
def test_formulas_are_escaped_and_numbers_are_none(cell: str, escaped: bool) -> None:
    assert escaped_formula(cell) == (f"'{cell}" if escaped else cell)
    if not cell.startswith("'"):
        assert plain_cell(escaped_formula(cell)) == cell


def test_formulas_in_the_files_of_a_run_are_escaped_if_asked(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary").replace({"y": {"yes": "=yes", "no": "-no"}})
    frame["text"], frame["id"] = "=" + frame["text"], "@" + frame["id"]
    settings = {**options("binary"), **QUICK, "epochs": 1, "test": frame.drop(columns="y"), "values": "labels"}
    for escape in (False, True):
        run = train(frame, model=tiny_checkpoint, out=tmp_path / str(escape), escape_formulas=escape, **settings)
        for part in ("oof.csv id", "oof.csv target", "worst_rows.csv text", "submission.csv y"):
            file, column = part.split()
            with (run.path / file).open(newline="") as table:
                cells = [row[column] for row in csv.DictReader(table)]
            assert {cell[0] for cell in cells} <= ({"'"} if escape else {"=", "-", "@"}), (file, column)
        assert set(run.oof()["target"]) == {"=yes", "-no"}
        report = CliRunner().invoke(main, ["report", str(run.path)])
        assert report.exit_code == 0, report.output
    blended = blend([tmp_path / "False", tmp_path / "True"])
    assert blended.record.alone[0] == blended.record.alone[1]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("learning_rate", "rate"),
        ("lr", "rate"),
        ("num_train_epochs", "epochs"),
        ("per_device_train_batch_size", "batch_size"),
        ("max_seq_length", "max_length"),
        ("label", "target"),
        ("text_column", "text"),
        ("n_splits", "folds"),
        ("random_state", "seeds"),
        ("output_dir", "out"),
        ("model_name_or_path", "model"),
        ("warmup_ratio", "warmup"),
        ("horizon", "head"),
    ],
)
def test_the_names_of_other_tools_lead_to_ours(theirs: str, ours: str) -> None:
    with pytest.raises(MLXBertError, match=f"there is no setting named '{theirs}': did you mean '{ours}'"):
        mlxbert.train(zeros_and_ones(), **{theirs: 1})  # type: ignore[arg-type]
    flag = "seed" if ours == "seeds" else ours.replace("_", "-")
    for spelled in (theirs, theirs.replace("_", "-")):
        said = CliRunner().invoke(main, ["train", "x.csv", f"--{spelled}", "1"])
        assert said.exit_code == 2
        assert said.output.startswith(f"main train: error: No such option '--{spelled}'; did you mean --{flag}")


def test_a_flag_for_what_is_an_argument_and_one_that_nobody_knows() -> None:
    for command, option, fix in (
        ("train", "--train-file", "fix: give the file without a flag: main train DATA"),
        ("predict", "--test", "fix: give the file without a flag: main predict DATA"),
        ("predict", "--output", "did you mean --out?"),
        ("train", "--zzz", "fix: see main train --help"),
    ):
        assert CliRunner().invoke(main, [command, option, "x"]).output.rstrip().endswith(fix)


@contextmanager
def narrow(monkeypatch: pytest.MonkeyPatch, columns: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        yield


def test_the_table_of_a_blend_has_whole_headers_at_80_columns(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics' names are long and so is a run's."""
    other = tmp_path / "a-run-whose-name-is-as-long-as-these-names-may-be-in-practice"
    other.symlink_to(run.path)
    with narrow(monkeypatch, 80):
        shown = CliRunner().invoke(main, ["blend", str(run.path), str(other), "--metric", "balanced_accuracy"])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    (header,) = [line for line in lines if "weight" in line and "run" in line and "┃" in line]
    names = [cell.strip() for cell in header.strip("┃ ").split("┃")]
    assert names[:3] == ["run", "weight", "balanced_accuracy"]
    assert set(names[3:]) <= set(run.record.metrics)
    assert max(map(len, lines)) <= 80


def test_out_of_fold_predictions_of_older_runs_are_read(run: Run, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(run.path, older)
    table = pd.read_csv(older / "oof.csv").rename(columns={"target": "target:y"})
    table.to_csv(older / "oof.csv", index=False)
    pd.testing.assert_frame_equal(Run.open(older).oof(), run.oof())
    assert blend([older, run.path]).record.pooled.keys() >= {"roc_auc"}
    report = CliRunner().invoke(main, ["report", str(older)])
    assert report.exit_code == 0, report.output
    info = json.loads((older / "run.json").read_text())
    del info["data"]["id_found"], info["settings"]["escape_formulas"]
    (older / "run.json").write_text(json.dumps(info))
    assert np.allclose(Run.open(older).predict(zeros_and_ones(4))["y"], run.predict(zeros_and_ones(4))["y"])


def test_a_wrong_place_to_predict_with_leads_to_the_right_one(run: Run, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def said(place: Path) -> str:
        result = CliRunner().invoke(main, ["predict", str(place), "test.csv", "-o", str(tmp_path / "s.csv")])
        assert result.exit_code == 2
        return result.output.strip()

    assert said(run.members[0]).endswith(f"is one model of a run; fix: mlxbert predict {run.path}")
    assert said(run.files.info).endswith(f"is a file of a run or blend; fix: give its directory, {run.path}")
    assert "is a checkpoint, not a run; fix: fine-tune it first: mlxbert train --model" in said(tiny_checkpoint)
    (tmp_path / "gone").mkdir()
    for place in (tmp_path / "gone", tmp_path / "never"):
        assert "resume" not in said(place).lower()


def test_names_in_a_file_do_not_steer_the_terminal(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = pd.DataFrame({"id": IDS, "pre\x1b]0;title\x07": 0.5})
    place.write(rows(IDS), wanted)
    said = place.said + capsys.readouterr().err
    assert "calls the predictions" in said
    assert "\x1b" not in said
    assert "\x07" not in said


def test_ids_that_a_validation_file_repeats_name_no_row(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = zeros_and_ones(60).assign(id=[*range(40), *range(20)])
    settings = {**options("binary"), **QUICK, "epochs": 1, "folds": 1, "id": None, "text": None}
    with pytest.warns(UserWarning, match="has ids of the training data again in column 'id': rows are numbered"):
        run = train(frame[:40], model=tiny_checkpoint, out=tmp_path / "run", valid=frame[40:], **settings)
    assert run.record.data.id is None
    assert run.text.columns == ("text",)
    assert list(run.oof()["row"]) == list(range(40, 60))
