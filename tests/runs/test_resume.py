"""Killed and resumed, a run ends in the bytes of the run that was never interrupted.

Kills are SIGKILL to a real process at 20 seeded points of an undisturbed run (`tests.support.resume_driver`), each
asserted to have come before the end. Dropout, a moving average, adversarial training, accumulation over an epoch's
short end, early stopping, calibration and two folds are on: every random stream and counter is in play.
"""

from __future__ import annotations

import json
import random
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from mlxbert.with_head import BertWithHead
from tests.support.forked import Driver
from tests.support.forked import driver as running
from tests.support.run_samples import sample

pytestmark = pytest.mark.slow
# How many of the 20 kills come in which phase.
KILLS = {"save": 6, "batch": 4, "update": 2, "evaluation": 2, "between folds": 3, "finish": 3}
# Seconds, and what follows from them.
TIMES = ("seconds", "rows_per_second")


@dataclass(frozen=True)
class Stage:
    """What the kills happen to.

    Attributes:
        root: where everything lies; "straight" is the run that was not interrupted.
        arguments: of `mlxbert`, but for the run's directory.
        driver: of processes.
        names: the points of the undisturbed run.
    """

    root: Path
    arguments: list[str]
    driver: Driver
    names: list[str] = field(default_factory=list)

    def begin(self, name: str, *more: str, at: int | None = None, signals: Sequence[int] = ()) -> dict[str, Any]:
        """Train the run `name` in a process that sends itself `signals` at a point; how it ended."""
        arguments = [*self.arguments, "-o", str(self.root / name), *more]
        return self.driver({"arguments": arguments, "files": str(self.root / name), "at": at, "signals": [*signals]})

    def resume(self, name: str, *, at: int | None = None, signals: Sequence[int] = ()) -> dict[str, Any]:
        """Likewise for a run that is there."""
        arguments, files = ["train", "--resume", str(self.root / name)], str(self.root / f"{name}-resumed")
        return self.driver({"arguments": arguments, "files": files, "at": at, "signals": [*signals]})

    def assert_ends_as_if_never_interrupted(self, name: str) -> dict[str, Any]:
        """Resume it, and compare every file; how it ended."""
        resumed = self.resume(name)
        assert resumed["code"] == 0, resumed["stderr"]
        assert_same(self.root / name, self.root / "straight")
        return resumed


@contextmanager
def driven(root: Path, arguments: list[str], threads: int) -> Iterator[Stage]:
    """A stage on which the undisturbed run has been, twice."""
    environment = {"OPENBLAS_NUM_THREADS": str(threads), "MLXBERT_CACHE": str(root / "cache")}
    with running("tests.support.resume_driver", environment) as driver:
        made = Stage(root, arguments, driver)
        # The first one fills the cache of tokens; the second is the same run once more.
        for name in ("first", "straight"):
            ended = made.begin(name)
            assert ended["code"] == 0, ended["stderr"]
        yield replace(made, names=ended["names"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("resume")
    sample("binary", 32).to_csv(root / "train.csv", index=False)
    test = sample("binary", 10, seed=5).drop(columns="y")
    test.to_csv(root / "test.csv", index=False)
    test[["id"]].assign(y="no").iloc[::-1].to_csv(root / "sample.csv", index=False)
    arguments = ["train", str(root / "train.csv"), "--model", str(tiny_checkpoint)]
    arguments += ["--text", "text", "--target", "y", "--id", "id", "--metric", "f1", "--no-compiled"]
    arguments += ["--test", str(root / "test.csv"), "--sample-submission", str(root / "sample.csv")]
    arguments += ["--folds", "2", "--epochs", "3", "--batch-size", "4", "--rate", "3e-3", "--dropout", "0.1"]
    arguments += ["--accumulation", "3", "--save-every", "2", "--evaluations", "2", "--patience", "3"]
    arguments += ["--ema", "0.9", "--adversarial", "fgm"]
    with driven(root, arguments, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def sharded_stage(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Stage]:
    """What a run is without any option: compiled, on all threads; with batches of enough tokens for two shards."""
    root = tmp_path_factory.mktemp("sharded")
    frame = sample("binary", 48)
    frame.assign(text=[" ".join([text] * 30) for text in frame["text"]]).to_csv(root / "train.csv", index=False)
    arguments = ["train", str(root / "train.csv"), "--model", str(tiny_checkpoint), "--text", "text", "--target", "y"]
    arguments += ["--folds", "2", "--epochs", "1", "--batch-size", "16", "--rate", "3e-3", "--dropout", "0.1"]
    arguments += ["--accumulation", "2", "--save-every", "1"]
    with driven(root, arguments, threads=2) as made:
        yield made


@dataclass(frozen=True)
class Kill:
    """A point of the undisturbed run."""

    number: int
    name: str


def kills(names: Sequence[str]) -> list[Kill]:
    """20 of the points before scores.json is there, phase by phase; of each phase different kinds of points."""
    end = max(i for i, name in enumerate(names) if name == "finish: before replace")
    rng = random.Random(20)
    chosen = []
    for phase, count in KILLS.items():
        kinds: dict[str, list[int]] = {}
        for number, name in enumerate(names[: end + 1]):
            if name.startswith(f"{phase}: "):
                kinds.setdefault(name, []).append(number)
        picked = rng.sample(sorted(kinds), min(count, len(kinds)))
        picked += rng.choices(sorted(kinds), k=count - len(picked))
        chosen += [Kill(rng.choice(kinds[kind]), kind) for kind in picked]
    return chosen


def contents(run: Path) -> dict[str, Any]:
    """Every file of a run: its bytes, or for the logs what is in them but for times."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        name, data = file.relative_to(run).as_posix(), file.read_bytes()
        if name == "metrics.jsonl":
            found[name] = [without_times(json.loads(line)) for line in data.decode().splitlines()]
        elif name in ("scores.json", "run.json"):
            found[name] = without_times(json.loads(data))
        else:
            found[name] = data
    return found


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in (*TIMES, "created")}


def assert_same(run: Path, straight: Path) -> None:
    found, expected = contents(run), contents(straight)
    assert sorted(found) == sorted(expected), "nothing is left over, nothing is missing"
    assert [name for name in found if found[name] != expected[name]] == []
    beside = [path.name for path in run.parent.glob(f".{run.name}.*")]
    assert beside == [], "no lock is left beside the run"


def test_the_kills_are_twenty_and_everywhere(stage: Stage) -> None:
    points = kills(stage.names)
    assert len(points) == 20
    assert {point.name.partition(":")[0] for point in points} == set(KILLS)
    assert "save: half a write" in stage.names


@pytest.mark.parametrize("number", range(20))
def test_killed_and_resumed_to_the_bit(stage: Stage, number: int) -> None:
    point, name = kills(stage.names)[number], f"kill{number}"
    ended = stage.begin(name, at=point.number, signals=[signal.SIGKILL])
    assert ended["signal"] == signal.SIGKILL
    assert ended["names"][-1] == point.name == stage.names[point.number], "killed where it should be"
    assert not (stage.root / name / "scores.json").exists(), "the kill came before the end"
    stage.assert_ends_as_if_never_interrupted(name)


@pytest.mark.parametrize(("phase", "occurrence"), [("batch: begins", 1), ("save: half a write", -1)])
def test_a_run_on_two_threads_and_compiled_resumes_to_the_bit(
    sharded_stage: Stage, phase: str, occurrence: int
) -> None:
    made_on = json.loads((sharded_stage.root / "straight/run.json").read_text())["environment"]
    assert made_on["threads"] == (2 if made_on["device"] == "cpu" else made_on["threads"])
    at = [number for number, name in enumerate(sharded_stage.names) if name == phase][occurrence]
    name = phase.partition(":")[0]
    assert sharded_stage.begin(name, at=at, signals=[signal.SIGKILL])["signal"] == signal.SIGKILL
    sharded_stage.assert_ends_as_if_never_interrupted(name)


def test_several_kills_of_one_run(stage: Stage) -> None:
    """Each one comes later in the run than the state that the one before left."""
    updates = [number for number, name in enumerate(stage.names) if name == "update: ends"]
    ended = [stage.begin("often", at=updates[1], signals=[signal.SIGKILL])]
    ended += [stage.resume("often", at=at, signals=[signal.SIGKILL]) for at in (900, 1400, 1900)]
    assert [one["signal"] for one in ended] == [signal.SIGKILL] * 4
    stage.assert_ends_as_if_never_interrupted("often")


def test_a_kill_before_run_json_leaves_a_directory_that_can_be_used(stage: Stage) -> None:
    first = stage.names.index("start: before replace")
    ended = stage.begin("early", at=first, signals=[signal.SIGKILL])
    assert ended["signal"] == signal.SIGKILL
    assert [path.suffix for path in (stage.root / "early").iterdir()] == [".tmp"]
    again = stage.begin("early")
    assert again["code"] == 0, again["stderr"]
    assert_same(stage.root / "early", stage.root / "straight")


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(stage: Stage) -> None:
    assert_same(stage.root / "first", stage.root / "straight")
    assert stage.begin("other", "--seed", "1")["code"] == 0
    weights = [
        (stage.root / run / "members" / member / "model.safetensors").read_bytes()
        for run, member in (("straight", "seed0-fold0"), ("other", "seed1-fold0"))
    ]
    assert weights[0] != weights[1]
    assert (stage.root / "straight/oof.csv").read_bytes() != (stage.root / "other/oof.csv").read_bytes()


def test_everything_is_in_play(stage: Stage) -> None:
    """A moving average that is not the weights, an early stop, a state within a step."""
    events = contents(stage.root / "straight")["metrics.jsonl"]
    steps = [event for event in events if event["event"] == "step" and event["member"] == "seed0-fold0"]
    assert steps[-1]["step"] < steps[-1]["steps"], "stopped early"
    saves = [i for i, name in enumerate(stage.names) if name == "save: begins"]
    since_update = [
        max(i for i, n in enumerate(stage.names[:at]) if n in ("update: ends", "batch: ends")) for at in saves
    ]
    assert "batch: ends" in [stage.names[i] for i in since_update], "saved within a step"


def ctrl_c(stage: Stage, name: str, at: int, times: int = 1) -> dict[str, Any]:
    ended = stage.begin(name, at=at, signals=[signal.SIGINT] * times)
    assert ended["code"] == 130
    assert "Traceback" not in ended["stderr"]
    return ended


def test_ctrl_c_saves_says_how_to_go_on_and_loses_nothing(stage: Stage) -> None:
    in_second_fold = [number for number, name in enumerate(stage.names) if name == "batch: begins"][-2]
    line = ctrl_c(stage, "asked", in_second_fold)["stderr"].splitlines()[-1]
    run = stage.root / "asked"
    assert re.fullmatch(
        r"mlxbert: seed0-fold1: interrupted at step \d of 6, what is trained so far is saved in "
        + re.escape(f"{run}, its best weights in {run / 'best-so-far'}; go on with: mlxbert train --resume {run}"),
        line,
    )
    BertWithHead.load(run / "best-so-far")
    resumed = stage.assert_ends_as_if_never_interrupted("asked")
    assert "seed0-fold1: goes on after step" in resumed["stderr"]


def test_ctrl_c_at_the_last_batch_of_a_model_begins_no_other(stage: Stage) -> None:
    fold = stage.names[: stage.names.index("between folds: begins")]
    last = max(number for number, name in enumerate(fold) if name == "update: begins")
    assert "seed0-fold0: interrupted at step" in ctrl_c(stage, "last", last)["stderr"]
    stage.assert_ends_as_if_never_interrupted("last")


def test_a_second_ctrl_c_ends_at_once(stage: Stage) -> None:
    in_second_fold = [number for number, name in enumerate(stage.names) if name == "batch: begins"][-2]
    ended = ctrl_c(stage, "twice", in_second_fold, times=2)
    run = stage.root / "twice"
    assert ended["stderr"].splitlines()[-1] == (
        f"mlxbert: interrupted, what is trained so far is saved in {run}; go on with: mlxbert train --resume {run}"
    )
    stage.assert_ends_as_if_never_interrupted("twice")


@pytest.mark.parametrize("point", ["between folds: begins", "finish: begins"])
def test_ctrl_c_outside_training_ends_at_once(stage: Stage, point: str) -> None:
    name = point.split(":")[0].replace(" ", "-")
    ended = ctrl_c(stage, name, stage.names.index(point))
    assert ended["stderr"].splitlines()[-1].startswith("mlxbert: interrupted, what is trained so far is saved in")
    stage.assert_ends_as_if_never_interrupted(name)
