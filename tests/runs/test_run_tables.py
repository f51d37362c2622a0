"""From a file as people have it to a run: what was read as what is said first, and test files are read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

import mlxbert
from mlxbert.cli import main
from mlxbert.data.folds import FoldError, make_folds, one_label
from mlxbert.data.frames import DataWarning
from mlxbert.data.infer_task import InferredTask
from mlxbert.errors import MLXBertError
from mlxbert.runs import Run
from mlxbert.runs.prepare import check_size
from tests.support.run_samples import QUICK, sample, texts

SHORT = ("--epochs", "1", "--folds", "2", "--max-length", "16", "--no-compiled")
LINES = texts(42)[0]


class Runs:
    """A folder with a checkpoint, and commands in it."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model, self.out = root, model, root / "run"

    def train(self, name: str, content: str, *options: str) -> Result:
        (self.root / name).write_text(content)
        command = (
            "train",
            self.root / name,
            "--model",
            self.model,
            "-o",
            self.out,
            "--text",
            "text",
            *options,
            *SHORT,
        )
        return CliRunner().invoke(main, [str(word) for word in command])

    def predict(self, name: str, content: str, *options: str) -> Result:
        (self.root / name).write_text(content)
        command = ("predict", self.out, self.root / name, "-o", self.root / "s.csv", *options)
        return CliRunner().invoke(main, [str(word) for word in command])

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "run.json").read_text())
        return found


@pytest.fixture
def runs(tmp_path: Path, tiny_checkpoint: Path) -> Runs:
    return Runs(tmp_path, tiny_checkpoint)


def csv(cells: list[str], separator: str = ",", rows: int = 42) -> str:
    """A table of id, text and y."""
    quoted = [f'"{cell}"' if separator in cell else cell for cell in cells]
    lines = [separator.join([f"r{i}", LINES[i], quoted[i % len(quoted)]]) for i in range(rows)]
    return "\n".join([separator.join(["id", "text", "y"]), *lines]) + "\n"


def test_what_was_inferred_and_why_is_said_before_the_training(runs: Runs) -> None:
    result = runs.train("a.csv", csv(["1", "2", "4"]), "--target", "y", "--id", "id")
    assert result.exit_code == 0, result.output
    reason = runs.info()["task"]["reason"]
    said = result.stderr.splitlines()
    assert said[:7] == [
        f"Data      {runs.root / 'a.csv'}, 42 rows",
        f"Target    y: multiclass: {reason}",
        "Classes   3: 1, 2, 4",
        "Metric    accuracy (higher is better)",
        "Text      text",
        "Not text  id (id)",
        "Folds     2, stratified",
    ]
    assert reason.startswith("3 whole numbers with gaps, 1 … 4")


def test_a_semicolon_file_with_decimal_commas_is_a_regression(runs: Runs) -> None:
    result = runs.train("a.csv", csv(["1,5", "2,0", "2,5", "3,0", "4,5"], ";"), "--target", "y", "--id", "id")
    assert result.exit_code == 0, result.output
    assert "'1,5' is read as 1.5: ',' is the decimal mark (--task multiclass" in result.stderr
    assert runs.info()["task"]["cells"] == {"as": "numbers", "decimal": ",", "thousands": "", "unit": ""}
    truth = Run.open(runs.out).oof().filter(like="target").iloc[:, 0]
    assert list(truth) == [[1.5, 2.0, 2.5, 3.0, 4.5][i % 5] for i in range(42)]
    assert runs.predict("t.csv", "id;text\nx;a b\n").exit_code == 0


def test_quotes_of_the_training_file_are_those_of_the_test_file(runs: Runs) -> None:
    train = csv(["0", "1"], "\t").replace("r5\t", 'r5\t"').replace("r31\t", 'r31\t"')
    result = runs.train("a.tsv", train, "--target", "y", "--id", "id")
    assert result.exit_code == 0, result.output
    assert "quotes are read as characters like any other (--quoting none)" in result.stderr
    assert "42 rows, quotes read as characters" in result.stderr
    assert len(Run.open(runs.out).oof()) == 42
    assert runs.info()["data"]["quoting"] == "none"
    # Each quote has its fellow, so that this file alone could be either.
    test = "id\ttext\n" + "".join(f"{i}\t{LINES[i]}\n" for i in range(40))
    test = test.replace("\n5\t", '\n5\t"').replace(f"{LINES[30]}\n", f'{LINES[30]}"\n')
    result = runs.predict("t.tsv", test)
    assert (result.exit_code, len(pd.read_csv(runs.root / "s.csv"))) == (0, 40)
    result = runs.predict("t.tsv", test, "--quoting", "minimal")
    assert (result.exit_code, len(pd.read_csv(runs.root / "s.csv"))) == (0, 15)


@pytest.mark.parametrize("word", ["NA", "NaN"])
def test_a_class_that_is_called_na_is_kept_if_it_is_named(runs: Runs, word: str) -> None:
    content = csv([word, "EU", "US"])
    refused = runs.train("a.csv", content, "--target", "y", "--id", "id")
    assert refused.exit_code == 2
    assert "where a label is called NA, name every label (--class NA …" in refused.stderr
    dropped = runs.train("a.csv", content, "--target", "y", "--id", "id", "--drop-missing", "--overwrite")
    options = f"--class EU --class {word} --class US"
    said = f"14 cells such as '{word}' are read as missing; if that is a label, name every label: {options}\n"
    assert said in dropped.stderr
    result = runs.train("a.csv", content, "--target", "y", "--id", "id", "--overwrite", *options.split())
    assert result.exit_code == 0, result.output
    oof = Run.open(runs.out).oof()
    assert list(oof.filter(like="target").iloc[:6, 0]) == [word, "EU", "US"] * 2


def test_words_for_nothing_are_labels_without_being_named(runs: Runs) -> None:
    for words in (["None", "x"], ["null", "x"], ["nan", "x"], ["n/a", "x"]):
        (runs.root / "a.csv").write_text(csv(words))
        frame = mlxbert.data.reading.read_data(runs.root / "a.csv", labels={"y": ()}).frame
        assert sorted(set(frame["y"])) == sorted(words)


@pytest.mark.parametrize("cells", [["x,z", "y", "x", "z,y"], ["['x', 'z']", "['y']", "['x']", "['z', 'y']"]])
def test_several_labels_in_a_cell_are_learned_as_several(runs: Runs, cells: list[str]) -> None:
    result = runs.train("a.csv", csv(cells), "--target", "y", "--id", "id", "--task", "multilabel")
    assert result.exit_code == 0, result.output
    oof = Run.open(runs.out).oof()
    assert [list(oof[name][:4]) for name in ("target:x", "target:y", "target:z")] == [
        [1, 0, 1, 0],
        [0, 1, 0, 1],
        [1, 0, 0, 1],
    ]


def test_columns_that_pandas_numbers_are_named_by_their_numbers(runs: Runs) -> None:
    frame = sample("binary")[["text", "y"]].set_axis([0, 1], axis=1)
    for i, (text, target) in enumerate(((0, 1), ("0", "1"))):
        run = mlxbert.train(frame, model=runs.model, text=text, target=target, out=runs.root / f"r{i}", **QUICK)
        predicted = run.predict(frame[[0]])
        assert len(predicted) == 48
    with pytest.raises(MLXBertError, match="has no text column '2'; its columns: '0', '1'"):
        mlxbert.train(frame, model=runs.model, text=2, target=1, out=runs.out, **QUICK)


def test_a_text_of_numbers_alone_is_warned_of(runs: Runs) -> None:
    frame = sample("binary").assign(age=range(48))
    with pytest.warns(DataWarning, match="the text is column 'age', which holds numbers alone, such as 0: a language"):
        mlxbert.train(frame, model=runs.model, text="age", target="y", out=runs.out, **QUICK)


def test_equal_texts_are_named_where_no_folds_can_be_made_of_them(runs: Runs) -> None:
    content = "text,y\n" + "".join(f"the cat,{i % 2}\n" for i in range(40))
    result = runs.train("a.csv", content, "--target", "y")
    assert result.exit_code == 2
    assert result.stderr == (
        "mlxbert: error: all 40 texts are equal, and equal texts are kept together in one fold: 2 parts cannot be "
        "made; fix: --text with columns that differ from row to row\n"
    )
    with pytest.raises(FoldError, match=r"the 9 rows have 3 different texts, and .*, or --folds 3$"):
        make_folds("plain", ["a", "b", "c"] * 3, folds=5)


def test_a_hundred_thousand_classes_are_refused_with_the_memory_that_they_need() -> None:
    task = InferredTask("multiclass", "", ("y",), tuple(range(100_000)), 1, 200_000, 0)
    with pytest.raises(
        MLXBertError, match=r"'y' has 100000 classes in 200000 rows: their probabilities alone take 80\.0 GB"
    ):
        check_size(task, 200_000)
    # Folds count them without a table of rows and classes, which was 18.6 GB.
    targets = np.arange(200_000) // 2
    assert one_label(targets).shape == (200_000, 100_000)
    folds = make_folds("stratified", [str(i) for i in range(20_000)], targets=targets[:20_000], folds=2)
    assert [len(fold.valid) for fold in folds] == [10_000, 10_000]
