"""What is counted over all pieces of a table, to warn once; and the digest of a model's files."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from mlxbert.data.frames import DataWarning
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.reading import sha256_hex

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
        counts = ids.drop_null().value_counts()
        repeated = len(ids) - ids.null_count - len(counts)
        if repeated and self._first is None:
            self._first = next(printable(count["values"], 60) for count in counts if count["counts"].as_py() > 1)
        self._repeated += repeated

    def warn(self, *, stacklevel: int) -> None:
        """Warn of them; `stacklevel` 1 is the function that calls this one."""
        if self._missing:
            warnings.warn(
                f"{self.what}: {self._missing} rows have no id in column {self.column!r}",
                DataWarning,
                stacklevel=stacklevel + 1,
            )
        if self._repeated:
            warnings.warn(
                f"{self.what}: {self._repeated} rows have an id of column {self.column!r} that an earlier row of the "
                f"same file of results has, such as {self._first}",
                DataWarning,
                stacklevel=stacklevel + 1,
            )


def files_sha256(root: Path) -> str:
    """Return one digest of the files of a model or a run: weights, configuration, tokenizer, pooling.

    It covers the contents and the names below `root`, so that a copy elsewhere has the same. Folders whose names begin
    with a dot are left out.

    Raises:
        MLXBertError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _MODEL_FILES for path in root.rglob(pattern)}):
        relative = path.relative_to(root)
        if path.is_file() and path.name not in _OTHERS and not any(part.startswith(".") for part in relative.parts):
            digest.update(f"{relative.as_posix()} {sha256_hex(path, MLXBertError)}\n".encode())
    return digest.hexdigest()
