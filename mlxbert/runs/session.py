"""`train` and `resume`: from data to a cross-validated model, in one or several sittings."""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mlxbert.data.competitions import get_competition
from mlxbert.data.file_format import looking_once
from mlxbert.data.folds import folds_sha256
from mlxbert.data.frames import DataWarning, plain
from mlxbert.data.reading import Kind
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import RowText, names_rows
from mlxbert.factory import default_checkpoint
from mlxbert.files.output_file import TEMPORARY, WriteError, write_errors
from mlxbert.files.reading import expand_home
from mlxbert.runs.files import (
    MetricsLog,
    RunError,
    RunFiles,
    check_own,
    check_paths,
    empty,
    read_log,
    run_lock,
    write_json,
)
from mlxbert.runs.finish import check_models, finish, members_of, train_members
from mlxbert.runs.inputs import (
    FRAME,
    Inputs,
    TableFormat,
    read_frame,
    rows_to_predict,
    source_name,
    submission_rules,
    table_record,
    training_id,
)
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.progress import ProgressBar, show_inference, tracker
from mlxbert.runs.record import (
    INFO,
    FoldsRecord,
    RunRecord,
    check_environment,
    check_known_settings,
    check_same,
    compared,
    going_on,
    new_record,
    read_record,
    read_values,
)
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings, competition_numbers, takes_arguments
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import ConfigurationError, TrainingConfig, unknown_setting
from mlxbert.training.parallel import World, current_world
from mlxbert.training.trainer import TrainingInterrupted

_ONE_SOURCE = "give all ranks the same files and options, and install the same versions"


@takes_arguments
def train(
    data: Any,
    *,
    out: str | Path | None = None,
    pair: str | int | Sequence[str | int] | None = None,
    overwrite: bool = False,
    config: TrainingConfig | None = None,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Cross-validate a model on the data of a competition; all files are written to `out`.

    Tables (`data`, `valid`, `test`, `sample_submission`) are files (CSV, TSV, JSON, Parquet, Excel; also compressed),
    pandas or polars frames, or dicts of columns. `target`, `text`, `pair` and `ignore` take one column or several.

    Args:
        data: the table to learn from.
        out: directory of the run, which is created; there is no default.
        pair: the second sentence: a column, several, or a template.
        overwrite: replace a run that is there already.
        config: settings of the training; None: the defaults. Arguments of the same name replace them.
        trackers: "tensorboard", "wandb".
        callbacks: called for each event (`mlxbert.training.callbacks`).
        progress: show it on standard error.
        (settings)

    Under `mlx.launch` the processes train together. Only rank 0 writes; the others return the run when it is finished,
    or leave with exit code 0 if they do not see its directory.

    Returns:
        The finished run.

    Raises:
        TrainingInterrupted: Ctrl-C; the run can be resumed.
        MLXBertError: a mistake in the data or the settings; one line with the fix.
    """
    _refuse_unknown(settings)
    if out is None:
        raise RunError("no directory is named for the run; fix: out='runs/NAME' (-o)")
    if settings.get("text") is not None:
        settings["text"] = RowText.make(settings["text"], pair)
    elif pair is not None:
        raise RunError("pair is given without text; fix: give both sentences")
    inputs = Inputs(data, *(settings.get(name) for name in ("valid", "test", "sample_submission")))
    run_settings, numbers = _settings(inputs, settings, config)
    world = current_world()
    with world.running():
        files = RunFiles(new_directory(out, overwrite) if world.writes else expand_home(out))
        training = TrainingConfig.make(numbers)
        with run_lock(files.root) if world.writes else nullcontext():
            if world.writes:
                new_directory(files.root, overwrite)  # again: another run may have ended since the first look
            run_session(
                files=files,
                inputs=inputs,
                settings=run_settings,
                config=training,
                overwrite=overwrite,
                trackers=trackers,
                callbacks=callbacks,
                progress=progress,
                world=world,
            )
    return _finished(files, world)


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
    """Resume an interrupted run; it ends in the same bytes as without the interruption.

    Args:
        out: directory of the run.
        data: the new place of the data; None: the recorded one. A run on a frame needs the frame again.
        valid: likewise; and so `test` and `sample_submission`.
        allow_changes: go on although device, versions or threads have changed; the bytes then differ.
        trackers: as for `train`; likewise `callbacks` and `progress`.

    Raises:
        RunError: there is no run, or the data, the checkpoint or the environment have changed.
        MLXBertError: as `train` raises.
    """
    files, world = RunFiles(expand_home(out)), current_world()
    with world.running():
        _resume(
            files,
            {"data": data, "valid": valid, "test": test, "sample_submission": sample_submission},
            allow_changes=allow_changes,
            trackers=trackers,
            callbacks=callbacks,
            progress=progress,
            world=world,
        )
    return _finished(files, world)


def _resume(
    files: RunFiles,
    tables: Mapping[str, Any],
    *,
    allow_changes: bool,
    trackers: Sequence[str],
    callbacks: Sequence[Callback],
    progress: bool,
    world: World,
) -> None:
    values = dict(read_record(files.root).values) if world.writes else {}
    values, is_finished = world.first("run.json", [values, world.writes and files.scores.is_file()])
    if is_finished:
        return
    record = RunRecord.of(values, files.info)
    check_known_settings(record, files.info)
    if record.config.rate is None:
        raise RunError(
            f"{files.info}: config has no rate: an older mlxbert with another default began the run; fix: train it "
            "again, or write its rate into config.rate: the largest in metrics.jsonl, if the warm-up is over"
        )
    if not allow_changes:
        check_environment(record.environment)
    saved = {name: getattr(record.settings, name) for name in tables if name != "data"}
    saved["data"] = record.data.path or FRAME
    inputs = Inputs(**{name: saved[name] if table is None else table for name, table in tables.items()})
    frames = [name for name, table in vars(inputs).items() if isinstance(table, str) and table == FRAME]
    if frames:
        needed = ", ".join("frame" if name == "data" else f"{name}=frame" for name in frames)
        raise RunError(f"{files.root} was trained on a frame; fix: resume(path, {needed})")
    if world.writes:
        check_paths(files)
    with run_lock(files.root) if world.writes else nullcontext():
        run_session(
            files=files,
            inputs=inputs,
            settings=record.settings,
            config=record.config,
            before=record,
            trackers=trackers,
            callbacks=callbacks,
            progress=progress,
            world=world,
        )


def _finished(files: RunFiles, world: World) -> Run:
    """Return the finished run; a rank that does not see it leaves with exit code 0."""
    if not world.writes and not files.scores.is_file():
        raise SystemExit(0)
    return Run.open(files.root)


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    """Refuse a keyword that is not an argument of `train`, before any other check."""
    known = inspect.signature(train).parameters
    for name in settings:
        if name not in known:
            raise ConfigurationError(str(unknown_setting(name, known)))


def _settings(
    inputs: Inputs, given: Mapping[str, Any], config: TrainingConfig | None
) -> tuple[RunSettings, dict[str, Any]]:
    """Return the settings of a run and the numbers of its training; a competition replaces the defaults."""
    in_training = {setting.name for setting in fields(TrainingConfig)}
    numbers = {} if config is None else config.to_dict()
    numbers |= {name: value for name, value in given.items() if name in in_training}
    chosen = {name: value for name, value in given.items() if name not in in_training and value is not None}
    chosen |= {name: inputs.record(name) for name in ("valid", "test", "sample_submission")}
    competition = chosen.pop("competition", None)
    if inputs.valid is not None:
        numbers.setdefault("folds", 1)
    if competition is not None:
        ready = get_competition(competition) if isinstance(competition, str) else competition
        settings = RunSettings.for_competition(ready, **chosen)
        if "model" not in chosen:
            settings = replace(settings, model=str(default_checkpoint(ready)))
        # Rows with times are split by their times.
        by_time = {"fold_kind": None} if "time" in chosen else {}
        numbers = {**competition_numbers(ready), **by_time, **numbers}
    elif "model" not in chosen:
        raise RunError("no model is named; fix: --model DIRECTORY, made by mlxbert-convert")
    else:
        settings = RunSettings(**chosen)
    if numbers.get("folds", 5) != 1 and inputs.valid is not None:
        raise RunError("valid goes with folds=1; fix: leave one out")
    return settings, numbers


@looking_once()
def run_session(
    *,
    files: RunFiles,
    inputs: Inputs,
    settings: RunSettings,
    config: TrainingConfig,
    before: RunRecord | None = None,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    world: World | None = None,
) -> None:
    """Train the unfinished models, and finish; `before` is the record of a resumed run.

    All checks come before anything is written or deleted.

    Raises:
        TrainingInterrupted: Ctrl-C; the message says what is saved, and how to go on.
        WriteError: a full disk, likewise.
        MLXBertError: as `train` raises.
    """
    started, world = time.monotonic(), world or World()
    tables = _read_tables(inputs, settings, before)
    settings = tables.settings
    prepared = prepare(tables.frame, settings, config, tables.valid, tables.record["path"] or "the frame")
    if before is None:
        # run.json has the rates themselves: the defaults of a later version may be others.
        rate, head_rate = check_models(prepared, settings, config)
        config = replace(config, rate=rate, head_rate=head_rate)
    record = new_record(
        settings,
        config,
        prepared.problem,
        metric=prepared.metric.name,
        members=[member.name for member in members_of(config, len(prepared.folds))],
        data={
            **tables.record,
            "valid": tables.valid_record,
            "test": None if inputs.test is None else table_record(inputs.test, "the test frame"),
            "kinds": tables.kinds,
            "id_found": tables.id_found,
            "max_length": prepared.limit,
            "examples_sha256": prepared.examples.sha256(),
        },
        folds=FoldsRecord(prepared.fold_kind, len(prepared.folds), folds_sha256(prepared.folds)),
        directory=prepared.directory,
        form=_submission_form(inputs, prepared, config, tables),
    )
    if before is not None:
        check_same(record, before)
        record = going_on(before, record.environment)
    world.same("data, checkpoint, settings or versions", compared(record), _ONE_SOURCE)
    world.advise(f"go on with the same number of ranks and: {resuming_call(files, record)}")
    if not world.writes:
        train_members(files, prepared, settings, config, (), world)
        return
    bar = ProgressBar(len(record.members)) if progress else None
    services = [tracker(name, files.root) for name in trackers]
    listeners = Callbacks([MetricsLog(files.log), *([bar] if bar else []), *services, *callbacks])
    if before is None:
        _begin(files, record, overwrite, (*vars(inputs).values(), settings.model))
    else:
        if record != before:
            write_json(files.info, record.values)
        shutil.rmtree(files.best_so_far, ignore_errors=True)
    if bar:
        bar.skip(sum(files.is_done(name) for name in record.members))
        show_inference(prepared, settings, tables.record, tables.frame.columns)
    listeners.on_run_start(dict(record.values))
    scores = None
    try:
        with _advice(files, record):
            earlier = _seconds_of_finished(files, record)
            earlier += train_members(files, prepared, settings, config, listeners.several, world)
            world.at("finishing")
            scores = finish(files, prepared, settings, config, inputs, earlier + time.monotonic() - started)
    finally:
        listeners.on_run_end(scores)


@contextmanager
def _advice(files: RunFiles, record: RunRecord) -> Iterator[None]:
    """Add to the error of an interrupted training what is saved, and how to resume."""
    try:
        yield
    except (TrainingInterrupted, KeyboardInterrupt) as error:
        parts = [str(error) or "interrupted", f"what is trained so far is saved in {files.root}"]
        if files.best_so_far.is_dir():
            parts.append(f"its best weights in {files.best_so_far}")
        raise TrainingInterrupted(f"{', '.join(parts)}; go on with: {resuming_call(files, record)}") from error
    except WriteError as error:
        raise WriteError(f"{error}; go on with: {resuming_call(files, record)}") from error


def resuming_call(files: RunFiles, record: RunRecord) -> str:
    """Return how to resume a run: a command, or a call in Python if frames are needed again."""
    tables = {name: getattr(record.settings, name) for name in ("valid", "test", "sample_submission")}
    frames = [f"{name}=frame" for name, table in tables.items() if table == FRAME]
    if record.data.path is None:
        frames.insert(0, "frame")
    if frames:
        return f"mlxbert.resume({', '.join([repr(str(files.root)), *frames])})"
    return f"mlxbert train --resume {shlex.quote(str(files.root))}"


def _seconds_of_finished(files: RunFiles, record: RunRecord) -> float:
    """Return the seconds that earlier sittings spent on the finished models."""
    log = read_log(files.log)
    events = () if log is None else (line.event for line in log.lines)
    seconds = {event.member: event.seconds for event in events if isinstance(event, MemberEvent)}
    return sum(seconds.get(name, 0.0) for name in record.members if files.is_done(name))


@dataclass(frozen=True, eq=False)
class _Tables:
    """The training and validation data as they were read.

    Attributes:
        settings: of the run, with the id column if it was found.
        id_found: whether it was found by its name.
        frame: the training data; `valid`: the validation data.
        kinds: what their columns hold.
        record: the entry of the training data in run.json; `valid_record`: of the validation data.
    """

    settings: RunSettings
    id_found: bool
    frame: Any
    kinds: dict[str, Kind]
    record: dict[str, Any]
    valid: Any = None
    valid_record: dict[str, Any] | None = None


def _read_tables(inputs: Inputs, settings: RunSettings, before: RunRecord | None) -> _Tables:
    """Read the training and validation data, and find the column that names the rows if none is named."""
    options: dict[str, Any] = {
        "text": settings.text,
        "id_column": settings.id,
        "encoding": settings.encoding,
        "quoting": settings.quoting,
        "labels": settings.labels,
        "words": settings.target if settings.decimal == "," else (),
    }
    kinds = None if before is None else before.data.kinds
    frame, found_kinds, record = read_frame(inputs.data, **options, kinds=kinds)
    id_found = before is not None and before.data.id_found
    if before is None:
        column = training_id(frame, settings, inputs.sample_submission, record["path"] or "the frame")
        if column is not None:
            settings, id_found, options["id_column"] = replace(settings, id=column), True, column
            if found_kinds[column] != "text":  # 1.0 and 0012 must keep their zeros
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DataWarning)  # the first reading warned
                    frame, found_kinds, record = read_frame(inputs.data, **options, kinds=None)
    tables = _Tables(settings, id_found, frame, found_kinds, record)
    if inputs.valid is None:
        return tables
    valid, _, valid_record = read_frame(inputs.valid, **options, kinds=found_kinds, what="the validation frame")
    if before is None and id_found and _repeats(frame, valid, settings.id):
        warnings.warn(
            f"{source_name(inputs.valid, 'the validation frame')} has ids of the training data again in column "
            f"{settings.id!r}: rows are numbered instead",
            DataWarning,
            stacklevel=2,
        )
        tables = replace(tables, settings=replace(settings, id=None), id_found=False)
    return replace(tables, valid=valid, valid_record=valid_record)


def _repeats(frame: Any, valid: Any, column: str | None) -> bool:
    """Return whether a column of two tables together has repeated values."""
    if column not in valid.columns:
        return False
    return not names_rows([plain(value) for table in (frame, valid) for value in table[column]])


def _submission_form(inputs: Inputs, prepared: Prepared, config: TrainingConfig, tables: _Tables) -> Submission:
    """Return the format of the submissions, after checking the table to predict and its sample.

    Raises:
        MLXBertError: the table cannot be predicted; this is checked before hours of training.
    """
    settings, task = tables.settings, prepared.problem.task
    rules = submission_rules(settings, task, prepared.metric.name, config.metric)
    if inputs.test is None:
        return rules.usual
    table = TableFormat(
        kinds=tables.kinds,
        columns=prepared.problem.text.columns,
        id=settings.id,
        id_found=tables.id_found,
        target=task.target,
        time=settings.time,
        horizon=settings.horizon if task.task == "time_series" else 0,
        like=tables.record.get("quoting"),
        encoding=settings.encoding,
        quoting=settings.quoting,
    )
    sample = inputs.sample_submission
    return rows_to_predict(inputs.test, table, rules, sample_submission=sample, values=settings.values).form


def new_directory(out: str | Path, overwrite: bool) -> Path:
    """Return the directory of a new run; refuse one that must not be used.

    Raises:
        RunError: it is a file, holds other files, or a run without `overwrite`.
    """
    root = expand_home(out)
    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is a file; fix: give another directory with -o")
    if not root.is_dir() or all(TEMPORARY.fullmatch(path.name) for path in root.iterdir()):
        return root
    if not os.path.lexists(root / INFO):
        raise RunError(f"{root} is not empty, and no run; fix: give another directory with -o")
    check_own(root / INFO)
    read_values(root)
    if not overwrite:
        raise RunError(f"{root} has a run in it; fix: --resume {root}, --overwrite, or another directory with -o")
    return root


def _begin(files: RunFiles, record: RunRecord, overwrite: bool, sources: Sequence[Any]) -> None:
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
    write_json(files.info, record.values, fix="free some space and train again")
