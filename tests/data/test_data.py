"""Reading data files: what is text, what is missing, what is said of a broken one."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path

import pytest

from heads.command_line import install_fix
from mlxbert.data.competitions import get_competition
from mlxbert.data.frames import DataError, DataWarning, Table
from mlxbert.data.infer_task import infer_task
from mlxbert.data.reading import Data, read_chunks, read_data
from mlxbert.data.text_columns import RowText, id_values, render_texts
from mlxbert.errors import MLXBertError
from tests.support.competition_files import real_file

pandas = pytest.importorskip("pandas")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(frame: object, column: str) -> list[object]:
    return list(Table(frame).column(column).values)


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(MLXBertError) as caught:
        read_data(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(path), "FILE")


@pytest.fixture
def reviews(tmp_path: Path) -> Data:
    rows = '007,None,1,1.5,True\n2,"one,\n""two""",0,,False\n3,NA,NA,3,\nx4, ,1,null,True\n'
    return read_data(write(tmp_path / "train.csv", "\ufeff id , text,target, fare ,flag\n" + rows))


def test_a_csv_has_bare_names_exact_ids_and_only_written_missing_values(reviews: Data) -> None:
    assert list(reviews.frame.columns) == ["id", "text", "target", "fare", "flag"]
    assert reviews.kinds == {"id": "text", "text": "text", "target": "number", "fare": "number", "flag": "boolean"}
    assert values(reviews.frame, "id") == ["007", "2", "3", "x4"]
    assert values(reviews.frame, "text") == ["None", 'one,\n"two"', None, " "]
    assert values(reviews.frame, "target") == [1, 0, None, 1]
    assert values(reviews.frame, "fare") == [1.5, None, 3, None]
    assert values(reviews.frame, "flag") == [True, False, None, True]
    assert reviews.file.encoding == "utf-8-sig"
    assert reviews.file.sha256 == hashlib.sha256(reviews.file.path.read_bytes()).hexdigest()
    assert reviews.file.size == reviews.file.path.stat().st_size


def test_whole_columns_decide_what_a_cell_is(tmp_path: Path) -> None:
    rows = "1,00501,1234567890123456789,True,inf,1e5,NA\n2,10115,1,False,-inf,.5,\n"
    data = read_data(write(tmp_path / "a.csv", "n,zip,tweet,flag,limit,float,none\n" + rows))
    assert values(data.frame, "n") == [1, 2]
    assert values(data.frame, "zip") == ["00501", "10115"]
    assert values(data.frame, "tweet") == ["1234567890123456789", "1"]
    assert data.frame["flag"].dtype == bool
    assert values(data.frame, "limit") == [float("inf"), float("-inf")]
    assert values(data.frame, "float") == [1e5, 0.5]
    assert values(data.frame, "none") == [None, None]


def test_a_test_file_is_read_with_the_kinds_of_the_training_file(tmp_path: Path, reviews: Data) -> None:
    path = write(tmp_path / "test.csv", "id,text,fare,flag,extra\n8,12,free,no,5\n9,nan,2,True,6\n,13,NA,,7\n")
    data = read_data(path, kinds=reviews.kinds)
    assert values(data.frame, "id") == ["8", "9", None]
    assert values(data.frame, "text") == ["12", "nan", "13"]
    assert values(data.frame, "fare") == ["free", 2, None]
    assert values(data.frame, "flag") == ["no", True, None]
    assert data.kinds["extra"] == "number"
    assert data.kinds["fare"] == "number"


def test_ids_and_texts_stay_text_whatever_they_hold(tmp_path: Path) -> None:
    csv = read_data(write(tmp_path / "a.csv", "id,x\n1,1\n2,2\n"), text_columns=("id",))
    assert values(csv.frame, "id") == ["1", "2"]
    jsonl = write(
        tmp_path / "a.jsonl", '{"id": 12345678901234567890, "x": 1}\n\n{"id": null, " x": 2.5}\n{"id": 7.0}\n'
    )
    data = read_data(jsonl, text_columns=("id",))
    assert values(data.frame, "id") == ["12345678901234567890", None, "7"]
    assert values(data.frame, "x") == [1, 2.5, None]
    assert data.kinds == {"id": "text", "x": "native"}


def test_jsonl_keeps_types_and_dates_as_they_are(tmp_path: Path) -> None:
    lines = [{"date": "2020-01-01", "text": "None", "y": True}, {"date": "x", "text": "NA", "y": False}]
    data = read_data(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines))))
    assert values(data.frame, "date") == ["2020-01-01", "x"]
    assert values(data.frame, "text") == ["None", "NA"]
    assert values(data.frame, "y") == [True, False]


def test_parquet_keeps_ids_beside_a_missing_one_exact(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"id": pandas.array([2**60 + 1, None, 3], "Int64"), "text": ["None", None, "x"]})
    frame.to_parquet(tmp_path / "a.parquet")
    data = read_data(tmp_path / "a.parquet", text_columns=("id",))
    assert values(data.frame, "id") == [str(2**60 + 1), None, "3"]
    assert values(data.frame, "text") == ["None", None, "x"]
    frame.assign(key=["a", "b", "c"]).set_index("key").to_parquet(tmp_path / "b.parquet")
    assert values(read_data(tmp_path / "b.parquet").frame, "key") == ["a", "b", "c"]
    assert [len(part) for part in read_chunks(tmp_path / "a.parquet", data.kinds, rows=2)] == [2, 1]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_chunks_hold_what_the_whole_file_holds(tmp_path: Path, suffix: str, rows: int) -> None:
    frame = pandas.DataFrame({"id": [str(i) for i in range(9)], "text": ["a", "b\nc", "7"] * 3, "x": [1, 2, 3.5] * 3})
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    whole = read_data(path, text_columns=("id",))
    parts = list(read_chunks(path, whole.kinds, rows=rows, required=("text",)))
    assert max(map(len, parts)) == rows
    joined = pandas.concat(parts)
    assert list(joined.index) == list(range(9))
    assert [values(joined, name) for name in joined] == [values(whole.frame, name) for name in whole.frame]


@pytest.mark.parametrize(("content", "name", "encoding"), [
    ("text\ncafé\n".encode("cp1252"), "cp1252", None),
    ("text\ncafé\x81\n".encode("latin-1"), "latin-1", None),
])  # fmt: skip
def test_another_encoding_is_found_and_said(tmp_path: Path, content: bytes, name: str, encoding: str | None) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.warns(DataWarning) as caught:
        data = read_data(path)
    assert [str(one.message) for one in caught] == [
        f"{path}: line 2 is not UTF-8; the file is read as {name}: give encoding= if it is another"
    ]
    assert values(data.frame, "text")[0].startswith("café")  # type: ignore[attr-defined]
    assert data.file.encoding == name


def test_utf_16_and_an_encoding_that_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,y\nпривет,1\n".encode("utf-16"))
    assert values(read_data(path).frame, "text") == ["привет"]
    other = write(tmp_path / "b.csv", "text,y\nпривет,1\n".encode("cp1251"))
    assert values(read_data(other, encoding="cp1251").frame, "text") == ["привет"]
    assert refusal(other, encoding="utf-8") == "FILE: line 2 is not utf-8; fix: another encoding"
    broken = write(tmp_path / "c.csv", "text,y\na,1\n".encode("utf-16") + b"\x00")
    assert refusal(broken) == "FILE: starts as UTF-16, but line 3 is not; fix: save it as UTF-8"
    assert refusal(other, encoding="utf8x").startswith("encoding 'utf8x' is not known; fix: utf-8")


@pytest.mark.parametrize(
    ("name", "mark"), [("a.tsv", "\t"), ("a.csv", ";"), ("b.csv", "\t"), ("b.tsv", ","), ("c.csv", "|")]
)
def test_the_separator_is_that_of_the_header(tmp_path: Path, name: str, mark: str) -> None:
    data = read_data(write(tmp_path / name, f"a{mark}b\n1{mark}x\n"))
    assert list(data.frame.columns) == ["a", "b"]
    assert data.file.separator == mark


def test_a_blank_line_is_an_empty_text_where_text_is_all_there_is(tmp_path: Path) -> None:
    assert values(read_data(write(tmp_path / "a.csv", "text\nx\n\ny\n")).frame, "text") == ["x", None, "y"]
    assert values(read_data(write(tmp_path / "b.csv", "text,y\nx,1\n\ny,2\n")).frame, "text") == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "FILE is empty; fix: download it again"),
        ("a.csv", "\n\n", "FILE has no header; fix: is the file empty?"),
        ("a.csv", "a,b\n", "FILE has no rows; fix: is the file empty, or was everything filtered out?"),
        ("a.xlsx", b"PK\x03\x04....", "FILE cannot be read: File is not a zip file; fix: get the file again"),
        (
            "a.csv",
            b"\x1f\x8b....",
            "FILE cannot be read: Compressed file ended before the end-of-stream marker was reached; fix: get the "
            "file again",
        ),
        (
            "a.csv.gz",
            "a,b\n",
            "FILE is not compressed, whatever its name says; fix: give it the extension of what it is",
        ),
        ("a.csv", b"PAR1....", "FILE is Parquet; fix: name it .parquet"),
        ("a.parquet", "a,b\n1,2\n", "FILE is not Parquet, whatever its name says"),
        (
            "a.csv",
            b"a\x00b",
            "FILE is not text: it has zero bytes (first: line 1); fix: give CSV, TSV or JSONL in UTF-8, or encoding=",
        ),
        ("a.csv", "a,b,a\n1,2,3\n", "FILE: 1 column names come twice (first: 'a'); fix: rename them"),
        (
            "a.csv",
            "a,b\n1,2,3\n4,5,6\n",
            "FILE cannot be read with the separator ',': rows have more cells than the header; "
            "fix: quote cells that hold the separator, take out lines before the header, or name each column in it "
            "(R leaves out the first)",
        ),
        (
            "a.csv",
            "a,b\n1,2\n4,5,6\n",
            "FILE cannot be read with the separator ',': Expected 2 fields in line 3, saw 3; "
            "fix: quote cells that hold the separator, take out lines before the header, or name each column in it "
            "(R leaves out the first)",
        ),
        (
            "a.csv",
            "x" * (1 << 20),
            "FILE: the first line is longer than 1 MB, which is no header; fix: is this a CSV?",
        ),
        (
            "a.jsonl",
            '{"a": 1}\n{"a": \n',
            "FILE: line 2 is not JSON (Expecting value: line 2 column 1 (char 7)); fix: one object a line",
        ),
        ("a.jsonl", '{"a": 1}\n[1]\n', "FILE: line 2 is a list, not an object; fix: one object a line"),
        ("a.jsonl", "\n", "FILE has no columns; fix: is the file empty, or was it read with another separator?"),
        (
            "a.dat",
            "a,b\n1,2\n",
            "FILE: '.dat' is not read; fix: give .csv, .tsv, .tab, .jsonl, .ndjson, .json, .parquet, .pq, .xlsx, "
            ".xlsm, .ods, or one of them as .gz",
        ),
    ],
)
def test_a_broken_file_is_said_in_a_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    assert refusal(write(tmp_path / name, content)) == message


def test_cells_that_a_short_row_lacks_are_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text,n,flag\n1,a,1,True\n2\n3,b\n")
    data = read_data(path)
    assert values(data.frame, "text") == ["a", None, "b"]
    assert values(data.frame, "n") == [1, None, None]
    assert values(data.frame, "flag") == [True, None, None]
    assert [values(part, "n") for part in read_chunks(path, data.kinds, rows=2)] == [[1, None], [None]]


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "FILE is a directory; fix: name the file in it"
    assert refusal(tmp_path / "a.csv") == "FILE is not there; fix: check the path"
    damaged = write(tmp_path / "a.parquet", b"PAR1" + b"x" * 40)
    pytest.importorskip("pyarrow")
    assert refusal(damaged).startswith("FILE is damaged (")
    with pytest.raises(DataError, match="rows must be a positive whole number, not 0"):
        next(read_chunks(damaged, {}, rows=0))


def test_chunks_of_a_file_without_rows(tmp_path: Path) -> None:
    header = write(tmp_path / "a.csv", "id,text\n")
    with pytest.raises(DataError, match=r"has no rows; fix: is the file empty, or was everything filtered out\?$"):
        next(read_chunks(header, {}))
    pytest.importorskip("pyarrow")
    pandas.DataFrame({"id": pandas.Series([], dtype=int)}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no rows"):
        next(read_chunks(tmp_path / "a.parquet", {}))


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.csv", "a\n1\n")
    monkeypatch.setattr("mlxbert.files.reading.os.open", refuse)
    assert refusal(path) == "FILE: permission denied; fix: make it readable (chmod u+r FILE)"


def test_a_missing_column_gives_the_nearest_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text,label\n1,2,3\n")
    assert refusal(path, required=("lable",)) == "FILE has no column 'lable'; did you mean 'label'?"
    with pytest.raises(DataError, match="has no column 'tekst'"):
        next(read_chunks(path, {}, required=("tekst",)))


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    content = b"PAR1" if package == "pyarrow" else b"a\n1\n"
    path = write(tmp_path / ("a.parquet" if package == "pyarrow" else "a.csv"), content)
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(path).endswith(f"; fix: {install_fix('kaggle')}")
    assert refusal(path).startswith("Parquet needs pyarrow" if package == "pyarrow" else "reading data needs pandas")


def test_empty_texts_are_counted_and_ids_are_checked(reviews: Data) -> None:
    with pytest.warns(DataWarning, match=r"^train: 2 of 4 rows have no text; they are encoded as an empty one$"):
        made = render_texts(reviews.frame, RowText("text"), "train")
    assert made.texts == ["None", 'one,\n"two"', "", " "]
    assert id_values(reviews.frame, "id") == ["007", "2", "3", "x4"]
    with pytest.raises(
        DataError, match=r"^train: row 2 has no id in column 'text'; fix: fill it, or leave the id out$"
    ):
        id_values(reviews.frame, "text", "train")
    with pytest.raises(DataError) as caught:
        id_values({"id": [1, 2, 1, 2.0, 3]}, "id", "test")
    assert str(caught.value) == (
        "test: 2 ids of column 'id' come more than once; fix: drop the repeated rows, or name another "
        "column: --id COLUMN\n  1\n  2"
    )


REAL = {
    "titanic": (891, "binary", 0),
    "house-prices": (1460, "regression", 0),
    "disaster-tweets": (7613, "binary", 0),
    "alexa-stars": (3150, "ordinal", 80),
    "airline-passengers": (144, "time_series", 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data(name: str) -> None:
    competition = get_competition(name)
    path = real_file(competition, competition.train)
    rows, task, empty = REAL[name]
    text = [competition.id] if competition.id else []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_data(path, required=(*competition.target, *competition.text.columns), text_columns=text)
    assert len(data.frame) == rows
    made = competition.text.render(data.frame)
    assert abs(made.empty - empty) <= 10
    if competition.id:
        ids = id_values(data.frame, competition.id)
        assert all(isinstance(one, str) for one in ids)
    for target in competition.target:
        assert data.kinds[target] == "number"
    if task in ("binary", "regression"):
        assert infer_task(data.frame[competition.target[0]]).task == task
    parts = list(read_chunks(path, data.kinds, rows=500))
    assert [text for part in parts for text in competition.text.render(part).texts] == made.texts


def test_the_review_that_is_the_word_none() -> None:
    competition = get_competition("alexa-stars")
    data = read_data(real_file(competition, competition.train))
    assert list(data.frame.columns) == ["rating", "date", "variation", "verified_reviews", "feedback"]
    assert values(data.frame, "verified_reviews").count("None") == 1


def test_jigsaw_has_newlines_in_quotes() -> None:
    competition = get_competition("jigsaw-toxic")
    data = read_data(real_file(competition, competition.train), text_columns=("id", "comment_text"))
    assert len(data.frame) == 282
    assert sum(values(data.frame, "threat")) == 2  # type: ignore[arg-type]
    assert any("\n" in text for text in competition.text.render(data.frame).texts)
