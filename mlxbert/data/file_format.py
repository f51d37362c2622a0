"""`inspect_file`: format, compression, encoding, separator and quoting of a data file, before any of it is parsed."""

from __future__ import annotations

import codecs
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxbert.data.csv_dialect import (
    MOST_CHARACTERS,
    Compression,
    DataFile,
    Format,
    Quoting,
    find_quoting,
    only_member,
    open_unpacked,
    os_errors,
)
from mlxbert.data.frames import DataError, DataWarning
from mlxbert.files.reading import expand_home, open_regular, sha256_hex

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".ods": "excel",
}
_COMPRESSED: dict[str, Compression] = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zip": "zip"}
_MAGIC: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "zip"}
# Files that are not data, by their first bytes.
_OTHERS = {
    b"7z\xbc\xaf": "a 7z archive; fix: unpack it first",
    b"Rar!": "a RAR archive; fix: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; fix: unpack it first",
    b"%PDF": "a PDF; fix: give the data as CSV, JSONL or Parquet",
    b"\x89PNG": "an image; fix: give the data file",
    b"\xff\xd8\xff": "an image; fix: give the data file",
    b"GIF8": "an image; fix: give the data file",
    b"\xd0\xcf\x11\xe0": "a file of an old Excel or Word; fix: save it as .xlsx or CSV",
    b"SQLite format 3": "an SQLite database; fix: export its table as CSV",
    b"version https://git-lfs": "a Git-LFS pointer, not the file itself; fix: git lfs pull",
}
_CHUNK = 1 << 20
# The longest header known from Kaggle (tens of thousands of gene columns) is shorter.
_HEADER_LIMIT = 1 << 20

_INSPECTED: ContextVar[dict[tuple[Any, ...], DataFile] | None] = ContextVar("_INSPECTED", default=None)


@contextmanager
def looking_once() -> Iterator[None]:
    """Inside the block, inspect each file once, and warn of it once, though a command reads it several times."""
    if _INSPECTED.get() is not None:  # the outer block already does
        yield
        return
    before = _INSPECTED.set({})
    try:
        yield
    finally:
        _INSPECTED.reset(before)


def inspect_file(
    path: str | Path, *, encoding: str | None = None, quoting: Quoting | None = None, like: Quoting | None = None
) -> DataFile:
    """Return a data file's format, compression, encoding, separator, quoting and sha256.

    Args:
        path: CSV, TSV, JSON, Parquet or Excel, by its extension; also as .gz, .bz2, .xz or .zip.
        encoding: of the text; None: UTF-8, UTF-16 or UTF-32 by byte order mark, then UTF-8, then Windows-1252, then
            Latin-1.
        quoting: of a text table; None: `mlxbert.data.csv_dialect` infers it.
        like: the training file's quoting.

    Raises:
        DataError: the file is absent, not regular, empty, of another format, or damaged; it has bytes that are not of
            the given encoding, or quotes that can be read in two ways.

    Warns:
        DataWarning: the file is not UTF-8, or its quotes are unusual; the message says how it is read.
    """
    path, inspected = expand_home(path), _INSPECTED.get()
    if inspected is None:
        return _inspect(path, encoding, quoting, like)
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return _inspect(path, encoding, quoting, like)  # raises with the reason
    key = (path, encoding, quoting, like, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    if key not in inspected:
        inspected[key] = _inspect(path, encoding, quoting, like)
    return inspected[key]


def _inspect(path: Path, encoding: str | None, quoting: Quoting | None, like: Quoting | None) -> DataFile:
    head, size, sha256 = _read_head(path)
    compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    name, format = path.name, _FORMATS.get(path.suffix.lower())
    if compression == "zip":
        with os_errors(path), zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if {"xl/workbook.xml", "content.xml"} & names:
                return _excel_file(path, format, archive, size, sha256)
            name = only_member(archive, path)
    elif compression is not None and path.suffix.lower() in _COMPRESSED:
        name = path.stem
    elif compression is None and path.suffix.lower() in _COMPRESSED:
        raise DataError(f"{path} is not compressed, whatever its name says; fix: give it the extension of what it is")
    if compression is not None:
        with os_errors(path), open_unpacked(path, compression, size) as stream:
            head = stream.read(_HEADER_LIMIT)
        if not head:
            raise DataError(f"{path} is empty; fix: download it again")
        if head[257:262] == b"ustar":
            raise DataError(f"{path} is a tar archive; fix: unpack it and name one of its files")
        format = _FORMATS.get(Path(name).suffix.lower(), format)
    _refuse_other_files(path, head)
    if format is None:
        suffix = Path(name).suffix
        raise DataError(
            f"{path}: {suffix or 'no extension'!r} is not read; fix: give {', '.join(_FORMATS)}, or one of them as .gz"
        )
    if (head[:4] == b"PAR1") != (format == "parquet"):
        what = "not Parquet, whatever its name says" if format == "parquet" else "Parquet; fix: name it .parquet"
        raise DataError(f"{path} is {what}")
    if format == "excel":
        raise DataError(f"{path} is not an Excel file, whatever its name says; fix: name it .csv if it is text")
    file = DataFile(path, format, size, sha256, compression)
    if format == "parquet":
        if compression is not None:
            raise DataError(f"{path} is compressed Parquet; fix: unpack it first")
        return file
    return _text_file(file, head, name, encoding, quoting, like)


def _read_head(path: Path) -> tuple[bytes, int, str]:
    """Return the first megabyte of a regular file, its size and sha256."""
    with os_errors(path):
        if path.is_dir():
            raise DataError(f"{path} is a directory; fix: name the file in it")
        file = open_regular(path, DataError)
        if file is None:
            raise DataError(f"{path} is not there; fix: check the path")
        with file:
            head = b""
            while len(head) < _HEADER_LIMIT and (piece := file.read(_HEADER_LIMIT - len(head))):
                head += piece
            if not head:
                raise DataError(f"{path} is empty; fix: download it again")
            file.seek(0)
            sha256 = sha256_hex(file)
            return head, file.tell(), sha256


def _refuse_other_files(path: Path, head: bytes) -> None:
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}")
    start = head[:1024].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<table")):
        raise DataError(
            f"{path} is a web page (it begins with {start[:14].decode('ascii', 'replace')!r}), not data; "
            "fix: download it again, logged in"
        )


def _excel_file(path: Path, format: Format | None, archive: zipfile.ZipFile, size: int, sha256: str) -> DataFile:
    if format != "excel":
        raise DataError(f"{path} is an Excel file, whatever its name says; fix: name it .xlsx or .ods")
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(100 * size, 64 << 20):
        raise DataError(f"{path} unpacks to {unpacked >> 20} MB, more than honest data can; fix: give it as CSV")
    return DataFile(path, format, size, sha256)


def _text_file(
    file: DataFile, head: bytes, name: str, encoding: str | None, quoting: Quoting | None, like: Quoting | None
) -> DataFile:
    encoding, scan = _encoding(file, head, encoding)
    file = replace(file, encoding=encoding)
    if file.format != "csv":
        return replace(file, format=_json_format(file, name))
    separator, skipped = _separator(file.path, head, encoding, Path(name).suffix.lower())
    file = replace(file, separator=separator, skipped=skipped)
    chosen, layout = find_quoting(file, quoting, like, (scan.quotes, scan.escapes))
    if layout.stray:
        raise DataError(
            f"{file.path}: line {layout.stray} ends in a carriage return alone and lacks cells: it is part of a text; "
            "fix: quote the cell, or take it out"
        )
    if layout.short:
        warnings.warn(
            f"{file.path}: {layout.short} of {layout.rows} rows have fewer cells than the header (first: line "
            f"{layout.first_short}); what they lack is read as missing",
            DataWarning,
            stacklevel=3,
        )
    return replace(file, quoting=chosen, extra=int(layout.trailing))


def _encoding(file: DataFile, head: bytes, given: str | None) -> tuple[str, _Scan]:
    """Return the encoding of the whole file, and what a pass over its text has found."""
    path = file.path
    if given is not None:
        try:
            codecs.lookup(given)
            "".encode(given)
        except (LookupError, ValueError):  # a NUL in the name is a ValueError
            raise DataError(f"encoding {given!r} is not known; fix: utf-8, cp1252, latin-1, utf-16, …") from None
        scan = _scan(file, given)
        if scan.wrong is not None:
            raise DataError(f"{path}: line {scan.wrong} is not {given}; fix: another encoding")
        return given, scan
    for marks, name in (
        ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "utf-32"),
        ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"),
    ):
        if head.startswith(marks):
            scan = _scan(file, name)
            if scan.wrong is not None:
                raise DataError(
                    f"{path}: starts as {name.upper()}, but line {scan.wrong} is not; fix: save it as UTF-8"
                )
            return name, scan
    scan = _scan(file, "utf-8")
    if b"\x00" in head or scan.zero is not None:
        half = [head[:2000:2].count(0), head[1:2000:2].count(0)]
        if len(head) > 7 and max(half) > 0.4 * len(head[:2000]) / 2 and min(half) * 4 < max(half):
            name = "utf-16-be" if half[0] > half[1] else "utf-16-le"
            raise DataError(f"{path} looks like UTF-16 without a byte order mark; fix: --encoding {name}")
        where = "" if scan.zero is None else f" (first: line {scan.zero})"
        raise DataError(
            f"{path} is not text: it has zero bytes{where}; fix: give CSV, TSV or JSONL in UTF-8, or encoding="
        )
    if scan.wrong is None:
        return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8", scan
    # Latin-1 has a character for every byte; Windows-1252 lacks five.
    line, name = scan.wrong, "cp1252"
    scan = _scan(file, name)
    if scan.wrong is not None:
        name, scan = "latin-1", _scan(file, "latin-1")
    warnings.warn(
        f"{path}: line {line} is not UTF-8; the file is read as {name}: give encoding= if it is another",
        DataWarning,
        stacklevel=5,
    )
    return name, scan


@dataclass
class _Scan:
    """Facts about a text.

    Attributes:
        wrong: the first line that is not of the encoding, where the pass stopped.
        zero: the first line with a zero character.
        quotes: whether it has quotes.
        escapes: whether it has backslashes.
    """

    wrong: int | None = None
    zero: int | None = None
    quotes: bool = False
    escapes: bool = False


def _scan(file: DataFile, encoding: str) -> _Scan:
    """Decode the whole file, up to the first line (from 1) that is not of this encoding.

    Raises:
        DataError: a line is longer than any cell may be.
    """
    decoder: Any = codecs.getincrementaldecoder(encoding)()
    scan, lines, length = _Scan(), 1, 0
    with file.open_bytes() as stream:
        while True:
            chunk = stream.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                start = error.start if isinstance(error, UnicodeDecodeError) else 0
                scan.wrong = lines + chunk[:start].count(b"\n")
                return scan
            if not chunk:
                return scan
            scan.quotes = scan.quotes or '"' in text
            scan.escapes = scan.escapes or "\\" in text
            if scan.zero is None and "\x00" in text:
                scan.zero = lines + text[: text.index("\x00")].count("\n")
            last = max(text.rfind("\n"), text.rfind("\r"))
            length = length + len(text) if last < 0 else len(text) - last
            if length > MOST_CHARACTERS:
                raise DataError(
                    f"{file.path}: line {lines + text.count(chr(10))} has more than {MOST_CHARACTERS >> 20} million "
                    "characters; fix: is it a table?"
                )
            lines += text.count("\n")


def _separator(path: Path, head: bytes, encoding: str, suffix: str) -> tuple[str, int]:
    """Return the separator and the number of lines before the header.

    Excel's first line ``sep=;`` decides; else the extension's separator, or the first other one that the header has.
    """
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head).lstrip("\ufeff")
    excel = re.match(r'"?sep=(.)"?\r?\n', text, re.IGNORECASE)
    if excel:
        return excel[1], 1
    lines = text.lstrip("\ufeff\r\n").splitlines()
    header = lines[0] if lines else ""
    if len(head) == _HEADER_LIMIT and "\n" not in text and "\r" not in text:
        raise DataError(
            f"{path}: the first line is longer than {_HEADER_LIMIT >> 20} MB, which is no header; fix: is this a CSV?"
        )
    usual, other = ("\t", ",") if suffix in (".tsv", ".tab") else (",", "\t")
    # A mark in quotes separates nothing: "Score, total";"Text".
    bare = "".join(header.split('"')[::2])
    return next((mark for mark in (usual, other, ";", "|") if mark in bare), usual), 0


def _json_format(file: DataFile, name: str) -> Format:
    """Return "jsonl" for one object a line, "json" for one document: an array, or an object of columns."""
    with file.open_text() as text:
        lines = (line.strip().strip("\ufeff") for line in text)
        first = next((line for line in lines if line), "")
        if not first.startswith(("[", "{")):
            return "jsonl"
        try:
            value = json.loads(first)
        except (ValueError, RecursionError):
            # A .jsonl file has a broken line; a document goes on in the next lines.
            return "json" if first.startswith("[") or Path(name).suffix.lower() == ".json" else "jsonl"
        if isinstance(value, list):
            return "json"
        has_columns = all(isinstance(cells, dict | list) for cells in value.values())
        return "json" if value and has_columns and not any(lines) else "jsonl"
