"""One sitting of a run: train what is not trained yet, and finish.

From data to a cross-validated model: `train`, and `resume` for a run that was interrupted.
"""

from __future__ import annotations

import inspect
import shlex
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from heads.labels import Label
from mlxbert.data.competitions import Competition, get_competition
from mlxbert.data.csv_dialect import Quoting
from mlxbert.data.file_format import looking_once
from mlxbert.data.frames import DataWarning, plain
from mlxbert.data.reading import Kind
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText, names_rows
from mlxbert.factory import default_checkpoint
from mlxbert.files.output_file import WriteError, write_errors
from mlxbert.files.reading import expand_home
from mlxbert.runs.files import MetricsLog, RunError, RunFiles, read_log, write_json
from mlxbert.runs.finish import check_same, finish, going_on, new_record, show_inference
from mlxbert.runs.inputs import FRAME, Inputs, read_frame, source_name, table_record
from mlxbert.runs.members import check_models, train_members
from mlxbert.runs.place import ProgressBar, check_paths, empty, new_directory, run_lock, tracker
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.record import RunRecord, check_known_settings, read_record
from mlxbert.runs.rows import TableFormat, rows_to_predict, training_id
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings, as_columns, check_environment, competition_numbers
from mlxbert.runs.submission import submission_rules
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import ConfigurationError, TrainingConfig, unknown_setting
from mlxbert.training.trainer import TrainingInterrupted


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
        MLXBertError: as `mlxbert.runs.train` raises.
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


def train(
    data: Any,
    *,
    out: str | Path | None = None,
    model: str | Path | None = None,
    target: str | int | Sequence[str | int] | None = None,
    text: str | int | Sequence[str | int] | RowText | None = None,
    pair: str | int | Sequence[str | int] | None = None,
    competition: str | Competition | None = None,
    task: str | None = None,
    classes: Sequence[Label] | None = None,
    id: str | None = None,
    group: str | None = None,
    time: str | None = None,
    ignore: Sequence[str] = (),
    head: Mapping[str, Any] | None = None,
    revision: str | None = None,
    encoding: str | None = None,
    quoting: Quoting | None = None,
    decimal: str | None = None,
    label_separator: str | None = None,
    valid: Any = None,
    hold_out: float | None = None,
    test: Any = None,
    sample_submission: Any = None,
    values: str | None = None,
    drop_missing: bool = False,
    escape_formulas: bool = False,
    overwrite: bool = False,
    config: TrainingConfig | None = None,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Cross-validate a model on a competition's data; everything it leaves is in `out`.

    Args:
        data: a file (CSV, TSV, JSON, Parquet, Excel; also compressed), a pandas or polars frame, or a dict of columns.
        out: the run's directory, made here; there is no default.
        model: a converted directory, or the id of a converted repository on the Hub.
        target: the column to predict, or several.
        text: a column, several, a template such as "{Sex}, age {Age}"; None: every column as "column: value".
        pair: the second sentence, likewise.
        competition: a ready configuration of `mlxbert.factory`; what else is given takes the place of its own.
        task: a competition type or a head's name; None: inferred from the target.
        classes: the labels, where the data do not tell.
        id: the column that names a row: kept in predictions, never read as text; None: the sample's first column, or
            one that is called an id (id, PassengerId, qid, …) and has another value in every row.
        group: rows of one value never lie on both sides of a fold.
        time: the column of times: a time series, or forward-chaining folds.
        ignore: columns that `text=None` leaves out.
        head: options of the head, such as {"objective": "focal"}; the objective may be a registered loss
            (`heads.losses.register_loss`).
        revision: of a model on the Hub.
        encoding: of the data's text; None: found out.
        quoting: of CSV and TSV: "none" (quotes are characters), "minimal" or "escaped"; None: found out.
        decimal: the decimal mark of a target that is written as text, "." or ","; None: found out.
        label_separator: what stands between several labels of a cell; None: found out.
        valid: rows to be judged on, in place of folds: a file or frame, like `data`.
        hold_out: rows held out of everything, predicted and scored at the end: a share, or their number.
        test: rows to predict at the end: a file or frame, like `data`.
        sample_submission: that these predictions must fit: a file or frame, like `data`.
        values: what a submission holds: "labels", "probabilities" or "values".
        drop_missing: leave out rows without a target.
        escape_formulas: put a ' before cells of the CSV files that a spreadsheet would compute, such as "=1+1".
        overwrite: replace a run that is there already.
        config: the numbers of the training; None: the defaults.
        trackers: "tensorboard", "wandb".
        callbacks: told of what happens (`mlxbert.training.callbacks`).
        progress: show it on standard error.
        settings: fields of `TrainingConfig`, in place of those of `config`.

    Returns:
        The finished run.

    Raises:
        TrainingInterrupted: Ctrl-C; the run can be resumed.
        MLXBertError: a mistake in the data or the settings, in a line with the fix.
    """
    _refuse_unknown(settings)
    if out is None:
        raise RunError("no directory is named for the run; fix: out='runs/NAME' (-o)")
    row_text = None if text is None else RowText.make(text, pair)
    if pair is not None and text is None:
        raise RunError("pair is given without text; fix: give both sentences")
    inputs = Inputs(data, valid, test, sample_submission)
    own: dict[str, Any] = {
        "model": None if model is None else str(model),
        "revision": revision,
        "target": as_columns(target),
        "text": row_text,
        "task": task,
        "classes": None if classes is None else tuple(classes),
        "id": None if id is None else str(id),
        "group": None if group is None else str(group),
        "time": None if time is None else str(time),
        "ignore": tuple(map(str, ignore)),
        "encoding": encoding,
        "quoting": quoting,
        "decimal": decimal,
        "label_separator": label_separator,
        "valid": inputs.record("valid"),
        "hold_out": hold_out,
        "test": inputs.record("test"),
        "sample_submission": inputs.record("sample_submission"),
        "values": values,
        "drop_missing": drop_missing,
        "escape_formulas": escape_formulas,
        "head": dict(head or {}),
    }
    numbers = {**(config.to_dict() if config is not None else {}), **settings}
    if valid is not None:
        numbers.setdefault("folds", 1)
    if competition is not None:
        ready = get_competition(competition) if isinstance(competition, str) else competition
        chosen = RunSettings.for_competition(ready, **own)
        if model is None:
            chosen = replace(chosen, model=str(default_checkpoint(ready)))
        dealt = {} if time is None else {"fold_kind": None}  # rows that are given times are folded by them
        numbers = {**competition_numbers(ready), **dealt, **numbers}
    else:
        if model is None:
            raise RunError("no model is named; fix: --model DIRECTORY, made by mlxbert-convert")
        chosen = RunSettings(**own)
    if numbers.get("folds", 5) != 1 and valid is not None:
        raise RunError("valid goes with folds=1; fix: leave one out")
    files = RunFiles(new_directory(out, overwrite))
    trained = TrainingConfig.make(numbers)
    with run_lock(files.root):
        new_directory(files.root, overwrite)  # again: another run may have ended since the first look
        return run_session(files, inputs, chosen, trained, None, overwrite, trackers, callbacks, progress)


def resume(
    out: str | Path,
    data: Any = None,
    *,
    valid: Any = None,
    test: Any = None,
    sample_submission: Any = None,
    allow_changes: bool = False,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Run:
    """Go on with a run that was interrupted, to the same bytes that it would have had.

    Args:
        out: the run's directory.
        data: where the data lie now; None: where they lay (a run on a frame needs the frame again).
        valid: likewise; and so `test` and `sample_submission`.
        allow_changes: go on though device, versions or threads have changed: to other bytes, then.
        trackers: as for `train`; likewise `callbacks` and `progress`.

    Raises:
        RunError: no run, other data, another checkpoint, or another environment.
        MLXBertError: as `train` raises.
    """
    files = RunFiles(expand_home(out))
    record = read_record(files.root)
    if files.scores.is_file():
        return Run.open(files.root)
    check_known_settings(record, files.info)
    if not allow_changes:
        check_environment(record.environment)
    given = {"data": data, "valid": valid, "test": test, "sample_submission": sample_submission}
    saved = {name: getattr(record.settings, name) for name in given if name != "data"}
    saved["data"] = record.data.path or FRAME
    inputs = Inputs(**{name: saved[name] if one is None else one for name, one in given.items()})
    frames = [name for name, one in vars(inputs).items() if isinstance(one, str) and one == FRAME]
    if frames:
        needed = ", ".join("frame" if name == "data" else f"{name}=frame" for name in frames)
        raise RunError(f"{files.root} was trained on a frame; fix: resume(path, {needed})")
    check_paths(files)
    with run_lock(files.root):
        return run_session(files, inputs, record.settings, record.config, record, False, trackers, callbacks, progress)


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Refuse a keyword that neither `train` nor `TrainingConfig` has, before anything else is found wrong."""
    known = {*inspect.signature(train).parameters, *(one.name for one in fields(TrainingConfig))} - {"settings"}
    for name in settings:
        if name not in known:
            raise ConfigurationError(str(unknown_setting(name, known)))
