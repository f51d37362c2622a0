"""Rows as texts: columns, templates, pairs; what is missing, what is misspelled."""

from __future__ import annotations

import datetime
import json
import re
from typing import Any

import numpy as np
import pytest

from mlxbert.data.frames import DataError, Table, plain, shown
from mlxbert.data.text_columns import RowText, every_column
from mlxbert.errors import MLXBertError
from mlxbert.files.reading import from_json

FRAME: dict[str, list[Any]] = {
    "Sex": ["male", "female", None],
    "Age": [22.0, None, 0.42],
    "First name": ["Ann {x}", "  ", "Bo"],
    "1st.Flr": [1, 2, 3],
}


def rows(text: Any, pair: Any = None) -> list[str]:
    return RowText.make(text, pair).render(FRAME).texts


def test_one_column_is_the_text_as_it_is() -> None:
    rendered = RowText("First name").render(FRAME)
    assert rendered.texts == ["Ann {x}", "  ", "Bo"]
    assert (rendered.pairs, rendered.empty) == (None, 1)
    assert RowText("Sex").render(FRAME).texts == ["male", "female", ""]
    assert rows("Age") == ["22", "", "0.42"]


def test_a_template_says_what_is_missing() -> None:
    assert rows("{Sex}, age {Age}") == ["male, age 22", "female, age unknown", "unknown, age 0.42"]
    assert rows("{First name}/{1st.Flr}") == ["Ann {x}/1", "unknown/2", "Bo/3"]
    assert rows("{{{Sex}}} {Age:.1f}") == ["{male} 22.0", "{female} unknown", "{unknown} 0.4"]
    assert RowText("{Sex}", missing="?").render(FRAME).texts[2] == "?"


def test_several_columns_are_named() -> None:
    assert rows(["Sex", "Age"])[:2] == ["Sex: male, Age: 22", "Sex: female, Age: unknown"]
    assert rows(("Sex",))[0] == "Sex: male"
    everything = every_column(Table(FRAME), ["Sex", "First name"])
    assert everything.render(FRAME).texts[0] == "Age: 22, 1st.Flr: 1"


def test_pairs() -> None:
    rendered = RowText.make("Sex", "age {Age}").render(FRAME)
    assert rendered.texts == ["male", "female", ""]
    assert rendered.pairs == ["age 22", "age unknown", "age 0.42"]
    assert rendered.empty == 0
    assert RowText("Sex", "First name").columns == ("Sex", "First name")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_both_libraries_give_the_same_texts(library: str) -> None:
    frame = pytest.importorskip(library).DataFrame(FRAME)
    for text in ("First name", "{Sex}, age {Age} {1st.Flr}", ["Age", "1st.Flr"]):
        assert RowText.make(text).render(frame) == RowText.make(text).render(FRAME)


def test_settings_come_back() -> None:
    for row_text in (RowText("a"), RowText(("a", "b"), "{c}", missing="-")):
        saved = json.loads(json.dumps(row_text.to_dict()))
        assert from_json(RowText, saved, place="run.json", fix="fix", error=MLXBertError) == row_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sexx", "the frame has no text column 'Sexx'; did you mean 'Sex'?"),
        ("{age}", "the frame has no text column 'age'; did you mean 'Age'?"),
        ("qqq", "the frame has no text column 'qqq'; its columns: 'Sex', 'Age', 'First name', '1st.Flr'"),
        ("{Sex", "template '{Sex': expected '}' before end of string; fix: write {{ and }} for braces of the text"),
        ("{}", "template '{}': a field must be {column} or {column:format}"),
        ("{Sex!r}", "a field must be {column} or {column:format}"),
        ("{{braces}}", "the text '{{braces}}' names no column"),
        ("", "the text '' names no column; fix: a column's name, or a template with {column}"),
        ([], "the text () names no column"),
        ([1.5], "text columns must be names, not [1.5]"),
        ("{Sex:.1f}", "row 0: column 'Sex' is 'male', which {Sex:.1f} cannot format"),
    ],
)
def test_bad_texts_are_one_line(text: Any, message: str) -> None:
    with pytest.raises((DataError), match=re.escape(message)) as caught:
        rows(text)
    assert "\n" not in str(caught.value)


def test_bad_frames_are_one_line() -> None:
    def refused(frame: Any, message: str) -> None:
        with pytest.raises(DataError, match=re.escape(message)):
            RowText("a").render(frame)

    refused([1, 2], "the frame is a list, not a data frame; fix: give a pandas or polars DataFrame, or a dict of col")
    refused({}, "the frame has no columns; fix: is the file empty")
    refused({"a": []}, "the frame has no rows; fix: is the file empty, or was everything filtered out?")
    refused({"a": [1], "b": [1, 2]}, "the frame has columns of different lengths: 1, 2")
    refused({f"c{i}": [1] for i in range(12)}, "'c9' … and 2 more")
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    refused(pd.DataFrame(), "the frame has no columns")
    refused(pl.DataFrame({"a": []}), "the frame has no rows")
    refused(pd.DataFrame([[1, 2]], columns=["a", "a"]), "the frame has 2 columns named 'a'; fix: rename them")
    refused(
        pl.DataFrame({"a": ["x"]}).lazy(), "the frame is a LazyFrame, not a data frame; fix: call .collect() on it"
    )


def test_padding_and_a_byte_order_mark_do_not_hide_a_column() -> None:
    frame = {"\ufeff         rating": [1], "rating2 ": [2]}
    table = Table(frame)
    assert table.find("rating") == "\ufeff         rating"
    assert table.column("rating2").name == "rating2"
    with pytest.raises(DataError, match="did you mean"):
        table.find("Rating")


def test_cells_as_plain_values() -> None:
    pd = pytest.importorskip("pandas")
    utc = datetime.UTC
    cells: list[tuple[Any, Any]] = [
        (float("nan"), None),
        (np.float32("nan"), None),
        (pd.NA, None),
        (pd.NaT, None),
        (np.datetime64("NaT"), None),
        (np.int8(3), 3),
        (np.str_("a"), "a"),
        (np.array([1, 2]), (1, 2)),
        ({"b", "a"}, ("a", "b")),
        (pd.Timestamp("2020-01-02"), datetime.datetime(2020, 1, 2)),
        (np.datetime64("2020-01-02T00:00:00.000000000"), datetime.datetime(2020, 1, 2)),
        (pd.Period("2020-02"), datetime.datetime(2020, 2, 1)),
        (datetime.datetime(2020, 1, 2, 3, tzinfo=utc), datetime.datetime(2020, 1, 2, 3)),
        (pd.Timestamp("2020-01-02 01:00", tz="Europe/Berlin"), datetime.datetime(2020, 1, 2)),
    ]
    for cell, expected in cells:
        assert plain(cell) == expected
        assert type(plain(cell)) is type(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (22.0, "22"),
        (-0.5, "-0.5"),
        (float(np.float32(7.8292)), "7.8292"),
        (1234567.125, "1234567.125"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (True, "True"),
        ("  x ", "x"),
        (" ", "unknown"),
        (("a", None), "a, unknown"),
        (datetime.date(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2), "2020-01-02"),
        (datetime.datetime(2020, 1, 2, 3, 4), "2020-01-02 03:04:00"),
    ],
)
def test_cells_as_text(value: Any, text: str) -> None:
    assert shown(value) == text


def test_a_row_of_a_piece_of_a_file_is_named_by_its_number_in_the_file() -> None:
    with pytest.raises(DataError, match=r"^row 2049: column 'a' is 'x', which \{a:d\} cannot format"):
        RowText("{a:d}").render({"a": [1, "x"]}, start=2048)
