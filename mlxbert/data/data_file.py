"""`DataFile`: a data file as it lies there, opened for reading: regular, unpacked on the way, never beyond a bound."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mlxbert.errors import MLXBertError, MLXBertWarning, first_ten
from mlxbert.files.reading import open_regular

Format = Literal["csv", "jsonl", "json", "parquet", "excel"]
Compression = Literal["gzip", "bzip2", "xz", "zip"]
Quoting = Literal["none", "minimal", "escaped"]
"""How a text table writes a cell that holds the separator: not at all (a quote is a character like any other), in
quotes with a quote doubled, or with a backslash before a quote."""

# Text compresses to a tenth, logs to a thirtieth: what grows more than this was made to fill a memory.
_MOST_RATIO, _HARMLESS = 100, 64 << 20
# What the unpacking modules raise for a damaged or locked archive.
_DAMAGE = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class DataError(MLXBertError):
    """A data file that cannot be read, or not as what it calls itself."""


class DataWarning(MLXBertWarning):
    """The data were read, but not without an assumption that should be known."""


@dataclass(frozen=True)
class DataFile:
    """A file as it lies there.

    Attributes:
        path: where.
        format: what is in it; "jsonl" is one object a line, "json" a document.
        size: in bytes.
        sha256: of the bytes, in hex, for run.json.
        compression: what it is unpacked with; None: it is not compressed.
        encoding: of the text; None for Parquet and Excel.
        separator: between the columns; None where there is none.
        quoting: of a text table with quotes in it; None: there are none, or no table.
        skipped: lines before the header (Excel's ``sep=;``).
        extra: separators at the end of every row that the header has not.
    """

    path: Path
    format: Format
    size: int
    sha256: str
    compression: Compression | None = None
    encoding: str | None = None
    separator: str | None = None
    quoting: Quoting | None = None
    skipped: int = 0
    extra: int = 0

    @contextmanager
    def open_bytes(self) -> Iterator[IO[bytes]]:
        """Open the unpacked bytes.

        Raises:
            DataError: the file is gone, no regular file, damaged, or inflates beyond all measure.
        """
        with os_errors(self.path), open_unpacked(self.path, self.compression, self.size) as stream:
            yield stream

    @contextmanager
    def open_text(self, encoding: str | None = None) -> Iterator[IO[str]]:
        """Open the text after the lines to skip, its line ends as they are; raises as `open_bytes`."""
        with self.open_bytes() as stream, io.TextIOWrapper(stream, encoding or self.encoding, newline="") as text:
            for _ in range(self.skipped):
                text.readline()
            yield text


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise what reading `path` raises as a one-line `DataError`."""
    try:
        yield
    except _DAMAGE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} cannot be read: {reason}; fix: get the file again") from error


@contextmanager
def open_unpacked(path: Path, compression: Compression | None, size: int) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if it is compressed; reading past 64 MB and 100 times its size is refused."""
    with ExitStack() as stack:
        file = open_regular(path, DataError)
        if file is None:
            raise DataError(f"{path} is not there; fix: check the path")
        source: Any = stack.enter_context(io.BufferedReader(file, 1 << 16))
        if compression is None:
            yield source
            return
        if compression == "zip":
            archive = stack.enter_context(zipfile.ZipFile(source))
            source = archive.open(only_member(archive, path))
        else:
            opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[compression]
            source = opener(source)
        stack.enter_context(source)
        yield stack.enter_context(io.BufferedReader(_Bounded(source, path, size), 1 << 16))


def only_member(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the name of the one file in an archive, other than what systems add to it.

    Raises:
        DataError: none or several.
    """
    names = [one.filename for one in archive.infolist() if not one.is_dir()]
    names = [name for name in names if not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")]
    if len(names) != 1:
        what = f"holds {len(names)} files, not one" if names else "holds no file"
        listed = "\n" + first_ten(names) if names else ""
        raise DataError(f"{path} is a ZIP archive that {what}; fix: unpack it and name one of its files{listed}")
    return names[0]


class _Bounded(io.RawIOBase):
    """A stream that refuses to go on when more comes out than honest data can hold."""

    def __init__(self, source: IO[bytes], path: Path, size: int):
        self._source, self._path = source, path
        self._limit = max(_HARMLESS, _MOST_RATIO * size)
        self._left = self._limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with os_errors(self._path):
            data = self._source.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._path} unpacks to more than {self._limit >> 20} MB, {_MOST_RATIO} times its size; "
                "fix: unpack it yourself if that is right"
            )
        buffer[: len(data)] = data
        return len(data)
