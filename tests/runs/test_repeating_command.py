"""The command that a report gives to repeat a run: typed into a shell, it trains with the same settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import mlxbert.runs.session as session
from mlxbert.cli import main
from mlxbert.cli.train import train as train_command
from mlxbert.data.text_columns import RowText
from mlxbert.runs.command import repeating_command
from mlxbert.runs.files import RunError
from mlxbert.runs.inputs import Inputs
from mlxbert.runs.record import RunRecord
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig
from tests.support.report_samples import write_run


def words_of(line: str) -> list[str]:
    """As a shell reads them."""
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def typed(line: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, RunSettings, TrainingConfig]:
    """The data, settings and numbers that a run begins with when the line is typed into a shell."""

    begun: list[tuple[Any, RunSettings, TrainingConfig]] = []

    def begin(*, inputs: Inputs, settings: RunSettings, config: TrainingConfig, **_: Any) -> None:
        begun.append((inputs.data, settings, config))
        raise RunError("this is as far as it goes")

    monkeypatch.setattr(session, "run_session", begin)
    program, *arguments = words_of(line)
    assert program == "mlxbert"
    result = CliRunner().invoke(main, arguments)
    assert len(begun) == 1, result.output
    return begun[0]


def record_of(tmp_path: Path, settings: RunSettings, config: TrainingConfig, path: str | None) -> RunRecord:
    info = json.loads((write_run(tmp_path / "sample", "binary", rows=6, steps=4) / "run.json").read_text())
    changes = {"settings": settings.to_dict(), "config": config.to_dict(), "data": {**info["data"], "path": path}}
    return RunRecord.of(json.loads(json.dumps({**info, **changes})))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"target": ("y",)}, {}),
    "everything": (
        {
            "target": ("a b", "c'd", "--e"),
            "text": RowText("{Sex}, age {Age}\nsecond line", ("first", "$HOME `id`")),
            "task": "multilabel",
            "id": "id",
            "group": "user",
            "ignore": ("x", "-y"),
            "head": {
                "objective": "focal",
                "calendar": ("year", "month"),
                "log_targets": True,
                "name": "7",
                "gamma": 2.0,
            },
            "encoding": "cp1252",
            "test": "te st.csv",
            "sample_submission": "s.csv",
            "values": "labels",
            "drop_missing": True,
            "revision": "main",
        },
        {"seeds": (0, 7), "epochs": 1, "rate": 3e-05, "compiled": False, "freeze_embeddings": True, "metric": "f1"},
    ),
    "classes": ({"target": ("y",), "classes": ("low", "middle", "high")}, {"folds": 3}),
    "numbers": ({"target": ("y",), "classes": (1, 2.5)}, {"fold_kind": "plain"}),
    "held out": ({"target": ("y",), "hold_out": 0.2}, {"max_norm": 0.0}),
    "validation file": ({"target": ("y",), "valid": "valid.csv"}, {"folds": 1}),
    "competition": ({"competition": "titanic"}, {"epochs": 1}),
    "competition with its own": ({"competition": "disaster-tweets", "id": "row", "test": "t.csv"}, {"pooling": "cls"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_line_begins_the_same_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, numbers = CASES[name]
    if "competition" in given:
        ready = session.get_competition(given["competition"])
        own = {key: value for key, value in given.items() if key != "competition"}
        settings = RunSettings.for_competition(ready, model="a model", **own)
        config = TrainingConfig.make({**session.competition_numbers(ready), **numbers})
    else:
        settings, config = RunSettings(model="a model", **given), TrainingConfig(**numbers)
    record = record_of(tmp_path, settings, config, "my data/-train.csv")
    line = repeating_command(record, str(tmp_path / "again & again"))
    assert typed(line, monkeypatch) == ("my data/-train.csv", settings, config)
    assert words_of(line)[-2:] == ["-o", str(tmp_path / "again & again")]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({}, None),
        ({"classes": ("1", "2")}, "train.csv"),
        ({"text": RowText(("only",))}, "train.csv"),
        ({"text": RowText("a", missing="-")}, "train.csv"),
        ({"head": {"name": {"a": 1}, "b-c": 1}}, "train.csv"),
        ({"competition": "gone"}, "train.csv"),
    ],
)
def test_what_no_command_line_says_is_a_call(given: dict[str, Any], path: str | None, tmp_path: Path) -> None:
    settings = RunSettings(model="a model", target=("y",), **given)
    record = record_of(tmp_path, settings, TrainingConfig(epochs=2), path)
    call = repeating_command(record, "runs/again")
    arguments: dict[str, Any] = {}
    scope = {"RowText": RowText, "mlxbert": type("mlxbert", (), {"train": lambda *a, **k: arguments.update(k)})}
    exec(call.replace("frame", "None"), scope)
    assert arguments == {
        "model": "a model",
        "target": ("y",),
        "epochs": 2,
        "out": "runs/again",
        **{name: value for name, value in given.items() if name != "competition"},
    }


def test_every_setting_has_its_option() -> None:
    """A new field of the settings is either an option of the same name, or told to `repeating_command`."""
    options = {parameter.name for parameter in train_command.params}
    names = {field.name for kind in (RunSettings, TrainingConfig) for field in dataclasses.fields(kind)}
    assert names - options == {"submission"}
