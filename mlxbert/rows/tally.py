"""What is counted over all pieces of a table, to warn once; and the digest of a model's files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from mlxbert.data.frames import DataWarning
from mlxbert.data.text_columns import EmptyTextWarning, warn_of_empty
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.reading import sha256_hex
from mlxbert.tokenization.encoding import TruncationWarning, warn_of_truncation

# Reports and cards beside a model, which change no number.
_OTHERS = ("parity.json", "manifest.json", "metrics.json")
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


class IdTally:
    """Counts ids that are missing, or repeat among the rows of one file: all ids of a large table fit no memory.

    Attributes:
        column: their column; None: rows are numbered, and nothing is counted.
        what: name of the table in messages.
    """

    def __init__(self, column: str | None, what: str):
        self.column, self.what = column, what
        self._missing = self._repeated = 0
        self._first: str | None = None

    def add(self, ids: Any) -> None:
        """Count those of a piece, a pyarrow array."""
        if self.column is None:
            return
        self._missing += ids.null_count
        values, counts = _counted(ids.drop_null())
        repeated = sum(counts) - len(counts)
        self._repeated += repeated
        if repeated and self._first is None:
            self._first = next(printable(value, 60) for value, count in zip(values, counts, strict=True) if count > 1)

    def warn(self, *, stacklevel: int) -> None:
        """Warn of them; `stacklevel` 1 is the function that calls this one."""
        if self._missing:
            warnings.warn(
                f"{self.what}: {_rows(self._missing)} no id in column {self.column!r}",
                DataWarning,
                stacklevel=stacklevel + 1,
            )
        if self._repeated:
            warnings.warn(
                f"{self.what}: {_rows(self._repeated)} an id of column {self.column!r} that an earlier row of the "
                f"same file of results has, such as {self._first}",
                DataWarning,
                stacklevel=stacklevel + 1,
            )


def _rows(count: int) -> str:
    return "1 row has" if count == 1 else f"{count} rows have"


def _counted(values: Any) -> tuple[Any, list[int]]:
    """Return the different values of a pyarrow array, and how often each is there."""
    import pyarrow

    extended = isinstance(values, pyarrow.ExtensionArray)  # such as UUIDs
    stored = values.storage if extended else values
    try:
        found = stored.value_counts()
    except pyarrow.ArrowNotImplementedError:  # narrow decimals
        found = stored.cast(pyarrow.string()).value_counts()
    different = found.field("values")
    return (
        pyarrow.ExtensionArray.from_storage(values.type, different) if extended else different,
        found.field("counts").to_pylist(),
    )


class WarningTally:
    """Collects the warnings of all pieces of a table: each once, and one for all texts that are empty or were cut."""

    def __init__(self) -> None:
        self._others: dict[str, Warning] = {}
        self._rows = self._empty = 0
        self._cut = CutCount()

    @contextmanager
    def piece(self, rows: int) -> Iterator[None]:
        """Collect the warnings inside, those of a piece with so many rows."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        empty, cut = 0, CutCount()
        for message in (warning.message for warning in caught):
            # Several runs of a blend count the same rows.
            if isinstance(message, EmptyTextWarning):
                empty = max(empty, message.empty)
            elif isinstance(message, TruncationWarning) and message.cut is not None:
                cut = max(
                    cut,
                    CutCount(message.cut, message.longest, message.limit, message.uncounted),
                    key=attrgetter("texts"),
                )
            elif isinstance(message, Warning):
                self._others[str(message)] = message
        self._rows += rows
        self._empty += empty
        self._cut = CutCount(
            self._cut.texts + cut.texts,
            max(self._cut.longest, cut.longest),
            cut.limit if cut.texts else self._cut.limit,
            self._cut.uncounted or cut.uncounted,
        )

    def warn(self, what: str, *, stacklevel: int) -> None:
        """Warn of them; `what` is the table's name, and `stacklevel` 1 the function that calls this one."""
        for message in self._others.values():
            warnings.warn(message, stacklevel=stacklevel + 1)
        warn_of_empty(self._empty, self._rows, what, stacklevel=stacklevel + 1)
        if self._cut.texts:
            warn_of_truncation(
                self._cut.texts,
                self._rows,
                self._cut.longest,
                self._cut.limit,
                stacklevel=stacklevel + 1,
                at_least=self._cut.uncounted,
            )


class CutCount(NamedTuple):
    """How many texts were cut, the tokens of the longest, the limit, and whether the longest may have more."""

    texts: int = 0
    longest: int = 0
    limit: int | None = None
    uncounted: bool = False


def files_sha256(*roots: Path) -> str:
    """Return one digest of files and of models' directories: weights, configuration, tokenizer, pooling.

    It covers the contents, and the names below each directory, so that a copy elsewhere has the same. Folders whose
    names begin with a dot are left out.

    Raises:
        MLXBertError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for root in roots:
        paths = [root]
        if root.is_dir():
            paths = sorted({path for pattern in _MODEL_FILES for path in root.rglob(pattern)})
        for path in paths:
            relative = path.relative_to(root).parts or (path.name,)
            if path.is_file() and path.name not in _OTHERS and not any(part.startswith(".") for part in relative):
                digest.update(f"{'/'.join(relative)} {sha256_hex(path, MLXBertError)}\n".encode())
    return digest.hexdigest()
