"""Runs of every task, from a frame to predictions; what is in their directory; what they refuse."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from converter.card.card import read_scores
from heads.errors import HeadError
from heads.forward_chaining import times_ahead
from mlxbert.checkpoint import read_config
from mlxbert.data.folds import FoldWarning
from mlxbert.data.frames import DataWarning
from mlxbert.data.text_columns import RowText
from mlxbert.errors import MLXBertError
from mlxbert.files.output_file import manifest_problems
from mlxbert.models.architecture import config_from_hf
from mlxbert.runs import Run, RunError, progress, train
from mlxbert.runs.log import read_log
from mlxbert.runs.predict import write_submission
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.progress import ProgressBar
from mlxbert.runs.record import RunRecord, check_same
from mlxbert.runs.settings import RunSettings
from mlxbert.tokenization.tokenizer import TruncationWarning
from mlxbert.training.callbacks import StepEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.optimizer import default_rates
from mlxbert.with_head import BertWithHead
from tests.support.run_samples import QUICK, TASKS, options, sample


@pytest.mark.parametrize("task", TASKS)
def test_a_run_of_every_task_leaves_what_it_should(runs: dict[str, Run], task: str) -> None:
    run = runs[task]
    info = json.loads((run.path / "run.json").read_text())
    assert info["task"]["task"] == task
    assert info["members"] == ["seed0-fold0", "seed0-fold1"]
    assert [member.name for member in run.members] == info["members"]
    assert not (run.path / "resume").exists()
    scores = run.scores
    assert scores is not None
    for member, told in zip(run.members, scores["members"], strict=True):
        BertWithHead.load(member)
        assert manifest_problems(member) == []
        trained = read_config(member)["mlxbert"]["trained"]  # what the card of a published one says
        assert (trained["pooled"], trained["own"]) == (scores["pooled"], told["metrics"])
        assert (trained["models"], trained["own_rows"], "seconds" in trained) == (2, told["rows"], False)
        assert read_scores({"trained": trained}) is not None
    assert set(scores["spread"]) == set(scores["pooled"]) == set(scores["members"][0]["metrics"])
    assert scores["metric"] in scores["pooled"]
    assert len(pd.read_csv(run.path / "worst_rows.csv")) <= 100
    events = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"step", "evaluation", "member"}


def test_what_is_trained_further_has_not_scored_that(runs: dict[str, Run], tmp_path: Path) -> None:
    BertWithHead.load(runs["binary"].members[0]).save(tmp_path / "out")
    block = read_config(tmp_path / "out")["mlxbert"]
    assert "head" in block
    assert "trained" not in block


@pytest.mark.parametrize("task", [task for task in TASKS if task != "time_series"])
def test_out_of_fold_rows_are_each_there_once_and_score_what_is_said(runs: dict[str, Run], task: str) -> None:
    run, frame = runs[task], sample(task)
    oof = run.oof()
    assert list(oof["row"]) == list(range(len(frame)))
    assert list(oof["id"]) == list(frame["id"])
    target = options(task)["target"]
    told = {"target": target} if isinstance(target, str) else {f"target:{name}": name for name in target}
    for column, name in told.items():
        np.testing.assert_array_equal(oof[column], frame[name])
    if task in ("binary", "multiclass", "ordinal"):
        expected = (oof["label"] == oof["target"]).mean()
        assert run.scores is not None
        assert run.scores["pooled"]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_predicts_new_rows(runs: dict[str, Run], task: str) -> None:
    run, frame = runs[task], sample(task, rows=20, seed=5)
    predicted = run.predict(frame)
    if task == "time_series":
        assert list(predicted["month"].astype(str)) == ["2002-09", "2002-10", "2002-11", "2002-12"]
        assert predicted["y"].between(80, 200).all()
        return
    assert len(predicted) == 20
    assert list(predicted["id"]) == list(frame["id"])
    assert not predicted.isna().any().any()


def test_a_run_begins_with_another_tool_s_unquantized_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(tiny_checkpoint, theirs)
    (theirs / "manifest.json").unlink()
    config = json.loads((theirs / "config.json").read_text())
    del config["mlxbert"]
    (theirs / "config.json").write_text(json.dumps(config))
    run = train(sample("binary"), model=theirs, out=tmp_path / "run", **options("binary"), **{**QUICK, "epochs": 1})
    assert run.info["model"]["source"] is None
    assert len(run.predict(sample("binary", rows=4))) == 4


def test_that_texts_are_cut_is_said_once_for_all_pieces_of_a_file(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxbert.runs.inputs.ROWS", 7)
    frame = sample("binary", rows=20, seed=5)
    frame.loc[[2, 18], "text"] = "word " * 300
    frame.loc[[3, 9, 17], "text"] = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs["binary"].predict(frame)
    empty, cut = [str(one.message) for one in caught if issubclass(one.category, DataWarning | TruncationWarning)]
    assert empty == "the data: 3 of 20 rows have no text; they are encoded as an empty one"
    assert cut.startswith("2 of 20 texts are longer than")


def test_a_row_that_cannot_be_read_is_named_by_its_number_in_the_file(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxbert.runs.inputs.ROWS", 7)
    monkeypatch.setattr(Run, "text", RowText("{text:s}"))
    frame = sample("binary", rows=20, seed=5)
    frame["text"] = frame["text"].astype(object)
    frame.loc[16, "text"] = 3
    with pytest.raises(MLXBertError, match=r"^row 16: column 'text' is 3, which"):
        runs["binary"].predict(frame)


def test_ranks_are_refused_where_numbers_are_wanted(runs: dict[str, Run], tmp_path: Path) -> None:
    sample("regression", rows=20, seed=5).to_csv(tmp_path / "test.csv", index=False)
    for task in ("regression", "time_series"):
        with pytest.raises(RunError, match="the submission holds values; fix: --average probabilities"):
            write_submission(runs[task], tmp_path / "test.csv", out=tmp_path / "out.csv", average="ranks")
    assert not (tmp_path / "out.csv").exists()


def test_an_id_that_comes_again_in_the_rows_held_out_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary")
    frame["id"] = frame["id"].iloc[0]
    frame.loc[1:, "id"] = [f"r{row // 2}" for row in range(len(frame) - 1)]
    with pytest.raises(MLXBertError, match="come more than once"):
        train(frame, model=tiny_checkpoint, out=tmp_path / "run", **options("binary"), **QUICK, hold_out=0.2)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    words = [f"extra{number}" for number in range(1000)]
    with (model / "vocab.txt").open("a", encoding="utf-8") as vocabulary:
        vocabulary.write("\n".join(words) + "\n")
    with pytest.raises(MLXBertError, match=r"model: the tokenizer has \d+ ids and the model \d+; fix: put"):
        train(sample("binary"), model=model, out=tmp_path / "run", **options("binary"), **QUICK)
    assert not (tmp_path / "run").exists()


def test_the_target_is_learned_from_the_text(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = {**QUICK, "epochs": 8}
    run = train(sample("binary", 120), model=tiny_checkpoint, out=tmp_path / "run", **options("binary"), **settings)
    assert run.scores is not None
    assert run.scores["pooled"]["roc_auc"] > 0.8


def test_the_default_rates_are_recorded_as_numbers(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = {**QUICK, "rate": None, "epochs": 1}
    run = train(sample("binary"), model=tiny_checkpoint, out=tmp_path / "run", **options("binary"), **settings)
    rate, head_rate = default_rates(config_from_hf(read_config(tiny_checkpoint)))
    assert (run.record.config.rate, run.record.config.head_rate) == (rate, head_rate)
    log = read_log(run.path / "metrics.jsonl")
    assert log is not None
    assert max(line.event.rate for line in log.lines if isinstance(line.event, StepEvent)) == pytest.approx(rate)


def test_seeds_are_averaged(tmp_path: Path, tiny_checkpoint: Path) -> None:
    settings = {**options("regression"), **QUICK, "seeds": (1, 2)}
    run = train(sample("regression"), model=tiny_checkpoint, out=tmp_path / "run", **settings)
    assert run.info["members"] == ["seed1-fold0", "seed1-fold1", "seed2-fold0", "seed2-fold1"]
    oof = run.oof()
    for fold in (0, 1):
        held = [np.load(run.path / "logits" / f"seed{seed}-fold{fold}.npz") for seed in (1, 2)]
        mean = (held[0]["values"] + held[1]["values"]) / 2
        np.testing.assert_allclose(oof.loc[oof["fold"] == fold, "prediction"], mean, rtol=1e-12)


def refused(message: str, data: Any, out: Path, **changes: Any) -> None:
    with pytest.raises((MLXBertError, HeadError), match=re.escape(message)) as caught:
        train(data, out=out, **{**options("binary"), **QUICK, **changes})
    assert "Traceback" not in str(caught.value)


def test_what_cannot_be_trained_is_refused_in_a_line(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame, out = sample("binary"), tmp_path / "run"
    model: dict[str, Any] = {"model": tiny_checkpoint}
    refused("has no target column 'yy'; did you mean 'y'?", frame, out, **model, target="yy")
    refused("has no text column 'txt'; did you mean 'text'?", frame, out, **model, text="txt")
    one = frame.assign(y="yes")
    refused("one value", one, out, **model, task=None)
    missing = frame.assign(y=frame["y"].where(frame.index > 3))
    refused("4 of 48 rows have no value", missing, out, **model)
    twice = frame.assign(id="r1")
    refused("1 ids of column 'id' come more than once", twice, out, **model)
    rare = frame.assign(y=["odd", *frame["y"][1:]])
    refused("too rare for 2 folds", rare, out, **model, task="multiclass")
    refused("there is no setting named 'epoch'", frame, out, **model, epoch=3)
    refused("epochs must be a whole number from 1, not 0", frame, out, **model, epochs=0)
    refused("metric 'rmse' is not for binary", frame, out, **model, metric="rmse")
    refused("head 'binary' has no option 'objectiv'; did you mean", frame, out, **model, head={"objectiv": 1})
    refused("was never converted; run: mlxbert-convert", frame, out, model=unconverted(tmp_path))
    assert not out.exists(), "nothing is left of what was refused"


def unconverted(root: Path) -> Path:
    directory = root / "hf"
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "bert"}')
    return directory


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path, tiny_checkpoint: Path) -> None:
    out = tmp_path / "run"
    settings = {**options("binary"), **QUICK, "folds": 1, "epochs": 1}
    train(sample("binary"), model=tiny_checkpoint, out=out, **settings)
    with pytest.raises(RunError, match="has a run in it; fix: --resume"):
        train(sample("binary"), model=tiny_checkpoint, out=out, **settings)
    (out / "notes.txt").write_text("mine")
    (out / "report.html").write_text("of the old run")
    train(sample("binary"), model=tiny_checkpoint, out=out, **settings, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "report.html").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty, and no run"):
        train(sample("binary"), model=tiny_checkpoint, out=other, **settings, overwrite=True)
    assert (other / "notes.txt").read_text() == "mine"


def test_the_names_that_a_notebook_wants_are_at_the_top() -> None:
    import mlxbert
    from mlxbert.training.trainer import Trainer

    assert mlxbert.train is train
    assert mlxbert.Run is Run
    assert mlxbert.Trainer is Trainer
    assert mlxbert.TrainingConfig().epochs == 3
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        mlxbert.trian  # noqa: B018


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1960-11", "1960-12"], ["1961-01", "1961-02"]),
        (["2020-01-01", "2020-02-01", "2020-03-01"], ["2020-04-01", "2020-05-01"]),
        (["2020-01-01", "2020-01-08"], ["2020-01-15", "2020-01-22"]),
        ([3, 5], [7, 9]),
    ],
)
def test_times_go_on_as_the_data_write_them(times: list[Any], expected: list[Any]) -> None:
    made = times_ahead(times, 2)
    assert [str(time) for time in made] == [str(time) for time in expected]


def write(frame: pd.DataFrame, file: Path) -> Path:
    frame.to_csv(file, index=False)
    return file


def test_a_validation_file_takes_the_place_of_folds(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary", 60)
    learn, judge = write(frame[:40], tmp_path / "train.csv"), write(frame[40:], tmp_path / "valid.csv")
    settings = {**options("binary"), **QUICK}
    del settings["folds"]
    run = train(learn, model=tiny_checkpoint, out=tmp_path / "run", valid=judge, **settings)
    assert run.info["folds"]["kind"] == "file"
    assert run.info["data"]["valid"]["sha256"] == hashlib.sha256(judge.read_bytes()).hexdigest()
    assert list(run.oof()["id"]) == list(frame["id"][40:])
    with pytest.raises(RunError, match="valid goes with folds=1"):
        train(learn, model=tiny_checkpoint, out=tmp_path / "other", valid=judge, **settings, folds=3)


@pytest.mark.parametrize("task", ["binary", "multilabel", "regression", "time_series"])
def test_rows_held_out_of_everything_are_predicted_and_scored(
    task: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    size = 4 if task == "time_series" else 0.25
    frame = sample(task, 60)
    settings = {**options(task), **QUICK, "epochs": 1, "hold_out": size}
    run = train(frame, model=tiny_checkpoint, out=tmp_path / "run", **settings)
    held, sent = pd.read_csv(run.files.hold_out), pd.read_csv(run.files.submission)
    assert len(held) == len(sent)
    assert len(held) in ((4,) if task == "time_series" else range(12, 19))  # each stratum is rounded by itself
    name = "month" if task == "time_series" else "id"
    assert list(held[name].astype(str)) == list(sent[name].astype(str))
    if task == "time_series":
        assert list(held["month"]) == list(frame["month"][-4:])
    else:
        assert not set(held["id"]) & set(run.oof()["id"]), "none of them was learned from"
        assert run.info["data"]["rows"] == 60
    assert run.scores is not None
    assert run.scores["hold_out"]["rows"] == len(held)
    if task == "regression":
        rmse = float(np.sqrt(((held["target"] - held["prediction"]) ** 2).mean()))
        assert run.scores["hold_out"]["metrics"]["rmse"] == pytest.approx(rmse)


def test_a_test_file_is_predicted_at_the_end_in_the_samples_order(tmp_path: Path, tiny_checkpoint: Path) -> None:
    data, test = write(sample("multiclass", 60), tmp_path / "train.csv"), sample("multiclass", 9, seed=4)
    columns = ["top", "low", "middle"]
    shuffled = test["id"].sample(frac=1, random_state=0)
    form = pd.DataFrame({"id": shuffled, **dict.fromkeys(columns, 0.0)})
    run = train(
        data,
        model=tiny_checkpoint,
        out=tmp_path / "run",
        test=write(test.drop(columns="y"), tmp_path / "test.csv"),
        sample_submission=write(form, tmp_path / "sample.csv"),
        values="probabilities",
        **{**options("multiclass"), **QUICK, "epochs": 1},
    )
    sent = pd.read_csv(run.files.submission)
    assert list(sent.columns) == ["id", *columns]
    assert list(sent["id"]) == list(shuffled)
    np.testing.assert_allclose(sent[columns].sum(axis=1), 1, atol=1e-6)
    direct = run.predict(test, values="probabilities").set_index("id")
    np.testing.assert_allclose(sent["top"], direct.loc[list(shuffled), "top"], atol=1e-9)
    read = run.info["data"]["test"]
    assert read["sha256"] == hashlib.sha256((tmp_path / "test.csv").read_bytes()).hexdigest()
    other = RunRecord.of({**run.info, "data": {**run.info["data"], "test": {**read, "sha256": "0"}}})
    with pytest.raises(RunError, match=r"test\.csv has changed since the run began; fix: put back what it was"):
        check_same(other, run.record)
    ranks = run.predict(test, values="probabilities", average="ranks")
    assert ranks["low"].between(0, 1).all()


def test_pairs_templates_groups_and_serialized_rows(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary", 40)
    frame["other"], frame["team"] = list(frame["text"][::-1]), [f"t{i % 8}" for i in range(40)]
    quick = {**QUICK, "epochs": 1, "model": tiny_checkpoint, "target": "y", "id": "id"}
    paired = train(frame, out=tmp_path / "pair", text="text", pair="other", **quick)
    assert paired.text.second == "other"
    assert "second" in pd.read_csv(paired.files.worst).columns
    grouped = train(frame, out=tmp_path / "group", text="{text} of {team}", group="team", **quick)
    assert grouped.oof().assign(team=frame["team"]).groupby("team")["fold"].nunique().max() == 1
    rows = train(frame, out=tmp_path / "rows", **quick)
    assert rows.text.columns == ("text", "other", "team")


def test_labels_with_times_are_folded_forward(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary", 60)
    frame["day"] = [str(np.datetime64("2020-01-01") + i) for i in range(60)]
    settings = {**options("binary"), **QUICK, "epochs": 1, "time": "day"}
    run = train(frame, model=tiny_checkpoint, out=tmp_path / "run", **settings)
    assert run.info["folds"]["kind"] == "forward"
    assert len(run.prediction_members) == 1
    assert run.oof()["row"].min() >= 20
    assert len(run.predict(frame[:5])) == 5


def prepared(checkpoint: Path, frame: pd.DataFrame, task: str, valid: Any = None, **changes: Any) -> Prepared:
    """What `train` makes of a frame before its first model; `changes` of the run's settings."""
    settings_of_task = options(task)
    own: dict[str, Any] = {**settings_of_task, "text": RowText.make(settings_of_task["text"], None)}
    settings = RunSettings(**{**own, "model": str(checkpoint), **changes})
    return prepare(frame, settings, TrainingConfig(folds=2 if valid is None else 1), valid)


def test_a_series_with_a_validation_file_learns_from_none_of_its_values(tiny_checkpoint: Path) -> None:
    """Windows of 8 values, forecasts of 4: those that forecast rows of both files are on neither side."""
    frame = sample("time_series", 60)
    learned, judged = frame[:48].reset_index(drop=True), frame[48:].reset_index(drop=True)
    made = prepared(tiny_checkpoint, learned, "time_series", judged)
    ((fold,), windows) = made.folds, made.examples.windows
    assert windows is not None
    assert made.rows[fold.train].tolist() == list(range(7, 44))
    assert made.rows[fold.valid].tolist() == list(range(47, 56))
    np.testing.assert_array_equal(windows.targets[fold.valid[0]], judged["y"][:4])
    assert windows.known_at[fold.train].max() <= windows.made_at[fold.valid].min()
    with pytest.raises(RunError, match="the validation file has 3 rows, and a forecast is of 4; fix: give 4 or more"):
        prepared(tiny_checkpoint, learned, "time_series", judged[:3])


def test_rows_of_a_validation_file_are_numbered_on_though_some_are_left_out(tiny_checkpoint: Path) -> None:
    frame = sample("binary", 60)
    learned, judged = frame[:40].copy(), frame[40:].reset_index(drop=True)
    learned.loc[:2, "y"], judged.loc[4, "y"] = None, None
    made = prepared(tiny_checkpoint, learned, "binary", judged, drop_missing=True)
    assert made.rows.tolist() == [*range(3, 44), *range(45, 60)]
    assert made.examples.names == [f"r{row:04d}" for row in made.rows]
    unnamed = prepared(tiny_checkpoint, learned, "binary", judged, drop_missing=True, id=None)
    assert unnamed.examples.names == [str(row) for row in made.rows]


def test_a_row_of_which_one_number_is_missing_is_dropped_and_one_label_is_not(tiny_checkpoint: Path) -> None:
    numbers = sample("regression").rename(columns={"y": "y1"})
    numbers["y2"] = numbers["y1"] / 2
    numbers.loc[5, "y2"], numbers.loc[7, ["y1", "y2"]] = None, None
    with pytest.warns(UserWarning, match="1 of 47 rows lack one of the targets and are left out"):
        made = prepared(tiny_checkpoint, numbers, "regression", target=("y1", "y2"), drop_missing=True)
    assert made.rows.tolist() == [row for row in range(48) if row not in (5, 7)]
    labels = sample("multilabel")
    labels.loc[5, "y2"] = None
    assert len(prepared(tiny_checkpoint, labels, "multilabel", drop_missing=True).rows) == 48


def test_a_label_too_rare_to_be_held_out_is_named(tiny_checkpoint: Path) -> None:
    frame = sample("multilabel").assign(threat=[1, *[0] * 47])
    with pytest.warns(FoldWarning) as caught:
        prepared(tiny_checkpoint, frame, "multilabel", target=("y1", "y2", "threat"), hold_out=0.25)
    told = [str(one.message) for one in caught if "too rare" in str(one.message)]
    assert told
    assert all("threat" in one for one in told)


def test_a_series_is_folded_forward_alone(tmp_path: Path, tiny_checkpoint: Path) -> None:
    series: dict[str, Any] = {**options("time_series"), "id": None, "model": tiny_checkpoint}
    message = "fold_kind 'plain' puts overlapping windows of a series on both sides; fix: leave it out (forward)"
    refused(message, sample("time_series"), tmp_path / "run", **series, fold_kind="plain")


def test_frames_of_every_kind_are_predicted(runs: dict[str, Run]) -> None:
    frame = sample("binary", rows=6, seed=5)
    expected = runs["binary"].predict(frame)
    pl = pytest.importorskip("polars")
    columns = frame.to_dict("list")
    for other in (columns, pl.DataFrame(columns), frame.set_index("id"), frame.set_index("text")):
        pd.testing.assert_frame_equal(runs["binary"].predict(other), expected)
    series = sample("time_series")
    ahead = runs["time_series"].predict(series)
    pd.testing.assert_frame_equal(runs["time_series"].predict(series.set_index("month")), ahead)


def test_a_series_that_lacks_a_value_cannot_be_forecast(runs: dict[str, Run]) -> None:
    series = sample("time_series")
    series.loc[40, "y"] = None
    with pytest.raises(RunError, match="the series has no value of 'y' in row 40; fix: fill it in, or"):
        runs["time_series"].predict(series)


def test_bars_are_shown_in_notebooks_that_have_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(progress, "find_spec", lambda name: name)
    assert not ProgressBar(1).bars.disable
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not progress.shows_bars(Console(file=io.StringIO(), force_terminal=False))
