"""What `mlxbert train` and `mlxbert predict` are given by mistake: one line, exit code 2, and nothing is left."""

from __future__ import annotations

import errno
import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from converter.convert import convert
from heads.binary import BinaryClassificationHead
from mlxbert.cli import main
from mlxbert.files.output_file import WriteError
from mlxbert.runs import Run, resume, train
from mlxbert.runs.files import RunFiles
from mlxbert.training.callbacks import Callback, StepEvent
from tests.support.run_samples import QUICK, options, sample
from tests.support.tiny import save_tiny

COLUMNS = ("--text", "text", "--target", "y", "--id", "id")
SHORT = ("--epochs", "1", "--batch-size", "8", "--folds", "2", "--rate", "3e-3", "--no-compiled")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments], prog_name="mlxbert")


def told(result: Result) -> list[str]:
    """The lines of standard error but for what is said of every run: the data, and its evaluations."""
    of_every_run = re.compile(r"(Data|Target|Classes|Metric|Text|Not text|Folds)  .*|.*held-out loss.*")
    return [line for line in result.stderr.splitlines() if not of_every_run.fullmatch(line)]


class Place:
    """A folder with a checkpoint in it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model, self.file, self.run = root, model, root / "train.csv", root / "run"

    def train(self, frame: pd.DataFrame, *more: object, columns: tuple[str, ...] = COLUMNS) -> Result:
        frame.to_csv(self.file, index=False)
        return command("train", self.file, "--model", self.model, "-o", self.run, *columns, *SHORT, *more)

    def refused(self, frame: pd.DataFrame, *more: object, columns: tuple[str, ...] = COLUMNS) -> str:
        result = self.train(frame, *more, columns=columns)
        assert result.exit_code == 2, result.output
        assert not self.run.exists(), "nothing is left of what was refused"
        line, *list_of_names = told(result)
        assert all(one.startswith("  ") for one in list_of_names)
        return line.removeprefix("mlxbert: error: ")


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path) -> Place:
    return Place(tmp_path, tiny_checkpoint)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--target", "yy", "has no target column 'yy'; did you mean 'y'?"),
        ("--text", "texts", "has no text column 'texts'; did you mean 'text'?"),
        ("--text", "{textt}, twice", "has no text column 'textt'; did you mean 'text'?"),
        ("--id", "idd", "has no id column 'idd'; did you mean 'id'?"),
        ("--group", "user", "has no group column 'user'; its columns: 'id', 'text', 'y'"),
        ("--time", "day", "has no time column 'day'; its columns: 'id', 'text', 'y'"),
    ],
)
def test_a_missing_column_is_named_with_its_nearest(place: Place, flag: str, value: str, message: str) -> None:
    columns = tuple(word for pair in zip(COLUMNS[::2], COLUMNS[1::2], strict=True) if pair[0] != flag for word in pair)
    assert place.refused(sample("binary"), flag, value, columns=columns) == f"{place.file} {message}"


def test_empty_texts_are_counted_encoded_and_warned_of(place: Place) -> None:
    frame = sample("binary")
    frame.loc[[2, 5], "text"] = ""
    result = place.train(frame)
    assert result.exit_code == 0, result.output
    expected = f"mlxbert: warning: {place.file}: 2 of 48 rows have no text; they are encoded as an empty one"
    assert told(result) == [expected]
    assert len(Run.open(place.run).oof()) == 48


def test_a_target_with_one_class(place: Place) -> None:
    line = place.refused(sample("binary").assign(y="yes"))
    assert line == "target 'y' has one value, 'yes', in all 48 rows: nothing can be learned"


def test_targets_that_are_missing_and_dropped_if_asked(place: Place) -> None:
    frame = sample("binary")
    frame.loc[:3, "y"] = None
    assert place.refused(frame) == (
        "target 'y': 4 of 48 rows have no value (first: row 0); fix: drop them before (--drop-missing); where a "
        "label is called NA, name every label (--class NA …; of a pandas frame keep_default_na=False)"
    )
    assert place.refused(frame.assign(y=None)).startswith("target 'y' has no value in any of its 48 rows")
    result = place.train(frame, "--drop-missing")
    assert result.exit_code == 0, result.output
    assert told(result) == ["mlxbert: warning: 4 of 48 rows have no target and are left out"]
    assert list(Run.open(place.run).oof()["row"]) == list(range(4, 48))


def test_a_class_too_rare_for_the_folds_is_an_error_and_a_label_a_warning(place: Place) -> None:
    frame = sample("binary")
    line = place.refused(frame.assign(y=["odd", *frame["y"][1:]]), "--task", "multiclass")
    assert line.startswith("1 of 3 classes: too rare for 2 folds")
    line = place.refused(frame.assign(y=["odd", *frame["y"][1:]]), "--task", "multiclass", "--fold-kind", "plain")
    assert line.startswith("plain folds leave a side without a class; fix: fold_kind='stratified'")
    labels = sample("multilabel").assign(y3=[1, *[0] * 47])
    columns = ("--text", "text", "--id", "id", "--target", "y1", "--target", "y2", "--target", "y3")
    result = place.train(labels, columns=columns)
    assert result.exit_code == 0, result.output
    assert told(result) == ["mlxbert: warning: 1 of 3 labels are too rare to be in each of 2 folds: y3 (1 positives)"]


def test_ids_that_repeat_or_are_missing(place: Place) -> None:
    frame = sample("binary")
    line = place.refused(frame.assign(id=["r0001", *frame["id"][1:]]))
    fix = "fix: drop the repeated rows, or name another column: --id COLUMN"
    assert line == f"{place.file}: 1 ids of column 'id' come more than once; {fix}"
    line = place.refused(frame.assign(id=[None, *frame["id"][1:]]))
    assert line == f"{place.file}: row 0 has no id in column 'id'; fix: fill it, or leave the id out"


def test_checkpoints_that_were_never_converted_are_of_another_width_or_damaged(place: Place) -> None:
    frame, model = sample("binary"), place.root / "model"
    shutil.copytree(place.model, model)
    place.model = model
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert place.refused(frame).startswith(f"{model}: the tensors are not those that config.json calls for")
    (model / "model.safetensors").write_bytes(b"cut off")
    assert place.refused(frame) == (
        f"{model}: model.safetensors is not the file that manifest.json lists; fix: convert or download it again"
    )
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "model.safetensors.index.json").unlink()  # with it, the directory could be another MLX tool's
    assert place.refused(frame) == f"{model} was never converted; run: mlxbert-convert {model} -o mlx_models/model"
    place.model = place.root / "none"
    assert place.refused(frame) == (
        f"{place.model}: no such directory, and not a Hub id such as mlx-community/NAME; "
        "fix: check the path, or make one with mlxbert-convert SRC -o DIRECTORY"
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("horizon=x", "horizon must be a whole number from 1, not 'x'; fix: --head horizon=12"),
        ("window=1.5", "window must be a whole number from 0, not 1.5; fix: --head window=12"),
        ("window=true", "window must be a whole number from 0, not True; fix: --head window=12"),
    ],
)
def test_steps_of_a_series_that_are_no_whole_number(place: Place, option: str, message: str) -> None:
    columns = ("--target", "y", "--text", "{month}", "--time", "month", "--task", "time_series", "--head", option)
    assert place.refused(sample("time_series"), columns=columns) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "epochs must be a whole number from 1, not 0"),
        (["--rate", "nan"], "rate must be a number from 0, not nan"),
        (["--seed", "-1"], "seeds must be different whole numbers from 0 on, not (-1,)"),
        (["--dropout", "0.95"], "dropout must be a number from 0 to 0.9, not 0.95"),
        (["--metric", "f11"], "there is no metric named 'f11': did you mean 'f1'?"),
        (["--metric", "rmse"], "metric 'rmse' is not for binary; fix: one of accuracy"),
        (["--task", "binry"], "there is no task named 'binry': did you mean 'binary'?"),
        (["--head", "objectiv=1"], "head 'binary' has no option 'objectiv'; did you mean 'objective'?"),
        (["--head", "objective=foo"], "binary: objective 'foo' is unknown; known: bce, focal"),
        (["--head", "focal"], "--head 'focal': give NAME=VALUE, such as objective=focal"),
        (["--pooling", "men"], "pooling 'men' is unknown; known: cls, mean"),
        (["--schedule", "step"], "schedule 'step' is unknown; known: linear, cosine, constant, polynomial"),
        (["--adversarial", "pgd"], "adversarial 'pgd' is unknown; known: fgm, awp"),
        (["--freeze-layers", "9"], "freeze_layers is 9; fix: from 0 to 2, the encoder's layers"),
        (["--reinitialize-layers", "9"], "reinitialize_top: 9 layers; fix: from 0 to 2"),
        (
            ["--freeze-layers", "2", "--reinitialize-layers", "1"],
            "freeze_layers=2 and reinitialize_layers=1 of 2 layers would freeze 1 at random weights; fix: 1 less",
        ),
        (
            ["--adversarial", "fgm", "--freeze-embeddings"],
            "adversarial 'fgm' moves the word embeddings, which are frozen; fix: train them, or adversarial='awp'",
        ),
        (["--schedule-power", "0"], "schedule: power must be above 0, not 0.0"),
        (["--folds", "100"], "48 rows are too few for 100 parts; fix: fewer folds, or more data"),
        (["--fold-kind", "loo"], "fold_kind 'loo' is not known; known: plain"),
        (["--valid-size", "0.5"], "valid_size goes with folds=1, not with 2 folds; fix: leave one out"),
        (["--hold-out", "nan"], "hold_out must be a share of the rows or their number, not nan; fix: 0.2"),
        (["--hold-out", "1.5"], "hold_out must be a share between 0 and 1, or fewer than 48 rows, not 1.5"),
        (["--log", "mlflow"], "tracker 'mlflow' is unknown; known: tensorboard, wandb"),
        (["--values", "values"], "a submission of 'values' does not fit binary; fix: labels or probabilities"),
        (["--encoding", "utf-9"], "encoding 'utf-9' is not known; fix: utf-8"),
        (["--class", "yes"], "target 'y' has the value 'no', which is not one of the 1 classes given"),
        (["--competition", "titanik"], "there is no competition named 'titanik': did you mean 'titanic'?"),
        (["--sample-submission", "s.csv"], "sample_submission is given without test; fix: give the file to predict"),
    ],
)
def test_wrong_values_of_flags(place: Place, flags: list[str], message: str) -> None:
    assert place.refused(sample("binary"), *flags).startswith(message)


def test_flags_that_there_are_not(place: Place) -> None:
    line = place.refused(sample("binary"), "--epoch", "3")
    assert line.startswith("mlxbert train: error: No such option")
    line = place.refused(sample("binary"), "--allow-changes")
    assert line.startswith("mlxbert train: error: --allow-changes goes with --resume")


class Broken:
    """A head's loss that is not a number from its third call on."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        loss = self.loss(*arguments, **options)
        return loss * float("nan") if self.calls == 3 else loss


def test_a_loss_that_is_not_finite_stops_and_is_skipped_if_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BinaryClassificationHead, "loss", broken := Broken(BinaryClassificationHead.loss))
    monkeypatch.setattr(BinaryClassificationHead, "loss", lambda *a, **k: broken(*a, **k))
    result = place.train(sample("binary"))
    assert result.exit_code == 2
    (line,) = told(result)
    start, _, rows = line.partition("; rows ")
    assert start == (
        "mlxbert: error: seed0-fold0, epoch 1, batch 3: step 3, batch 1 of it: the loss is nan; the weights are "
        "those of before it; fix: look at its rows, lower the rate, or on_nonfinite='skip'"
    )
    ids = rows.split(", ")
    assert len(set(ids)) == 8
    assert set(ids) <= set(sample("binary")["id"])
    broken.calls = 0
    result = place.train(sample("binary"), "--on-nonfinite", "skip", "--overwrite")
    assert result.exit_code == 0, result.output
    events = [json.loads(line) for line in (place.run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event.get("skipped")] == [3]


def test_a_training_that_diverges_makes_no_model(place: Place) -> None:
    result = place.train(sample("binary"), "--rate", "1e30", "--on-nonfinite", "skip")
    assert result.exit_code == 2
    (line,) = told(result)
    assert line == "mlxbert: error: seed0-fold0: the logits after step 3 are not finite; fix: a lower rate"
    assert not (place.run / "members").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full for larger files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FillDisk(Callback):
    """From the fifth step on."""

    def on_step(self, event: StepEvent) -> None:
        if event.step == 5:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))


def test_a_full_disk_leaves_the_state_before(place: Place) -> None:
    frame = sample("binary")
    own: dict[str, Any] = {**options("binary"), **QUICK, "model": place.model, "save_every": 2}
    straight = train(frame, out=place.root / "straight", **own)
    with files_of_at_most(resource.RLIM_INFINITY), pytest.raises(WriteError) as caught:
        train(frame, out=place.run, callbacks=[FillDisk()], **own)
    state = place.run / "resume/seed0-fold0"
    assert re.fullmatch(
        re.escape(f"{state}: no room for ")
        + r"(state|kept-6)\.safetensors \(File too large\): [\d.]+ kB needed there; "
        + "free some space and resume the run; go on with: "
        + re.escape(f"mlxbert.resume({str(place.run)!r}, frame)"),
        str(caught.value),
    )
    assert sorted(path.name for path in state.iterdir()) == ["kept-3.safetensors", "state.safetensors"]
    resumed = resume(place.run, frame, progress=False)
    assert resumed.files.oof.read_bytes() == straight.files.oof.read_bytes()
    for one, other in zip(resumed.members, straight.members, strict=True):
        assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_a_disk_that_is_full_before_run_json_advises_no_resuming(place: Place) -> None:
    sample("binary").to_csv(place.file, index=False)
    with files_of_at_most(200):
        result = command("train", place.file, "--model", place.model, "-o", place.run, *COLUMNS, *SHORT)
    assert result.exit_code == 2
    line = told(result)[-1]
    assert "no room for run.json (File too large)" in line
    assert line.endswith(" needed there; free some space and train again")
    assert "resume" not in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A run whose texts are made of a number and a category."""
    root = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": range(40), "size": rng.integers(0, 90, 40), "kind": rng.choice(["a", "b"], 40)})
    frame["y"] = np.where(frame["kind"] == "a", 1, 0)
    frame.to_csv(root / "train.csv", index=False)
    arguments = ("--target", "y", "--id", "id", "--text", "{kind}, size {size}", "--metric", "roc_auc", *SHORT)
    result = command("train", root / "train.csv", "--model", tiny_checkpoint, "-o", root / "run", *arguments)
    assert result.exit_code == 0, result.output
    return root


def rows(count: int = 6) -> pd.DataFrame:
    return pd.DataFrame({"id": range(100, 100 + count), "size": range(count), "kind": ["a", "b"] * (count // 2)})


def predict(trained: Path, frame: pd.DataFrame, *more: object) -> tuple[Result, Path]:
    out = trained / "submission.csv"
    out.unlink(missing_ok=True)
    frame.to_csv(trained / "test.csv", index=False)
    return command("predict", trained / "run", trained / "test.csv", "-o", out, *more), out


def test_unseen_categories_and_words_for_numbers_are_predicted(trained: Path) -> None:
    frame = rows().astype({"size": object})
    frame.loc[0, "kind"], frame.loc[1, "size"], frame.loc[2, "size"] = "never seen", "huge", None
    result, out = predict(trained, frame)
    assert result.exit_code == 0, result.output
    made = pd.read_csv(out)
    assert list(made.columns) == ["id", "y"]
    assert list(made["id"]) == list(frame["id"])
    assert made["y"].between(0, 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.head(4), "{test}: 2 of its ids are not in {sample} (column 'id'); fix: give the files that"),
        (
            lambda s: pd.concat([s, s.head(1).assign(id=7)]),
            "{test}: 1 of the 7 ids of {sample} are missing (column 'id'); fix: give the files that belong together",
        ),
        (
            lambda s: s.assign(id=[7, *s["id"][1:]]),
            "{test}: 1 of the 6 ids of {sample} are missing and 1 of its ids are not in {sample} (column 'id'); "
            "fix: give the files that belong together, or --id COLUMN\n  missing:\n  7\n  not in {sample}:\n  100",
        ),
        (
            lambda s: s.assign(id=s["id"].astype(float)),
            "the same ids are written in two ways, '100' in {test} and '100.0' in {sample} (6 of 6); fix: write them "
            "alike; in pandas read_csv(…, dtype={{'id': str}})",
        ),
        (
            lambda s: pd.concat([s, s.head(1)]),
            "{sample}: id '100' comes twice or is missing in column 'id'; fix: down",
        ),
        (
            lambda s: s.assign(z=0),
            "{sample} has the columns y, z, and the model predicts y; fix: take the other columns out of it, or "
            "--values labels|probabilities\n  the model predicts no:\n  z",
        ),
    ],
)
def test_a_sample_that_does_not_fit_is_refused_before_anything_is_written(
    trained: Path, change: Any, message: str
) -> None:
    file = trained / "sample.csv"
    change(rows()[["id"]].assign(y=0.5)).to_csv(file, index=False)
    result, out = predict(trained, rows(), "--sample-submission", file)
    assert result.exit_code == 2
    assert message.format(sample=file, test=trained / "test.csv") in "\n".join(told(result))
    assert not out.exists()


def test_the_sample_is_checked_before_the_training_too(place: Place) -> None:
    test, file = place.root / "test.csv", place.root / "sample.csv"
    sample("binary", 8, seed=3).drop(columns="y").to_csv(test, index=False)
    pd.DataFrame({"id": ["r0000", "r0001"], "y": "no"}).to_csv(file, index=False)
    line = place.refused(sample("binary"), "--test", test, "--sample-submission", file)
    assert line.startswith(f"{test}: 6 of its ids are not in {file} (column 'id')")
    assert place.refused(sample("binary"), "--test", place.root / "t.csv") == (
        f"{place.root / 't.csv'} is not there; fix: check the path"
    )
    sample("binary", 8).drop(columns="text").to_csv(test, index=False)
    assert place.refused(sample("binary"), "--test", test).startswith(f"{test} has no column 'text'")


def test_test_files_and_flags_that_cannot_be(trained: Path) -> None:
    for frame, message in (
        (rows().drop(columns="kind"), "has no column 'kind'; did you mean 'id'?"),
        (rows().drop(columns="id"), "has no id column 'id'; did you mean 'kind'? (fix: --id COLUMN)"),
        (rows().assign(id=1), "1 ids of column 'id' come more than once"),
        (rows(0), "has no rows"),
    ):
        result, out = predict(trained, frame)
        assert result.exit_code == 2
        assert message in told(result)[0]
        assert not out.exists()
    result, _ = predict(trained, rows(), "--average", "ranks", "--values", "labels")
    assert told(result) == [
        "mlxbert: error: ranks are averaged, and the submission holds labels; fix: --values probabilities"
    ]
    result = command("predict", trained / "run", trained / "test.csv", "-o", trained)
    assert told(result)[0].startswith(f"mlxbert: error: {trained} has other files, such as ")


def test_a_run_that_cannot_be_deleted_is_told_in_a_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(files: RunFiles) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(files.oof))

    place.run.mkdir()
    (place.run / "run.json").write_text('{"format": "mlxbert-run", "version": 1}')
    monkeypatch.setattr("mlxbert.runs.begin.empty", denied)
    result = place.train(sample("binary"), "--overwrite")
    assert result.exit_code == 2
    assert told(result) == [
        f"mlxbert: error: {place.run}: cannot be written: Permission denied; give another output with -o"
    ]


def test_a_run_is_not_overwritten_by_one_that_begins_in_it(trained: Path) -> None:
    model = trained / "run/members/seed0-fold0"
    arguments = ("--model", model, "-o", trained / "run", "--target", "y", "--overwrite", *SHORT)
    result = command("train", trained / "train.csv", *arguments)
    assert result.exit_code == 2
    assert told(result)[-1] == (
        f"mlxbert: error: {model} lies in {trained / 'run'}, which is to be overwritten; fix: another -o DIRECTORY"
    )
    assert model.is_dir()


def test_a_quantized_encoder_is_refused_before_an_old_run_is_deleted(place: Place) -> None:
    packed = place.root / "packed"
    save_tiny(place.root / "source", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    convert(place.root / "source", packed, quantize="8bit", verify=False)
    place.model = packed
    expected = f"mlxbert-convert {packed} --dequantize -o OUT, train that, and quantize the result"
    line = place.refused(sample("binary"))
    assert line.startswith("this model is quantized")
    assert line.endswith(expected)
    assert "--lora" in line
    place.run.mkdir()
    (place.run / "run.json").write_text(json.dumps({"format": "mlxbert-run", "version": 1}))
    (place.run / "scores.json").write_text("{}")
    result = place.train(sample("binary"), "--overwrite")
    assert result.exit_code == 2
    assert told(result)[-1].endswith(expected)
    assert (place.run / "scores.json").is_file()
