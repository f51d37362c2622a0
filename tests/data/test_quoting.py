"""Quotes in text tables: no row is swallowed, what is chosen is said, a proper cell of several lines is left alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from mlxbert.data.csv_dialect import MOST_CHARACTERS, Quoting
from mlxbert.data.frames import DataWarning
from mlxbert.data.reading import Data, read_chunks, read_data
from mlxbert.errors import MLXBertError

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "good", "bad"]


def table(separator: str = "\t", header: str = "id,text,label", **cells: str) -> str:
    """40 rows of id, text and label; `r5="…"` is the text of row 5."""
    lines = [header.replace(",", separator)]
    for i in range(40):
        lines.append(separator.join([str(i), cells.get(f"r{i}", " ".join(WORDS[i % 8 :] or ["mat"])), str(i % 2)]))
    return "\n".join(lines) + "\n"


def read(path: Path, content: str | bytes, **options: Any) -> tuple[Data, list[str]]:
    """The data, and what was warned of."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = read_data(path, **options)
    return data, [str(one.message) for one in caught if issubclass(one.category, DataWarning)]


@pytest.mark.parametrize(
    "cells",
    [
        {"r5": '"the cat', "r31": '"a dog'},
        {"r5": '"the cat'},
        {"r39": '"the last'},
        {"r5": '"the cat', "r31": 'a dog"'},  # each quote has its fellow: 27 rows would be one
        {"r5": '"the cat', "r6": 'a dog"'},
        {"r5": '"the" cat', "r9": 'the 5" disk'},
        {"r5": '"He said "hi" to me"'},
    ],
)
@pytest.mark.parametrize("separator", ["\t", ","])
def test_a_lone_quote_swallows_no_rows(tmp_path: Path, cells: dict[str, str], separator: str) -> None:
    name = "a.tsv" if separator == "\t" else "a.csv"
    data, said = read(tmp_path / name, table(separator, **cells))
    assert len(data.frame) == 40
    assert {row: data.frame["text"][int(row[1:])] for row in cells} == cells  # every quote is kept
    assert data.file.quoting == "none"
    assert len(said) == 1
    assert "quotes are read as characters like any other (--quoting none), so that each of the 40 lines" in said[0]
    parts = [*read_chunks(tmp_path / name, data.kinds, rows=7)]
    assert sum(map(len, parts)) == 40


@pytest.mark.parametrize(
    "text",
    ['"one,\ntwo ""three""\n\nfour"', '"hello\nworld, yes\nno, no"', '"quoted"', '5" disk', '"C:\\dir\\"', '"a\r\nb"'],
)
def test_a_proper_cell_of_several_lines_is_read_without_a_word(tmp_path: Path, text: str) -> None:
    data, said = read(tmp_path / "a.csv", table(",", r5=text))
    assert said == []
    assert len(data.frame) == 40
    assert data.frame["text"][5] == (text[1:-1].replace('""', '"') if text[0] == '"' else text)
    assert data.file.quoting == "minimal"


def test_the_first_rows_are_judged_by_the_later_ones(tmp_path: Path) -> None:
    data, said = read(tmp_path / "a.tsv", table(r0='"""', r1=' """'))
    assert (list(data.frame["text"][:2]), len(said)) == (['"""', ' """'], 1)


def test_two_columns_whose_texts_have_lines_with_a_comma(tmp_path: Path) -> None:
    rows = "".join(f'{i % 2},"hello\nworld, yes"\n' if i % 9 == 0 else f"{i % 2},cat {i}\n" for i in range(40))
    data, said = read(tmp_path / "a.csv", "label,text\n" + rows)
    assert (len(data.frame), said) == (40, [])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"r3": '"a, b"', "r5": '"lone', "r31": 'end"'}, "with quotes, lines 7 to 33 become one row, though each"),
        (
            {"r3": '"a, b"', "r5": '"lone', "r31": '"lone'},
            "the quote that opens a cell in line 7 is not closed at the",
        ),
        (
            {"r3": '"a, b"', "r5": '"lone'},
            "the quote that opens a cell in line 7 is not closed at the end of one (up to",
        ),
    ],
)
def test_quotes_that_no_reading_explains_are_refused_with_the_line(
    tmp_path: Path, cells: dict[str, str], message: str
) -> None:
    with pytest.raises(MLXBertError) as caught:
        read(tmp_path / "a.csv", table(",", **cells))
    assert message in str(caught.value)
    assert "without, line 5 has more cells than the header; fix: mend the quotes" in str(caught.value)
    if "--quoting minimal" in str(caught.value):  # the fix that is offered
        data, said = read(tmp_path / "a.csv", table(",", **cells), quoting="minimal")
        assert (len(data.frame), said) == (14, [])


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        (r'"he said \"hi\", then"', 'he said "hi", then'),
        (r"he said\, then", "he said, then"),
        (r'"C:\new \"x\", y\\z"', 'C:\\new "x", y\\z'),
    ],
)
def test_backslashes_before_quotes_are_a_dialect(tmp_path: Path, cell: str, value: str) -> None:
    content = table(",", r5=cell, r6=r'"and \"this\", too"')
    data, said = read(tmp_path / "a.csv", content)
    assert data.frame["text"][5] == value
    assert len(data.frame) == 40
    assert data.file.quoting == "escaped"
    assert said[0].endswith("is read as an escape (--quoting escaped)")


def test_a_quote_that_is_not_doubled_is_said(tmp_path: Path) -> None:
    data, said = read(tmp_path / "a.csv", table(",", r3='"a, b"', r5='"he said "hi" to me"'))
    assert len(data.frame) == 40
    assert "line 7 has a quote within a quoted cell that is not doubled" in said[0]


@pytest.mark.parametrize(
    ("like", "chosen", "said"),
    [("none", "none", 0), ("minimal", "minimal", 0), (None, "none", 1)],
)
def test_a_test_file_that_can_be_read_in_two_ways_is_read_as_the_training_file(
    tmp_path: Path, like: Quoting | None, chosen: str, said: int
) -> None:
    data, warned = read(tmp_path / "a.tsv", table(r5='"the cat', r31='a dog"'), like=like)
    assert (data.file.quoting, len(warned)) == (chosen, said)
    assert len(data.frame) == (40 if chosen == "none" else 14)


def test_a_test_file_that_speaks_against_the_training_file_is_read_anew_and_said(tmp_path: Path) -> None:
    data, said = read(tmp_path / "a.csv", table(",", r5='"one\ntwo, three"'), like="none")
    assert (data.file.quoting, len(data.frame)) == ("minimal", 40)
    assert said[0].endswith("quotes are read otherwise than in the training file (minimal, there none)")


def test_a_header_in_quotes_and_one_with_a_lone_quote(tmp_path: Path) -> None:
    data, said = read(tmp_path / "a.csv", table(",", header='"id","text","label"'))
    assert (list(data.frame.columns), said) == (["id", "text", "label"], [])
    data, said = read(tmp_path / "b.csv", table(",", header='id,"text,label'))
    assert (list(data.frame.columns), len(data.frame), len(said)) == (["id", '"text', "label"], 40, 1)
    data, _ = read(tmp_path / "c.csv", '"Score, total";"Text"\n1;a\n')
    assert list(data.frame.columns) == ["Score, total", "Text"]


def test_line_ends_of_every_kind(tmp_path: Path) -> None:
    for i, content in enumerate(("id,t\r\n1,a\n2,b\r\n", "id,t\r1,a\r2,b\r", "id,t\n1,a\n2,b")):
        data, said = read(tmp_path / f"{i}.csv", content)
        assert (list(data.frame["t"]), said) == (["a", "b"], [])
    with pytest.raises(MLXBertError, match="line 2 ends in a carriage return alone and lacks cells"):
        read(tmp_path / "a.csv", "id,t,y\n1,a\rb,0\n2,b,1\n")


def test_rows_of_other_lengths(tmp_path: Path) -> None:
    data, said = read(tmp_path / "a.csv", "id,t,y\n1,a\n2,b,1\n")
    assert list(data.frame["t"]) == ["a", "b"]
    assert said[0].endswith(
        "1 of 2 rows have fewer cells than the header (first: line 2); what they lack is read as missing"
    )
    for i, header in enumerate(("id,t,y", "id,t,y,")):  # a separator at the end of every line
        data, said = read(tmp_path / f"{i}.csv", f"{header}\n1,a,0,\n2,b,1,\n")
        assert (list(data.frame.columns), list(data.frame["y"]), said) == (["id", "t", "y"], [0, 1], [])
    with pytest.raises(MLXBertError, match="Expected 3 fields in line 3, saw 4; fix: quote cells that hold"):
        read(tmp_path / "b.csv", "id,t,y\n1,a,0\n2,hello, world,1\n")


def test_a_line_or_cell_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_CHARACTERS >= 20_000_000  # a cell of 20 MB is read
    monkeypatch.setattr("mlxbert.data.file_format._CHUNK", 500)
    for module in ("csv_dialect", "file_format"):
        monkeypatch.setattr(f"mlxbert.data.{module}.MOST_CHARACTERS", 1000)
    with pytest.raises(MLXBertError, match="line 2 has more than 0 million characters"):
        read(tmp_path / "a.csv", f"t,y\n{'x' * 1500},1\n")
    lines = "\n".join(["x" * 100] * 15)
    with pytest.raises(MLXBertError, match="line 11 ends a cell of more than 0 million characters; fix: is a quote"):
        read(tmp_path / "b.csv", f't,y\n"{lines}",1\n')


def test_an_unknown_quoting(tmp_path: Path) -> None:
    with pytest.raises(MLXBertError, match="quoting 'all' is not known; fix: none, minimal, escaped"):
        read(tmp_path / "a.csv", "a\n1\n", quoting="all")
