"""`Run`: what `mlxbert train` left in a directory: its models, out-of-fold predictions and scores."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from heads.metrics import get_metric
from mlxbert.data.cells import Kind
from mlxbert.data.data_file import Quoting
from mlxbert.factory.competition import Submission
from mlxbert.factory.infer_task import InferredTask
from mlxbert.factory.text_columns import RowText
from mlxbert.home import expand_home
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.record import RunRecord, read_record, read_scores
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import submission_form


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its directory.
        record: the content of run.json, checked.
    """

    path: Path
    record: RunRecord

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A run, finished or not.

        Raises:
            RunError: the directory is none, or its run.json is damaged.
        """
        root = expand_home(path)
        return cls(root, read_record(root))

    @property
    def info(self) -> Mapping[str, Any]:
        """The JSON object in run.json, as it is."""
        return self.record.values

    @property
    def files(self) -> RunFiles:
        """The paths of its parts."""
        return RunFiles(self.path)

    @property
    def scores(self) -> dict[str, Any] | None:
        """The JSON object in scores.json; None: the run is not finished.

        Raises:
            RunError: it is damaged.
        """
        scores = read_scores(self.path)
        return None if scores is None else dict(scores.values)

    @property
    def members(self) -> list[Path]:
        """Its finished models, in the order of training."""
        return [self.files.member(name) for name in self.record.members if self.files.is_done(name)]

    @property
    def prediction_members(self) -> list[Path]:
        """The models that predict: all; of forward-chaining folds those of the last, which have seen the most.

        Raises:
            RunError: the run is not finished.
        """
        if len(self.members) < len(self.record.members):
            done = f"{len(self.members)} of {len(self.record.members)} models are done"
            raise RunError(f"{self.path} is not finished ({done}); fix: {self.go_on}")
        return [self.files.member(name) for name in self.record.prediction_members]

    @property
    def go_on(self) -> str:
        """The command that goes on with it."""
        return f"mlxbert train --resume {shlex.quote(str(self.path))}"

    @property
    def task(self) -> InferredTask:
        """What the target is."""
        return self.record.task

    @property
    def settings(self) -> RunSettings:
        """What it was told to learn."""
        return self.record.settings

    @property
    def text(self) -> RowText:
        """How a row becomes a text."""
        return self.record.data.text

    @property
    def columns(self) -> list[str]:
        """Those that the texts are made of."""
        return list(self.text.columns)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the training file's columns hold; test files are read alike."""
        return dict(self.record.data.kinds)

    @property
    def quoting(self) -> Quoting | None:
        """Of the training file; test files are read alike, unless they speak against it."""
        return self.record.data.quoting

    @property
    def id(self) -> str | None:
        """The column that names a row."""
        return self.record.data.id

    @property
    def time(self) -> str | None:
        """The column of times."""
        return self.record.data.time

    @property
    def max_length(self) -> int:
        """Tokens that a text is cut to."""
        return self.record.data.max_length

    @property
    def batch_size(self) -> int:
        """Rows a batch in prediction."""
        return self.record.config.evaluation_batch_size

    def submission(self, values: str | None = None) -> Submission:
        """The format of its submissions; `values` asks for labels or probabilities instead.

        Raises:
            RunError: that does not fit the task.
        """
        settings, task = self.settings, self.task
        return submission_form(settings, task, get_metric(self.record.metric).needs, values)

    def oof(self) -> Any:
        """The out-of-fold predictions as a pandas frame.

        Raises:
            RunError: the run is not finished.
        """
        from mlxbert.runs.tables import read_csv

        if not os.path.lexists(self.files.oof):
            raise RunError(f"{self.path} has no out-of-fold predictions yet; fix: {self.go_on}")
        classes = self.task.classes or ()
        labels = any(isinstance(one, str) for one in classes) and self.task.task != "multilabel"
        # A label such as "007" is a word, whatever it looks like.
        return read_csv(self.files.oof, [f"target:{self.task.target[0]}", "label"] if labels else ())

    def predict(self, frame: Any, *, values: str | None = None, average: str = "probabilities") -> Any:
        """Predictions for the rows of a frame: a pandas frame of the id (or row number) and the prediction columns.

        Args:
            frame: pandas, polars or a dict, with the columns that the texts are made of; of a time series, its history
                (what follows it is forecast).
            values: "labels", "probabilities" or "values"; None: as the run's submissions have it.
            average: of members: "probabilities" or "ranks".

        Raises:
            RunError: the run is not finished.
            FrameError: a column is missing; the nearest names are given.
        """
        import pandas

        from mlxbert.runs.frames import as_pandas
        from mlxbert.runs.predict import check_average, forecast, predict_frame
        from mlxbert.runs.submission import columns_of

        form = self.submission(values)
        check_average(average, form)
        frame = as_pandas(frame)
        if self.task.task == "time_series":
            times, predictions = forecast(self, frame)
            return pandas.DataFrame({form.id_column: times, form.columns[0]: predictions.values[0]})
        columns = columns_of(form, self.task, predict_frame(self, frame, how=average))
        ids = list(frame[self.id]) if self.id in frame.columns else list(range(len(frame)))
        return pandas.DataFrame({form.id_column: ids, **columns})

    def _repr_html_(self) -> str:
        """In a notebook: the scores as a table."""
        from mlxbert.runs.summary import scores_frame

        table: str = scores_frame(self).to_html(float_format="{:.4f}".format)
        return table
