"""`predict_parts`: predictions of millions of rows as Parquet files; the function of `mlxbert predict … -o out/`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.file_format import looking_once
from mlxbert.data.infer_task import InferredTask
from mlxbert.data.submission import IdRules, Submission
from mlxbert.encode.rows import Progress
from mlxbert.errors import RunError
from mlxbert.rows.parts import ROWS_PER_FILE, Advance, PartFiles, Shard, WrittenParts, require_pyarrow
from mlxbert.rows.source import Piece, RowSource
from mlxbert.rows.tally import IdTally, WarningTally, files_sha256
from mlxbert.runs.inputs import ROWS, columns_of
from mlxbert.runs.predict import Predictor, beside, check_intervals
from mlxbert.training.held_out import NUMBERS


@looking_once()
def predict_parts(
    predictor: Predictor,
    data: str | Path,
    out: str | Path,
    *,
    values: str | None = None,
    id: str | None = None,
    intervals: float | None = None,
    average: str = "probabilities",
    shard: Shard | str = "0/1",
    resume: bool = False,
    rows_per_file: int = ROWS_PER_FILE,
    encoding: str | None = None,
    quoting: Quoting | None = None,
    progress: Progress | None = None,
) -> WrittenParts:
    """Predict the rows of a table, and write them as Parquet files, in order.

    The columns are those of a submission: one that names the rows, and those of the predictions. Only the ids of one
    file are in memory: the column that names the rows must be known (`id`, or that of the training data).

    Args:
        predictor: a finished run, or a blend of probabilities or numbers.
        data: a file, a directory of Parquet files, or a pattern of files.
        out: the directory of the results.
        values: "labels", "probabilities" or "values"; None: those of the run's submissions.
        id: the column that names a row; None: that of the training data; rows without any are numbered from 0.
        intervals: as for `Predictor.predict`.
        average: "probabilities"; ranks need all rows at once, and are refused.
        shard, resume, rows_per_file, progress: as for `mlxbert.encode.rows.encode_table`.
        encoding, quoting: of a text file; None: detected.

    Returns:
        A summary.

    Raises:
        RunError: the run is not finished, or a series or ranks are to be predicted.
        RowsError, DataError, WriteError: as for `mlxbert.encode.rows.encode_table`.

    Warns:
        DataWarning: rows without text or id, ids that repeat in a file, a damaged file that is written again.
        TruncationWarning: texts were cut.
    """
    pyarrow = require_pyarrow()
    share = Shard.parse(shard) if isinstance(shard, str) else shard
    task, table = predictor.task, replace(predictor.table_format, encoding=encoding, quoting=quoting)
    if table.horizon:
        raise RunError("a forecast of a series has few rows; fix: name a CSV file with -o")
    check_intervals(task, intervals, None)
    form = predictor.rules.form(values)
    predictor.check_average(average, form)
    if average == "ranks" or predictor.averages_ranks:
        raise RunError("ranks need all rows at once; fix: name a CSV file with -o, or --average probabilities")
    reading: dict[str, Any] = {"kinds": table.kinds, "encoding": encoding, "quoting": quoting, "like": table.like}
    source = RowSource.open(data, table.columns, **reading)
    ids = IdRules(id, table.id, table.id_found, table.time)
    column = ids.column(source.names, source.name, ())
    form = ids.named(form, source.names, source.name, column)
    if column is not None:
        source = RowSource.open(data, table.columns, id=column, **reading)
    files = PartFiles(
        out,
        job={
            "command": "predict",
            "model": {"name": str(predictor.path), "sha256": files_sha256(*predictor.sources)},
            "settings": {
                "id": column,
                "columns": [form.id_column, *form.columns],
                "values": form.values,
                "intervals": intervals,
            },
        },
        source=source,
        shard=share,
        rows_per_file=rows_per_file,
        resume=resume,
    )
    tally, id_tally = WarningTally(), IdTally(source.id, source.name)
    schema = pyarrow.schema(
        [(form.id_column, source.id_type()), *_column_types(form, task, with_ends=intervals is not None)]
    )

    def frames(piece: Piece) -> Iterator[Any]:
        return (piece.frame.iloc[start : start + ROWS] for start in range(0, len(piece), ROWS))

    def compute(piece: Piece, advance: Advance) -> Any:
        id_tally.add(piece.ids)
        before = 0

        def more(done: int, _: int | None) -> None:
            nonlocal before
            advance(max(done - before, 0))  # a blend counts the rows of each of its runs again
            before = max(done, before)

        with tally.piece(len(piece)):
            parts = predictor.predict_pieces(
                lambda: frames(piece), average=average, intervals=intervals, what=source.name, progress=more
            )
        columns = beside([columns_of(form, task, part) for part in parts])
        arrays = [pyarrow.array(values).cast(schema.field(name).type) for name, values in columns.items()]
        return pyarrow.Table.from_arrays([piece.ids, *arrays], schema=schema)

    files.agree()
    written = files.write(schema, compute, progress)
    tally.warn(source.name, stacklevel=2)
    id_tally.warn(stacklevel=2)
    return written


def _column_types(form: Submission, task: InferredTask, *, with_ends: bool) -> list[tuple[str, Any]]:
    """Return name and pyarrow type of the prediction columns, the same for every file."""
    import pyarrow

    kind = pyarrow.float64()
    if form.values == "labels":
        is_label = task.task != "multilabel" and task.task not in NUMBERS
        kind = pyarrow.array(list(task.classes or ())).type if is_label else pyarrow.int64()
    endings = ("", "_lower", "_upper") if with_ends else ("",)
    columns = form.columns[:1] if form.values == "labels" and task.task != "multilabel" else form.columns
    return [(f"{name}{ending}", kind) for name in columns for ending in endings]
