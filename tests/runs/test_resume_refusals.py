"""What an unfinished run refuses to go on with, and what it does not: each by name, in a line, without a change."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from converter.convert import convert
from mlxbert.backend.device import using_threads
from mlxbert.cli import main
from mlxbert.runs import Run, resume, train
from mlxbert.runs import record as environment_module
from mlxbert.runs.files import delete_leftovers, run_lock
from mlxbert.runs.session import resuming_call
from mlxbert.training.callbacks import Callback, EvaluationEvent
from mlxbert.training.trainer import TrainingInterrupted
from tests.support.report_samples import write_run
from tests.support.run_samples import QUICK, options, sample
from tests.support.tiny import save_tiny


class Stop(Callback):
    """Ctrl-C after the first evaluation of the second fold."""

    def on_evaluation(self, event: EvaluationEvent) -> None:
        if event.fold == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A directory with data, checkpoint, and a run that was stopped in its second fold."""
    root = tmp_path_factory.mktemp("begun")
    sample("binary").to_csv(root / "train.csv", index=False)
    shutil.copytree(tiny_checkpoint, root / "model")
    own: dict[str, Any] = {**options("binary"), **QUICK, "model": root / "model"}
    with pytest.raises(TrainingInterrupted):
        train(root / "train.csv", out=root / "run", callbacks=[Stop()], **own)
    return root


@pytest.fixture
def stage(begun: Path, tmp_path: Path) -> Iterator[Path]:
    """`begun`, put back as it was after each test: run.json names its paths."""
    shutil.copytree(begun, tmp_path / "copy")
    yield begun
    shutil.rmtree(begun)
    shutil.copytree(tmp_path / "copy", begun)


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)], prog_name="mlxbert")


def refused(stage: Path, *arguments: object) -> str:
    """The one line that the command answers with; the run is as before."""
    before = contents(stage / "run")
    result = command("--resume", stage / "run", *arguments)
    assert result.exit_code == 2, result.output
    assert contents(stage / "run") == before
    (line,) = result.stderr.splitlines()
    return line


def test_other_threads_that_cannot_be_set_are_refused_and_allowed(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where MLX keeps its own BLAS: else the run goes on with its own number of threads."""
    now = environment_module.blas_threads()
    monkeypatch.setattr(environment_module, "blas_threads", lambda: now + 1)
    assert refused(stage) == (
        f"mlxbert: error: the run was begun elsewhere (threads was {now}, is {now + 1}), "
        "and would not end in the same bytes; fix: --allow-changes to go on all the same"
    )
    assert command("--resume", stage / "run", "--allow-changes").exit_code == 0
    assert (stage / "run/scores.json").is_file()
    run = Run.open(stage / "run")
    assert run.info["environment"]["threads"] == now
    assert [one["environment"]["threads"] for one in run.info["resumed"]] == [now + 1]


def test_a_run_goes_on_with_its_own_threads(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = Run.open(stage / "run").record.config.threads
    assert began is not None
    with using_threads(began + 1):
        assert command("--resume", stage / "run").exit_code == 0
    assert "resumed" not in Run.open(stage / "run").info


@pytest.mark.parametrize("package", ["mlx", "mlxbert", "numpy", "scipy", "tokenizers", "pandas"])
def test_another_version_is_refused(stage: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = environment_module.package_versions
    monkeypatch.setattr(
        environment_module,
        "package_versions",
        lambda names: {name: "9.9" if name == package else version for name, version in versions(names).items()},
    )
    line = refused(stage)
    assert f"{'' if package == 'mlxbert' else 'packages.'}{package} was" in line
    assert "is 9.9)" in line


@pytest.mark.parametrize("allowed", [(), ("--allow-changes",)])
def test_other_data_are_refused_whatever_is_allowed(stage: Path, allowed: tuple[str, ...]) -> None:
    frame = pd.read_csv(stage / "train.csv")
    frame.loc[3, "y"] = {"yes": "no", "no": "yes"}[frame.loc[3, "y"]]
    frame.to_csv(stage / "train.csv", index=False)
    assert refused(stage, *allowed) == (
        f"mlxbert: error: {stage / 'train.csv'}: the data have changed since the run began; "
        "fix: give what the run began with, or train anew"
    )


def test_data_that_are_gone_may_lie_elsewhere(stage: Path) -> None:
    (stage / "train.csv").rename(stage / "moved.csv")
    assert str(stage / "train.csv") in refused(stage)
    assert command("--resume", stage / "run", stage / "moved.csv").exit_code == 0


def test_a_run_without_its_learning_rate_is_refused(stage: Path) -> None:
    """Only an older mlxbert writes such a file; the default of this one may be another."""
    values = json.loads((stage / "run/run.json").read_text())
    values["config"]["rate"] = None
    (stage / "run/run.json").write_text(json.dumps(values))
    assert refused(stage, "--allow-changes") == (
        f"mlxbert: error: {stage / 'run/run.json'}: config has no rate: an older mlxbert with another default "
        "began the run; fix: train it again, or write its rate into config.rate: the largest in metrics.jsonl, if the "
        "warm-up is over"
    )
    values["config"]["rate"] = 1e-4
    (stage / "run/run.json").write_text(json.dumps(values))
    assert command("--resume", stage / "run").exit_code == 0


def test_another_checkpoint_is_refused(stage: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "source", num_hidden_layers=2, seed=1)
    convert(tmp_path / "source", tmp_path / "other", verify=False)
    shutil.rmtree(stage / "model")
    shutil.copytree(tmp_path / "other", stage / "model")
    assert f"{stage / 'model'}: the encoder has changed since the run began" in refused(stage)


def test_weights_that_are_not_the_manifests_are_refused(stage: Path) -> None:
    """The manifest is the same: its hashes tell."""
    file = stage / "model/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert refused(stage) == (
        f"mlxbert: error: {stage / 'model'}: model.safetensors is not the file that manifest.json lists; "
        "fix: convert or download it again"
    )


def test_another_configuration_of_the_encoder_is_refused(stage: Path) -> None:
    file = stage / "model/config.json"
    file.write_text(file.read_text().replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))
    assert f"{stage / 'model'}: config.json has changed since the run began" in refused(stage)


def test_other_folds_are_refused(stage: Path) -> None:
    file = stage / "run/run.json"
    file.write_text(file.read_text().replace('"fold_seed": 0', '"fold_seed": 1'))
    assert "the folds have changed since the run began" in refused(stage)


def test_a_damaged_state_says_what_to_delete(stage: Path) -> None:
    state = stage / "run/resume/seed0-fold1/state.safetensors"
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_bytes(b"no tensors")
    result = command("--resume", stage / "run")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert f"{state} is damaged" in line
    assert f"fix: delete {state.parent}, and this model starts anew" in line
    shutil.rmtree(state.parent)
    assert command("--resume", stage / "run").exit_code == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--epochs", "9"], "--epochs"),
        (["--no-calibrate"], "--calibrate"),
        (["--freeze-layers", "0"], "--freeze-layers"),
        (["-o", "elsewhere"], "--out"),
        (["--target", "y"], "--target"),
        (["--seed", "3"], "--seed"),
        (["--drop-missing"], "--drop-missing"),
    ],
)
def test_no_other_flag_goes_with_resume(stage: Path, flags: list[str], named: str) -> None:
    assert refused(stage, *flags) == (
        f"mlxbert train: error: --resume takes the run's own settings, not {named}; fix: see mlxbert train --help"
    )


def test_the_command_to_go_on_with_is_quoted(tmp_path: Path) -> None:
    run = Run.open(write_run(tmp_path / "my run", "binary"))
    command_line = resuming_call(run.files, run.record)
    assert shlex.split(command_line) == ["mlxbert", "train", "--resume", str(tmp_path / "my run")]


def test_one_process_at_a_time(stage: Path) -> None:
    with run_lock(stage / "run"):
        expected = f"{stage / 'run'}: another process is training this run now; fix: wait for its end"
        assert refused(stage) == f"mlxbert: error: {expected}"
        link = stage / "link"
        link.symlink_to(stage / "run")
        again = command("--resume", link)
        assert "another process is training this run now" in again.stderr
        result = command(stage / "train.csv", "--model", stage / "model", "--target", "y", "-o", link, "--overwrite")
        assert "another process is training this run now" in result.stderr


def test_a_finished_run_is_left_as_it_is(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("--resume", stage / "run").exit_code == 0
    before = contents(stage / "run")
    monkeypatch.chdir(stage / "run")
    result = command("--resume", ".")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == ". is finished: nothing is left to do"
    assert contents(stage / "run") == before


def test_a_damaged_run_is_not_called_finished(stage: Path) -> None:
    assert command("--resume", stage / "run").exit_code == 0
    (stage / "run/scores.json").write_text("{}")
    result = command("--resume", stage / "run")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "scores.json" in result.stderr


def test_no_run(tmp_path: Path) -> None:
    result = command("--resume", tmp_path / "none")
    assert (result.exit_code, result.stderr) == (
        2,
        f"mlxbert: error: {tmp_path / 'none'}: no such directory; fix: give a run that `mlxbert train -o` made\n",
    )
    (tmp_path / "some").mkdir()
    assert "is not a run (no run.json of mlxbert in it)" in command("--resume", tmp_path / "some").stderr
    (tmp_path / "some/run.json").write_text("{")
    assert "run.json: not valid JSON" in command("--resume", tmp_path / "some").stderr


def test_a_run_on_a_frame_needs_the_frame_again(tmp_path: Path, tiny_checkpoint: Path) -> None:
    frame = sample("binary")
    own: dict[str, Any] = {**options("binary"), **QUICK, "model": tiny_checkpoint, "out": tmp_path / "run"}
    with pytest.raises(TrainingInterrupted) as caught:
        train(frame, callbacks=[Stop()], **own)
    assert str(caught.value).endswith(f"go on with: mlxbert.resume({str(tmp_path / 'run')!r}, frame)")
    assert "was trained on a frame; fix: resume(path, frame)" in command("--resume", tmp_path / "run").stderr
    assert resume(tmp_path / "run", frame, progress=False).scores is not None


def test_what_a_kill_left_half_written_in_a_model_is_deleted(tmp_path: Path) -> None:
    member = tmp_path / "members" / "seed0-fold0"
    member.mkdir(parents=True)
    for name in ("config.json", ".config.json.0123456789abcdef.tmp"):
        (member / name).write_text("{}")
    delete_leftovers(tmp_path)
    assert [path.name for path in member.iterdir()] == ["config.json"]
