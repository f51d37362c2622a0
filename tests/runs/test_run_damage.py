"""Files of a run that are damaged or hostile: commands that read them end well, or in one line with exit code 2."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.lib.format
import pytest
from click.testing import CliRunner, Result

import converter.cli
import mlxbert.cli
import mlxbert.report.page as page_module
from mlxbert.files.safetensors import read_array_file
from mlxbert.runs import RunError, train
from mlxbert.runs.blend import blend
from mlxbert.training.callbacks import Callback, StepEvent
from mlxbert.training.state import read_arrays, write_arrays
from mlxbert.training.trainer import TrainingInterrupted
from tests.support.run_samples import QUICK, options, sample

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
    monkeypatch.setattr(page_module, "render", lambda plot, theme: b"a picture")
    shutil.copytree(made, tmp_path / "copy")
    yield Runs(made)
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "copy", made)


@pytest.fixture
def undamaged(made: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """`made` itself, for commands that refuse: what a test changes, it puts back."""
    monkeypatch.setattr(page_module, "render", lambda plot, theme: b"a picture")
    return Runs(made)


def invoke(command: Any, arguments: list[Any]) -> Result:
    return CliRunner().invoke(command, [str(one) for one in arguments])


def complaint(result: Result) -> str | None:
    """Why a command did not end as it should: well, or with exit code 2 and an error in one line."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{type(result.exception).__name__}: {result.exception}"
    if result.exit_code not in (0, 2):
        return f"exit code {result.exit_code}: {result.output}"
    if "could not run" in result.output:  # the last catch: a bug
        return result.output
    if any(unicodedata.category(character) == "Cc" for character in result.output.replace("\n", "")):
        return f"control characters: {result.output!r}"
    return None


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a JSON object, of lists the first entry's alone."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another one at `path`."""
    copy = json.loads(json.dumps(value))
    part = copy
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = new
    return copy


READERS = {
    "finished/run.json": ("report", "predict", "export", "resume finished"),
    "finished/scores.json": ("report", "resume finished"),
    "stopped/run.json": ("report stopped", "resume"),
    "blend/blend.json": ("predict blend",),
}


def test_json_of_a_run_with_values_of_other_types(runs: Runs, tmp_path: Path) -> None:
    """A sample of the 5,000 or so; `make fuzz` runs more."""
    rng, found, refused = random.Random(7), [], 0
    for name, names in READERS.items():
        file = runs.root / name
        content = file.read_bytes()
        values = json.loads(content)
        for number, path in enumerate(rng.sample(list(leaves(values)), 8)):
            new = rng.choice(WRONG)
            file.write_text(json.dumps(replaced(values, path, new)))
            command = rng.choice(names)
            result = invoke(*runs.commands(tmp_path / f"{number}")[command])
            refused += result.exit_code == 2
            if why := complaint(result):
                found.append(f"{name}: {path} = {new!r}, {command}: {why}")
            if command == "resume" and result.exit_code == 0:
                shutil.rmtree(runs.root / "stopped")
                shutil.copytree(tmp_path / "copy/stopped", runs.root / "stopped")
            file.write_bytes(content)
    assert found == []
    assert refused > 12


WRONG_FIELDS: tuple[tuple[tuple[Any, ...], Any, str], ...] = (
    (("task", "target"), 5, "task.target must be a list of texts, found 5"),
    (("task", "target", 0), None, "task.target[0] must be a text, found null"),
    (
        ("task", "classes", 1),
        {},
        "task.classes[1] must be a text or a whole number or a number or true or false",
    ),
    (("task", "task"), "binry", "task.task 'binry' is none of binary, multiclass"),
    (("data", "kinds", "text"), "words", "data.kinds.text must be one of text, number, boolean, native, found"),
    (("data", "max_length"), True, "data.max_length must be a whole number, found true"),
    (("data", "text", "first"), {}, "data.text.first must be a text or a list of texts, found an object"),
    (("data", "text", "first"), [], "data.text: the text () names no column"),
    (("config", "epochs"), 0, "config: epochs must be a whole number from 1, not 0"),
    (("config", "seeds"), None, "config.seeds must be a list of whole numbers, found null"),
    (("settings", "head"), [], "settings.head must be an object, found a list of 0"),
    (("folds", "count"), 10**30, "folds.count must be a whole number, found 1000000000000"),
    (("members",), ["../finished"], "members: '../finished' is not the name of a folder of the run"),
    (("submission", "values"), "label", "submission.values must be one of labels, probabilities, values, found"),
    (("environment",), "x\x1b[2J", r'environment must be an object, found "x\u001b[2J"'),
    (("resumed",), [{"at": 5}], "resumed[0].at must be a text, found 5"),
)


@pytest.mark.parametrize("command", ["report", "predict", "export", "resume finished"])
def test_a_wrong_field_of_run_json_is_named(undamaged: Runs, tmp_path: Path, command: str) -> None:
    file = undamaged.root / "finished/run.json"
    content = file.read_bytes()
    for path, new, message in WRONG_FIELDS:
        file.write_text(json.dumps(replaced(json.loads(content), path, new)))
        result = invoke(*undamaged.commands(tmp_path)[command])
        file.write_bytes(content)
        assert result.exit_code == 2
        assert complaint(result) is None
        line = result.output.splitlines()[-1]
        assert f"error: {file}: {message}" in line
        assert line.endswith("; fix: restore the file from a copy of the run, or train again")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, with other bytes, with some bytes more, or something else altogether."""
    place = rng.randrange(len(data))
    kind = rng.choice(("cut", "flip", "flip", "more", "noise"))
    if kind == "cut":
        return data[:place]
    if kind == "more":
        more = rng.choice((b"\0" * 20, b"9" * 5000, b'"', b",,,", b"\xff\xfe", b"nan", b"[[[" * 2000))
        return data[:place] + more + data[place:]
    if kind == "noise":
        return rng.randbytes(rng.randrange(300))
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def test_files_of_a_run_with_other_bytes(runs: Runs, tmp_path: Path) -> None:
    """A small sample; `make fuzz` runs more."""
    rng, found = random.Random(3), []
    names = {
        "finished": ("report", "predict", "export", "resume finished", "push"),
        "stopped": ("report stopped", "resume"),
        "blend": ("predict blend",),
    }
    files = [file for top in names for file in sorted((runs.root / top).rglob("*")) if file.is_file()]
    for number, file in enumerate(rng.choices(files, k=16)):
        top = file.relative_to(runs.root).parts[0]
        shutil.copytree(runs.root / top, tmp_path / f"{number}/{top}")
        file.write_bytes(damaged(file.read_bytes(), rng))
        command = rng.choice(names[top])
        if why := complaint(invoke(*runs.commands(tmp_path / f"{number}")[command])):
            found.append(f"{number}: {file}, {command}: {why}")
        shutil.rmtree(runs.root / top)
        (tmp_path / f"{number}/{top}").rename(runs.root / top)
    assert found == []


def test_arrays_that_claim_more_than_they_have(tmp_path: Path) -> None:
    file = tmp_path / "seed0-fold0.npz"
    np.savez(file, rows=np.arange(3), values=np.zeros((3, 2), order="F"), key="word")
    read = read_array_file(file, RunError, fix="fix: resume")
    assert read is not None
    assert read["values"].shape == (3, 2)
    assert (read["rows"].tolist(), str(read["key"])) == ([0, 1, 2], "word")
    np.savez_compressed(file, rows=np.zeros(1_000_000))
    with pytest.raises(RunError, match=r"npz is damaged \(rows\.npy is compressed, and mlxbert compresses nothing\)"):
        read_array_file(file, RunError, fix="fix: resume")
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}
    for shape, content in (((10**9, 10**9), b""), ((4,), b"1234567"), ((-1,), b"12345678")):
        buffer = io.BytesIO()
        numpy.lib.format.write_array_header_1_0(buffer, {**header, "shape": shape})
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("rows.npy", buffer.getvalue() + content)
        with pytest.raises(RunError, match=r"rows\.npy is no plain array of numbers or texts\); fix: resume"):
            read_array_file(file, RunError, fix="fix: resume")
    np.savez(file, rows=np.array([{}], object))
    with pytest.raises(RunError, match=r"rows\.npy is no plain array"):
        read_array_file(file, RunError, fix="fix: resume")
    assert read_array_file(tmp_path / "absent.npz", RunError, fix="") is None


def test_logits_of_other_rows_or_another_shape(runs: Runs, tmp_path: Path) -> None:
    file = runs.root / "stopped/logits/seed0-fold0.npz"
    with np.load(file) as held:
        arrays = dict(held)
    fix = f"fix: delete {runs.root / 'stopped/members/seed0-fold0'} and resume the run"
    for changes, reason in (
        ({"rows": arrays["rows"][::-1]}, "it is of other rows, or not finite"),
        ({"values": np.full_like(arrays["values"], np.nan)}, "it is of other rows, or not finite"),
        ({"values": arrays["values"][:, None]}, "its arrays have the shapes"),
        ({"step": np.arange(2)}, "its arrays have the shapes"),
    ):
        np.savez(file, **{**arrays, **changes})
        result = invoke(*runs.commands(tmp_path)["resume"])
        assert result.exit_code == 2, result.output
        assert f"error: {file} is damaged ({reason}" in result.output
        assert result.output.endswith(f"; {fix}\n")


@contextmanager
def set_aside(path: Path) -> Iterator[None]:
    """Put something else at `path` inside; what was there is there again afterwards."""
    there = os.path.lexists(path)
    aside = path.with_name(f"{path.name}-aside")
    if there:
        path.rename(aside)
    try:
        yield
    finally:
        path.unlink()
        if there:
            aside.rename(path)


def make_outside(path: Path, name: str) -> dict[str, bytes]:
    """A file, or a folder with a file of a name that a run deletes; its content."""
    if "." in name:
        path.write_text(page_module.MARK)
    else:
        path.mkdir()
        (path / "kept-9.safetensors").write_text("private")
    return contents(path)


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files}


REFUSED_LINK = "is a link, and a run writes only to files and folders of its own; fix: delete it, or put there what it"


@pytest.mark.parametrize(
    "name",
    ["members", "logits", "resume", "metrics.jsonl", "oof.csv", "run.json", "logits/.x.npz", "members/x", "plots"],
)
def test_resuming_writes_through_no_link(undamaged: Runs, tmp_path: Path, name: str) -> None:
    path, outside = undamaged.root / "stopped" / name, tmp_path / "outside"
    before = make_outside(outside, name)
    with set_aside(path):
        path.symlink_to(outside)
        if name == "run.json":
            outside.write_bytes(path.with_name("run.json-aside").read_bytes())
            before = contents(outside)
        result = invoke(*undamaged.commands(tmp_path)["resume"])
    assert result.exit_code == 2
    assert result.output.startswith(f"mlxbert: error: {path} {REFUSED_LINK}")
    assert contents(outside) == before


@pytest.mark.parametrize("name", ["plots", "report.html", "plots/loss.png"])
def test_a_report_writes_through_no_link(undamaged: Runs, tmp_path: Path, name: str) -> None:
    path, outside = undamaged.root / "other" / name, tmp_path / "outside"
    path.parent.mkdir(exist_ok=True)
    before = make_outside(outside, name)
    with set_aside(path):
        path.symlink_to(outside)
        result = invoke(mlxbert.cli.main, ["report", undamaged.root / "other"])
    assert result.exit_code == 2
    assert f"error: {path} {REFUSED_LINK}" in result.output
    assert contents(outside) == before


def test_the_directory_of_a_run_may_be_a_link(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(runs.root / "stopped")
    result = invoke(mlxbert.cli.main, ["train", "--resume", tmp_path / "link"])
    assert result.exit_code == 0, result.output
    assert (runs.root / "stopped/scores.json").is_file()


def make_special(path: Path, kind: str) -> None:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's path is short
            try:
                bound.bind(path.name)
            finally:
                os.chdir(here)


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("finished/run.json", "predict"),
        ("finished/run.json", "export"),
        ("finished/scores.json", "report"),
        ("finished/metrics.jsonl", "report"),
        ("finished/oof.csv", "report"),
        ("finished/oof.csv", "blend"),
        ("blend/blend.json", "predict blend"),
        ("stopped/run.json", "resume"),
        ("stopped/metrics.jsonl", "resume"),
        ("stopped/resume/seed0-fold1/state.safetensors", "resume"),
        ("stopped/logits/seed0-fold0.npz", "resume"),
    ],
)
def test_a_pipe_a_socket_or_a_device_in_a_run(undamaged: Runs, tmp_path: Path, file: str, command: str) -> None:
    for kind in ("a pipe", "a socket", "a device"):
        with set_aside(undamaged.root / file):
            make_special(undamaged.root / file, kind)
            result = invoke(*undamaged.commands(tmp_path)[command])
        assert result.exit_code == 2, result.output
        line = result.output.splitlines()[-1]
        assert f"{undamaged.root / file}" in line
        refused = f"is {kind}, not a regular file; fix:", "a run writes only to files and folders of its own; fix:"
        assert any(words in line for words in refused)


def test_the_seconds_of_every_sitting_count(runs: Runs, tmp_path: Path) -> None:
    """1,000 of the model that was finished before, 500 of the one that was begun, up to its last saved state."""
    run = runs.root / "stopped"
    log, state = run / "metrics.jsonl", run / "resume/seed0-fold1/state.safetensors"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        if event["event"] == "member":
            event["seconds"] = 1000.0
    log.write_text("".join(json.dumps(event) + "\n" for event in events))
    arrays, about = read_arrays(state)
    assert 0 < about["seconds"] < 300
    write_arrays(state, arrays, {**about, "seconds": 500.0})
    result = invoke(*runs.commands(tmp_path)["resume"])
    assert result.exit_code == 0, result.output
    assert 1500 < json.loads((run / "scores.json").read_text())["seconds"] < 1800
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["member"]) == ("member", "seed0-fold1")
    assert 500 < last["seconds"] < 800


def test_a_state_that_this_training_cannot_have(undamaged: Runs, tmp_path: Path) -> None:
    state = undamaged.root / "stopped/resume/seed0-fold1/state.safetensors"
    content = state.read_bytes()
    arrays, about = read_arrays(state)
    kept = state.with_name(f"kept-{about['kept']['step']}.safetensors")
    fix = f"; fix: delete {state.parent}, and this model starts anew"

    def refused() -> str:
        result = invoke(*undamaged.commands(tmp_path)["resume"])
        assert result.exit_code == 2, result.output
        return result.output.splitlines()[-1].removeprefix("mlxbert: error: ")

    for changes, message in (
        ({"batch": 99}, f"batch 99 of epoch {about['epoch']} does not exist"),
        ({"epoch": -1}, f"batch {about['batch']} of epoch -1 does not exist"),
        ({"stale": "x"}, 'stale must be a whole number, found "x"'),
        ({"kept": {"step": 3}}, "kept.epoch is missing"),
    ):
        write_arrays(state, arrays, {**about, **changes})
        assert refused() == f"{state}: {message}{fix}"
    for name, value in (("loss_scale", mx.array(0.0)), ("loss_scale", mx.array(np.nan)), ("step", mx.array(-1))):
        write_arrays(state, {**arrays, name: value}, about)
        assert refused() == (
            f"{state}: {name} is {value.item()}, which no training has; fix: delete the saved state, and this model "
            "starts anew"
        )
    state.write_bytes(content)
    weights, _ = read_arrays(kept)
    with set_aside(kept):
        write_arrays(kept, {name: array[:1] for name, array in weights.items()})
        assert refused() == f"{kept}: its weights are not those of this model{fix}"
