"""Folds in parallel, with real processes: the bytes of a sequence, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from mlxbert.backend.device import using_threads
from mlxbert.cli import main
from mlxbert.errors import RunWarning
from mlxbert.report.reported_run import read_reported_run
from mlxbert.runs import Run, RunError, resume, session, train
from mlxbert.runs.progress import WorkersProgress
from mlxbert.runs.share import Share, threads_of
from mlxbert.runs.workers import WorkerError, note_memory
from mlxbert.training.callbacks import Callback, EvaluationEvent, MemberEvent, StepEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.parallel import World
from mlxbert.training.trainer import TrainingInterrupted
from tests.runs.test_resume import assert_same
from tests.support.processes import children_of, ended, lives, ran, started, wait_for
from tests.support.run_samples import QUICK, options, sample

EPOCHS = 6


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A directory with data, the options of a command, and "straight", a run in sequence on one thread."""
    root = tmp_path_factory.mktemp("workers")
    sample("binary", 48).to_csv(root / "train.csv", index=False)
    sample("binary", 10, seed=5).drop(columns="y").to_csv(root / "test.csv", index=False)
    words = ["train", "train.csv", "--model", tiny_checkpoint, "--text", "text", "--target", "y", "--id", "id"]
    words += ["--test", "test.csv", "--folds", "2", "--seed", "0", "--seed", "3", "--epochs", EPOCHS]
    words += ["--batch-size", "4", "--rate", "3e-3", "--dropout", "0.1", "--no-compiled", "--save-every", "3"]
    (root / "options.json").write_text(json.dumps([str(word) for word in words]))
    code, _, error = ran(*words, "--threads", "1", "-o", "straight", cwd=root)
    assert code == 0, error
    return root


def command(stage: Path) -> list[str]:
    words: list[str] = json.loads((stage / "options.json").read_text())
    return words


def saved(run: Path) -> list[Path]:
    return list(run.glob("resume/*/state.safetensors"))


def resumed(stage: Path, name: str, *more: str) -> None:
    """Resume a run; it has the bytes of the one that was trained in sequence."""
    code, _, error = ran("train", "--resume", name, *more, cwd=stage)
    assert code == 0, error
    assert_same(stage / name, stage / "straight")


def test_workers_end_in_the_bytes_of_a_sequence_and_more_of_them_than_cores_are_a_note(stage: Path) -> None:
    code, _, error = ran(*command(stage), "--workers", "8", "-o", "eight", cwd=stage)
    assert code == 0, error
    assert [line for line in error.splitlines() if "warning" in line] == [
        "mlxbert: warning: 4 workers with 1 thread each, and this process may use 2: they wait for each other, and "
        "the bytes stay the same"
    ]
    assert Run.open(stage / "eight").record.config.threads == 1, "two threads, divided"
    assert_same(stage / "eight", stage / "straight")


def test_a_killed_worker_stops_the_others_and_the_run_goes_on(stage: Path) -> None:
    with started(*command(stage), "--workers", "2", "-o", "worker", cwd=stage) as process:
        wait_for(lambda: len(saved(stage / "worker")) == 2, process)
        workers = children_of(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        code, _, error = ended(process)
        assert not any(map(lives, workers))
    (line,) = [line for line in error.splitlines() if "error" in line]
    assert code == 2
    assert (
        "its worker was killed (signal 9); a full memory can be the reason: fewer --workers; the rest is saved" in line
    )
    assert line.startswith("mlxbert: error: seed0-fold")
    assert line.endswith("go on with: mlxbert train --resume worker --workers 2")
    resumed(stage, "worker", "--workers", "2")


def test_workers_end_after_a_killed_parent_and_the_run_goes_on(stage: Path) -> None:
    with started(*command(stage), "--workers", "2", "-o", "parent", cwd=stage) as process:
        wait_for(lambda: len(saved(stage / "parent")) == 2, process)
        workers = children_of(process.pid)
        process.kill()
        ended(process)
    assert len(workers) == 2
    wait_for(lambda: not any(map(lives, workers)))
    resumed(stage, "parent")


def test_ctrl_c_saves_all_and_says_how_to_go_on(stage: Path) -> None:
    with started(*command(stage), "--workers", "2", "-o", "stopped", cwd=stage) as process:
        wait_for(lambda: len(saved(stage / "stopped")) == 2, process)
        workers = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        code, _, error = ended(process)
        assert not any(map(lives, workers))
    assert code == 130
    assert error.splitlines()[-1] == (
        "mlxbert: interrupted, what is trained so far is saved in stopped; go on with: mlxbert train --resume stopped "
        "--workers 2"
    )
    assert not (stage / "stopped/best-so-far").exists()
    resumed(stage, "stopped")


def test_processes_with_a_member_each_end_in_the_bytes_of_a_sequence(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at the same time, of which one begins the run; another one; and what is left, by the one that ends it."""
    words = [*command(stage), "-o", "shared"]
    with (
        started(*words, "--threads", "1", "--member", "fold=1,seed=3", cwd=stage) as one,
        started(*words, "--threads", "1", "--member", "seed=0, fold=1", cwd=stage) as other,
    ):
        outcomes = [ended(one), ended(other)]
    assert [code for code, *_ in outcomes] == [0, 0], outcomes
    for name, value in (("epochs", "9"), ("threads", "2")):
        monkeypatch.chdir(stage)
        refused = CliRunner().invoke(main, [*words, f"--{name}", value, "--member", "fold=0"])
        was = EPOCHS if name == "epochs" else 1
        assert refused.exit_code == 2
        assert f"config.{name} is {was} there and {value} here" in refused.output
    code, out, error = ran(*words, "--member", "fold=0,seed=3", cwd=stage)
    assert code == 0, error
    assert "Finished    3 of 4 models" in out
    assert "  seed0-fold0\n" in out
    assert "mlxbert train --resume shared   (trains what is missing" in out
    assert not (stage / "shared/metrics.jsonl").exists()
    finished = [path.name for path in Run.open(stage / "shared").members]
    assert finished == ["seed0-fold1", "seed3-fold0", "seed3-fold1"]
    histories = read_reported_run(stage / "shared").histories
    assert [history.member for history in histories] == finished
    resumed(stage, "shared")


def test_a_member_is_trained_by_one_process_alone(stage: Path) -> None:
    words = [*command(stage), "--threads", "1", "-o", "twice", "--member", "fold=0,seed=0"]
    with started(*words, cwd=stage) as first:
        wait_for(lambda: bool(saved(stage / "twice")), first)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            code, _, error = ran(*words, cwd=stage)
            assert (code, error.splitlines()[-1]) == (
                2,
                "mlxbert: error: twice: another process trains seed0-fold0 now; fix: wait for its end, or train "
                "another --member",
            )
            code, _, error = ran(*command(stage), "-o", "twice", "--overwrite", cwd=stage)
            assert code == 2
            assert "another process trains seed0-fold0 of the run that is there" in error
        finally:
            first.kill()
            ended(first)
    # The lock of a dead process is free.
    code, out, error = ran(*words, cwd=stage)
    assert code == 0, error
    assert "Finished    1 of 4 models" in out
    resumed(stage, "twice")


@pytest.fixture(scope="module")
def in_order(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> tuple[Path, dict[str, Any]]:
    """A run on a frame in sequence on one thread, and its settings."""
    root = tmp_path_factory.mktemp("frames")
    settings = {**options("binary"), **QUICK, "model": tiny_checkpoint, "threads": 1, "epochs": 1}
    train(sample("binary"), out=root / "straight", test=held_out_rows(), **settings)
    return root, settings


def held_out_rows() -> pd.DataFrame:
    return sample("binary", 10, seed=5).drop(columns="y")


class Heard(Callback):
    """All events, as the parent gets them."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.calls: Counter[str] = Counter()

    def on_run_start(self, info: dict[str, Any]) -> None:
        self.calls["run start"] += 1

    def on_member_start(self, member: str, seed: int, fold: int, steps: int, done: int) -> None:
        self.calls["start"] += 1

    def on_step(self, event: StepEvent) -> None:
        self.events.append(event)

    def on_evaluation(self, event: EvaluationEvent) -> None:
        self.events.append(event)

    def on_member_end(self, event: MemberEvent) -> None:
        self.events.append(event)

    def on_run_end(self, scores: dict[str, Any] | None) -> None:
        self.calls["run end"] += scores is not None


def test_frames_and_callbacks_go_with_workers(in_order: tuple[Path, dict[str, Any]]) -> None:
    root, settings = in_order
    heard = Heard()
    run = train(
        sample("binary"),
        out=root / "two",
        test=held_out_rows(),
        workers=2,
        callbacks=[heard],
        trackers=["tensorboard"],
        **settings,
    )
    assert heard.calls == {"run start": 1, "start": 2, "run end": 1}
    logged = [line.event for line in read_lines(run)]
    assert sorted(map(repr, heard.events)) == sorted(map(repr, logged))
    assert sorted(path.name for path in (run.path / "tensorboard").iterdir()) == ["seed0-fold0", "seed0-fold1"]
    for path in sorted((run.path / "tensorboard").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (run.path / "tensorboard").rmdir()
    assert_same(run.path, root / "straight")


def read_lines(run: Run) -> Any:
    from mlxbert.runs.log import read_run_log

    log = read_run_log(run.files, run.record.members)
    assert log is not None
    return log.lines


class Stops(Callback):
    """Raises at the first step."""

    def on_step(self, event: StepEvent) -> None:
        raise KeyboardInterrupt


def test_a_callback_that_raises_stops_the_workers(in_order: tuple[Path, dict[str, Any]]) -> None:
    root, settings = in_order
    with pytest.raises(
        TrainingInterrupted, match=r"go on with: mlxbert\.resume\('.*stopped', frame, test=frame, workers=2\)"
    ):
        train(sample("binary"), out=root / "stopped", test=held_out_rows(), workers=2, callbacks=[Stops()], **settings)
    run = Run.open(root / "stopped")
    assert run.scores is None
    resume(run.path, sample("binary"), test=held_out_rows(), progress=False)
    assert_same(run.path, root / "straight")


def test_the_error_of_a_worker_names_its_member(in_order: tuple[Path, dict[str, Any]]) -> None:
    root, settings = in_order
    with pytest.raises(WorkerError) as raised:
        train(sample("binary"), out=root / "diverges", workers=2, **{**settings, "rate": 1e30})
    text = str(raised.value)
    assert text.startswith(("seed0-fold0, epoch 1, batch", "seed0-fold1, epoch 1, batch"))
    assert "the rest is saved, go on with: mlxbert.resume(" in text
    assert "\n" not in text


def test_a_loss_of_a_module_reaches_the_workers_and_one_of_a_script_is_refused(
    in_order: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.my_losses import MyBCE

    root, settings = in_order
    settings = {**settings, "head": {"objective": "my_bce"}}
    assert train(sample("binary"), out=root / "own", workers=2, **settings).scores is not None
    monkeypatch.setattr(MyBCE, "__module__", "__main__")
    with pytest.raises(RunError, match="the loss MyBCE is defined in a script or a notebook, which worker processes"):
        train(sample("binary"), out=root / "script", workers=2, **settings)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"workers": 0}, "workers must be a whole number from 1, not 0; fix: --workers 2"),
        ({"workers": 2.0}, "workers must be a whole number from 1, not 2.0; fix: --workers 2"),
        ({"threads": 0}, "threads must be a whole number from 1 to 64, not 0"),
        ({"members": ["fold=9"]}, "there is no member 'fold=9'; the run has folds 0 to 1 and seed 0"),
        ({"members": ["fold=0,seed=4"]}, "there is no member 'fold=0,seed=4'; the run has folds 0 to 1 and seed 0"),
        ({"members": ["fold=x"]}, "--member 'fold=x' is not fold=NUMBER,seed=NUMBER, or one of the two"),
        ({"members": ["fold=1,fold=0"]}, "--member 'fold=1,fold=0' is not fold=NUMBER,seed=NUMBER, or one of the two"),
        ({"members": [""]}, "--member '' is not fold=NUMBER,seed=NUMBER, or one of the two"),
        ({"members": ["fold=1"], "overwrite": True}, "--overwrite deletes what other processes train; fix: leave it"),
        ({"workers": 2, "trackers": ["wandb"]}, "--log wandb follows one model at a time; fix: --workers 1, or --log"),
    ],
)
def test_bad_values_are_one_line(
    in_order: tuple[Path, dict[str, Any]], changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    _, settings = in_order
    with pytest.raises(Exception) as raised:
        train(sample("binary"), out=tmp_path / "run", **{**settings, **changes})
    assert str(raised.value).startswith(text)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("share", "what"),
    [(Share(workers=2), "--workers"), (Share(words=("fold=1",)), "--member")],
    ids=["workers", "member"],
)
def test_processes_that_train_each_model_together_train_no_models_apart(share: Share, what: str) -> None:
    with pytest.raises(
        RunError, match=f"^4 processes of mlx.launch train each model together, and {what} trains models"
    ):
        session._refuse_shares(share, World(0, 4))


def test_threads_are_those_of_the_run_or_divided() -> None:
    config = TrainingConfig(folds=5)
    with using_threads(8):
        assert threads_of(config, Share(), None) == 8
        assert threads_of(config, Share(workers=3), None) == 2
        assert threads_of(config, Share(workers=100), None) == 1, "five workers at most"
        with pytest.warns(RunWarning, match="^9 threads, and this process may use 8: they wait for each other"):
            assert threads_of(TrainingConfig(threads=9), Share(), None) == 9
        with pytest.warns(RunWarning, match="^2 workers with 5 threads each, and this process may use 8"):
            assert threads_of(TrainingConfig(threads=5), Share(workers=2), None) == 5


def test_too_little_memory_is_a_note(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlxbert.runs.workers.free_memory", lambda: 1000)
    with pytest.warns(RunWarning, match=r"^2 workers need at least .* of memory, and 1.0 kB are free; fix: fewer"):
        note_memory(tiny_checkpoint, 2)


def test_a_line_for_each_worker() -> None:
    progress = WorkersProgress(3)
    progress.console.file = open(os.devnull, "w")  # noqa: SIM115, PTH123 - closed with the process
    event = {"seed": 0, "epoch": 0.5, "step": 2, "steps": 4, "rate": 1.0, "norm": 1.0}
    for fold in (0, 1):
        progress.on_member_start(f"seed0-fold{fold}", 0, fold, 4, 0)
        progress.on_step(StepEvent(member=f"seed0-fold{fold}", fold=fold, loss=0.5, rows_per_second=10.0, **event))
    lines = {task.description: task.fields["numbers"] for task in progress.bars.tasks}
    assert lines == {
        "models (0/3)": "20 rows/s",
        "seed0-fold0": "epoch 0.50  step 2/4  loss 0.5000  10 rows/s",
        "seed0-fold1": "epoch 0.50  step 2/4  loss 0.5000  10 rows/s",
    }
    progress.on_member_end(MemberEvent("seed0-fold0", 0, 0, 1.0, 4, {}, 1.0))
    assert [task.description for task in progress.bars.tasks] == ["models (1/3)", "seed0-fold1"]
    progress.on_run_end(None)


def test_a_run_that_is_overwritten_meanwhile_gets_no_model_of_the_old_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """One process has checked everything and has no lock yet; another one overwrites the run with other settings."""

    class Overwrite(Callback):
        def on_run_start(self, info: dict[str, Any]) -> None:
            values = json.loads((tmp_path / "run/run.json").read_text())
            (tmp_path / "run/run.json").write_text(json.dumps({**values, "created": "2020-01-01T00:00:00+00:00"}))

    given = {"model": tiny_checkpoint, "out": tmp_path / "run", **options("binary"), **QUICK}
    with pytest.raises(RunError, match="run: another process has begun another run there; fix: -o DIRECTORY"):
        train(sample("binary"), members=["fold=0"], callbacks=[Overwrite()], **given)
    assert not (tmp_path / "run/members").exists()


def test_a_note_of_a_resumed_run_comes_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    given = {"model": tiny_checkpoint, "out": tmp_path / "run", **options("binary"), **QUICK, "threads": 1}
    train(sample("binary"), members=["fold=0"], **given)
    with using_threads(1), pytest.warns(RunWarning) as caught:
        resume(tmp_path / "run", sample("binary"), members=["fold=0"], workers=2, progress=False)
    assert [str(warning.message)[:28] for warning in caught] == ["2 workers with 1 thread each"]
