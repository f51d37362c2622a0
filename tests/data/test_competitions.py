"""Every ready configuration: consistent in itself, and true of its real files. A new one is tested by registering."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from heads.head_registry import COMPETITION_TYPES, best_head
from heads.metrics import get_metric
from mlxbert.cli import main
from mlxbert.data.competitions import (
    FOLD_KINDS,
    Competition,
    CompetitionError,
    get_competition,
    register_competition,
    registered_competitions,
    unregister_competition,
)
from mlxbert.data.frames import Table
from mlxbert.data.infer_task import infer_task
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import from_json
from tests.support.competition_files import LIBRARIES, read, real_file

COMPETITIONS = registered_competitions()
ALL = pytest.mark.parametrize("competition", COMPETITIONS.values(), ids=COMPETITIONS.keys())


def test_every_competition_type_but_plain_multiclass_has_a_ready_configuration() -> None:
    assert {one.task for one in COMPETITIONS.values()} == set(COMPETITION_TYPES) - {"multiclass"}
    wanted = {"titanic", "house-prices", "disaster-tweets", "jigsaw-toxic", "commonlit-readability", "alexa-stars"}
    assert wanted | {"airline-passengers"} <= set(COMPETITIONS)


@ALL
def test_a_configuration_fits_head_metric_and_submission(competition: Competition) -> None:
    head = best_head(competition.task)
    metric = get_metric(competition.metric)
    assert competition.task in metric.competition_types
    assert competition.fold_kind in FOLD_KINDS[competition.task]
    # What is handed in is what the metric compares.
    handed_in = {"labels": "labels", "probabilities": "scores", "values": "values"}[competition.submission.values]
    assert metric.needs == handed_in
    assert set(competition.head) <= set(head(8, **_complete(competition)).arguments())
    assert re.fullmatch(r"https://\S+", competition.url)
    assert competition.license
    if competition.task == "multilabel":
        assert competition.submission.columns == competition.target
    if competition.id is not None:
        assert competition.submission.id_column == competition.id


def _complete(competition: Competition) -> dict[str, Any]:
    options = dict(competition.head)
    if competition.task == "multilabel":
        options.setdefault("classes", competition.target)
    return options


@ALL
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_configuration_is_true_of_its_real_files(competition: Competition, library: str) -> None:
    frame = read(real_file(competition, competition.train), library)
    table = Table(frame)
    named = (competition.id, competition.group, competition.time)
    for name in (*competition.target, *competition.text.columns, *(one for one in named if one)):
        table.find(name)
    if competition.id is not None:
        values = table.column(competition.id).values
        assert None not in values
        assert len(set(values)) == len(values)
    target = [table.column(name) for name in competition.target]
    time = None if competition.time is None else table.column(competition.time).values
    inferred = infer_task(target, time=time)
    assert inferred.task == competition.task, inferred
    assert inferred.missing == 0
    assert inferred.rows == table.rows
    if competition.task == "multilabel":
        assert inferred.classes == competition.target
    elif inferred.classes is not None:
        assert inferred.classes == competition.head["classes"]
    rendered = competition.text.render(frame)
    assert len(rendered.texts) == table.rows
    assert rendered.empty < 0.05 * table.rows
    assert "nan" not in rendered.texts[0].lower()


@ALL
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_real_test_file_has_what_prediction_reads(competition: Competition, library: str) -> None:
    if competition.test is None:
        pytest.skip("there is none")
    table = Table(read(real_file(competition, competition.test), library))
    for name in (competition.submission.id_column, *competition.text.columns):
        table.find(name)
    assert not set(competition.target) & set(table.names)


@ALL
def test_pandas_and_polars_give_the_same_texts(competition: Competition) -> None:
    file = real_file(competition, competition.train)
    assert competition.text.render(read(file, "pandas")) == competition.text.render(read(file, "polars"))


def test_titanic_reads_like_a_sentence() -> None:
    pandas = pytest.importorskip("pandas")
    competition = get_competition("titanic")
    values = ["Moran, Mr. James", "male", None, 3, 0, 0, 8.4583, None, "Q"]
    row = dict(zip(competition.text.columns, ([value] for value in values), strict=True))
    expected = (
        "Moran, Mr. James. male, age unknown, class 3, 0 siblings or spouses and 0 parents or children aboard, "
        "fare 8.4583, cabin unknown, embarked at Q"
    )
    assert competition.text.render(row).texts == [expected]
    assert competition.text.render(pandas.DataFrame(row)).texts == [expected]


@ALL
def test_a_configuration_can_be_written_down_and_pickled(competition: Competition) -> None:
    settings = json.loads(json.dumps(dataclasses.asdict(competition)))
    assert settings["name"] == competition.name
    assert pickle.loads(pickle.dumps(competition)) == competition
    assert hash(competition) == hash(replace(competition))
    saved = json.loads(json.dumps(competition.text.to_dict()))
    assert from_json(RowText, saved, place="run.json", fix="fix", error=MLXBertError) == competition.text


TITANIC = get_competition("titanic")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "My Competition"}, "competition name 'My Competition': give lower case words joined by '-'"),
        ({"task": "binery"}, "there is no competition type named 'binery': did you mean 'binary'?"),
        ({"metric": "accuraccy"}, "there is no metric named 'accuraccy': did you mean 'accuracy' or "),
        ({"metric": "rmse"}, "metric 'rmse' is for regression, ordinal, time_series, not for binary"),
        ({"folds": 1}, "folds must be a whole number from 2 on, not 1"),
        ({"fold_kind": "forward"}, "fold_kind 'forward' does not fit binary; fitting: stratified, plain, group"),
        ({"fold_kind": "group"}, "fold_kind 'group' needs group='column'"),
        ({"target": ()}, "there is no target"),
        ({"target": ("Survived", "Pclass")}, "binary has one target column, not 2"),
        (
            {"text": RowText("{Sex} {Survived}")},
            "the text has the target column 'Survived', which gives the answer away",
        ),
        ({"submission": Submission("id", ("y",), "values")}, "a submission of values does not fit binary"),
        ({"submission": Submission("id", (), "labels")}, "the submission has no prediction columns, or one twice"),
        ({"submission": Submission("y", ("y",), "labels")}, "the submission has no prediction columns, or one twice"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CompetitionError, match=re.escape(message)) as caught:
        replace(TITANIC, **change)
    assert "\n" not in str(caught.value)


def test_forward_folds_need_a_time_column() -> None:
    with pytest.raises(CompetitionError, match="fold_kind 'forward' needs time='column'"):
        replace(get_competition("airline-passengers"), time=None)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(CompetitionError, match="there is no competition named 'titanick': did you mean 'titanic'"):
        get_competition("titanick")


def test_registering_forgetting_and_a_name_that_is_taken() -> None:
    mine = replace(TITANIC, name="my-ship", title="Mine")
    assert register_competition(mine) is mine
    try:
        assert register_competition(replace(mine)) == mine  # the same again, as in a notebook cell: no matter
        assert get_competition("my-ship") is mine
        with pytest.raises(CompetitionError, match=r"competition 'my-ship' is registered already \(Mine\)"):
            register_competition(replace(mine, folds=3))
    finally:
        unregister_competition("my-ship")
    assert "my-ship" not in registered_competitions()
    with pytest.raises(CompetitionError, match="no competition named 'my-ship'"):
        unregister_competition("my-ship")


@ALL
def test_a_configuration_names_an_encoder_of_the_hub_and_one_for_a_quick_try(competition: Competition) -> None:
    for name in (competition.encoder, competition.checkpoint):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", name)


def test_the_command_lists_the_ready_competitions_with_their_encoders() -> None:
    listed = CliRunner().invoke(main, ["competitions"])
    assert listed.exit_code == 0
    lines = listed.stdout.splitlines()
    for name, competition in COMPETITIONS.items():
        at = lines.index(f"{name}: {competition.title}")
        assert lines[at + 1] == f"  {competition.task}, {competition.metric}; data: {competition.url}"
        assert lines[at + 2] == f"  encoder: {competition.encoder}; quick try: {competition.checkpoint}"
