"""`Embed` and `Predict`: stateful callables for Ray Data, one model (or run) per actor.

    import ray
    from mlxbert.ray import Embed

    rows = ray.data.read_parquet("s3://bucket/texts/")
    rows = rows.map_batches(
        Embed,
        fn_constructor_kwargs={"model": "/shared/mlx_models/minilm", "text": "text"},
        compute=ray.data.ActorPoolStrategy(size=8),
        num_cpus=1,
        batch_size=1024,
    )
    rows.write_parquet("s3://bucket/embeddings/")

Ray starts the actors, gives them batches, starts an actor that dies again, and repeats its batch; nothing of that is
here. Without Ray both are plain callables: ``Embed("mlx_models/minilm")({"text": np.array(["a cat"])})``. A batch is
a dict of NumPy arrays, a pandas frame or a pyarrow table, as `batch_format` of `map_batches` says; so is the result.

Ray sets OMP_NUM_THREADS to the `num_cpus` of an actor, unless the variable is set already. mlxbert computes on that
many threads.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.data.frames import DataError, DataWarning, Table, plain
from mlxbert.data.text_columns import RowText
from mlxbert.encode.encoder import SentenceEncoder
from mlxbert.encode.precision import PrecisionError, check_precision, needs_ranges
from mlxbert.errors import RunError, first_ten

_BATCH = "the batch"


class _BatchColumns(ABC):
    """Base class: a callable that adds columns to a batch of Ray Data, and keeps its other columns and its order."""

    def __init__(self) -> None:
        # tokenizers starts a thread for every core of the machine, whatever OMP_NUM_THREADS says.
        if threads := os.environ.get("OMP_NUM_THREADS"):
            os.environ.setdefault("RAYON_NUM_THREADS", threads)
        self._warned: Counter[type[Warning]] = Counter()

    @property
    @abstractmethod
    def added(self) -> tuple[str, ...]:
        """The names of the columns that it adds."""

    @property
    @abstractmethod
    def needed(self) -> tuple[str, ...]:
        """The names of the columns that it reads."""

    @abstractmethod
    def compute(self, columns: Mapping[str, list[Any]]) -> list[np.ndarray]:
        """Return the new columns, each with one entry a row.

        Args:
            columns: the values of each needed column as plain Python; a missing one is None.
        """

    @abstractmethod
    def empty(self) -> list[np.ndarray]:
        """Return the new columns of no rows."""

    def __call__(self, batch: Any) -> Any:
        """Return the batch with the new columns, in the same format.

        Raises:
            DataError: it is no batch of Ray Data, it lacks a column (the message has the nearest names), or it has a
                column of a new name already.

        Warns:
            DataWarning, TruncationWarning: texts are empty or were cut. Only the first, tenth, hundredth … batch of an
                actor warns of the same thing.
        """
        columns = _columns(batch)
        taken = [name for name in self.added if name in columns]
        if taken:
            raise DataError(
                f"{_BATCH} has a column {taken[0]!r} already; fix: {self._other_name}, or before it "
                f"ds.drop_columns({taken!r})"
            )
        if not columns or not len(next(iter(columns.values()))):
            return _with_columns(batch, dict(zip(self.added, self.empty(), strict=True))) if columns else batch
        table = Table(columns, _BATCH)
        values = {name: _values(columns[table.find(name, "text column")], name) for name in self.needed}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            added = self.compute(values)
        self._repeat_seldom(caught)
        return _with_columns(batch, dict(zip(self.added, added, strict=True)))

    _other_name = "another name"

    def _repeat_seldom(self, caught: Sequence[warnings.WarningMessage]) -> None:
        """Warn of what one batch warned of, if that is the first, tenth, hundredth … time for this actor."""
        for warning in caught:
            self._warned[warning.category] += 1
            times = self._warned[warning.category]
            if set(str(times)[1:]) <= {"0"} and str(times)[0] == "1":
                so_far = "" if times == 1 else f" ({times} batches of this actor had such a warning so far)"
                warnings.warn(f"{warning.message}{so_far}", warning.category, stacklevel=3)


class Embed(_BatchColumns):
    """Embed the texts of a column, as `SentenceEncoder.encode` does.

    Attributes:
        encoder: the model, loaded once.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        text: str | Sequence[str] | RowText = "text",
        column: str = "embedding",
        precision: str = "float32",
        ranges: Any = None,
        batch_size: int = 32,
        normalize: bool | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        pooling: str | None = None,
        revision: str | None = None,
    ):
        """Load the model.

        Args:
            model: a converted directory that every node can read (an absolute path), or an id on the Hub.
            text: the column of texts; or a template such as "{title}: {body}", or several columns, as for
                `mlxbert train --text`.
            column: name of the new column; each entry is a vector.
            precision: float32, float16, int8, uint8, binary or ubinary (`mlxbert.encode.precision`).
            ranges: for int8 and uint8, the smallest and largest value of each dimension, (2, dimension): the same for
                every actor, from `mlxbert.encode.precision.calibration_ranges`.
            batch_size: texts that go through the model at once; the `batch_size` of `map_batches` is rows that an
                actor is given at once, some thousand of which are best.
            normalize: as for `SentenceEncoder.encode`; likewise `prompt_name` and `prompt`.
            pooling: as for `SentenceEncoder.from_pretrained`; likewise `revision`.

        Raises:
            PrecisionError: an unknown precision, or int8 without `ranges`.
            CheckpointError: there is no such model, or it is damaged.
        """
        super().__init__()
        self.text, self.column = RowText.make(text), column
        if needs_ranges(check_precision(precision)) and ranges is None:
            raise PrecisionError(
                f"{precision} needs ranges that are the same for every batch; fix: ranges=calibration_ranges(encoder."
                "encode(texts)) of mlxbert.encode.precision, with some thousand of your texts"
            )
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "normalize": normalize,
            "prompt_name": prompt_name,
            "prompt": prompt,
            "precision": precision,
            "ranges": ranges,
        }
        self.encoder = SentenceEncoder.from_pretrained(model, revision=revision, pooling=pooling)
        self.empty()  # refuses wrong options before the first batch

    _other_name = "column='another name'"

    @property
    def added(self) -> tuple[str, ...]:
        """The name of the new column."""
        return (self.column,)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns of the text."""
        return self.text.columns

    def compute(self, columns: Mapping[str, list[Any]]) -> list[np.ndarray]:
        """Return the embeddings: (N, width) in the precision.

        Raises:
            DataError: a column of texts holds something else.
            PrecisionError: an embedding does not fit the precision.
        """
        if self.needed == (self.text.first,):
            _refuse_other_than_text(columns, self.needed[0])
        rendered = self.text.render(columns, _BATCH)
        if rendered.empty:
            warnings.warn(
                f"{_BATCH}: {rendered.empty} of {len(rendered.texts)} rows have no text; they are encoded as an empty "
                "one",
                DataWarning,
                stacklevel=2,
            )
        return [self._embeddings(rendered.texts)]

    def empty(self) -> list[np.ndarray]:
        """Return no embeddings: (0, width)."""
        return [self._embeddings([])]

    def _embeddings(self, texts: list[str]) -> np.ndarray:
        vectors: np.ndarray = self.encoder.encode(texts, **self._options)
        return vectors


class Predict(_BatchColumns):
    """Predict rows with a finished run or a blend: the values of `mlxbert predict`.

    All models of the run stay in memory, once for each actor.

    Attributes:
        predictor: the run or blend.
    """

    def __init__(self, run: str | Path, *, values: str | None = None, prefix: str = ""):
        """Load the run's models.

        Args:
            run: the directory of a finished run or a blend that every node can read (an absolute path).
            values: "labels", "probabilities" or "values"; None: those of the run's submissions.
            prefix: put before the name of each new column, such as "predicted_".

        Raises:
            RunError: there is no run, it is not finished, or its predictions need all rows at once.
            MLXBertError: a model is damaged.
        """
        from mlxbert.runs.blend import Blend, open_predictor
        from mlxbert.with_head import BertWithHead

        super().__init__()
        self.predictor = open_predictor(run)
        form = self.predictor.submission(values)
        if self.predictor.table_format.horizon:
            raise RunError(
                f"{run} forecasts a series from its whole history, and Ray Data gives batches of rows; fix: mlxbert "
                "predict"
            )
        if isinstance(self.predictor, Blend) and self.predictor.record.average == "ranks":
            raise RunError(
                f"{run} averages ranks among all rows, and Ray Data gives batches of rows; fix: mlxbert predict, or a "
                "blend without --average ranks"
            )
        self.prefix, self._form = prefix, form
        runs = self.predictor.runs if isinstance(self.predictor, Blend) else (self.predictor,)
        self._models = {member: BertWithHead.load(member) for run in runs for member in run.prediction_members}

    _other_name = "prefix='predicted_'"

    @property
    def added(self) -> tuple[str, ...]:
        """The prediction columns of the run's submissions."""
        return tuple(self.prefix + name for name in self._form.columns)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that the texts are made of."""
        return self.predictor.table_format.columns

    def compute(self, columns: Mapping[str, list[Any]]) -> list[np.ndarray]:
        """Return the prediction columns."""
        from mlxbert.runs.inputs import as_pandas, columns_of

        frame = as_pandas(columns, _BATCH)
        (predictions,) = self.predictor.predict_pieces(
            lambda: iter([frame]), what=_BATCH, load=self._models.__getitem__
        )
        return list(columns_of(self._form, self.predictor.task, predictions).values())

    def empty(self) -> list[np.ndarray]:
        """Return columns without rows."""
        return [np.empty(0) for _ in self.added]


def _columns(batch: Any) -> dict[str, Any]:
    """Return the columns of a batch by name.

    Raises:
        DataError: it has none of the formats that Ray Data gives.
    """
    if isinstance(batch, Mapping):
        return dict(batch)
    if hasattr(batch, "column_names") and hasattr(batch, "append_column"):  # a pyarrow table
        return {name: batch.column(place) for place, name in enumerate(batch.column_names)}
    if hasattr(batch, "iloc") and hasattr(batch, "columns"):  # a pandas frame
        return {name: batch[name] for name in batch.columns}
    raise DataError(
        f"{_BATCH} is a {type(batch).__name__}; fix: batch_format='numpy', 'pandas' or 'pyarrow' (a dict of arrays, "
        "a pandas frame, a pyarrow table)"
    )


def _values(column: Any, name: str) -> list[Any]:
    """Return a column as plain Python values, None for a missing one."""
    cells = column.to_pylist() if hasattr(column, "to_pylist") else column
    cells = cells.tolist() if hasattr(cells, "tolist") else list(cells)
    return [plain(cell) for cell in cells]


def _refuse_other_than_text(columns: Mapping[str, list[Any]], name: str) -> None:
    """Refuse a column with values that are neither text nor missing."""
    wrong = [(row, cell) for row, cell in enumerate(columns[name]) if cell is not None and not isinstance(cell, str)]
    if wrong:
        numbers = all(isinstance(cell, int | float) for _, cell in wrong)
        fix = f"text='{{{name}}}' writes numbers out" if numbers else "name a column of texts"
        rows = first_ten(f"row {row}: {type(cell).__name__} {cell!r}" for row, cell in wrong)
        raise DataError(f"{_BATCH}: column {name!r} holds other values than text; fix: {fix}\n{rows}")


def _with_columns(batch: Any, added: Mapping[str, np.ndarray]) -> Any:
    """Return a batch, in its format, with further columns."""
    if isinstance(batch, Mapping):
        return {**batch, **added}
    if hasattr(batch, "append_column"):
        for name, values in added.items():
            batch = batch.append_column(name, _arrow(values))
        return batch
    batch = batch.copy(deep=False)
    for name, values in added.items():
        batch[name] = list(values) if values.ndim > 1 else values
    return batch


def _arrow(values: np.ndarray) -> Any:
    """Return a pyarrow array: lists of one length for vectors, which Parquet can hold."""
    import pyarrow

    if values.ndim == 1:
        return pyarrow.array(values.tolist() if values.dtype == object else values)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.ravel()), values.shape[1])
