"""kill -9 in the middle of a conversion: no half model, no model lost, and the next run leaves no trace of it.

Where the kill comes is counted in contacts with the file system (`tests.support.interruption`), not in time: each of
the 20 seeds picks one of all those that an undisturbed run has.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from converter.convert import convert
from mlxbert.files.output_directory import recover
from mlxbert.files.output_file import manifest_problems
from tests.support.forked import Driver
from tests.support.forked import driver as running

pytestmark = pytest.mark.slow  # some hundred conversions

SEEDS = range(20)
# The last one: as where the system cannot exchange two directories.
MODES = ("fresh", "overwrite", "overwrite in two steps")


@dataclass(frozen=True)
class Stage:
    """What the kills happen to: the model to convert, what it and its predecessor look like when converted."""

    source: Path
    old: Path
    new: Path
    points: dict[str, list[str]]
    driver: Driver

    def kill(self, out: Path, mode: str, at: int) -> dict[str, Any]:
        """Convert the source in a process that is killed at a point; how it ended."""
        return drive(self.driver, self.source, out, mode, at)


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def drive(driver: Driver, src: Path, out: Path, mode: str, at: int | None) -> dict[str, Any]:
    job = {"overwrite": mode != "fresh", "exchange": mode != "overwrite in two steps", "at": at}
    return driver({"src": str(src), "out": str(out), **job})


def save_random_model(directory: Path, seed: int) -> Path:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    model = transformers.BertForPreTraining(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    return directory


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("stage")
    old_source = save_random_model(directory / "a/bert", seed=0)
    source = save_random_model(directory / "b/bert", seed=1)
    old = convert(old_source, directory / "old/out", verify=False).path
    new = convert(source, directory / "new/out", verify=False).path
    assert contents(old) != contents(new)
    points = {}
    with running("tests.support.kill_driver") as driver:
        for mode in MODES:
            out = prepare(directory / mode, mode, old)
            run = drive(driver, source, out, mode, None)
            assert run["code"] == 0, run["stderr"]
            assert contents(out) == contents(new)
            points[mode] = run["names"]
        yield Stage(source, old, new, points, driver)


def prepare(work: Path, mode: str, old: Path) -> Path:
    """The target in a new directory, with the old model there or nothing."""
    work.mkdir()
    if mode != "fresh":
        shutil.copytree(old, work / "out")
    return work / "out"


def is_json(file: Path) -> bool:
    """Whether it was written to its end; a directory with half a config.json in it is not taken for a model."""
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def kill_and_check(stage: Stage, work: Path, mode: str, at: int, *, recover_first: bool) -> None:
    overwrite = mode != "fresh"
    place = f"{mode}: {stage.points[mode][at]} ({at} of {len(stage.points[mode])})"
    old, new = contents(stage.old), contents(stage.new)
    out = prepare(work, mode, stage.old)

    run = stage.kill(out, mode, at)
    assert run["signal"] == signal.SIGKILL, f"{place}: {run['stderr']}"
    assert run["names"] is None, place  # it did not get to its end

    models = [path.parent for path in work.glob("*/config.json") if is_json(path)]
    for model in models:
        assert contents(model) in (old, new), place
        assert manifest_problems(model) == [], place
    if out.exists():
        assert contents(out) in ([old, new] if overwrite else [new]), place
    assert out.exists() or mode != "overwrite", place  # exchanged, it is never absent
    if overwrite:
        assert any(contents(model) in (old, new) for model in models), place

    if recover_first:
        recover(out)
        assert [path.name for path in work.iterdir()] == (["out"] if out.exists() else []), place
        if overwrite:
            assert contents(out) in (old, new), place
    convert(stage.source, out, verify=False, overwrite=overwrite or out.exists())
    assert contents(out) == new, place
    assert [path.name for path in work.iterdir()] == ["out"], place


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_kill_at_a_seeded_point(stage: Stage, tmp_path: Path, mode: str, seed: int) -> None:
    at = random.Random(f"{mode} {seed}").randrange(len(stage.points[mode]))
    kill_and_check(stage, tmp_path / "work", mode, at, recover_first=seed % 2 == 0)


@pytest.mark.parametrize("rename", range(3))
@pytest.mark.parametrize("moment", ["before rename", "after rename"])
def test_a_kill_around_each_rename_of_an_overwrite(stage: Stage, tmp_path: Path, rename: int, moment: str) -> None:
    """The old one aside, the new one in, the old one to its deletion: seeds might miss these."""
    mode = "overwrite in two steps"
    renames = [at for at, name in enumerate(stage.points[mode]) if name == moment]
    assert len(renames) == 3
    kill_and_check(stage, tmp_path / "work", mode, renames[rename], recover_first=True)


@pytest.mark.parametrize("moment", ["before exchange", "after exchange"])
def test_a_kill_around_the_exchange(stage: Stage, tmp_path: Path, moment: str) -> None:
    (at,) = [at for at, name in enumerate(stage.points["overwrite"]) if name == moment]
    assert "before rename" not in stage.points["overwrite"]
    kill_and_check(stage, tmp_path / "work", "overwrite", at, recover_first=True)
    at = at + 1 if moment == "after exchange" else at - 1
    kill_and_check(stage, tmp_path / "again", "overwrite", at, recover_first=False)


def test_a_kill_in_the_middle_of_a_tensor_file(stage: Stage, tmp_path: Path) -> None:
    halves = [at for at, name in enumerate(stage.points["fresh"]) if name == "half a write"]
    assert len(halves) > 20  # a write for each tensor
    kill_and_check(stage, tmp_path / "work", "fresh", halves[len(halves) // 2], recover_first=False)
