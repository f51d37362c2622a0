"""`encode_table`: embeddings of millions of rows as Parquet files; the function of `mlxbert encode … --text COLUMN`.

Memory does not grow with the number of rows: the table is read, embedded and written in pieces of one file each. What
is in a file depends on its rows alone. So a call that is killed and goes on ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.checkpoint import resolve
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.file_format import looking_once
from mlxbert.data.text_columns import RowText, warn_of_empty
from mlxbert.encode.encoder import CutTexts, SentenceEncoder, check_batches
from mlxbert.encode.precision import (
    PrecisionError,
    calibration_ranges,
    check_precision,
    needs_ranges,
    quantize,
    stored_dtype,
    stored_width,
)
from mlxbert.rows.parts import (
    RECORD,
    ROWS_PER_FILE,
    Advance,
    PartFiles,
    RowsError,
    Shard,
    WrittenParts,
    require_pyarrow,
)
from mlxbert.rows.source import Piece, RowSource
from mlxbert.rows.tally import IdTally, files_sha256

EMBEDDING = "embedding"
"""Name of the column of embeddings."""
CALIBRATION_ROWS = 4096
"""Rows from the start of the table whose embeddings give the ranges of int8 and uint8."""
Progress = Callable[[int, int, int], None]
"""Is called with the rows of the shard that are done, all of its rows, and those that an earlier call had written."""


@looking_once()
def encode_table(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    text: RowText | str | Sequence[str],
    id: str | None = None,
    shard: Shard | str = "0/1",
    resume: bool = False,
    precision: str = "float32",
    calibrate: int = CALIBRATION_ROWS,
    normalize: bool | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    rows_per_file: int = ROWS_PER_FILE,
    encoding: str | None = None,
    quoting: Quoting | None = None,
    progress: Progress | None = None,
) -> WrittenParts:
    """Embed the rows of a table, and write them as Parquet files, in order.

    A file has a column that names the rows, and `embedding`, a list of fixed size. Its metadata say which model,
    settings and data it comes from (`mlxbert.rows.parts`). Several calls with other shards, at the same time and on
    several machines, write into one directory.

    Args:
        model: a converted directory, or the id of a converted repository on the Hub.
        data: a file (Parquet, CSV, TSV, JSON, Excel), a directory of Parquet files, or a pattern of files.
        out: the directory of the results.
        text: a column, or a template such as "{title}: {body}"; several columns are read as "column: value".
        id: the column that names a row; None: the number of the row, from 0, as "id".
        shard: "K/N": the share K, from 0 to N - 1, of the rows in N shares.
        resume: keep the finished files of this shard, after checking them, and write the others.
        precision: as for `SentenceEncoder.encode`.
        calibrate: rows from the start of the whole table that give the ranges of int8 and uint8, for all shards.
        normalize, prompt_name, prompt, revision, batch_size: as for `SentenceEncoder`.
        rows_per_file: rows of a file.
        encoding, quoting: of a text file; None: detected.
        progress: is called while rows are embedded.

    Returns:
        A summary.

    Raises:
        DataError: the table cannot be read, a column is missing (with the nearest names) or holds no texts.
        RowsError: a wrong shard, or the directory has results of another call (the difference is named).
        PrecisionError: an unknown precision, or too few rows for its ranges.
        CheckpointError: no converted model.
        WriteError: a file cannot be written.

    Warns:
        DataWarning: rows without text or id, ids that repeat in a file, a damaged file that is written again.
        TruncationWarning: texts were cut.
    """
    pyarrow = require_pyarrow()
    name = check_precision(precision)
    share = Shard.parse(shard) if isinstance(shard, str) else shard
    row_text = RowText.make(text)
    check_batches(batch_size, normalize)
    _check_calibration(calibrate)
    if id == EMBEDDING:
        raise RowsError(f"the ids are in a column {EMBEDDING!r}, the name of the results; fix: rename the column")
    source = RowSource.open(data, row_text.columns, id=id, encoding=encoding, quoting=quoting)
    directory = resolve(model, revision)
    encoder = SentenceEncoder.from_pretrained(directory)
    prefix = encoder.prompt_text(prompt, prompt_name)
    settings: dict[str, Any] = {
        "text": row_text.to_dict(),
        "id": id,
        "precision": name,
        "prompt": prefix,
        "normalize": normalize,
        "max_length": encoder.max_length,
        "batch_size": batch_size,
    }
    if needs_ranges(name):
        settings["calibrate"] = calibrate
    files = PartFiles(
        out,
        job={
            "command": "encode",
            "model": {"name": str(model), "sha256": files_sha256(directory)},
            "settings": settings,
        },
        source=source,
        shard=share,
        rows_per_file=rows_per_file,
        resume=resume,
    )
    empty = [0]
    cut, ids = CutTexts(), IdTally(source.id, source.name)

    def embeddings(piece: Piece, advance: Advance, counts: CutTexts) -> np.ndarray:
        rendered = row_text.render(piece.frame, source.name, start=piece.start)
        empty[0] += rendered.empty
        return encoder.embed(
            rendered.texts, prefix, batch_size=batch_size, normalize=normalize, advance=advance, cut=counts
        )

    def ranges() -> list[list[float]]:
        rows = min(calibrate, source.rows)
        if rows < 2:
            raise PrecisionError(f"{name} needs two rows or more for its ranges; fix: --precision float16")
        (first,) = source.pieces([(0, rows)])
        values = calibration_ranges(embeddings(first, lambda done: None, CutTexts()))
        empty[0] = 0
        return values.astype(float).tolist()

    files.agree(ranges if needs_ranges(name) else None)
    limits = _stored_ranges(files) if needs_ranges(name) else None
    width = stored_width(name, encoder.dimension)
    kind = pyarrow.from_numpy_dtype(stored_dtype(name))
    schema = pyarrow.schema([(id or "id", source.id_type()), (EMBEDDING, pyarrow.list_(kind, width))])

    def compute(piece: Piece, advance: Advance) -> Any:
        ids.add(piece.ids)
        vectors = quantize(embeddings(piece, advance, cut), name, ranges=limits)
        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), width)
        return pyarrow.Table.from_arrays([piece.ids, values], names=schema.names)

    written = files.write(schema, compute, progress)
    if written.rows:
        warn_of_empty(empty[0], written.rows, source.name, stacklevel=2)
        ids.warn(stacklevel=2)
        if cut.texts:
            cut.warn(written.rows, encoder.max_length, stacklevel=2)
    return written


def _stored_ranges(files: PartFiles) -> np.ndarray:
    """Return the ranges that all shards use, (2, D)."""
    try:
        return np.array(files.record.get("ranges"), np.float32)
    except (TypeError, ValueError):
        raise RowsError(f"{files.out / RECORD} has no usable ranges; fix: give another directory with -o") from None


def _check_calibration(rows: int) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 2:
        raise PrecisionError(f"the rows for calibration must be 2 or more, not {rows!r}; fix: --calibrate 4096")
