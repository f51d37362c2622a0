"""Data files of every format: JSON documents, spreadsheets, archives, encodings, and what is no data at all."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pandas
import pytest

from heads.command_line import install_fix
from mlxbert.data.file_format import looking_once
from mlxbert.data.frames import DataWarning, Table
from mlxbert.data.reading import read_chunks, read_data
from mlxbert.errors import MLXBertError

ROWS = [{"id": i, "text": f"t {i}", "y": "ab"[i % 2]} for i in range(5)]
FRAME = pandas.DataFrame(ROWS)
CSV = FRAME.to_csv(index=False).encode()


def read(path: Path, content: str | bytes | None = None, **options: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows, and what was warned of."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frame = read_data(path, **options).frame
    table = Table(frame)
    columns = {name: table.column(name).values for name in table.names}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows, [str(one.message) for one in caught]


def refusal(path: Path, content: str | bytes | None = None) -> str:
    with pytest.raises(MLXBertError) as caught:
        read(path, content)
    return str(caught.value).replace(str(path), "FILE")


def zipped(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__csv", ".csv").replace("__tsv", ".tsv").replace("__xml", ".xml"), content)
    return made.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=1),
        "\ufeff" + json.dumps(ROWS),
        "\n".join(map(json.dumps, ROWS)),
        json.dumps({"data": ROWS}),
        json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
        *(FRAME.to_json(orient=orient) for orient in ("columns", "index", "split", "table", "records")),
        FRAME.set_index(pandas.Index(list("vwxyz"))).to_json(orient="index"),
    ],
)
def test_json_of_every_layout_is_one_table(tmp_path: Path, content: str) -> None:
    for name in ("a.json", "a.jsonl"):
        rows, said = read(tmp_path / name, content) if name == "a.json" or content[0] != "{" else (ROWS, [])
        assert (rows, said) == (ROWS, [])
    path = tmp_path / "a.json"
    assert [len(part) for part in read_chunks(path, {}, rows=2)] == [2, 2, 1]


def test_a_document_that_can_be_read_in_two_ways_is_said(tmp_path: Path) -> None:
    rows, said = read(tmp_path / "a.json", FRAME.set_index(pandas.Index(list("vwxyz"))).to_json())
    assert rows == ROWS
    assert "is read by columns ('id', 'text', 'y', …), as pandas' to_json writes it" in said[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            FRAME.to_json(orient="values"),
            "FILE has rows without column names (orient='values'); fix: one obj",
        ),
        ("a.json", "[1, 2]", "FILE: element 0 is a int, not an object; fix: one object a line, an array of objects"),
        ("a.json", '{"a": [1], "b": [1, 2]}', "FILE has columns of different lengths: 1, 2; fix: mend it"),
        ("a.json", json.dumps(ROWS)[:-3], "FILE is not JSON ("),
        ("a.json", "[" * 100_000, "FILE is not JSON (maximum recursion depth exceeded"),
        ("a.jsonl", '{"a":' + "[" * 60 + "]" * 60 + ', "b": 1}\n', "FILE: line 1 has 'a' nested deeper than 32; fix"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}\n", "FILE: line 1 is not JSON (Exceeds the limit (4300 digits)"),
        (
            "a.jsonl",
            '{"a": 1, "a": 2}\n',
            "FILE: line 1 is not JSON (the key 'a' comes twice); fix: one object a line",
        ),
        ("a.jsonl", '{"a": 1, " a": 2}\n', "FILE: line 1 has names that differ by white space alone; fix: rename"),
        ("a.json", '{"columns": ["a"], "data": [[1, 2]]}', "FILE: row 0 has not one cell for each of the 1 columns"),
    ],
)
def test_json_that_is_no_table_is_refused_in_a_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    said = refusal(tmp_path / name, content)
    assert said.startswith(message)
    assert "\n" not in said


def test_half_of_a_surrogate_pair_is_a_mark_and_said(tmp_path: Path) -> None:
    line = '{"id": "x\\ud83dy", "t\\udc00": "\\ud83d\\ude00", "l": ["\\udfff"]}\n'
    for name, content in (("a.jsonl", line * 2), ("a.json", f"[{line}, {line}]")):
        rows, said = read(tmp_path / name, content)
        assert rows == [{"id": "x\ufffdy", "t\ufffd": "😀", "l": ("\ufffd",)}] * 2
        assert [one.replace(str(tmp_path / name), "FILE") for one in said] == [
            f"FILE: {'line 1' if name == 'a.jsonl' else 'row 0'} has half of a surrogate pair, which is no character; "
            "it is read as U+FFFD"
        ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", gzip.compress(CSV, mtime=0)),
        ("a.csv.bz2", bz2.compress(CSV)),
        ("a.csv.xz", lzma.compress(CSV)),
        ("a.csv.zip", zipped(a__csv=CSV)),
        ("train.zip", zipped(**{"train__tsv": CSV.replace(b",", b"\t"), "__MACOSX/x": b"x", ".DS_Store": b"x"})),
        ("a.csv", gzip.compress(CSV, mtime=0)),  # whatever its name says
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ],
)
def test_compressed_files_are_read_as_they_are(tmp_path: Path, name: str, content: bytes) -> None:
    assert read(tmp_path / name, content) == (ROWS, [])
    assert [len(part) for part in read_chunks(tmp_path / name, {}, rows=3)] == [3, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.zip",
            zipped(a__csv=CSV, b__csv=CSV),
            "FILE is a ZIP archive that holds 2 files, not one; fix: unpack it and",
        ),
        (
            "a.csv.gz",
            gzip.compress(CSV * 99, mtime=0)[:-20],
            "FILE cannot be read: Compressed file ended before the end-of-str",
        ),
        (
            "a.csv.gz",
            gzip.compress(b"text\n" + b"a" * (80 << 20), mtime=0),
            "FILE unpacks to more than 64 MB, 100 times its size",
        ),
        (
            "a.tar.gz",
            gzip.compress(b"\0" * 257 + b"ustar" + b"\0" * 300, mtime=0),
            "FILE is a tar archive; fix: unpack it and",
        ),
        ("a.parquet.gz", gzip.compress(b"PAR1xx", mtime=0), "FILE is compressed Parquet; fix: unpack it first"),
        (
            "a.csv",
            b"\n <!DOCTYPE html><html>",
            "FILE is a web page (it begins with '<!doctype html'), not data; fix: dow",
        ),
        ("a.csv", b'<table border="1">\n<tr>', "FILE is a web page (it begins with '<table border='), not data"),
        ("a.csv", b"%PDF-1.7", "FILE is a PDF; fix: give the data as CSV, JSONL or Parquet"),
        ("a.csv", b"\x89PNG\r\n", "FILE is an image; fix: give the data file"),
        ("a.xls", b"\xd0\xcf\x11\xe0", "FILE is a file of an old Excel or Word; fix: save it as .xlsx or CSV"),
        ("a.xlsx", CSV, "FILE is not an Excel file, whatever its name says; fix: name it .csv if it is text"),
        (
            "a.csv",
            "id;t\n1;é\n".encode("utf-16-le"),
            "FILE looks like UTF-16 without a byte order mark; fix: --encoding",
        ),
        ("a.csv", b"id,t\n1,a\0\n", "FILE is not text: it has zero bytes (first: line 2); fix: give CSV"),
        ("a.csv", b"\xef\xbb\xbf", "FILE has no header; fix: is the file empty?"),
    ],
)
def test_what_is_no_table_is_told_by_its_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert refusal(tmp_path / name, content).startswith(message)


@pytest.mark.parametrize(
    "content",
    [
        b"sep=;\r\nid;text;y\r\n0;a,b;x\r\n",
        "\ufeffsep=;\nid;text;y\n0;a,b;x\n".encode(),
        "sep=;\nid;text;y\n0;a,b;x\n".encode("utf-16"),
        b'"sep=|"\nid|text|y\n0|a,b|x\n',
        b"sep=\t\nid\ttext\ty\n0\ta,b\tx\n",
        "id;text;y\n0;a,b;x\n".encode("utf-32"),
    ],
)
def test_the_line_that_excel_writes_before_the_header(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path / "a.csv", content) == ([{"id": 0, "text": "a,b", "y": "x"}], [])


def test_spreadsheets_keep_the_types_of_their_cells(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    cells = {"id": ["007", "8"], "n": [1, 2], "x": [1.5, None], "when": ["NA", None], "flag": [True, False]}
    frame = pandas.DataFrame(cells)
    frame.to_excel(tmp_path / "a.xlsx", index=False)
    rows, said = read(tmp_path / "a.xlsx", text_columns=("n",))
    assert rows == [
        {"id": "007", "n": "1", "x": 1.5, "when": "NA", "flag": True},
        {"id": "8", "n": "2", "x": None, "when": None, "flag": False},
    ]
    assert said == []
    with pandas.ExcelWriter(tmp_path / "b.xlsx") as writer:
        pandas.DataFrame().to_excel(writer, sheet_name="Empty")
        frame.to_excel(writer, sheet_name="Train", index=False)
    rows, said = read(tmp_path / "b.xlsx")
    assert len(rows) == 2
    assert said[0].endswith("has 2 sheets; 'Train' is read: save another as a file of its own")
    assert refusal(tmp_path / "c.csv", (tmp_path / "a.xlsx").read_bytes()).startswith(
        "FILE is an Excel file, whatever"
    )


def test_an_open_document_is_read_alike_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("odf")
    path = tmp_path / "a.ods"
    FRAME.to_excel(path, index=False, engine="odf")
    assert read(path) == (ROWS, [])
    monkeypatch.setitem(sys.modules, "odf", None)
    monkeypatch.setitem(sys.modules, "odf.opendocument", None)
    assert refusal(path) == f"FILE needs odfpy; fix: {install_fix('excel')}, or save it as CSV"
    content = b'<x table:number-columns-repeated="99999999"/>'
    assert refusal(path, zipped(content__xml=content)) == "FILE repeats a cell 99999999 times; fix: give it as CSV"


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to itself", "link to a device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "link to itself":
        path.symlink_to(path)
    else:
        path = Path("/dev/zero") if kind == "device" else path
        if kind == "link to a device":
            path.symlink_to("/dev/zero")
    assert "; fix: " in refusal(path)


def test_parquet_with_damaged_metadata_of_pandas_is_read_without_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.Table.from_pandas(FRAME.set_index(pandas.Index([5, 6, 7, 8, 9])))
    for metadata in (b"{", b'{"index_columns": [7]}', b'{"index_columns": "x", "columns": [1]}', b"\xff"):
        parquet.write_table(table.replace_schema_metadata({b"pandas": metadata}), tmp_path / "a.parquet")
        rows, said = read(tmp_path / "a.parquet")
        assert rows == ROWS
        assert any("what pandas wrote about its index is damaged" in one for one in said) or not said


def test_parquet_with_text_that_is_none_is_damaged(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    text = pyarrow.array([b"a", b"\xff\xfe"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"t": text}), tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith("FILE is damaged (")


def test_ten_thousand_columns_and_names_that_steer_a_terminal(tmp_path: Path) -> None:
    names = ["\x1b]0;owned\x07", *(f"c{i}" for i in range(9_999))]
    path = tmp_path / "a.csv"
    path.write_text(",".join(names) + "\n" + ",".join(["1"] * 10_000) + "\n")
    data = read_data(path)
    assert len(data.kinds) == 10_000
    with pytest.raises(MLXBertError) as caught:
        read_data(path, required=("\x1b]0;owned",))
    assert "\x1b" not in str(caught.value)
    path.write_text(",".join(f"c{i}" for i in range(50_001)) + "\n1\n")
    assert refusal(path) == "FILE has 50001 columns, more than 50000; fix: is it turned around?"
    table = Table(data.frame)
    assert table.column("c9998").values == (1,)


def test_a_command_looks_at_a_file_once_and_the_next_one_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id\ttext\n1\t"a\n2\tb\n')
    path = path.rename(tmp_path / "a.tsv")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        with looking_once():
            first = read_data(path)
            with looking_once():
                second = read_data(path)
            third = read_data(path)
        assert len(caught) == 1
        assert first.file == second.file == third.file
        with looking_once():
            read_data(path)
        assert len(caught) == 2
        read_data(path)
        assert len(caught) == 3
    with looking_once():
        assert len(read_data(path).frame) == 2
        path.write_text("id\ttext\n1\ta\n2\tb\n3\tc\n")
        assert len(read_data(path).frame) == 3
