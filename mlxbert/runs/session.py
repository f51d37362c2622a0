"""One sitting of a run: train what is not trained yet, and finish."""

from __future__ import annotations

import shlex
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxbert.data.cells import Kind
from mlxbert.data.file_format import looking_once
from mlxbert.data.reading import DataWarning
from mlxbert.factory.competition import Submission
from mlxbert.factory.frames import plain
from mlxbert.factory.id_columns import names_rows
from mlxbert.files.output_file import WriteError, write_errors
from mlxbert.runs.files import RunError, RunFiles, write_json
from mlxbert.runs.finish import finish
from mlxbert.runs.frames import FRAME, Inputs, read_frame, source_name, table_record
from mlxbert.runs.info import check_same, going_on, new_record
from mlxbert.runs.members import check_models, train_members
from mlxbert.runs.metrics_log import MetricsLog, read_log
from mlxbert.runs.place import empty
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.progress import ProgressBar
from mlxbert.runs.record import RunRecord
from mlxbert.runs.rows_to_predict import TableFormat, rows_to_predict, training_id
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import submission_rules
from mlxbert.runs.summary import show_inference
from mlxbert.runs.trackers import tracker
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import TrainingConfig
from mlxbert.training.outcome import TrainingInterrupted


@looking_once()
def run_session(
    files: RunFiles,
    inputs: Inputs,
    settings: RunSettings,
    config: TrainingConfig,
    before: RunRecord | None,
    overwrite: bool,
    trackers: Sequence[str],
    callbacks: Sequence[Callback],
    progress: bool,
) -> Run:
    """Train what is not trained yet, and finish; `before` is the record of a run that goes on.

    Everything that can be refused is refused before anything is written or deleted.

    Raises:
        TrainingInterrupted: Ctrl-C; says what is saved, and how to go on.
        WriteError: a full disk, likewise.
        MLXBertError: as `mlxbert.runs.cross_validate` raises.
    """
    started = time.monotonic()
    read = _read_tables(inputs, settings, before)
    settings = read.settings
    prepared = prepare(read.frame, settings, config, read.valid, read.record["path"] or "the frame")
    run = new_record(
        settings,
        config,
        prepared,
        read.kinds,
        read.record,
        _form(inputs, prepared, config, read),
        valid=read.judged,
        test=None if inputs.test is None else table_record(inputs.test, "the test frame"),
        id_found=read.id_found,
    )
    if before is not None:
        check_same(run, before)
        run = going_on(before, run.environment)
    bar = ProgressBar(len(run.members)) if progress else None
    told: list[Callback] = [
        MetricsLog(files.log),
        *([bar] if bar else []),
        *(tracker(t, files.root) for t in trackers),
    ]
    everyone = Callbacks([*told, *callbacks])
    if before is None:
        check_models(prepared, settings, config)
        _begin(files, run, overwrite, (*vars(inputs).values(), settings.model))
    else:
        if run != before:
            write_json(files.info, run.values)
        shutil.rmtree(files.best_so_far, ignore_errors=True)
    if bar:
        bar.skip(sum(files.is_done(name) for name in run.members))
    if progress:
        show_inference(prepared, settings, read.record, read.frame.columns)
    everyone.on_run_start(dict(run.values))
    scores = None
    try:
        earlier = _seconds_of_finished(files, run)
        earlier += train_members(files, prepared, settings, config, everyone.several)
        scores = finish(files, prepared, settings, config, inputs, earlier + time.monotonic() - started)
    except (TrainingInterrupted, KeyboardInterrupt) as error:
        raise TrainingInterrupted(_interrupted(files, run, error)) from error
    except WriteError as error:
        raise WriteError(f"{error}; go on with: {_command(files, run)}") from error
    finally:
        everyone.on_run_end(scores)
    return Run.open(files.root)


def _seconds_of_finished(files: RunFiles, run: RunRecord) -> float:
    """The seconds that earlier sittings spent on the models that are finished already."""
    log = read_log(files.log)
    events = () if log is None else (line.event for line in log.lines)
    seconds = {event.member: event.seconds for event in events if isinstance(event, MemberEvent)}
    return sum(seconds.get(name, 0.0) for name in run.members if files.is_done(name))


@dataclass(frozen=True, eq=False)
class _Tables:
    """What was read: frames, kinds of the columns, records for run.json, and the settings with the id's column."""

    settings: RunSettings
    id_found: bool
    frame: Any
    kinds: dict[str, Kind]
    record: dict[str, Any]
    valid: Any = None
    judged: dict[str, Any] | None = None


def _read_tables(inputs: Inputs, settings: RunSettings, before: RunRecord | None) -> _Tables:
    """Read the training and validation data, and find the column that names the rows where nobody told it."""
    about: dict[str, Any] = {"text": settings.text, "id_column": settings.id, "encoding": settings.encoding}
    about |= {"quoting": settings.quoting, "labels": settings.labels}
    about["words"] = settings.target if settings.decimal == "," else ()
    kinds = None if before is None else before.data.kinds
    frame, found, record = read_frame(inputs.data, **about, kinds=kinds)
    id_found = before is not None and before.data.id_found
    if before is None:
        column = training_id(frame, settings, inputs.sample_submission, record["path"] or "the frame")
        if column is not None:
            settings, id_found, about["id_column"] = settings.with_id(column), True, column
            if found[column] != "text":  # 1.0 and 0012 are to be written as they are read
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DataWarning)  # said at the first reading
                    frame, found, record = read_frame(inputs.data, **about, kinds=None)
    tables = _Tables(settings, id_found, frame, found, record)
    if inputs.valid is None:
        return tables
    valid, _, judged = read_frame(inputs.valid, **about, kinds=found, what="the validation frame")
    if before is None and id_found and _repeats(frame, valid, settings.id):
        warnings.warn(
            f"{source_name(inputs.valid, 'the validation frame')} has ids of the training data again in column "
            f"{settings.id!r}: rows are numbered instead",
            DataWarning,
            stacklevel=2,
        )
        tables = replace(tables, settings=replace(settings, id=None), id_found=False)
    return replace(tables, valid=valid, judged=judged)


def _repeats(frame: Any, valid: Any, column: str | None) -> bool:
    """Whether a column of two tables, one after the other, names no row."""
    if column not in valid.columns:
        return False
    return not names_rows([plain(value) for table in (frame, valid) for value in table[column]])


def _form(inputs: Inputs, prepared: Prepared, config: TrainingConfig, read: _Tables) -> Submission:
    """The format of the submissions, after a look at the table to predict and its sample.

    Raises:
        MLXBertError: what could not be predicted after hours of training is refused before them.
    """
    settings, task = read.settings, prepared.problem.task
    rules = submission_rules(settings, task, prepared.metric.name, config.metric)
    if inputs.test is None:
        return rules.usual
    table = TableFormat(
        kinds=read.kinds,
        columns=prepared.problem.text.columns,
        id=settings.id,
        id_found=read.id_found,
        target=task.target,
        time=settings.time,
        horizon=settings.horizon if task.task == "time_series" else 0,
        like=read.record.get("quoting"),
        encoding=settings.encoding,
        quoting=settings.quoting,
    )
    sample = inputs.sample_submission
    return rows_to_predict(inputs.test, table, rules, sample_submission=sample, values=settings.values).form


def _begin(files: RunFiles, run: RunRecord, overwrite: bool, sources: Sequence[Any]) -> None:
    """Make the directory, or empty it, and write run.json."""
    with write_errors(files.root, 0):
        files.root.mkdir(parents=True, exist_ok=True)
    if overwrite:
        root = files.root.resolve()
        for source in sources:
            if isinstance(source, str | Path) and Path(source).resolve().is_relative_to(root):
                raise RunError(f"{source} lies in {files.root}, which is to be overwritten; fix: another -o DIRECTORY")
        with write_errors(files.root, 0):
            empty(files)
    # Nothing to resume yet: run.json is the first file of a run.
    write_json(files.info, run.values, fix="free some space and train again")


def _interrupted(files: RunFiles, run: RunRecord, error: BaseException) -> str:
    """In one line: where it was, what is saved where, and how to go on."""
    told = [str(error) or "interrupted", f"what is trained so far is saved in {files.root}"]
    if files.best_so_far.is_dir():
        told.append(f"its best weights in {files.best_so_far}")
    return f"{', '.join(told)}; go on with: {_command(files, run)}"


def _command(files: RunFiles, run: RunRecord) -> str:
    """How to go on with a run: in Python where it was given frames, which are needed again."""
    given = {name: getattr(run.settings, name) for name in ("valid", "test", "sample_submission")}
    frames = [f"{name}=frame" for name, source in given.items() if source == FRAME]
    if run.data.path is None:
        frames.insert(0, "frame")
    if frames:
        return f"mlxbert.resume({', '.join([repr(str(files.root)), *frames])})"
    return f"mlxbert train --resume {shlex.quote(str(files.root))}"
