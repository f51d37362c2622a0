"""run.json, scores.json and metrics.jsonl: one reader each; what other versions wrote is read, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.log import RunLog, read_log
from mlxbert.runs.record import RunRecord, check_known_settings, going_on, read_record
from mlxbert.runs.scores import read_scores
from mlxbert.training.callbacks import MemberEvent, StepEvent
from tests.support.report_samples import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "binary", rows=12, folds=2, steps=4)


def values_of(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "run.json").read_text())
    return values


def test_the_first_format_is_read_without_what_came_later(run: Path) -> None:
    """Before "test", "valid" and "resumed" were recorded, and before `TrainingConfig` had all of its fields."""
    values = values_of(run)
    assert not {"resumed", "settings.competition"} & set(values)
    for name in ("group", "time", "size"):
        del values["data"][name]
    record = RunRecord.of(values)
    assert (record.data.test, record.data.valid, record.data.group, record.resumed) == (None, None, None, ())
    assert (record.config.epochs, record.config.batch_size, record.config.patience) == (2, 32, None)
    assert record.members == record.prediction_members == ("seed0-fold0", "seed0-fold1")


def test_fields_of_a_later_version_are_kept_and_not_trained_with(run: Path) -> None:
    values = values_of(run)
    values["new"], values["data"]["new"], values["config"]["new"] = {"a": 1}, [1], True
    (run / "run.json").write_text(json.dumps(values))
    record = read_record(run)
    assert dict(record.values) == values
    again = going_on(record, {"threads": 3})
    assert {**again.values, "resumed": None} == {**values, "resumed": None}
    assert [one.environment for one in again.resumed] == [{"threads": 3}]
    assert going_on(again, {"threads": 3}) is again
    with pytest.raises(RunError, match=r"run\.json: config has new, which this mlxbert does not know; fix: update"):
        check_known_settings(record, run / "run.json")


def test_of_forward_folds_the_last_predict(run: Path) -> None:
    values = values_of(run)
    values["folds"] = {"kind": "forward", "count": 2, "sha256": None}
    assert RunRecord.of(values).prediction_members == ("seed0-fold1",)
    values["folds"]["count"] = 3
    with pytest.raises(
        RunError, match=r"run\.json: members has none of fold 2, the last of folds\.count; fix: restore"
    ):
        RunRecord.of(values)


def test_undefined_scores_are_nan(run: Path) -> None:
    values = json.loads((run / "scores.json").read_text())
    values["pooled"]["roc_auc"] = None
    (run / "scores.json").write_text(json.dumps(values))
    scores = read_scores(run)
    assert scores is not None
    assert scores.pooled["roc_auc"] != scores.pooled["roc_auc"]
    assert scores.members[1].metrics == values["members"][1]["metrics"]
    (run / "scores.json").unlink()
    assert read_scores(run) is None


def test_a_log_is_read_up_to_where_a_kill_cut_it(run: Path) -> None:
    file = run / "metrics.jsonl"
    whole = read_log(file)
    assert whole is not None
    lines = file.read_text().splitlines(keepends=True)
    assert [line.values for line in whole.lines] == [json.loads(line) for line in lines]
    assert not whole.cut_off
    for cut, events in ((lines[-1][:-1], len(lines)), (lines[-1][:-2], len(lines) - 1), ("", len(lines) - 1)):
        file.write_text("".join([*lines[:-1], cut]))
        log = read_log(file)
        assert log is not None
        assert (len(log.lines), log.cut_off) == (events, cut == lines[-1][:-2])
    file.write_text("".join([*lines[:2], lines[3][:9] + "\n", *lines[4:]]))
    with pytest.raises(RunError, match=r"metrics\.jsonl: line 3 is not JSON \(.*\); fix: restore the file, or remove"):
        read_log(file)


def test_a_model_that_starts_again_takes_back_what_it_had_logged_beyond_that(run: Path) -> None:
    """Other models' lines stay, and so do kinds of event that a later version wrote."""
    file = run / "metrics.jsonl"
    with file.open("a") as log:
        log.write('{"event": "later", "member": "seed0-fold1"}\n{"event": "step", "mem')
    RunLog(RunFiles(run)).on_member_start("seed0-fold1", 0, 1, 4, 2)
    log = read_log(file)
    assert log is not None
    events = [line.event for line in log.lines]
    own = [event for event in events if event is not None and event.member == "seed0-fold1"]
    assert {event.step for event in own} == {1, 2}
    assert not any(isinstance(event, MemberEvent) for event in own)
    others = [event for event in events if event is not None and event.member == "seed0-fold0"]
    assert len([event for event in others if isinstance(event, StepEvent)]) == 4
    assert log.lines[-1].values == {"event": "later", "member": "seed0-fold1"}


def test_a_member_whose_name_no_file_system_takes_is_refused(run: Path) -> None:
    file = run / "run.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps({**info, "members": ["a" * 300]}))
    with pytest.raises(RunError, match="is not the name of a folder of the run"):
        read_record(run)
