"""Targets whose cells are text: numbers of any country, several labels in a cell, stray spaces; in values."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pandas
import pytest

from heads.errors import HeadError
from heads.labels import LabelWarning, encode_labels, infer_classes
from mlxbert.data.infer_task import InferredTask, infer_task, target_values
from mlxbert.data.target_cells import TaskError, TaskWarning


def forty(values: list[Any]) -> list[Any]:
    return [values[i % len(values)] for i in range(40)]


def inferred(values: Any, **options: Any) -> tuple[InferredTask, list[Any], list[str]]:
    """The task, the first distinct targets, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = infer_task(values, **options)
    assert all(one.category is TaskWarning for one in caught)
    return task, target_values(values, task).tolist(), [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("cells", "numbers", "said"),
    [
        (
            ["1,5", "2,0", "2,5", "3,0", "4,5"],
            [1.5, 2.0, 2.5, 3.0, 4.5],
            "'1,5' is read as 1.5: ',' is the decimal mark",
        ),
        (["1,234", "2,500", "12,345"], [1234, 2500, 12345], "'1,234' is read as 1234: ',' groups thousands"),
        (["0,125", "1,234"], [0.125, 1.234], "',' is the decimal mark"),
        (["1.234,5", "2,5"], [1234.5, 2.5], "',' is the decimal mark, '.' groups thousands"),
        (["1,234.5", "2.5"], [1234.5, 2.5], "',' groups thousands"),
        (["1.234.567", "5"], [1234567, 5], "'1.234.567' is read as 1234567"),
        (["1 234,5", "99,5"], [1234.5, 99.5], "' ' groups thousands"),
        (["1\u202f234,5", "99\xa0000"], [1234.5, 99000], "' ' groups thousands"),
        (["1'234.5", "99.5"], [1234.5, 99.5], '"\'" groups thousands'),
        (["12%", "15 %", "7.5%"], [12, 15, 7.5], "'%' is left out"),
        (["$5", "$1,234.50", "-$7"], [5, 1234.5, -7], "',' groups thousands, '$' is left out"),
        (["5 €", "1.234,50 €"], [5, 1234.5], "'€' is left out"),
        (["−1,5", "+2,25"], [-1.5, 2.25], "'−1,5' is read as -1.5"),
        (["1,5e3", "2,25"], [1500, 2.25], "'1,5e3' is read as 1500"),
        (["1.5", " 2.5", "3.5"], [1.5, 2.5, 3.5], "'1.5' is read as 1.5"),
    ],
)
def test_numbers_are_read_as_they_are_written_and_it_is_said(
    cells: list[str], numbers: list[float], said: str
) -> None:
    for values in (forty(cells), pandas.Series(forty(cells)), pandas.Series(forty(cells), dtype="str")):
        task, targets, warned = inferred(values)
        assert (task.task, targets, warned) == ("regression", forty(numbers), [])
        assert said in task.reason
        assert "--task multiclass keeps the cells as labels" in task.reason
        assert inferred(values, task="regression")[1] == forty(numbers)
    task, targets, _ = inferred(forty(cells), task="multiclass")  # the option that is offered
    assert sorted({*targets}) == sorted({" ".join(cell.split()) for cell in cells})


def test_the_decimal_mark_that_is_offered_reads_otherwise() -> None:
    assert "(--decimal ',' reads the marks otherwise" in inferred(forty(["1,234", "2,500"]))[0].reason
    assert inferred(forty(["1,234", "2,500"]), decimal=",")[1] == forty([1.234, 2.5])
    assert inferred(forty(["1.234", "2.500"]), decimal=",")[1] == forty([1234, 2500])
    with pytest.raises(TaskError, match=r"has '1,234' and '1.234': which mark is the decimal one\? fix: --decimal"):
        infer_task(forty(["1,234", "1.234"]))
    assert inferred(forty(["1,234", "1.234"]), decimal=",")[1] == forty([1.234, 1234])
    with pytest.raises(TaskError, match=r"holds '1,5', and '\.' is not its decimal mark; fix: leave --decimal out"):
        infer_task(forty(["1,5", "2,5"]), decimal=".")
    with pytest.raises(TaskError, match="decimal is ';'; fix"):
        infer_task(forty(["1,5", "2,5"]), decimal=";")


def test_text_that_only_looks_like_numbers_stays_text() -> None:
    assert inferred(forty(["007", "008"]))[0].classes == ("007", "008")
    assert inferred(forty(["0", "1"]))[0].classes == (0, 1)  # as a CSV has them
    assert inferred(forty(["0", "1"]), classes=("0", "1"))[0].classes == ("0", "1")
    assert inferred(forty(["12:30", "13:45"]))[0].task == "binary"
    with pytest.raises(TaskError, match=re.escape("mixes units: '12' and '12%'; fix: give one unit, or numbers")):
        infer_task(forty(["12%", "12"]))
    task, _, said = inferred(forty(["1,5", "abc", "3,5"]))
    assert task.task == "multiclass"
    assert said[0].startswith(
        "target 'target': most cells are numbers such as '1,5', and 'abc' is none: all are read as"
    )
    with pytest.raises(TaskError, match="has a number too large for a float in row 0; fix: drop or replace it"):
        infer_task(forty([10**400, 1, 2]))


SETS = [{"x", "z"}, {"y"}, {"x"}, {"z", "y"}]


@pytest.mark.parametrize("mark", ["|", ";", ",", " ", "/", "\t", ", ", " | "])
def test_several_labels_of_a_cell_are_several_labels(mark: str) -> None:
    cells = [mark.join(sorted(one)) for one in SETS]
    task, targets, _ = inferred(forty(cells), task="multilabel")
    assert task.classes == ("x", "y", "z")
    assert targets[:4] == [[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]]
    assert f"{cells[0]!r} is read as the labels 'x', 'z' (--label-separator splits otherwise" in task.reason
    if mark.strip() in ("|", ";", ","):  # of which nothing was said
        assert inferred(forty(cells))[0].task == "multilabel"
    given = inferred(forty(cells), label_separator=mark.strip() or " ")[0]
    assert (given.task, given.classes) == ("multilabel", ("x", "y", "z"))


@pytest.mark.parametrize(
    "cells",
    [
        ["['x', 'z']", "['y']", "[]"],
        ['["x", "z"]', '["y"]', "[]"],
        ["['x' 'z']", "['y']", "[]"],  # NumPy
        ["{'z', 'x'}", "{'y'}", "{}"],
        ["('x', 'z')", "('y',)", "()"],
        ["[x, z]", "[y]", "[]"],
    ],
)
def test_lists_that_were_written_as_text(cells: list[str]) -> None:
    for options in ({}, {"task": "multilabel"}):
        task, targets, _ = inferred(forty(cells), **options)
        assert (task.task, task.classes) == ("multilabel", ("x", "y", "z"))
        assert targets[:3] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_names_are_not_split() -> None:
    assert inferred(forty(["New York", "Paris", "Rome"]), task="multilabel")[0].classes == (
        "New York",
        "Paris",
        "Rome",
    )
    assert inferred(forty(["Smith, John", "Doe, Jane"]))[0].classes == ("Doe, Jane", "Smith, John")
    assert inferred(forty(["very good", "very bad"]))[0].task == "binary"
    assert inferred(forty(["x,z", "y"]), task="multilabel", label_separator=";")[0].classes == ("x,z", "y")
    assert "no cell holds several labels" in inferred(forty(["a", "b"]), task="multilabel")[0].reason
    assert inferred(forty(["1,2", "3", "2"]), task="multilabel", classes=(1, 2, 3))[1][0] == [1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (
            ["pos", "neg", "pos ", "neg"],
            ("neg", "pos"),
            "10 labels with stray spaces, invisible marks or another Unicode form are read",
        ),
        (["pos", "neg", "\xa0pos", "neg\t"], ("neg", "pos"), "20 labels with stray spaces"),
        (["New  York", "New York", "New\xa0York", "Rome"], ("New York", "Rome"), "as 'New York'"),
        (["caf\u00e9", "cafe\u0301", "tea", "tea"], ("caf\u00e9", "tea"), "10 labels with"),
        (["pos", "\u200bpos", "neg", "neg"], ("neg", "pos"), "10 labels with"),
        (
            ["\u05d8\u05d5\u05d1\u200f", "\u05d8\u05d5\u05d1", "b\u00ad", "b"],
            ("b", "\u05d8\u05d5\u05d1"),
            "20 labels with",
        ),
        (
            ["\u202aa\u202c", "a", "b", "\U0001f468\u200d\U0001f469"],
            ("a", "b", "\U0001f468\u200d\U0001f469"),
            "10 labels",
        ),
    ],
)
def test_labels_with_stray_spaces_are_one_class_and_said(labels: list[str], classes: Any, said: str) -> None:
    task, targets, warned = inferred(forty(labels))
    assert task.classes == classes
    assert set(targets) == {*classes}
    assert len(warned) == 1
    assert said in warned[0]


def test_labels_that_differ_by_case_or_width_are_two_and_said() -> None:
    for labels in (["Pos", "pos", "neg"], ["ｐｏｓ", "pos", "neg"]):
        task, _, said = inferred(forty(labels))
        assert len(task.classes or ()) == 3
        assert "differ by case or width alone and are different classes; fix: write them alike" in said[0]
    assert inferred(forty(["pos", "pos ", "neg"]), classes=("pos", "pos ", "neg"))[2] == []
    with pytest.warns(LabelWarning, match="the labels 'pos' and 'pos ' differ by white space or Unicode form alone"):
        assert infer_classes(["pos", "pos ", "neg"], "x") == ("neg", "pos", "pos ")
    with pytest.raises(HeadError, match="row 1 has label 'pos ', which is not 'pos'; fix: take the spaces out"):
        encode_labels(["neg", "pos "], ("neg", "pos"), "x")
    with pytest.raises(TaskError, match=r"14 of 40 rows have no value \(first: row 0\); fix: drop them before"):
        inferred(forty([" ", "a", "b"]))
