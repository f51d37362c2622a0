"""`Run`: what `mlxbert train` left in a directory: its models, out-of-fold predictions and scores."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from mlxbert.data.infer_task import InferredTask
from mlxbert.data.reading import Kind
from mlxbert.data.submission import Submission, SubmissionRules
from mlxbert.data.text_columns import RowText
from mlxbert.files.reading import expand_home
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.record import RunRecord, read_record, read_scores
from mlxbert.runs.rows import TableFormat
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import submission_rules


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

    @property
    def rules(self) -> SubmissionRules:
        """What the format of its submissions follows from: as the run began, a sample submission looked at."""
        record = self.record
        rules = submission_rules(record.settings, record.task, record.metric, record.config.metric)
        return replace(rules, usual=record.submission)

    @property
    def table_format(self) -> TableFormat:
        """How it reads a table."""
        data, series = self.record.data, self.task.task == "time_series"
        return TableFormat(
            kinds=data.kinds,
            columns=data.text.columns,
            id=data.id,
            id_found=data.id_found,
            target=self.task.target,
            time=data.time,
            horizon=self.settings.horizon if series else 0,
            like=data.quoting,
        )

    def submission(self, values: str | None = None) -> Submission:
        """The format of its submissions; `values` asks for labels or probabilities instead.

        Raises:
            RunError: that does not fit the task.
        """
        return self.rules.form(values)

    def oof(self) -> Any:
        """The out-of-fold predictions as a pandas frame.

        Raises:
            RunError: the run is not finished.
        """
        from mlxbert.runs.files import id_name, plain_cell, read_csv, truth_columns

        if not os.path.lexists(self.files.oof):
            raise RunError(f"{self.path} has no out-of-fold predictions yet; fix: {self.go_on}")
        classes = self.task.classes or ()
        labels = any(isinstance(one, str) for one in classes) and self.task.task != "multilabel"
        # A label such as "007" is a word, and so is an id, whatever they look like.
        own = f"target:{self.task.target[0]}"
        words = ["target", own, "label"] if labels else []
        table = read_csv(self.files.oof, [*words, *([id_name(self.id)] if self.id else [])])
        if self.settings.escape_formulas:
            for name in table.columns.intersection([*words, *([id_name(self.id)] if self.id else [])]):
                table[name] = table[name].map(plain_cell, na_action="ignore")
        single = len(truth_columns(table.columns)) == 1 and self.task.task not in ("multilabel", "time_series")
        older = {own: "target", own.replace("target:", "prediction:", 1): "prediction"}
        return table.rename(columns=older) if single else table

    def predict(
        self,
        data: Any,
        *,
        values: str | None = None,
        average: str = "probabilities",
        sample_submission: Any = None,
        id: str | None = None,
    ) -> Any:
        """Predictions for the rows of a frame or file: a pandas frame of the ids and the prediction columns.

        Args:
            data: pandas, polars, a dict or the path of a file, with the columns that the texts are made of; of a time
                series, its history (what follows it is forecast).
            values: "labels", "probabilities" or "values"; None: as the sample or the run's submissions have it.
            average: of members: "probabilities" or "ranks".
            sample_submission: a frame or file whose ids, columns and order the result has; None: the order of `data`.
            id: the column that names a row; None: the sample's, that of the training data, or one that is called an
                id; rows without any are numbered from 0.

        Raises:
            RunError: the run is not finished, or ids and columns are not the sample's.
            FrameError: a column is missing; the nearest names are given.
        """
        from mlxbert.runs.predict import predict_table

        made, _ = predict_table(
            self, data, sample_submission=sample_submission, values=values, id=id, how=average, strict=False
        )
        return made

    def _repr_html_(self) -> str:
        """In a notebook: the scores as a table."""
        from mlxbert.runs.finish import scores_frame

        table: str = scores_frame(self).to_html(float_format="{:.4f}".format)
        return table
