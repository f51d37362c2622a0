"""What kind of data file this is, in which encoding, and its sha256: one pass over the bytes, nothing parsed."""

from __future__ import annotations

import codecs
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlxbert.errors import MLXBertError, MLXBertWarning
from mlxbert.home import expand_home

Format = Literal["csv", "jsonl", "parquet"]
_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_ARCHIVES = {b"PK\x03\x04": "a ZIP archive", b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "a 7z archive", b"BZh": "bzip2"}
_CHUNK = 1 << 20
# The longest header seen on Kaggle (tens of thousands of gene columns) is below this.
_HEADER_LIMIT = 1 << 20


class DataError(MLXBertError):
    """A data file that cannot be read, or not as what it calls itself."""


class DataWarning(MLXBertWarning):
    """The data were read, but not without an assumption that should be known."""


@dataclass(frozen=True)
class DataFile:
    """A file as it lies there.

    Attributes:
        path: where.
        format: what is in it.
        encoding: of the text; None for Parquet.
        separator: between the columns; None where there is none.
        sha256: of the bytes, in hex, for run.json.
        size: in bytes.
    """

    path: Path
    format: Format
    encoding: str | None
    separator: str | None
    sha256: str
    size: int


def inspect_file(path: str | Path, *, encoding: str | None = None) -> DataFile:
    """Look at a data file: extension, first bytes, encoding, separator, sha256.

    Args:
        path: CSV, TSV, JSONL or Parquet, told by its extension.
        encoding: of the text; None: UTF-8 or UTF-16 by byte order mark, then UTF-8, then Windows-1252, then Latin-1.

    Raises:
        DataError: absent, a directory, empty, of another format, compressed, or with bytes that the given encoding
            does not have.

    Warns:
        DataWarning: it is not UTF-8, and what it is read as.
    """
    path = expand_home(path)
    format = _FORMATS.get(path.suffix.lower())
    with os_errors(path):
        if path.is_dir():
            raise DataError(f"{path} is a directory; fix: name the file in it")
        if not path.exists():
            raise DataError(f"{path} is not there; fix: check the path")
        with path.open("rb") as file:
            head = file.read(_HEADER_LIMIT)
    if not head:
        raise DataError(f"{path} is empty; fix: download it again")
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            raise DataError(f"{path} is compressed ({name}); fix: unpack it first")
    if format is None:
        raise DataError(f"{path}: {path.suffix or 'no extension'!r} is not read; fix: give {', '.join(_FORMATS)}")
    if (head[:4] == b"PAR1") != (format == "parquet"):
        what = "not Parquet, whatever its name says" if format == "parquet" else "Parquet; fix: name it .parquet"
        raise DataError(f"{path} is {what}")
    if format == "parquet":
        with os_errors(path):
            return DataFile(path, format, None, None, *_digest(path))
    encoding = _encoding(path, head, encoding)
    separator = _separator(path, head, encoding) if format == "csv" else None
    with os_errors(path):
        return DataFile(path, format, encoding, separator, *_digest(path))


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """An `OSError` of reading `path` as a one-line `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _encoding(path: Path, head: bytes, given: str | None) -> str:
    """The encoding that every byte of the file fits."""
    if given is not None:
        try:
            codecs.lookup(given)
        except LookupError:
            raise DataError(f"encoding {given!r} is not known; fix: utf-8, cp1252, latin-1, utf-16, …") from None
        wrong = _first_wrong_line(path, given)
        if wrong is not None:
            raise DataError(f"{path}: line {wrong} is not {given}; fix: another encoding")
        return given
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        wrong = _first_wrong_line(path, "utf-16")
        if wrong is not None:
            raise DataError(f"{path}: starts as UTF-16, but line {wrong} is not; fix: save it as UTF-8")
        return "utf-16"
    if b"\x00" in head:
        raise DataError(f"{path} is not text: it has zero bytes; fix: give CSV, TSV or JSONL in UTF-8, or encoding=")
    wrong = _first_wrong_line(path, "utf-8")
    if wrong is None:
        return "utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8"
    # Latin-1 has a character for every byte, five of which Windows-1252 leaves out.
    found = "cp1252" if _first_wrong_line(path, "cp1252") is None else "latin-1"
    warnings.warn(
        f"{path}: line {wrong} is not UTF-8; the file is read as {found}: give encoding= if it is another",
        DataWarning,
        stacklevel=4,
    )
    return found


def _first_wrong_line(path: Path, encoding: str) -> int | None:
    """The line (from 1) where the file stops being in this encoding; None: it is throughout."""
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = 1
    with os_errors(path), path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeError as error:
                start = error.start if isinstance(error, UnicodeDecodeError) else 0
                return lines + chunk[:start].count(b"\n")
            if not chunk:
                return None
            lines += text.count("\n")


def _separator(path: Path, head: bytes, encoding: str) -> str:
    """Of the header: the extension's own, unless the header has none of these and tabs or semicolons instead."""
    text = codecs.getincrementaldecoder(encoding)().decode(head)
    lines = text.lstrip("\ufeff\r\n").splitlines()
    header = lines[0] if lines else ""
    if len(head) == _HEADER_LIMIT and "\n" not in text and "\r" not in text:
        raise DataError(
            f"{path}: the first line is longer than {_HEADER_LIMIT >> 20} MB, which is no header; fix: is this a CSV?"
        )
    own, other = ("\t", ",") if path.suffix.lower() in (".tsv", ".tab") else (",", "\t")
    if own in header:
        return own
    return next((mark for mark in (other, ";") if mark in header), own)
