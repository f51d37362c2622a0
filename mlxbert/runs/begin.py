"""The beginning of a sitting: its tables are read, everything is checked, and run.json is written or compared."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlxbert.data.folds import folds_sha256
from mlxbert.data.frames import DataWarning, plain
from mlxbert.data.reading import Kind
from mlxbert.data.submission import Submission
from mlxbert.data.text_columns import names_rows
from mlxbert.files.output_file import write_errors
from mlxbert.runs.files import RunError, RunFiles, create_json, empty, write_json
from mlxbert.runs.inputs import (
    Inputs,
    TableFormat,
    read_frame,
    rows_to_predict,
    source_name,
    submission_rules,
    table_record,
    training_id,
)
from mlxbert.runs.log import RunLog
from mlxbert.runs.members import MemberTraining, check_models, members_of
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.record import (
    FoldsRecord,
    RunRecord,
    check_environment,
    check_joined,
    check_same,
    compared,
    going_on,
    new_record,
    read_record,
)
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.share import Share
from mlxbert.training.callbacks import Callback
from mlxbert.training.config import TrainingConfig
from mlxbert.training.parallel import World
from mlxbert.training.trainer import Member

_ONE_SOURCE = "give all ranks the same files and options, and install the same versions"


@dataclass(frozen=True, eq=False)
class Session:
    """A sitting that can train: everything is checked, and run.json is there.

    Attributes:
        files: of the run.
        tables: as they were read.
        prepared: what the models share.
        settings: of the run; `config`: of the training, with the rates and threads that are used.
        record: the content of run.json.
        members: the models of this process's share.
        is_part: whether other processes train models of the run at the same time.
        world: the processes that train each model together.
    """

    files: RunFiles
    tables: Tables
    prepared: Prepared
    settings: RunSettings
    config: TrainingConfig
    record: RunRecord
    members: tuple[Member, ...]
    is_part: bool
    world: World

    def training(self, callbacks: Sequence[Callback]) -> MemberTraining:
        """Return what the training of the models needs; the log is the first callback."""
        return MemberTraining(
            files=self.files,
            prepared=self.prepared,
            settings=self.settings,
            config=self.config,
            callbacks=(RunLog(self.files, shared=self.is_part), *callbacks) if self.world.writes else (),
            keeps_best=not self.is_part and self.world.writes,
            world=self.world,
            created=self.record.created,
        )


def begin(
    files: RunFiles,
    inputs: Inputs,
    settings: RunSettings,
    config: TrainingConfig,
    share: Share,
    before: RunRecord | None = None,
    *,
    threads: int,
    overwrite: bool = False,
    world: World | None = None,
) -> Session:
    """Read and check everything, then write run.json, or compare it.

    Args:
        files: of the run.
        inputs: its tables.
        settings: of the run; likewise `config`.
        share: which models this process trains.
        before: the record of a resumed run.
        threads: of each model's training.
        overwrite: delete the run that is there.
        world: the processes that train together; they are compared, and rank 0 writes.

    Raises:
        MLXBertError: as `mlxbert.train` raises; nothing was written or deleted.
    """
    world = world or World()
    tables = read_tables(inputs, settings, before)
    settings = tables.settings
    prepared = prepare(tables.frame, settings, config, tables.valid, tables.record["path"] or "the frame")
    all_members = members_of(config, len(prepared.folds))
    members = share.chosen(all_members)
    if before is None:
        # run.json has the rates and threads themselves: later defaults, or another machine's, may be others.
        rate, head_rate = check_models(prepared, settings, config)
        config = replace(config, rate=rate, head_rate=head_rate, threads=threads)
    record = new_record(
        settings,
        config,
        prepared.problem,
        metric=prepared.metric.name,
        members=[member.name for member in all_members],
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
        form=submission_form(inputs, prepared, config, tables),
    )
    if before is not None:
        check_same(record, before)
        record = going_on(before, record.environment)
    world.same("data, checkpoint, settings or versions", compared(record), _ONE_SOURCE)
    if not world.writes:
        pass
    elif before is not None:
        # A worker's environment is its parent's, which has written it.
        if record != before and not share.names:
            write_json(files.info, record.values)
    elif share.is_part:
        record = _create_or_join(files, record)
    else:
        _create(files, record, overwrite, (*vars(inputs).values(), settings.model))
    if before is not None and not share.is_part and world.writes:
        shutil.rmtree(files.best_so_far, ignore_errors=True)
    return Session(files, tables, prepared, settings, config, record, members, share.is_part, world)


def _create(files: RunFiles, record: RunRecord, overwrite: bool, sources: Sequence[Any]) -> None:
    """Make the directory, or empty it, and write run.json."""
    with write_errors(files.root, 0):
        files.root.mkdir(parents=True, exist_ok=True)
    fix = "free some space and train again"  # nothing to resume yet: run.json is the first file of a run
    if overwrite:
        root = files.root.resolve()
        for source in sources:
            if isinstance(source, str | Path) and Path(source).resolve().is_relative_to(root):
                raise RunError(f"{source} lies in {files.root}, which is to be overwritten; fix: another -o DIRECTORY")
        with write_errors(files.root, 0):
            empty(files)
        write_json(files.info, record.values, fix=fix)
    elif not create_json(files.info, record.values, fix=fix):
        raise RunError(f"{files.root}: another process has just begun a run there; fix: another -o DIRECTORY")


def _create_or_join(files: RunFiles, record: RunRecord) -> RunRecord:
    """Write run.json if this is the first process of the run, else compare it; return the record of the run.

    Raises:
        RunError: names what differs from the run that is there.
    """
    with write_errors(files.root, 0):
        files.root.mkdir(parents=True, exist_ok=True)
    if create_json(files.info, record.values, fix="free some space and train again"):
        return record
    there = read_record(files.root)
    check_joined(record, there, files.info)
    check_environment(there.environment)
    return there


@dataclass(frozen=True, eq=False)
class Tables:
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


def read_tables(inputs: Inputs, settings: RunSettings, before: RunRecord | None) -> Tables:
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
    tables = Tables(settings, id_found, frame, found_kinds, record)
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


def submission_form(inputs: Inputs, prepared: Prepared, config: TrainingConfig, tables: Tables) -> Submission:
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
