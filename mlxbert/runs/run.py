"""`Run`: what `mlxbert train` left in a directory: its models, out-of-fold predictions and scores."""

from __future__ import annotations

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
from mlxbert.files.reading import read_json
from mlxbert.home import expand_home
from mlxbert.runs.files import RunError, RunFiles, read_info
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import submission_form


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: its directory.
        info: the content of run.json.
    """

    path: Path
    info: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """A run, finished or not.

        Raises:
            RunError: the directory is none.
        """
        root = expand_home(path)
        return cls(root, read_info(root))

    @property
    def files(self) -> RunFiles:
        """The paths of its parts."""
        return RunFiles(self.path)

    @property
    def scores(self) -> dict[str, Any] | None:
        """The content of scores.json; None: the run is not finished."""
        return read_json(self.files.scores, RunError)

    @property
    def members(self) -> list[Path]:
        """Its finished models, in the order of training."""
        return [self.files.member(name) for name in self.info["members"] if self.files.is_done(name)]

    @property
    def prediction_members(self) -> list[Path]:
        """The models that predict: all; of forward-chaining folds those of the last, which have seen the most.

        Raises:
            RunError: the run is not finished.
        """
        if len(self.members) < len(self.info["members"]):
            done = f"{len(self.members)} of {len(self.info['members'])} models are done"
            raise RunError(f"{self.path} is not finished ({done}); fix: {self._go_on}")
        if self.info["folds"]["kind"] != "forward":
            return self.members
        last = f"-fold{self.info['folds']['count'] - 1}"
        return [member for member in self.members if member.name.endswith(last)]

    @property
    def _go_on(self) -> str:
        return f"mlxbert train --resume {shlex.quote(str(self.path))}"

    @property
    def task(self) -> InferredTask:
        """What the target is."""
        saved = self.info["task"]
        classes = None if saved["classes"] is None else tuple(saved["classes"])
        return InferredTask(**{**saved, "target": tuple(saved["target"]), "classes": classes})

    @property
    def settings(self) -> RunSettings:
        """What it was told to learn."""
        return RunSettings.from_dict(self.info["settings"])

    @property
    def text(self) -> RowText:
        """How a row becomes a text."""
        return RowText.from_dict(self.info["data"]["text"])

    @property
    def columns(self) -> list[str]:
        """Those that the texts are made of."""
        return list(self.text.columns)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the training file's columns hold; test files are read alike."""
        return dict(self.info["data"]["kinds"])

    @property
    def quoting(self) -> Quoting | None:
        """Of the training file; test files are read alike, unless they speak against it."""
        quoting: Quoting | None = self.info["data"].get("quoting")
        return quoting

    @property
    def id(self) -> str | None:
        """The column that names a row."""
        value = self.info["data"]["id"]
        return None if value is None else str(value)

    @property
    def time(self) -> str | None:
        """The column of times."""
        value = self.info["data"]["time"]
        return None if value is None else str(value)

    @property
    def max_length(self) -> int:
        """Tokens that a text is cut to."""
        return int(self.info["data"]["max_length"])

    @property
    def batch_size(self) -> int:
        """Rows a batch in prediction."""
        return int(self.info["config"]["evaluation_batch_size"])

    def submission(self, values: str | None = None) -> Submission:
        """The format of its submissions; `values` asks for labels or probabilities instead.

        Raises:
            RunError: that does not fit the task.
        """
        settings, task = self.settings, self.task
        return submission_form(settings, task, get_metric(self.info["metric"]).needs, values)

    def oof(self) -> Any:
        """The out-of-fold predictions as a pandas frame.

        Raises:
            RunError: the run is not finished.
        """
        from mlxbert.runs.tables import read_csv

        if not self.files.oof.is_file():
            raise RunError(f"{self.path} has no out-of-fold predictions yet; fix: {self._go_on}")
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
