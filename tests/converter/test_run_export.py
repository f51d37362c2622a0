"""Exported models and runs predict what mlxbert predicts: every head and pooling, without mlx, in a bare Python."""

from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from converter import cli
from converter.convert import convert
from converter.export.checkpoint import ExportError
from converter.export.inference_modules.predictor import Predictor
from converter.export.member import EXPORTED_HEADS, stl_matrices
from converter.export.run import code_files, export_directory
from heads.time_series import decompose
from mlxbert.checkpoint import load
from mlxbert.data.text_columns import RowText
from mlxbert.files.output_file import manifest_problems
from mlxbert.models.architecture import HeadKind, architecture, supported
from mlxbert.models.base import POOLER
from mlxbert.pooling import CHOICES
from tests.support.exported_samples import logits_of, months, run_json, series, texts, trained, write_run
from tests.support.tiny import save_tiny, save_tokenizer

DRIVER = Path(__file__).parents[1] / "support" / "exported_driver.py"
TOLERANCE = 1e-4
HORIZON = 6
MIXED = {"name": "weighted_layers", "layers": 2, "strategy": "max"}


@dataclass(frozen=True)
class Case:
    """A head and a pooling; `whole`: BertForSequenceClassification gives the same."""

    head: str
    pooling: Any = "mean"
    options: dict[str, Any] = field(default_factory=dict)
    whole: bool = False


CASES = {
    **{f"binary-{pooling}": Case("binary", pooling, whole=pooling == "pooler") for pooling in CHOICES},
    "binary-mixed": Case("binary", MIXED),
    "multiclass": Case("multiclass", "attention"),
    "multiclass-pooler": Case("multiclass", "pooler", whole=True),
    "multilabel": Case("multilabel", "weighted_layers"),
    "multilabel-pooler": Case("multilabel", "pooler", whole=True),
    "regression-log": Case("regression", "pooler", {"log_targets": True}),
    "regression-gaussian": Case("regression", "pooler", {"objective": "gaussian", "columns": 2}),
    "regression-none": Case("regression", "pooler", {"scaling": "none"}, whole=True),
    **{
        f"regression-{scaling}": Case("regression", "pooler", {"scaling": scaling, "columns": 3}, whole=True)
        for scaling in ("standard", "robust", "minmax")
    },
    "regression-one": Case("regression", "max", {"scaling": "robust"}),
    **{
        f"ordinal-{objective}": Case("ordinal", "pooler", {"objective": objective})
        for objective in ("coral", "corn", "cumulative_link")
    },
    "ordinal-two": Case("ordinal", "cls", {"objective": "coral", "classes": [0, 1, 2, 3, 4, 5]}),
    "series-text": Case("time_series", "mean", {"window": 0}),
    "series-last": Case("time_series", "cls", {"window": 5, "calendar": ("year", "month", "week", "day")}),
    "series-none": Case("time_series", "mean", {"window": 5, "baseline": "none", "objective": "gaussian"}),
    "series-season": Case("time_series", "attention", {"window": 12, "period": 4, "log_targets": True}),
    "series-all": Case(
        "time_series", "pooler", {"window": 8, "period": 4, "calendar": ("year",), "objective": "gaussian"}
    ),
}
ROWS = 23


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run_export")
    save_tiny(root / "source", "BertForPreTraining")
    return convert(root / "source", root / "mlx", verify=False).path


def member_of(case: Case, converted: Path, out: Path, seed: int = 0) -> Path:
    options = {"horizon": HORIZON, **case.options} if case.head == "time_series" else case.options
    return trained(converted, out, case.head, case.pooling, seed, **options)


def rows_of(case: Case) -> list[dict[str, Any]]:
    """Pairs, so that token types count; of a series with its months and values."""
    first, second = texts(ROWS), texts(ROWS, 1)
    rows = [{"a": a, "b": b} for a, b in zip(first, second, strict=True)]
    if case.head != "time_series":
        return rows
    return [
        row | {"month": month, "target": value}
        for row, month, value in zip(rows, months(ROWS), series(ROWS).tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Expected:
    """By mlxbert."""

    head: Any
    logits: Any
    probabilities: Any = None
    labels: Any = None
    values: Any = None


def expected_of(case: Case, member: Path) -> Expected:
    """What the saved model says of the rows."""
    rows = rows_of(case)
    extra = {}
    if case.head == "time_series":
        window = case.options["window"]
        if window:
            extra["history"] = np.lib.stride_tricks.sliding_window_view(series(ROWS), window)
        if case.options.get("calendar"):
            extra["made_at"] = np.array(months(ROWS)[max(window, 1) - 1 :], "datetime64")
        rows = rows[max(window, 1) - 1 :]
    head, logits = logits_of(member, [row["a"] for row in rows], [row["b"] for row in rows], **extra)
    if case.head == "ordinal":
        return Expected(head, logits, head.probabilities(logits), head.predict(logits).tolist())
    if case.head in ("regression", "time_series"):
        return Expected(head, logits, values=head.predict(logits).reshape(len(rows), -1))
    return Expected(head, logits, head.predict(logits), head.decide(logits).tolist())


def assert_close(found: Any, expected: Any) -> None:
    """Within 1e-4 at every element, of its own size where that is above 1."""
    if expected is None:
        assert found is None
        return
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    assert (np.abs(found - expected) / np.maximum(1, np.abs(expected))).max() < TOLERANCE


def bare_environment() -> dict[str, str]:
    """Of a process that finds nothing of this checkout."""
    left_out = ("PYTHONPATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return {name: value for name, value in os.environ.items() if name not in left_out}


@pytest.fixture(scope="module")
def exported(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Every case in a run of one member, exported; what the bare Python found, and what mlxbert says."""
    root, out = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("exported")
    expected = {}
    text = RowText("a", "b")
    for name, case in CASES.items():
        member = member_of(case, converted, root / name / "members/seed0-fold0")
        columns = ["a", "b", "c", "d"][: len(read(member)["arguments"].get("classes", "one"))]
        submission = {
            "multilabel": {"columns": columns, "values": "labels"},
            "regression": {"columns": list("abc")[: case.options.get("columns", 1)], "values": "values"},
            "time_series": {"columns": ["target"], "values": "values"},
        }.get(case.head, {"columns": ["target"], "values": "labels"})
        info = run_json(case.head, text, ["seed0-fold0"], {"id_column": "id", **submission}, time="month")
        export_directory(write_run(root / name, info), out / name)
        (out / f"{name}.rows.json").write_text(json.dumps(rows_of(case)))
        expected[name] = expected_of(case, member)
    done = subprocess.run(
        [sys.executable, "-I", str(DRIVER), str(out)], cwd=out, env=bare_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out, pickle.loads((out / "found.pickle").read_bytes()), expected


def read(member: Path) -> dict[str, Any]:
    return json.loads((member / "config.json").read_text())["mlxbert"]["head"]


def test_both_tables_of_heads_have_the_same_names() -> None:
    from converter.export.inference_modules.torch_heads import HEADS

    assert list(HEADS) == list(EXPORTED_HEADS)
    assert {case.head for case in CASES.values()} == set(HEADS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_predictions_are_those_of_mlxbert(name: str, exported: Any) -> None:
    _, found, expected = exported
    (probabilities, labels, values), own = found[name], expected[name]
    assert_close(probabilities, own.probabilities)
    assert_close(values, own.values)
    assert labels == own.labels
    assert labels is None or {type(one) for one in labels} == {type(one) for one in own.labels}
    # They depend on the text: nothing here would notice a constant.
    assert np.ptp(own.values if own.probabilities is None else own.probabilities, axis=0).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_transformers_can_express_is_its_class(name: str, exported: Any) -> None:
    out, _, expected = exported
    case, directory = CASES[name], out / name
    assert manifest_problems(directory) == []
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification" if case.whole else "BertModel"]
    assert "mlxbert" not in config
    assert (directory / "head.safetensors").exists() != case.whole
    if not case.whole:
        with torch.no_grad():
            encoder, report = transformers.AutoModel.from_pretrained(directory, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert encoder.dtype == torch.float32
        return
    model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    rows = rows_of(case)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer(
        [row["a"] for row in rows],
        [row["b"] for row in rows],
        truncation=True,
        max_length=16,
        padding=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model.eval()(**inputs).logits.numpy()
    head = expected[name].head
    if case.head == "regression":
        assert_close(logits, expected[name].values.reshape(logits.shape))  # the logits are the values
        assert config["problem_type"] == "regression"
        return
    assert_close(logits, np.array(expected[name].logits))
    labels = [str(label) for label in head.classes]
    labels = labels[1:] if case.head == "binary" else labels
    assert config["id2label"] == {str(i): label for i, label in enumerate(labels)}
    assert config["label2id"] == {label: i for i, label in enumerate(labels)}
    single = case.head == "multiclass"
    assert config["problem_type"] == ("single_label_classification" if single else "multi_label_classification")


@pytest.mark.slow
def test_a_pipeline_of_transformers_reads_the_labels(exported: Any) -> None:
    out, _, expected = exported
    rows = rows_of(CASES["binary-pooler"])
    pipeline = transformers.pipeline("text-classification", model=str(out / "binary-pooler"), device="cpu")
    found = pipeline([{"text": rows[5]["a"], "text_pair": rows[5]["b"]}])[0]
    own = expected["binary-pooler"]
    probability = 1 / (1 + np.exp(-float(np.array(own.logits)[5, 0])))  # without the temperature, which head.json has
    assert found["label"] == "yes"
    assert abs(found["score"] - probability) < TOLERANCE


@pytest.mark.parametrize(("window", "period"), [(8, 4), (24, 12), (15, 7), (6, 2)])
def test_stl_of_a_fixed_length_is_two_matrices(window: int, period: int) -> None:
    rng = np.random.default_rng(0)
    history = rng.normal(size=(20, window)).cumsum(axis=1) + 10 * rng.normal(size=(20, 1))
    trend, seasonal, _ = decompose(history, period, "test")
    matrices = stl_matrices(window, period)
    assert np.abs(history @ matrices[0] - trend).max() < 1e-9
    assert np.abs(history @ matrices[1] - seasonal).max() < 1e-9


@pytest.mark.slow
class TestARunOfTwoMembers:
    """The command: a CSV with quoted newlines in, a submission out, averaged over the members."""

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("run")
        for seed in (0, 1):
            trained(converted, root / f"members/seed0-fold{seed}", "multilabel", "attention", seed)
        labels = {"id_column": "id", "columns": ["0", "1", "2", "3"], "values": "labels"}
        kinds = {"id": "text", "Age": "number", "text": "text"}
        text = RowText("{text} is {Age}")
        return write_run(
            root, run_json("multilabel", text, ["seed0-fold0", "seed0-fold1"], labels, id="id", kinds=kinds)
        )

    @pytest.fixture(scope="class")
    @classmethod
    def exported_run(cls, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("out") / "with space"
        result = CliRunner().invoke(cli.export, [str(run), "-o", str(out)])
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines()
        assert lines[0] == (
            f"Exported to {out}: 2 models, each as BertModel and head.safetensors: transformers has no class for "
            "head 'multilabel' on pooling 'attention'"
        )
        assert lines[1] == f"Next: python '{out}/inference.py' test.csv -o submission.csv"
        assert lines[2] == (
            "Next: upload the folder as a Kaggle dataset; in the notebook, without internet: "
            "!python /kaggle/input/NAME/inference.py test.csv -o submission.csv"
        )
        assert len(lines) == 3
        return out

    @pytest.fixture
    def test_file(self, tmp_path: Path) -> Path:
        file = tmp_path / "test.csv"
        words = texts(9)[1:]
        ages = ["22.0", "38", "", "4.5", "NA", "61", "07", "1e1"]
        lines = [f'00{i},"{word}\n",{age}' for i, (word, age) in enumerate(zip(words, ages, strict=True))]
        file.write_text("\ufeffid, text ,Age\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
        return file

    def command(self, out: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-IB", str(out / "inference.py"), *map(str, arguments), "--device", "cpu"]
        return subprocess.run(command, cwd=cwd, env=bare_environment(), capture_output=True, text=True, check=False)

    def test_the_submission(self, run: Path, exported_run: Path, test_file: Path, tmp_path: Path) -> None:
        sample = tmp_path / "sample.csv"
        sample.write_text("id,1,0,2,3\n" + "".join(f"00{i},0,0,0,0\n" for i in reversed(range(8))))
        done = self.command(exported_run, test_file, "-o", "sub.csv", "--sample-submission", sample, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "Written   sub.csv: 8 rows of labels, ids from 'id'\n"
        assert "8/8" in done.stderr
        rows = list(csv.reader((tmp_path / "sub.csv").read_text().splitlines()))
        assert rows[0] == ["id", "1", "0", "2", "3"]
        assert [row[0] for row in rows[1:]] == [f"00{i}" for i in reversed(range(8))]  # the sample's order
        # As mlxbert writes such numbers, and cuts nothing off the texts but what the tokenizer does.
        ages = ["22", "38", "unknown", "4.5", "unknown", "61", "7", "10"]
        rendered = [f"{word} is {age}" for word, age in zip(texts(9)[1:], ages, strict=True)]
        pairs = [logits_of(run / f"members/seed0-fold{seed}", rendered) for seed in (0, 1)]
        probabilities = np.mean([head.predict(logits) for head, logits in pairs], axis=0)
        thresholds = np.mean([head.thresholds for head, _ in pairs], axis=0)
        assert (thresholds != 0.5).any()
        expected = (probabilities >= thresholds).astype(int)[::-1, [1, 0, 2, 3]]
        assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == expected.tolist()
        assert len(np.unique(expected)) == 2

    def test_the_layout(self, exported_run: Path) -> None:
        assert sorted(path.relative_to(exported_run).as_posix() for path in exported_run.rglob("*.*")) == [
            "config.json",
            "inference.json",
            "inference.py",
            *sorted(name for name, _ in code_files() if name.startswith("inference_modules/")),
            "manifest.json",
            *(
                f"members/seed0-fold{fold}/{name}"
                for fold in (0, 1)
                for name in ("config.json", "head.json", "head.safetensors", "model.safetensors", "vocab.txt")
            ),
        ]
        assert manifest_problems(exported_run) == []
        for name, text in code_files():
            assert (exported_run / name).read_text() == text

    def test_a_mistake_costs_one_line(self, exported_run: Path, tmp_path: Path) -> None:
        done = self.command(exported_run, "absent.csv", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "inference.py: error: absent.csv is not there; fix: check the path\n"


@pytest.mark.parametrize(
    ("model_type", "pooling"),
    [
        (model_type, pooling)
        for model_type in supported()
        for pooling in ("pooler", "mean")
        if pooling == "mean" or POOLER in architecture(model_type).parts
    ],
)
def test_every_architecture_predicts_what_mlxbert_predicts(model_type: str, pooling: str, tmp_path: Path) -> None:
    declared = architecture(model_type)
    # The vocabulary of bytes needs more tokens than the smallest model has.
    save_tiny(tmp_path / "source", declared.encoder_class, vocab_size=320)
    save_tokenizer(tmp_path / "source")
    converted = convert(tmp_path / "source", tmp_path / "mlx", verify=False).path
    member = trained(converted, tmp_path / "model", "multiclass", pooling)
    out = export_directory(member, tmp_path / "out").path
    words = texts(ROWS)
    predictor = Predictor(out, device="cpu", text="words")
    predictor.settings["max_length"] = 16  # as `logits_of`
    found = predictor.predict(words, batch_size=5)
    head, logits = logits_of(member, words)
    assert_close(found.probabilities, head.predict(logits))
    assert found.labels == head.decide(logits).tolist()
    written = json.loads((out / "head.json").read_text())
    assert written["class"] in (declared.encoder_class, declared.head_of(HeadKind.SEQUENCE))
    assert written["is_whole"] == (written["class"] != declared.encoder_class)
    assert written["is_whole"] != (out / "head.safetensors").exists()
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == model_type
    assert config["architectures"] == [written["class"]]


@pytest.mark.parametrize("gives_types", [False, True])
def test_an_export_gives_the_token_types_of_the_training(gives_types: bool, tmp_path: Path) -> None:
    """The model has them either way; without a word in its files, transformers' tokenizer gives none."""
    save_tiny(tmp_path / "source", "AlbertModel", vocab_size=320)
    save_tokenizer(tmp_path / "source")
    file = tmp_path / "source/tokenizer_config.json"
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if gives_types else [])]
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    converted = convert(tmp_path / "source", tmp_path / "mlx", verify=False).path
    member = trained(converted, tmp_path / "model", "multiclass", "mean")
    out = export_directory(member, tmp_path / "out").path
    assert json.loads((out / "inference.json").read_text())["token_types"] is gives_types
    _, tokenizer = load(converted)
    assert bool(tokenizer(["a"], ["b"])["token_type_ids"].any().item()) is gives_types


def test_one_member_of_a_run_and_a_model_alone(converted: Path, tmp_path: Path) -> None:
    members = ["seed0-fold0", "seed0-fold1"]
    for seed, name in enumerate(members):
        trained(converted, tmp_path / "run/members" / name, "binary", "pooler", seed)
    submission = {"id_column": "id", "columns": ["target"], "values": "probabilities"}
    run = write_run(tmp_path / "run", run_json("binary", RowText("words"), members, submission))
    done = export_directory(run / "members/seed0-fold1", tmp_path / "one")
    settings = json.loads((tmp_path / "one/inference.json").read_text())
    assert settings["members"] == ["."]
    assert settings["text"]["first"] == "words"
    assert settings["max_length"] == 16
    assert done.what == "1 model as BertForSequenceClassification: pooling 'pooler' and a linear head"
    assert done.use[-1] == f'transformers.AutoModelForSequenceClassification.from_pretrained("{tmp_path / "one"}")'
    alone = trained(converted, tmp_path / "alone", "binary", "pooler", 1)
    done = export_directory(alone, tmp_path / "two")
    settings = json.loads((tmp_path / "two/inference.json").read_text())
    assert settings["text"] is None
    assert settings["max_length"] == 64
    assert done.use[0].endswith("test.csv -o submission.csv --text COLUMN")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_of_forward_chaining_folds_the_last_predict(converted: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(converted, tmp_path / f"run/members/seed{seed}-fold1", "time_series", window=0, horizon=2)
    members = [f"seed{seed}-fold{fold}" for seed in (0, 1) for fold in (0, 1)]
    submission = {"id_column": "id", "columns": ["target"], "values": "values"}
    info = run_json("time_series", RowText("words"), members, submission)
    info["folds"] = {"kind": "forward", "count": 2}
    out = export_directory(write_run(tmp_path / "run", info), tmp_path / "out").path
    settings = json.loads((out / "inference.json").read_text())
    assert settings["members"] == ["members/seed0-fold1/", "members/seed1-fold1/"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_config_names_the_dtype_of_the_files(dtype: str, converted: Path, tmp_path: Path) -> None:
    import mlx.core as mx

    from mlxbert.with_head import BertWithHead

    member = trained(converted, tmp_path / "model", "binary", "pooler")
    model = BertWithHead.load(member)
    for what, pooling, expected in (("core", "pooler", "float32"), ("all", "pooler", dtype)):
        (model.core if what == "core" else model).set_dtype(getattr(mx, dtype))
        path = export_directory(model.save(tmp_path / f"{what}-{pooling}"), tmp_path / f"{what}-out").path
        assert json.loads((path / "config.json").read_text())["dtype"] == expected
        loaded = transformers.AutoModelForSequenceClassification.from_pretrained(path)
        assert loaded.dtype == getattr(torch, expected)
        stored = load_file(path / "model.safetensors")
        assert stored["bert.pooler.dense.weight"].dtype == getattr(torch, dtype)


class TestRefusals:
    @pytest.fixture
    def member(self, converted: Path, tmp_path: Path) -> Path:
        return trained(converted, tmp_path / "run/members/a", "binary")

    def message(self, source: Path, out: Path) -> str:
        result = CliRunner().invoke(cli.export, [str(source), "-o", str(out)])
        assert result.exit_code == 2
        assert not out.exists()
        return result.output.removeprefix("export: error: ").rstrip("\n")

    def run(self, tmp_path: Path, finished: bool = True, **changes: Any) -> Path:
        submission = {"id_column": "id", "columns": ["target"], "values": "labels"}
        info = run_json("binary", RowText("a"), ["a"], submission) | changes
        return write_run(tmp_path / "run", info, finished=finished)

    def test_a_run_that_is_not_finished(self, member: Path, tmp_path: Path) -> None:
        run = self.run(tmp_path, finished=False)
        assert self.message(run, tmp_path / "out") == (
            f"{run}: the run is not finished; fix: mlxbert train --resume {run}"
        )

    def test_a_run_of_another_kind_or_version(self, member: Path, tmp_path: Path) -> None:
        run = self.run(tmp_path, format="something")
        assert self.message(run, tmp_path / "out") == (
            f"{run} is not a run (no run.json of mlxbert in it); fix: give what `mlxbert train -o` made"
        )
        run = self.run(tmp_path, version=2)
        assert self.message(run, tmp_path / "out") == (
            f"{run}/run.json: version 2, and this mlxbert reads 1; fix: update mlxbert"
        )

    def test_members_that_are_gone(self, member: Path, tmp_path: Path) -> None:
        run = self.run(tmp_path, members=["a", "b"])
        assert self.message(run, tmp_path / "out") == f"{run}: member 'b' is missing; fix: train again"

    @pytest.mark.parametrize(
        ("members", "what"),
        [
            ([], "members is empty"),
            (["../members/a"], "members: '../members/a' is not the name of a folder of the run"),
        ],
    )
    def test_members_that_are_none(self, members: list[str], what: str, member: Path, tmp_path: Path) -> None:
        run = self.run(tmp_path, members=members)
        assert self.message(run, tmp_path / "out") == (
            f"{run}/run.json: {what}; fix: restore the file from a copy of the run, or train again"
        )

    def test_a_submission_that_does_not_fit(self, member: Path, tmp_path: Path) -> None:
        run = self.run(tmp_path, submission={"id_column": "id", "columns": ["a", "b"], "values": "labels"})
        assert self.message(run, tmp_path / "out") == (
            "run.json: the submission has 2 columns, and binary gives 1 of labels; fix: train again"
        )
        run = self.run(tmp_path, submission={"id_column": "id", "columns": ["a"], "values": "values"})
        assert self.message(run, tmp_path / "out") == (
            "run.json: a submission of 'values' does not fit the head 'binary'; fix: train again"
        )

    def test_members_with_other_tokenizers(self, member: Path, converted: Path, tmp_path: Path) -> None:
        other = trained(converted, tmp_path / "run/members/b", "binary", seed=1)
        (other / "vocab.txt").write_text((other / "vocab.txt").read_text().replace("word7\n", "word_7\n"))
        run = self.run(tmp_path, members=["a", "b"])
        assert self.message(run, tmp_path / "out") == (
            f"1 members have another tokenizer than a; fix: train again\n  {other}"
        )

    def test_no_tokenizer(self, member: Path, tmp_path: Path) -> None:
        (member / "vocab.txt").unlink()
        assert self.message(member, tmp_path / "out") == (
            f"{member}: no tokenizer: neither tokenizer.json nor vocab.txt is there; "
            "fix: copy one of them from the model's source"
        )

    def test_a_quantized_one(self, member: Path, tmp_path: Path) -> None:
        config = json.loads((member / "config.json").read_text()) | {"quantization": {"bits": 4, "group_size": 64}}
        (member / "config.json").write_text(json.dumps(config))
        assert self.message(member, tmp_path / "out") == (
            f"{member}: is quantized, which has no PyTorch form; fix: export the unquantized model"
        )

    def test_damage(self, member: Path, tmp_path: Path) -> None:
        save_file({"head.other": torch.ones(1)}, member / "heads.safetensors")
        assert "missing: head.output.weight" in self.message(member, tmp_path / "out")

    def test_a_head_of_another_package(self, member: Path, tmp_path: Path) -> None:
        from heads.binary import BinaryClassificationHead
        from heads.head_registry import register_head, unregister_head

        @register_head("mine", competition_types="binary")
        class Mine(BinaryClassificationHead):
            """A head that inference.py cannot know."""

        try:
            config = json.loads((member / "config.json").read_text())
            config["mlxbert"]["head"]["name"] = "mine"
            (member / "config.json").write_text(json.dumps(config))
            assert self.message(member, tmp_path / "out") == (
                f"{member}: the head 'mine' comes from tests.converter.test_run_export, and inference.py knows "
                "binary, "
                "multiclass, multilabel, regression, ordinal, time_series; "
                "fix: write its predictions with mlxbert predict"
            )
        finally:
            unregister_head("mine")

    def test_a_scaler_that_was_never_fitted(self, converted: Path, tmp_path: Path) -> None:
        from heads.regression import RegressionHead
        from mlxbert.with_head import BertWithHead

        model = BertWithHead.from_pretrained(converted, RegressionHead(48), "pooler")
        path = model.save(tmp_path / "model")
        assert self.message(path, tmp_path / "out") == (
            "regression: the target scaler was never fitted; fix: head.fit_targets, then save again"
        )

    def test_an_output_that_exists(self, member: Path, tmp_path: Path) -> None:
        out = export_directory(member, tmp_path / "out").path
        with pytest.raises(Exception, match="exists; replace it with --overwrite"):
            export_directory(member, out)
        assert export_directory(member, out, overwrite=True).path == out
        assert manifest_problems(out) == []

    def test_no_such_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="no such directory; fix: give one that mlxbert-convert wrote"):
            export_directory(tmp_path / "absent", tmp_path / "out")
