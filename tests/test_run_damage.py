"""Files of a run that are damaged or hostile: commands that read them end well, or in one line with exit code 2."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import converter.cli
import mlxbert.cli
import mlxbert.report.page
from mlxbert.runs import train
from mlxbert.runs.blend import blend
from mlxbert.training.callbacks import Callback, StepEvent
from mlxbert.training.outcome import TrainingInterrupted
from tests.run_samples import QUICK, options, sample

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**30,
    1.5,
    float("nan"),
    "x\x1b]0;title\x07",
    [],
    {},
    [[]],
    [{}],
    {"a": {}},
)


class Stop(Callback):
    """Ctrl-C in the middle of the second model."""

    def on_step(self, event: StepEvent) -> None:
        if (event.fold, event.step) == (1, 3):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Runs:
    """A finished run, one that was stopped, a blend, and the files that commands are given."""

    root: Path

    def commands(self, out: Path) -> dict[str, tuple[Any, list[Any]]]:
        """The command lines that read a run, by name."""
        export, push = converter.cli.export, converter.cli.push
        finished, stopped = self.root / "finished", self.root / "stopped"
        return {
            "report": (mlxbert.cli.main, ["report", finished, "-o", out / "r.html", "--plots", out / "plots"]),
            "predict": (mlxbert.cli.main, ["predict", finished, self.root / "test.csv", "-o", out / "s.csv"]),
            "blend": (mlxbert.cli.main, ["blend", finished, self.root / "other"]),
            "predict blend": (
                mlxbert.cli.main,
                ["predict", self.root / "blend", self.root / "test.csv", "-o", out / "b.csv"],
            ),
            "export": (export, [finished, "-o", out / "export"]),
            "push": (push, [finished / "members/seed0-fold0", "--to", "a/b", "--dry-run", "--allow-unverified"]),
            "resume finished": (mlxbert.cli.main, ["train", "--resume", finished]),
            "report stopped": (mlxbert.cli.main, ["report", stopped, "-o", out / "t.html", "--plots", out / "plots"]),
            "resume": (mlxbert.cli.main, ["train", "--resume", stopped]),
        }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    root = tmp_path_factory.mktemp("damage")
    sample("binary", 32).to_csv(root / "train.csv", index=False)
    sample("binary", 4, seed=5).drop(columns="y").to_csv(root / "test.csv", index=False)
    own: dict[str, Any] = {**options("binary"), **QUICK, "model": tiny_checkpoint, "save_every": 2}
    train(root / "train.csv", out=root / "finished", **own)
    shutil.copytree(root / "finished", root / "other")
    blend([root / "finished", root / "other"], out=root / "blend")
    with pytest.raises(TrainingInterrupted):
        train(root / "train.csv", out=root / "stopped", callbacks=[Stop()], **own)
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runs]:
    """`made`, put back as it was after each test: run.json names its paths."""
    monkeypatch.setattr(mlxbert.report.page, "render", lambda plot, theme: b"a picture")
    shutil.copytree(made, tmp_path / "copy")
    yield Runs(made)
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "copy", made)


def invoke(command: Any, arguments: list[Any]) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments])


def complaint(result: Result) -> str | None:
    """Why a command did not end as it should: well, or with exit code 2 and an error in one line."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in (0, 2):
        return f"exit code {result.exit_code}: {result.output}"
    if any(unicodedata.category(character) == "Cc" for character in result.output.replace("\n", "")):
        return f"control characters: {result.output!r}"
    return None
