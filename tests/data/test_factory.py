"""Models for tasks, competitions and frames, on a small random encoder with a head of its own that is not used."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxbert
from converter.convert import convert
from heads.base import Head
from heads.binary import BinaryClassificationHead
from heads.head_registry import get_head, register_head, unregister_head
from heads.ordinal import OrdinalRegressionHead
from heads.regression import RegressionHead
from mlxbert.data.infer_task import infer_task
from mlxbert.errors import MLXBertError
from mlxbert.factory import (
    FactoryError,
    FrameError,
    FrameModel,
    TaskError,
    create_for_competition,
    create_model,
    default_checkpoint,
    from_dataframe,
    get_competition,
    head_for,
    registered_competitions,
)
from mlxbert.pooling import CHOICES, pooling_settings
from mlxbert.with_head import BertWithHead
from tests.support.competition_files import read, real_file
from tests.support.head_samples import NAMES
from tests.support.tiny import save_tiny

WIDTH = 48
COMPETITIONS = registered_competitions()
ROWS = 24
FRAME: dict[str, list[Any]] = {
    "row_id": list(range(ROWS)),
    "text": ["a cat", "b dog", "", "word3 eel"] * 6,
    "size": [1.5, None, 2.0, 3.25] * 6,
    "yes": [0, 1, 1, 0] * 6,
    "kind": ["cat", "dog", "cat", "eel"] * 6,
    "stars": [1, 2, 3, 5, 4, 5] * 4,
    "price": [100.5 + i * i for i in range(ROWS)],
    "weight": [0.5 * i for i in range(ROWS)],
    "a": [0, 1, 1, 0] * 6,
    "b": [1, 1, 0, None] * 6,
    "tags": ["x|y", "y", "x|z", ""] * 6,
    "month": [f"{2000 + i // 12}-{1 + i % 12:02d}" for i in range(ROWS)],
}


def frame_of(library: str) -> Any:
    return FRAME if library == "dict" else pytest.importorskip(library).DataFrame(FRAME)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("factory")
    save_tiny(root / "source", "BertForSequenceClassification", num_labels=5)
    convert(root / "source", root / "out", verify=False)
    assert (root / "out" / "heads.safetensors").is_file()
    return root / "out"


def run(model: BertWithHead, tokenizer: Any, **extra: mx.array) -> np.ndarray[Any, Any]:
    """Logits of two texts."""
    batch = tokenizer(["a cat", "word1 word2 b"])
    return np.asarray(
        model(
            mx.array(batch["input_ids"]),
            mx.array(batch["attention_mask"]),
            mx.array(batch["token_type_ids"]),
            **extra,
        )
    )


@pytest.mark.parametrize(
    ("task", "options", "outputs"),
    [
        ("binary", {}, 1),
        ("binary", {"num_labels": 1}, 1),
        ("binary", {"num_labels": 2, "classes": ("no", "yes")}, 1),
        ("multiclass", {"num_labels": 4}, 4),
        ("multiclass", {"classes": ["a", "b", "c"]}, 3),
        ("multilabel", {"num_labels": 6}, 6),
        ("regression", {}, 1),
        ("regression", {"num_labels": 3}, 3),
        ("ordinal", {"num_labels": 5}, 4),
        ("ordinal", {"classes": ("low", "middle", "high")}, 2),
        ("time_series", {"horizon": 12}, 12),
        (OrdinalRegressionHead, {"num_labels": 3, "objective": "coral"}, 2),
    ],
)
def test_create_model_for_every_task(converted: Path, task: Any, options: dict[str, Any], outputs: int) -> None:
    model, tokenizer = create_model(task, converted, **options)
    assert isinstance(model.head, head_for(task))
    assert not model.training
    assert run(model, tokenizer).shape == (2, outputs)
    if "classes" in options:
        assert model.head.classes == tuple(options["classes"])
    # The encoder is the checkpoint's, tensor for tensor; its head of five labels is not there.
    core, _ = mlxbert.load(converted)
    batch = tokenizer(["a cat"])
    ids = mx.array(batch["input_ids"])
    assert mx.array_equal(model.core(ids).last_hidden_state, core(ids).last_hidden_state)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_head_is_made_by_its_name_and_comes_back(converted: Path, tmp_path: Path, name: str) -> None:
    needs = {} if name in ("binary", "regression", "time_series") else {"num_labels": 3}
    model, tokenizer = create_model(name, converted, dropout=0.25, dropout_samples=2, **needs)
    assert type(model.head) is get_head(name)
    assert (model.head.dropout, model.head.dropout_samples) == (0.25, 2)
    path = model.save(tmp_path / "saved")
    again = BertWithHead.load(path)
    assert np.array_equal(run(model, tokenizer), run(again, mlxbert.load(path)[1]))
    # On top of a saved model, a new head: the saved one is not used.
    fresh, _ = create_model("multiclass", path, num_labels=7)
    assert fresh.head.num_outputs == 7


@pytest.mark.parametrize("pooling", CHOICES)
def test_every_pooling_can_be_chosen(converted: Path, pooling: str) -> None:
    model, tokenizer = create_model("binary", converted, pooling=pooling)
    assert pooling_settings(model.pooling)["name"] == pooling
    assert run(model, tokenizer).shape == (2, 1)


def test_dtype_and_head_options_arrive(converted: Path) -> None:
    model, _ = create_model("binary", converted, dtype=mx.float16, objective="focal", gamma=1.5)
    assert model.core.embeddings.word_embeddings.weight.dtype == mx.float16
    assert (model.head.objective, model.head.gamma) == ("focal", 1.5)


def test_priority_decides_for_a_competition_type(converted: Path) -> None:
    @register_head("louder_binary", competition_types="binary", priority=5)
    class Louder(BinaryClassificationHead):
        pass

    try:
        assert type(create_model("binary", converted)[0].head) is Louder
        assert type(create_model(BinaryClassificationHead, converted)[0].head) is BinaryClassificationHead
        assert type(from_dataframe(FRAME, target="yes", text="text", checkpoint=converted).model.head) is Louder
    finally:
        unregister_head("louder_binary")
    assert type(create_model("binary", converted)[0].head) is BinaryClassificationHead


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: create_model("binery", c), "there is no task named 'binery': did you mean 'binary'?"),
        (lambda c: create_model("xyz", c), "there is no task named 'xyz': fix: one of binary, multiclass, multilabel"),
        (lambda c: create_model(3, c), "the task must be a competition type, a head's name or a head class, not 3"),
        (
            lambda c: create_model("multiclass", c),
            "head 'multiclass' needs its labels; fix: classes=(…), or num_l",
        ),
        (
            lambda c: create_model("binary", c, num_labels=3),
            "binary: 3 classes given; fix: two, or the multiclass head",
        ),
        (
            lambda c: create_model("multiclass", c, num_labels=2, classes="abc"),
            "num_labels=2, but 3 classes are given",
        ),
        (lambda c: create_model("multiclass", c, num_labels=0), "num_labels must be a positive whole number, not 0"),
        (
            lambda c: create_model("binary", c, horizon=3),
            "head 'binary' has no option 'horizon'; its options: alpha, ",
        ),
        (
            lambda c: create_model("binary", c, drop_out=0.1),
            "head 'binary' has no option 'drop_out'; did you mean 'dro",
        ),
        (lambda c: create_model("binary", c, pos_weight="x"), "binary: pos_weight must be a number or 'balanced'"),
        (lambda c: create_model("binary", c, pooling="meen"), "pooling 'meen' is unknown; known: "),
        (lambda c: create_model("binary", c / "no"), "no such directory"),
        (lambda c: create_model("binary", c.parent / "source"), "was never converted; run: mlxbert-convert"),
        (lambda c: create_for_competition("titanick", c), "no competition named 'titanick': did you mean 'titanic'"),
        (lambda c: create_for_competition("titanic", c, hidden=3), "head 'binary' has no option 'hidden'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    converted: Path, make: Callable[[Path], object], message: str
) -> None:
    with pytest.raises(MLXBertError, match=re.escape(message)) as caught:
        make(converted)
    assert "\n" not in str(caught.value)


def test_a_head_class_must_be_registered(converted: Path) -> None:
    class Mine(RegressionHead):
        pass

    with pytest.raises(FactoryError, match=r"Mine is not registered; fix: @register_head\(…\) above the class"):
        create_model(Mine, converted)


@pytest.mark.parametrize("competition", COMPETITIONS.values(), ids=COMPETITIONS.keys())
def test_every_competition_has_a_model(converted: Path, competition: Any) -> None:
    model, _ = create_for_competition(competition.name, converted)
    assert competition.task in model.head.competition_types
    assert pooling_settings(model.pooling)["name"] == competition.pooling
    settings = model.head.arguments()
    for option, value in competition.head.items():
        assert settings[option] == (list(value) if isinstance(value, tuple) else value)
    if competition.task == "multilabel":
        assert model.head.classes == competition.target
    changed, _ = create_for_competition(competition, converted, pooling="cls", dropout=0.5)
    assert (pooling_settings(changed.pooling)["name"], changed.head.dropout) == ("cls", 0.5)


def test_the_default_checkpoint_is_where_the_converter_puts_it(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FactoryError,
        match=r"competition 'titanic': its default checkpoint is not at mlx_models/all-MiniLM-L6-v2 or "
        r"mlx_models/minilm; run: mlxbert-convert sentence-transformers/all-MiniLM-L6-v2 -o "
        r"mlx_models/all-MiniLM-L6-v2, or name a converted directory: --model DIRECTORY",
    ):
        create_for_competition("titanic")
    (tmp_path / "mlx_models").mkdir()
    for name in ("minilm", "all-MiniLM-L6-v2"):  # as `make demo` calls it, and as the converter does
        (tmp_path / "mlx_models" / name).symlink_to(converted)
        assert default_checkpoint(get_competition("titanic")) == Path("mlx_models", name)
        assert create_for_competition("titanic")[0].head.head_name == "binary"


@pytest.mark.parametrize("library", ["dict", "pandas", "polars"])
@pytest.mark.parametrize(
    ("target", "task", "classes"),
    [
        ("yes", "binary", (0, 1)),
        ("kind", "multiclass", ("cat", "dog", "eel")),
        (["a", "b"], "multilabel", ("a", "b")),
        ("tags", "multilabel", ("x", "y", "z")),
        ("stars", "ordinal", (1, 2, 3, 4, 5)),
        ("price", "regression", None),
        (["price", "weight"], "regression", None),
    ],
)
def test_a_frame_makes_a_model_whose_head_knows_its_targets(
    converted: Path, library: str, target: Any, task: str, classes: Any
) -> None:
    frame = frame_of(library)
    made = from_dataframe(frame, target=target, text="text", checkpoint=converted)
    assert isinstance(made, FrameModel)
    assert made.task.task == task
    assert getattr(made.model.head, "classes", None) == classes
    assert made.texts(frame).texts == FRAME["text"]
    assert made.texts(frame).empty == 6
    targets = made.targets(frame)
    encoded = mx.array(made.model.head.encode_targets(targets))
    batch = made.tokenizer(made.texts(frame).texts)
    logits = made.model(mx.array(batch["input_ids"]), mx.array(batch["attention_mask"]))
    assert np.isfinite(float(made.model.loss(logits, encoded).item()))
    assert len(made.model.predict(logits)) == ROWS
    if task == "regression":
        names = [target] if isinstance(target, str) else target
        expected = np.array([FRAME[name] for name in names], np.float64).mean(axis=1)
        assert np.allclose(made.model.head.scaler.center, expected)


def test_balanced_weights_log_targets_and_other_options_are_fitted(converted: Path) -> None:
    frame = {"text": ["a"] * 8, "y": [1, 0, 0, 0] * 2, "price": [float(10**i) for i in range(8)]}
    made = from_dataframe(frame, target="y", text="text", checkpoint=converted, pos_weight="balanced")
    assert made.model.head.fitted_pos_weight == 3.0
    made = from_dataframe(frame, target="price", text="text", checkpoint=converted, log_targets=True, pooling="cls")
    assert np.isclose(made.model.head.scaler.center[0], np.log1p(frame["price"]).mean())


@pytest.mark.parametrize("library", ["dict", "pandas", "polars"])
def test_a_frame_with_times_makes_a_forecaster(converted: Path, library: str) -> None:
    frame = frame_of(library)
    options: dict[str, Any] = {"horizon": 3, "window": 6, "calendar": ("year",)}
    made = from_dataframe(
        frame, target="price", text="{month}: {price}", time="month", checkpoint=converted, **options
    )
    assert made.task.task == "time_series"
    rows = made.windows(frame)
    assert rows.targets.shape == (ROWS - 6 - 3 + 1, 3)
    assert made.model.head.fitted_until == "2001-12"
    texts = made.texts(frame).texts
    assert texts[0] == "2000-01: 100.5"
    last = made.tokenizer(texts[-1:])
    history = np.array([FRAME["price"][-6:]])
    inputs = made.model.head.inputs(history=history, made_at=np.array(["2001-12"], "datetime64"))
    logits = made.model(mx.array(last["input_ids"]), mx.array(last["attention_mask"]), **inputs)
    assert made.model.predict(logits).shape == (1, 3)


def test_a_datetime_index_is_enough(converted: Path) -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"y": FRAME["price"]}, index=pd.date_range("2000-01-01", periods=ROWS, freq="MS"))
    made = from_dataframe(frame, target="y", text="{y}", checkpoint=converted, window=4, horizon=2)
    assert made.task.task == "time_series"
    assert made.windows(frame).known_at[-1] == np.datetime64("2001-12-01")


def test_without_text_every_other_column_is_read(converted: Path) -> None:
    frame = {name: FRAME[name] for name in ("row_id", "size", "kind", "yes")}
    made = from_dataframe(frame, target="yes", checkpoint=converted, ignore=["row_id"])
    assert made.texts(frame).texts[:2] == ["size: 1.5, kind: cat", "size: unknown, kind: dog"]
    pairs = from_dataframe(FRAME, target="yes", text="text", pair="a {kind}", checkpoint=converted)
    assert (pairs.texts(FRAME).pairs or [])[1] == "a dog"


def test_task_and_classes_can_be_said(converted: Path) -> None:
    made = from_dataframe(FRAME, target="stars", text="text", checkpoint=converted, task="multiclass")
    assert made.model.head.head_name == "multiclass"
    made = from_dataframe(
        FRAME, target="kind", text="text", checkpoint=converted, classes=("eel", "dog", "cat", "fox")
    )
    assert made.model.head.classes == ("eel", "dog", "cat", "fox")
    assert made.model.head.encode_targets(made.targets(FRAME))[:4].tolist() == [2, 1, 2, 0]
    ranks = ("cat", "dog", "eel")
    made = from_dataframe(FRAME, target="kind", text="text", checkpoint=converted, task="ordinal", classes=ranks)
    assert made.model.head.head_name == "ordinal"


@pytest.fixture
def two_type_head() -> Iterator[None]:
    @register_head("either_number", competition_types=("regression", "ordinal"))
    class EitherNumber(RegressionHead):
        pass

    yield
    unregister_head("either_number")


@pytest.mark.usefixtures("two_type_head")
def test_a_head_of_several_types_takes_what_it_serves(converted: Path) -> None:
    made = from_dataframe(FRAME, target="price", text="text", checkpoint=converted, task="either_number")
    assert made.model.head.head_name == "either_number"
    with pytest.raises(
        FactoryError, match="head 'either_number' is for regression, ordinal; the target is multiclass"
    ):
        from_dataframe(FRAME, target="kind", text="text", checkpoint=converted, task="either_number")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"target": "Yes"}, FrameError, "the frame has no target column 'Yes'; did you mean 'yes'?"),
        ({"target": []}, FactoryError, "no target is named; fix: target='column'"),
        ({"target": "yes", "text": "txt"}, FrameError, "the frame has no text column 'txt'; did you mean 'text'?"),
        ({"target": "yes", "time": "mont"}, FrameError, "the frame has no time column 'mont'; did you mean 'month'?"),
        ({"target": "yes", "text": None, "ignore": ["rowid"]}, FrameError, "no ignored column 'rowid'; did you mean"),
        ({"target": "yes", "text": None, "pair": "text"}, FactoryError, "pair= is given without text="),
        ({"target": "yes", "text": "{yes} {text}"}, FactoryError, "the text has the target column 'yes', which gives"),
        ({"target": "size"}, TaskError, "target 'size': 6 of 24 rows have no value (first: row 1); fix: drop them"),
        ({"target": "row_id"}, TaskError, "target 'row_id' has another number in every row (0, 1, …): an id"),
        ({"target": "yes", "task": "binari"}, FactoryError, "there is no task named 'binari': did you mean 'binary'?"),
        ({"target": "kind", "task": "binary"}, TaskError, "task='binary' was asked for, but target 'kind' has 3 diff"),
        (
            {"target": "kind", "classes": ("cat", "dog")},
            TaskError,
            "has the value 'eel', which is not one of the 2 cl",
        ),
        ({"target": "yes", "gama": 1}, FactoryError, "head 'binary' has no option 'gama'; did you mean 'gamma'"),
        ({"target": "price", "time": "month", "window": 40}, FactoryError, "24 values have no row of window=40"),
        ({"target": "price", "task": "time_series"}, TaskError, "target 'price' has no times; fix: give time="),
    ],
)
def test_what_a_frame_cannot_make_is_refused_in_one_line(
    converted: Path, options: dict[str, Any], kind: type[MLXBertError], message: str
) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        from_dataframe(FRAME, **{"text": "text", "checkpoint": converted, **options})
    assert "\n" not in str(caught.value)


def test_empty_frames_and_windows_of_no_series_are_refused(converted: Path) -> None:
    with pytest.raises(FrameError, match="the frame has no rows"):
        from_dataframe({"y": [], "text": []}, target="y", checkpoint=converted)
    made = from_dataframe(FRAME, target="yes", text="text", checkpoint=converted)
    with pytest.raises(FactoryError, match="windows are of time series; this model's task is 'binary'"):
        made.windows(FRAME)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("name", ["titanic", "alexa-stars", "airline-passengers"])
def test_real_frames_make_the_configured_model(converted: Path, name: str, library: str) -> None:
    competition = get_competition(name)
    frame = read(real_file(competition, competition.train), library)
    made = from_dataframe(
        frame,
        target=competition.target,
        text=competition.text,
        time=competition.time,
        checkpoint=converted,
        **competition.head,
    )
    assert made.task.task == competition.task
    assert isinstance(made.model.head, Head)
    assert json.dumps(made.model.head.settings())
    assert len(made.targets(frame)) == len(made.texts(frame).texts) == made.task.rows


def test_importing_mlxbert_and_its_factory_imports_no_data_frames() -> None:
    code = (
        "import sys, mlxbert; print(sorted({'pandas', 'polars', 'narwhals', 'pyarrow'} & set(sys.modules)));"
        "import mlxbert.factory as f; f.get_competition('titanic');"
        "f.infer_task([0, 1]);"
        "print(sorted({'pandas', 'polars', 'narwhals', 'pyarrow', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


def test_infer_task_of_a_head_fitted_target_agrees_with_the_head() -> None:
    """The positive label of `infer_task` is the head's."""
    inferred = infer_task(["spam", "ham", "ham"])
    head = BinaryClassificationHead.from_targets(8, ["spam", "ham", "ham"])
    assert inferred.classes == head.classes == ("ham", "spam")
