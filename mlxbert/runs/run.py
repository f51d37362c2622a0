"""`Run`: a directory of `mlxbert train` with models, out-of-fold predictions and scores; and how it predicts."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from heads.forward_chaining import as_times
from mlxbert.checkpoint import load_tokenizer, read_config
from mlxbert.data.frames import Table
from mlxbert.data.infer_task import InferredTask, target_values
from mlxbert.data.reading import Kind
from mlxbert.data.submission import SubmissionRules
from mlxbert.data.text_columns import RowText, render_texts, warn_of_empty
from mlxbert.data.tokens import TokenRows, token_rows
from mlxbert.files.reading import expand_home
from mlxbert.models.architecture import config_from_hf
from mlxbert.runs.files import RunError, RunFiles, id_name, plain_cell, read_csv, truth_columns
from mlxbert.runs.inputs import ROWS, TableFormat, submission_rules
from mlxbert.runs.predict import Parts, Predictor, Progress, interval_ends, nominal_level
from mlxbert.runs.record import RunRecord, read_record
from mlxbert.runs.scores import read_scores
from mlxbert.runs.settings import RunSettings
from mlxbert.tokenization.encoding import TruncationWarning, warn_of_truncation
from mlxbert.tokenization.tokenizer import Tokenizer
from mlxbert.training.held_out import Predictions, average, concatenate, predict_logits, ranks
from mlxbert.with_head import BertWithHead


@dataclass(frozen=True)
class Run(Predictor):
    """A run on disk.

    Attributes:
        path: its directory.
        record: the content of run.json, checked.
        base: the encoder below adapters that were saved without it, if it is no longer where it was.
    """

    path: Path
    record: RunRecord
    base: str | Path | None = None

    @classmethod
    def open(cls, path: str | Path, *, base: str | Path | None = None) -> Self:
        """Open a run, finished or not; `base` is for adapters that were saved without their encoder.

        Raises:
            RunError: there is no run, or its run.json is damaged.
        """
        root = expand_home(path)
        return cls(root, read_record(root), base)

    @property
    def info(self) -> Mapping[str, Any]:
        """The JSON object in run.json."""
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
        """The models that predict (`RunRecord.prediction_members`).

        Raises:
            RunError: the run is not finished.
        """
        if len(self.members) < len(self.record.members):
            done = f"{len(self.members)} of {len(self.record.members)} models are done"
            raise RunError(f"{self.path} is not finished ({done}); fix: {self.go_on}")
        return [self.files.member(name) for name in self.record.prediction_members]

    @property
    def go_on(self) -> str:
        """The command that resumes it."""
        return f"mlxbert train --resume {shlex.quote(str(self.path))}"

    @property
    def task(self) -> InferredTask:
        """The inferred task."""
        return self.record.task

    @property
    def settings(self) -> RunSettings:
        """Its settings, without those of `TrainingConfig`."""
        return self.record.settings

    @property
    def text(self) -> RowText:
        """How a row becomes a text."""
        return self.record.data.text

    @property
    def kinds(self) -> dict[str, Kind]:
        """What the columns of the training file hold; files to predict are read in the same way."""
        return dict(self.record.data.kinds)

    @property
    def id(self) -> str | None:
        """The column that names a row."""
        return self.record.data.id

    @property
    def rules(self) -> SubmissionRules:
        """The rules that give the format of the submissions: as the run began, with its sample submission."""
        record = self.record
        rules = submission_rules(record.settings, record.task, record.metric, record.config.metric)
        return replace(rules, usual=record.submission)

    @property
    def table_format(self) -> TableFormat:
        """The format of a table to predict."""
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

    def oof(self) -> Any:
        """Return the out-of-fold predictions as a pandas frame.

        Raises:
            RunError: the run is not finished.
        """
        if not os.path.lexists(self.files.oof):
            raise RunError(f"{self.path} has no out-of-fold predictions yet; fix: {self.go_on}")
        classes = self.task.classes or ()
        labels = any(isinstance(label, str) for label in classes) and self.task.task != "multilabel"
        # Labels and ids are text, even if they look like numbers, such as "007".
        older = f"target:{self.task.target[0]}"
        words = ["target", older, "label"] if labels else []
        if self.id:
            words.append(id_name(self.id))
        table = read_csv(self.files.oof, words)
        if self.settings.escape_formulas:
            for name in table.columns.intersection(words):
                table[name] = table[name].map(plain_cell, na_action="ignore")
        single = len(truth_columns(table.columns)) == 1 and self.task.task not in ("multilabel", "time_series")
        names = {older: "target", older.replace("target:", "prediction:", 1): "prediction"}
        return table.rename(columns=names) if single else table

    def predict_frame(self, frame: Any) -> Predictions:
        """Predict every row of a pandas frame: the mean of the models."""
        pieces = (frame.iloc[start : start + ROWS] for start in range(0, len(frame), ROWS))
        return self.predict_pieces(lambda: pieces)[0]

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files and models that the predictions depend on; raises as `prediction_members`."""
        return (self.files.info, *self.prediction_members)

    def predict_pieces(
        self,
        frames: Callable[[], Iterator[Any]],
        *,
        average: str = "probabilities",
        intervals: float | None = None,
        what: str = "the data",
        progress: Progress | None = None,
        load: Callable[[Path], BertWithHead] = BertWithHead.load,
    ) -> Parts:
        """Predict with each model in turn, and average: probabilities, numbers, or each model's ranks among all rows.

        Raises:
            RunError: there are no rows, or the run is not finished.
            MLXBertError: a column is missing, a model is damaged.

        Warns:
            DataWarning, TruncationWarning: texts are empty or were cut; once for all pieces.
        """
        if self.base is not None:
            load = partial(BertWithHead.load, base=self.base)
        data, members, level = self.record.data, self.prediction_members, self._nominal(intervals)
        batch_size = self.record.config.evaluation_batch_size
        of_members: list[list[Predictions]] = [[] for _ in members]
        of_pieces: list[Parts] = []
        texts = _Texts(self._tokenizer(members[0]), data.max_length, what)
        for frame in frames():
            tokens = texts.tokens(self.text.render(frame, what, start=texts.rows))
            # Only one model is in memory: reading it again takes less time than a batch.
            parts = [self._model_parts(load(member), tokens, level, batch_size) for member in members]
            if average == "ranks":
                for several, part in zip(of_members, parts, strict=True):
                    several.append(part[0])
            else:
                of_pieces.append(_mean(parts))
            if progress is not None:
                progress(texts.rows, None)
        texts.warn()
        if average == "ranks":
            return (_mean([(ranks(concatenate(several)),) for several in of_members])[0],)
        return tuple(concatenate(several) for several in zip(*of_pieces, strict=True))

    def forecast(self, history: Any, intervals: float | None = None) -> Parts:
        """Forecast with the models of the last fold, trained on most of the series.

        Args:
            history: a pandas frame, oldest first; at least the head's window of rows.
            intervals: as for `predict`.

        Raises:
            RunError: the history is too short or lacks a value, or times are no steps of one length.
        """
        data, table = self.record.data, Table(history, "the series")
        (column,) = [table.column(name, "target column") for name in self.task.target]
        if None in column.values:
            row = column.values.index(None)
            raise RunError(
                f"the series has no value of {column.name!r} in row {row}; fix: fill it in, or end the history before "
                "it"
            )
        series = np.asarray(target_values([column], self.task), np.float64)
        stamps = np.arange(len(series)) if data.time is None else list(table.column(data.time, "time column").values)
        times = as_times(stamps, "time")
        texts = render_texts(history.iloc[-1:], self.text)
        parts = []
        level = self._nominal(intervals)
        for member in self.prediction_members:
            model = BertWithHead.load(member, base=self.base)
            head: Any = model.head
            if len(series) < head.window:
                raise RunError(
                    f"a forecast needs {head.window} values of history, not {len(series)}; fix: give more rows"
                )
            tokens = token_rows(self._tokenizer(member), texts.texts, texts.pairs, max_length=data.max_length)
            past = series[None, len(series) - head.window :] if head.window else None
            extra = head.inputs(history=past, made_at=times[-1:])
            of_model = self._model_parts(model, tokens, level, batch_size=1, extra=extra)
            parts.append(tuple(replace(part, values=part.values.reshape(1, head.horizon)) for part in of_model))
        return _mean(parts)

    def _tokenizer(self, member: Path) -> Tokenizer:
        config = config_from_hf(read_config(member))
        return load_tokenizer(member, config, max_length=self.record.data.max_length)

    def _nominal(self, intervals: float | None) -> float | None:
        return None if intervals is None else nominal_level(self.files, self.record.prediction_members, intervals)

    def _model_parts(
        self, model: BertWithHead, tokens: TokenRows, level: float | None, batch_size: int, extra: Any = None
    ) -> Parts:
        logits = predict_logits(model, tokens, batch_size=batch_size, extra=extra)
        predictions = Predictions.of(self.task.task, model.head, logits)
        if level is None:
            return (predictions,)
        return predictions, *interval_ends(model, predictions, tokens, level, batch_size=batch_size, extra=extra)

    def _repr_html_(self) -> str:
        """Return the scores as a table for a notebook: one row per model, then "pooled" and "hold-out"."""
        import pandas

        scores = read_scores(self.path)
        rows = {} if scores is None else {member.member: member.metrics for member in scores.members}
        if scores is not None:
            rows["pooled"] = scores.pooled
            if scores.hold_out is not None:
                rows["hold-out"] = scores.hold_out.metrics
        table: str = pandas.DataFrame.from_dict(rows, orient="index").to_html(float_format="{:.4f}".format)
        return table


class _Texts:
    """Tokenizes the texts of several frames, with one warning about all that are empty or cut."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, what: str):
        self.tokenizer, self.max_length, self.what = tokenizer, max_length, what
        self.rows = self.empty = self.cut = self.longest = self.limit = 0
        self.uncounted = False

    def tokens(self, rendered: Any) -> TokenRows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)  # `warn` warns once
            tokens = token_rows(self.tokenizer, rendered.texts, rendered.pairs, max_length=self.max_length)
        self.rows += len(tokens)
        self.empty += rendered.empty
        self.cut += tokens.cut
        self.longest, self.limit = max(self.longest, tokens.longest), tokens.limit
        self.uncounted = self.uncounted or tokens.uncounted
        return tokens

    def warn(self) -> None:
        if not self.rows:
            raise RunError("there are no rows to predict; fix: is the file empty?")
        warn_of_empty(self.empty, self.rows, self.what, stacklevel=3)
        if self.cut:
            warn_of_truncation(self.cut, self.rows, self.longest, self.limit, stacklevel=3, at_least=self.uncounted)


def _mean(parts: list[Parts]) -> Parts:
    """Return the mean of the models, and of the ends of their intervals."""
    return tuple(average(several) for several in zip(*parts, strict=True))
