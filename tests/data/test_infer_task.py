"""`infer_task`: what it says a target is, why, and what it refuses; on plain lists, pandas and polars."""

from __future__ import annotations

import datetime
import re
from typing import Any

import numpy as np
import pytest

from mlxbert.data.frames import DataError
from mlxbert.data.infer_task import InferredTask, infer_task, target_values
from mlxbert.data.target_cells import TaskError

NAN = float("nan")
FORTY = list(range(40))


def named(name: str, values: list[Any]) -> dict[str, list[Any]]:
    return {name: values}


@pytest.mark.parametrize(
    ("values", "task", "classes", "reason"),
    [
        ([0, 1, 1, 0], "binary", (0, 1), "two values, 0 and 1; the positive one is 1"),
        ([0.0, 1.0, NAN], "binary", (0, 1), "1 of 3 rows have no target and must be dropped"),
        ([True, False, True], "binary", (False, True), "the positive one is True"),
        (["no", "yes", "no"], "binary", ("no", "yes"), "the positive one is 'yes'"),
        (["a", "b"], "binary", ("a", "b"), "two values"),
        ([3, 7, 7, 3], "binary", (3, 7), "two values, 3 and 7"),
        (["cat", "dog", "eel", "cat"], "multiclass", ("cat", "dog", "eel"), "3 different strings"),
        ([0, 1, 2, 1, 0], "multiclass", (0, 1, 2), "from 0 as label encoders count (task='ordinal' if"),
        ([10, 20, 40] * 10, "multiclass", (10, 20, 40), "whole numbers with gaps, 10 … 40"),
        ([10, 20, 40], "regression", None, "3 whole numbers with gaps in 3 rows"),
        ([1, 2, 3, 4, 5, 5], "ordinal", (1, 2, 3, 4, 5), "5 whole numbers in steps of one, 1 … 5: ratings"),
        ([1.0, 2.0, 3.0, NAN, 3.0], "ordinal", (1, 2, 3), "1 of 5 rows have no target"),
        ([-1, 0, 1, 0], "ordinal", (-1, 0, 1), "in steps of one, -1 … 1"),
        (named("stars", [0, 1, 2, 3, 1]), "ordinal", (0, 1, 2, 3), "in a column named 'stars'"),
        (named("OverallScore", [0, 1, 2, 2]), "ordinal", (0, 1, 2), "in a column named 'OverallScore'"),
        (named("starting", [0, 1, 2, 2]), "multiclass", (0, 1, 2), "label encoders"),
        (named("label", [1, 2, 3, 4] * 9), "multiclass", (1, 2, 3, 4), "in a column named 'label'"),
        (named("label", [i % 20 for i in range(200)]), "multiclass", tuple(range(20)), "20 whole numbers"),
        ([i % 20 for i in range(200)], "regression", None, "20 different whole numbers, 0 … 19"),
        ([0.5, 1.5, 2.25], "regression", None, "numbers with fractions, 0.5 … 2.25"),
        ([0.5, 1.5, 0.5], "regression", None, "numbers with fractions"),
        ([7, 1, 99] * 3 + FORTY, "regression", None, "more than the 11 of a rating"),
        ([["a", "b"], ["b"], ["a"], []], "multilabel", ("a", "b"), "lists of labels, 2 different ones"),
        ([{1, 2}, {2}, {1}], "multilabel", (1, 2), "lists of labels"),
        (["a|b", "b|c", "a", "", "c|a"], "multilabel", ("a", "b", "c"), "labels joined by '|'"),
        ({"x": [0, 1, 1], "y": [0, 0, 1]}, "multilabel", ("x", "y"), "2 columns of 0 and 1"),
        ({"x": [0, 1, -1], "y": [0, NAN, 1]}, "multilabel", ("x", "y"), "(−1: unknown)"),
        (
            {"x": [0, 1, 0], "y": [1, 0, 1]},
            "multilabel",
            ("x", "y"),
            "every row has exactly one 1: if the labels excl",
        ),
        ({"x": [0.5, 1.0], "y": [2.0, 3.0]}, "regression", None, "2 columns of numbers"),
        (np.array([[0, 1], [1, 1]]), "multilabel", ("0", "1"), "2 columns of 0 and 1"),
        ({"only": [0, 1, 1]}, "binary", (0, 1), "two values"),
    ],
)
def test_the_choice_and_its_reason(values: Any, task: str, classes: Any, reason: str) -> None:
    inferred = infer_task(values)
    assert (inferred.task, inferred.classes) == (task, classes)
    if classes is not None:
        assert list(map(type, inferred.classes or ())) == list(map(type, classes))  # 1, and not 1.0 or True
    assert reason in inferred.reason
    assert str(inferred) == f"{task}: {inferred.reason}"
    assert "\n" not in str(inferred)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_both_libraries_agree_with_plain_lists(library: str) -> None:
    frames = pytest.importorskip(library)
    samples: dict[str, list[Any]] = {
        "whole": [1, 2, 3, 2],
        "whole_missing": [1, 2, None, 3],
        "flag": [True, None, False, True],
        "words": ["x", None, "y", "z", "x"],
        "real": [0.5, None, 2.5, 3.5],
        "lists": [["a"], ["b", "a"], [], ["b"]],
    }
    for name, values in samples.items():
        plain = infer_task({name: values})
        inferred = infer_task(frames.Series(values, name=name) if library == "pandas" else frames.Series(name, values))
        assert inferred == plain
        assert infer_task(frames.DataFrame({name: values})) == plain
    both = {"p": [0, 1, 1], "q": [1, 0, None]}
    assert infer_task(frames.DataFrame(both)) == infer_task(both)


def test_pandas_nullable_and_categorical_columns() -> None:
    pd = pytest.importorskip("pandas")
    nullable = pd.Series([1, None, 0], dtype="Int64")
    assert infer_task(nullable) == InferredTask(
        "binary",
        "two values, 0 and 1; the positive one is 1; 1 of 3 rows have no target and must be dropped",
        ("target",),
        (0, 1),
        1,
        3,
        1,
    )
    sizes = pd.Series(pd.Categorical(["S", "L", "S", "M"], categories=["S", "M", "L", "XL"], ordered=True))
    assert (infer_task(sizes).task, infer_task(sizes).classes) == ("ordinal", ("S", "M", "L", "XL"))
    codes = pd.Series([1, 2, 3, 1]).astype("category")
    assert infer_task(codes).task == "multiclass"


def test_numbers_with_one_time_a_row_are_a_time_series() -> None:
    pd = pytest.importorskip("pandas")
    values = [float(i * i % 97) for i in FORTY]
    for index in (
        pd.date_range("2020-01-01", periods=40, freq="MS"),
        pd.date_range("2020-01-01", periods=40, freq="B"),
        pd.date_range("2020-01-01", periods=40, freq="h", tz="Europe/Berlin"),
        pd.period_range("2020-01", periods=40, freq="M"),
    ):
        inferred = infer_task(pd.Series(values, index=index))
        assert inferred.task == "time_series", index
        assert inferred.reason.startswith("numbers with one time a row, 20")
    stamps = [datetime.datetime(2020, 1, 1) + datetime.timedelta(days=i) for i in FORTY]
    assert infer_task(values, time=stamps).task == "time_series"
    assert infer_task(values, time=[stamp.date() for stamp in stamps]).task == "time_series"
    assert infer_task(values, time=FORTY).task == "time_series"
    # A count that goes up by one is a series beside times, and row numbers without.
    assert infer_task(FORTY, time=stamps).task == "time_series"


def test_what_times_do_not_make_a_series() -> None:
    pd = pytest.importorskip("pandas")
    values = [float(i * i % 97) for i in FORTY]
    twice = pd.Series(values, index=pd.to_datetime(["2020-01-01", "2020-01-02"] * 20))
    assert infer_task(twice).task == "regression"
    assert "the times repeat" in infer_task(twice).reason
    events = pd.Series(values, index=pd.to_datetime([f"2020-01-01 00:00:{i:02d}" for i in range(20)] * 2))
    assert infer_task(events).task == "regression"
    scattered = pd.to_datetime("2020-01-01") + pd.to_timedelta([1.5**i for i in range(40)], unit="s")
    assert "not regular" in infer_task(pd.Series(values, index=scattered)).reason
    assert infer_task(pd.Series(values, index=scattered), time=FORTY).task == "time_series"
    stars = infer_task({"stars": [1 + i % 5 for i in FORTY]}, time=FORTY)
    assert stars.task == "ordinal"
    assert "forward-chaining" in stars.reason


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "target 'target' has no rows; fix: is the file empty, or was everything filtered out?"),
        ({"y": [None, NAN]}, "target 'y' has no value in any of its 2 rows; fix: is it the test file?"),
        ({"y": [1, 1, None]}, "target 'y' has one value, 1, in all 2 rows: nothing can be learned"),
        ({"y": [2.5] * 3}, "target 'y' has one value, 2.5, in all 3 rows"),
        (
            {"name": [f"row {i}" for i in FORTY]},
            "target 'name' has 40 different strings in 40 rows, such as 'row 0': ids or free text, not labels",
        ),
        (
            {"y": [f"w{i}" for i in range(30)] + ["w1"] * 10},
            "30 different strings in 40 rows, such as 'w0': ids or free",
        ),
        ({"y": [f"{i:03d}" for i in FORTY]}, "numbers stored as text (0, …); fix: convert the column to numbers"),
        (
            {"PassengerId": list(range(1, 41))},
            "target 'PassengerId' has another number in every row (1, 2, …): an id, not something to predict",
        ),
        ({"user_id": [i * i for i in FORTY]}, "target 'user_id' has another number in every row (0, 1, …): an id"),
        ({"y": [1.0, float("inf"), 2.0]}, "target 'y' is inf in row 1; fix: drop or replace it"),
        ({"y": [1, "a", 2]}, "target 'y' mixes numbers and text; fix: make it one type"),
        ({"y": [datetime.date(2020, 1, 1)] * 2}, "target 'y' holds dates; fix: give them as time="),
        ({"y": [{"a": 1}, {"b": 2}]}, "target 'y' holds dict values, not labels or numbers"),
        (
            {"y": [[0, 1, 0], [1, 1, 0]]},
            "target 'y' holds vectors of 0 and 1; fix: give a frame with one column a label",
        ),
        ({"y": [[0.5, 1.5], [2.5, 3.5, 1.0]]}, "in a list; fix: lists of strings or whole numbers"),
        ({"y": [[f"t{i}"] for i in FORTY]}, "target 'y': 40 labels in 40 lists, so hardly one occurs twice"),
        ({"a": [1, 0], "b": ["x", "y"]}, "target column 'b' holds 'x': several target columns must be numbers"),
        ({"a": [0, 0], "b": [0, 0]}, "target columns a, b hold one value, 0: nothing can be learned"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused_in_one_line(values: Any, message: str) -> None:
    with pytest.raises(TaskError, match=re.escape(message)) as caught:
        infer_task(values)
    assert "\n" not in str(caught.value)


def test_what_is_no_column_is_refused() -> None:
    with pytest.raises(DataError, match="column 'target' is a str; fix: give one value a row"):
        infer_task("target")
    with pytest.raises(DataError, match=re.escape("the target has columns of different lengths: 2, 3")):
        infer_task({"a": [1, 2], "b": [1, 2, 3]})
    with pytest.raises(DataError, match=re.escape("has shape (2, 2, 2)")):
        infer_task(np.zeros((2, 2, 2)))


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([1, 2, 3, 4, 5], "multiclass", (1, 2, 3, 4, 5)),
        ([1, 2, 3, 4, 5], "regression", None),
        ([0, 1, 2], "ordinal", (0, 1, 2)),
        (["x", "y", "x"], "multiclass", ("x", "y")),
        (list(range(1, 41)), "regression", None),
        (["a|b", "c"], "multilabel", ("a", "b", "c")),
        ({"a": [0, 1], "b": [1, 1]}, "regression", None),
        ({"a": [0, 1], "b": [1, 1]}, "multilabel", ("a", "b")),
    ],
)
def test_a_task_that_is_asked_for_is_checked_and_taken(values: Any, task: str, classes: Any) -> None:
    inferred = infer_task(values, task=task)
    assert (inferred.task, inferred.classes, inferred.reason[:12]) == (task, classes, "as asked for")


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        ([0, 1], "binery", "there is no competition type named 'binery': did you mean 'binary'?"),
        ([0, 1, 2], "binary", "task='binary' was asked for, but target 'target' has 3 different values"),
        (["a", "b"], "regression", "target 'target' holds text such as 'a'; fix: make it numbers"),
        (["a", "b", "a"], "ordinal", "target 'target' holds words; fix: give classes=(…), lowest first"),
        ([0.5, 1.0], "time_series", "target 'target' has no times; fix: give time=, one a row"),
        ([0, 1], "multilabel", "is one column of numbers; fix: give a column a label, lists, or 'a|b' strings"),
        ([["a"], ["b"]], "multiclass", "holds lists; fix: task='multilabel'"),
        ({"a": [0, 1], "b": [0, 1]}, "binary", "task='binary' was asked for, but the target has 2 columns"),
        ({"a": [0, 2], "b": [0, 1]}, "multilabel", "but the target has 2 columns of other values than 0, 1 and −1"),
    ],
)
def test_a_task_that_the_target_is_not_is_refused(values: Any, task: str, message: str) -> None:
    with pytest.raises(TaskError, match=re.escape(message)):
        infer_task(values, task=task)


@pytest.mark.parametrize(
    ("values", "classes", "task"),
    [
        ([4, 5, 5], (1, 2, 3, 4, 5), "ordinal"),
        (["a", "b", "a"], ("c", "b", "a"), "multiclass"),
        (["b", "a", "a"], ("b", "a"), "binary"),
        ([i % 20 for i in range(200)], tuple(range(20)), "multiclass"),
        (["a|b", "b|c", "a", "", "c|a"], ("c", "b", "a", "z"), "multilabel"),
        ([["a"], ["b"], ["a", "b"]], ("b", "a"), "multilabel"),
    ],
)
def test_classes_that_are_given_are_kept_in_their_order_and_say_what_the_rows_lack(
    values: Any, classes: tuple[Any, ...], task: str
) -> None:
    inferred = infer_task(values, classes=classes)
    assert (inferred.task, inferred.classes) == (task, classes)
    assert infer_task(values, classes=classes, task=task).classes == classes
    for options in ({}, {"task": task}):
        with pytest.raises(TaskError, match=f"which is not one of the {len(classes) - 1} classes given; fix: add it"):
            infer_task([*values, *values[:2]], classes=[one for one in classes if one not in ("a", 4)], **options)


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(TaskError, match="time has 2 rows, target 'target' 3; fix: one time a row"):
        infer_task([0.5, 1.5, 2.5], time=[1, 2])
    with pytest.raises(TaskError, match="time: not dates"):
        infer_task([0.5, 1.5, 2.5], time=["31-Jul-18", "x", "y"])


def test_target_values_as_heads_take_them() -> None:
    def of(values: Any, **options: Any) -> np.ndarray:
        return target_values(values, infer_task(values, **options))

    assert of([0.0, 1.0]).tolist() == [0, 1]
    assert of([0.0, 1.0]).dtype.kind == "i"
    assert of(["no", "yes"]).tolist() == ["no", "yes"]
    assert of([0.5, 2.0]).tolist() == [0.5, 2.0]
    assert of({"a": [0.5, 1.0], "b": [2.0, 3.0]}).tolist() == [[0.5, 2.0], [1.0, 3.0]]
    assert of({"a": [0, 1], "b": [None, 1]}).tolist() == [[0, -1], [1, 1]]
    assert of([["b"], ["a", "b"], None, []]).tolist() == [[0, 1], [1, 1], [-1, -1], [0, 0]]
    assert of(["b|a", "a", "b|b|a"]).tolist() == [[1, 1], [1, 0], [1, 1]]
    with pytest.raises(TaskError, match=re.escape("target 'y': 1 of 3 rows have no value (first: row 1); fix: drop")):
        of({"y": [1, None, 0]})
    seen = infer_task([["a"], ["b"], ["a", "b"]])
    with pytest.raises(TaskError, match="row 1 has label 'c', which is not one of the 2 classes"):
        target_values([["a"], ["c"]], seen)
