"""`train` and `resume`: from data to a cross-validated model, in one or several sittings and processes."""

from __future__ import annotations

import inspect
import os
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mlxbert.backend.device import using_threads
from mlxbert.data.competitions import get_competition
from mlxbert.data.file_format import looking_once
from mlxbert.data.text_columns import RowText
from mlxbert.errors import RunWarning
from mlxbert.factory import default_checkpoint
from mlxbert.files.output_file import TEMPORARY, WriteError
from mlxbert.files.reading import expand_home
from mlxbert.runs.begin import begin
from mlxbert.runs.files import (
    RunError,
    RunFiles,
    check_own,
    check_paths,
    refuse_busy,
    run_lock,
)
from mlxbert.runs.finish import finish
from mlxbert.runs.inputs import FRAME, Inputs
from mlxbert.runs.log import read_run_log
from mlxbert.runs.members import Busy, train_members
from mlxbert.runs.progress import ProgressBar, WorkersProgress, show_inference, tracker
from mlxbert.runs.record import (
    INFO,
    RunRecord,
    check_environment,
    check_known_settings,
    read_record,
    read_values,
)
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings, competition_numbers, takes_arguments
from mlxbert.runs.share import Share, threads_of
from mlxbert.runs.workers import Job, WorkerError, make_job, note_memory, train_in_workers
from mlxbert.training.callbacks import Callback, Callbacks, MemberEvent
from mlxbert.training.config import ConfigurationError, TrainingConfig, unknown_setting
from mlxbert.training.parallel import World, current_world
from mlxbert.training.trainer import TrainingInterrupted


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
    workers: int = 1,
    members: Sequence[str] = (),
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
        workers: processes on this machine, each of which trains one model after the other.
        members: models to train, such as "fold=3,seed=1"; the others are trained elsewhere, or later by `resume`,
            which also ends the run. () for all.
        (settings)

    Under `mlx.launch` the processes train each model together, and only rank 0 writes. The others return the run when
    it is finished, or leave with exit code 0 if they do not see its directory.

    Returns:
        The run; finished, unless only some `members` are trained.

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
    share, files, world = Share(workers, tuple(members)), RunFiles(expand_home(out)), current_world()
    with world.running():
        _refuse_shares(share, world)
        inputs = Inputs(data, *(settings.get(name) for name in ("valid", "test", "sample_submission")))
        run_settings, numbers = _settings(inputs, settings, config)
        if share.is_part and overwrite:
            raise RunError("--overwrite deletes what other processes train; fix: leave it out beside --member")
        joins = share.is_part and os.path.lexists(files.info)
        if not joins and world.writes:
            new_directory(files.root, overwrite)
        training = TrainingConfig.make(numbers)
        if joins and training.threads is None:
            training = replace(training, threads=read_record(files.root).config.threads)
        with run_lock(files.root) if world.writes and not share.is_part else nullcontext():
            if world.writes and not share.is_part:
                new_directory(files.root, overwrite)  # again: another run may have ended since the first look
                refuse_busy(files)
            run_session(
                files=files,
                inputs=inputs,
                settings=run_settings,
                config=training,
                share=share,
                world=world,
                overwrite=overwrite,
                trackers=trackers,
                callbacks=callbacks,
                progress=progress,
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
    workers: int = 1,
    members: Sequence[str] = (),
) -> Run:
    """Resume an interrupted run; it ends in the same bytes as without the interruption.

    Args:
        out: directory of the run.
        data: the new place of the data; None: the recorded one. A run on a frame needs the frame again.
        valid: likewise; and so `test` and `sample_submission`.
        allow_changes: go on although device or versions have changed; the bytes then differ.
        trackers: as for `train`; likewise `callbacks`, `progress`, `workers` and `members`.

    Raises:
        RunError: there is no run, or the data, the checkpoint or the environment have changed.
        MLXBertError: as `train` raises.
    """
    share, files, world = Share(workers, tuple(members)), RunFiles(expand_home(out)), current_world()
    with world.running():
        _refuse_shares(share, world)
        record = _record_of_first(files, world)
        if record is not None:
            _resume(
                files,
                record,
                {"data": data, "valid": valid, "test": test, "sample_submission": sample_submission},
                share=share,
                allow_changes=allow_changes,
                trackers=trackers,
                callbacks=callbacks,
                progress=progress,
                world=world,
            )
    return _finished(files, world)


def _record_of_first(files: RunFiles, world: World) -> RunRecord | None:
    """Return the record of the run, as rank 0 reads it; None: the run is finished."""
    record = read_record(files.root) if world.writes else None
    values = None if record is None or files.scores.is_file() else dict(record.values)
    values = world.first("run.json", values)
    return None if values is None else RunRecord.of(values, files.info)


def _resume(
    files: RunFiles,
    record: RunRecord,
    tables: Mapping[str, Any],
    *,
    share: Share,
    allow_changes: bool,
    trackers: Sequence[str],
    callbacks: Sequence[Callback],
    progress: bool,
    world: World,
) -> None:
    check_known_settings(record, files.info)
    if record.config.rate is None:
        raise RunError(
            f"{files.info}: config has no rate: an older mlxbert with another default began the run; fix: train it "
            "again, or write its rate into config.rate: the largest in metrics.jsonl, if the warm-up is over"
        )
    if not allow_changes:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)  # `run_session` warns of the same
            threads = threads_of(record.config, share, record, world)
        with using_threads(threads):
            check_environment(record.environment)
    inputs = _recorded_inputs(record, tables)
    frames = [name for name, table in vars(inputs).items() if isinstance(table, str) and table == FRAME]
    if frames:
        needed = ", ".join("frame" if name == "data" else f"{name}=frame" for name in frames)
        raise RunError(f"{files.root} was trained on a frame; fix: resume(path, {needed})")
    if world.writes:
        check_paths(files)
    with run_lock(files.root) if world.writes and not share.is_part else nullcontext():
        run_session(
            files=files,
            inputs=inputs,
            settings=record.settings,
            config=record.config,
            before=record,
            share=share,
            world=world,
            trackers=trackers,
            callbacks=callbacks,
            progress=progress,
        )


def _finished(files: RunFiles, world: World) -> Run:
    """Return the run; a rank that does not see it leaves with exit code 0."""
    if not world.writes and not files.scores.is_file():
        raise SystemExit(0)
    return Run.open(files.root)


def _refuse_shares(share: Share, world: World) -> None:
    if world.size > 1 and (share.workers > 1 or share.is_part):
        what = "--workers" if share.workers > 1 else "--member"
        raise RunError(
            f"{world.size} processes of mlx.launch train each model together, and {what} trains models apart; fix: "
            f"leave {what} or mlx.launch out"
        )


@looking_once()
def train_share(job: Job, callback: Callback) -> float:
    """Train free models of a run in a worker process; return the seconds that earlier sittings spent on them.

    Raises:
        MLXBertError: as `train` raises.
    """
    files = RunFiles(Path(job.root))
    record, share = read_record(files.root), Share(names=job.members)
    threads = threads_of(record.config, share, record)
    with using_threads(threads):
        check_environment(job.environment)
        inputs = _recorded_inputs(record, job.tables)
        session = begin(files, inputs, record.settings, record.config, share, record, threads=threads)
        return train_members(session.training([callback]), session.members, "pass")


def _recorded_inputs(record: RunRecord, tables: Mapping[str, Any]) -> Inputs:
    """Return the tables of a run: those that are given, and for others the recorded path."""
    recorded = {name: getattr(record.settings, name) for name in ("valid", "test", "sample_submission")}
    recorded["data"] = record.data.path or FRAME
    return Inputs(**{name: path if tables.get(name) is None else tables[name] for name, path in recorded.items()})


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
    share: Share,
    world: World,
    before: RunRecord | None = None,
    overwrite: bool = False,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> None:
    """Train the unfinished models of this process's share, and finish the run if that is all of it.

    All checks come before anything is written or deleted; `before` is the record of a resumed run.

    Raises:
        TrainingInterrupted: Ctrl-C; the message says what is saved, and how to go on.
        WriteError: a full disk, likewise.
        MLXBertError: as `train` raises.
    """
    started = time.monotonic()
    if "wandb" in trackers and share.workers > 1:
        raise RunError("--log wandb follows one model at a time; fix: --workers 1, or --log tensorboard")
    services = [tracker(name, files.root) for name in trackers if world.writes]
    threads = threads_of(config, share, before, world)
    with using_threads(threads):
        session = begin(
            files, inputs, settings, config, share, before, threads=threads, overwrite=overwrite, world=world
        )
        world.advise(f"go on with the same number of ranks and: {resuming_call(files, session.record, share)}")
        if not world.writes:
            train_members(session.training(()), session.members, "refuse")
            return
        record, names = session.record, [member.name for member in session.members]
        unfinished = [name for name in names if not files.is_done(name)]
        workers = min(share.workers, len(unfinished))
        bar = (WorkersProgress if workers > 1 else ProgressBar)(len(names)) if progress else None
        listeners = Callbacks([*([bar] if bar else []), *services, *callbacks])
        if bar:
            bar.skip(len(names) - len(unfinished))
            columns = session.tables.frame.columns
            show_inference(session.prepared, session.settings, session.tables.record, columns, world.text)
        if workers > 1:
            note_memory(session.prepared.directory, workers)
        listeners.on_run_start(dict(record.values))
        scores = None
        try:
            with _advice(files, record, share):
                earlier = _seconds_of_finished(files, record)
                if workers > 1:
                    job = make_job(files, inputs, names, session.prepared, session.settings)
                    earlier += train_in_workers(job, workers, listeners)
                busy: Busy = "refuse" if share.is_part or world.size > 1 else "wait"
                earlier += train_members(session.training(listeners.several), session.members, busy)
                if not share.is_part:
                    world.at("finishing")
                    seconds = earlier + time.monotonic() - started
                    scores = finish(files, session.prepared, session.settings, session.config, inputs, seconds)
        finally:
            listeners.on_run_end(scores)


@contextmanager
def _advice(files: RunFiles, record: RunRecord, share: Share) -> Iterator[None]:
    """Add to the error of an interrupted training what is saved, and how to resume."""
    try:
        yield
    except (TrainingInterrupted, KeyboardInterrupt) as error:
        parts = [str(error) or "interrupted", f"what is trained so far is saved in {files.root}"]
        if files.best_so_far.is_dir():
            parts.append(f"its best weights in {files.best_so_far}")
        raise TrainingInterrupted(f"{', '.join(parts)}; go on with: {resuming_call(files, record, share)}") from error
    except WriteError as error:
        raise WriteError(f"{error}; go on with: {resuming_call(files, record, share)}") from error
    except WorkerError as error:
        raise WorkerError(f"{error}; the rest is saved, go on with: {resuming_call(files, record, share)}") from error


def resuming_call(files: RunFiles, record: RunRecord, share: Share | None = None) -> str:
    """Return how to resume a run, or a share of it: a command, or a call in Python if frames are needed again."""
    share = share or Share()
    tables = {name: getattr(record.settings, name) for name in ("valid", "test", "sample_submission")}
    frames = [f"{name}=frame" for name, table in tables.items() if table == FRAME]
    if record.data.path is None:
        frames.insert(0, "frame")
    if frames:
        more = [f"workers={share.workers}"] if share.workers > 1 else []
        more += [f"members={list(share.words)}"] if share.words else []
        return f"mlxbert.resume({', '.join([repr(str(files.root)), *frames, *more])})"
    options = ["--workers", str(share.workers)] if share.workers > 1 else []
    options += [word for member in share.words for word in ("--member", member)]
    return shlex.join(["mlxbert", "train", "--resume", str(files.root), *options])


def _seconds_of_finished(files: RunFiles, record: RunRecord) -> float:
    """Return the seconds that earlier sittings spent on the finished models."""
    log = read_run_log(files, record.members)
    events = () if log is None else (line.event for line in log.lines)
    seconds = {event.member: event.seconds for event in events if isinstance(event, MemberEvent)}
    return sum(seconds.get(name, 0.0) for name in record.members if files.is_done(name))


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
