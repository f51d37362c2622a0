"""One sitting of a run: train what is not trained yet, and finish."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxbert.files.output_file import WriteError, write_errors
from mlxbert.runs.files import RunError, RunFiles, write_json
from mlxbert.runs.finish import finish
from mlxbert.runs.frames import read_frame
from mlxbert.runs.info import check_same, going_on, run_info
from mlxbert.runs.members import check_models, train_members
from mlxbert.runs.metrics_log import MetricsLog
from mlxbert.runs.place import empty
from mlxbert.runs.prepare import prepare
from mlxbert.runs.progress import ProgressBar
from mlxbert.runs.rows_to_predict import check_rows_to_predict
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import submission_form
from mlxbert.runs.summary import show_inference
from mlxbert.runs.trackers import tracker
from mlxbert.training.callbacks import Callback, Callbacks
from mlxbert.training.config import TrainingConfig
from mlxbert.training.outcome import TrainingInterrupted


def run_session(
    files: RunFiles,
    data: Any,
    settings: RunSettings,
    config: TrainingConfig,
    before: Mapping[str, Any] | None,
    overwrite: bool,
    trackers: Sequence[str],
    callbacks: Sequence[Callback],
    progress: bool,
) -> Run:
    """Train what is not trained yet, and finish; `before` is the run.json of a run that goes on.

    Everything that can be refused is refused before anything is written or deleted.

    Raises:
        TrainingInterrupted: Ctrl-C; says what is saved, and how to go on.
        WriteError: a full disk, likewise.
        MLXBertError: as `mlxbert.runs.cross_validate` raises.
    """
    started = time.monotonic()
    about: dict[str, Any] = {"text": settings.text, "id_column": settings.id, "encoding": settings.encoding}
    about |= {"quoting": settings.quoting, "labels": settings.labels}
    about["words"] = settings.target if settings.decimal == "," else ()
    kinds = None if before is None else before["data"]["kinds"]
    frame, kinds, record = read_frame(data, **about, kinds=kinds)
    valid, judged = None, None
    if settings.valid is not None:
        valid, _, judged = read_frame(settings.valid, **about, kinds=kinds)
    prepared = prepare(frame, settings, config, valid, record["path"] or "the frame")
    info = run_info(settings, config, prepared, kinds, record, judged)
    if before is not None:
        check_same(info, before)
        info = going_on(before, info["environment"])
    problem, form = prepared.problem, submission_form(settings, prepared.problem.task, prepared.metric.needs, None)
    check_rows_to_predict(settings, prepared.task, problem.text.columns, kinds, form, record.get("quoting"))
    bar = ProgressBar(len(info["members"])) if progress else None
    told: list[Callback] = [
        MetricsLog(files.log),
        *([bar] if bar else []),
        *(tracker(t, files.root) for t in trackers),
    ]
    everyone = Callbacks([*told, *callbacks])
    if before is None:
        check_models(prepared, settings, config)
        _begin(
            files, info, overwrite, (data, settings.valid, settings.test, settings.sample_submission, settings.model)
        )
    else:
        if info != before:
            write_json(files.info, info)
        shutil.rmtree(files.best_so_far, ignore_errors=True)
    if bar:
        bar.skip(sum(files.is_done(name) for name in info["members"]))
    if progress:
        show_inference(prepared, settings, record, frame.columns)
    everyone.on_run_start(info)
    scores = None
    try:
        train_members(files, prepared, settings, config, everyone.several)
        scores = finish(files, prepared, settings, config, time.monotonic() - started)
    except (TrainingInterrupted, KeyboardInterrupt) as error:
        raise TrainingInterrupted(_interrupted(files, info, error)) from error
    except WriteError as error:
        raise WriteError(f"{error}; go on with: {_command(files, info)}") from error
    finally:
        everyone.on_run_end(scores)
    return Run.open(files.root)


def _begin(files: RunFiles, info: Mapping[str, Any], overwrite: bool, sources: Sequence[Any]) -> None:
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
    write_json(files.info, info)


def _interrupted(files: RunFiles, info: Mapping[str, Any], error: BaseException) -> str:
    """In one line: where it was, what is saved where, and how to go on."""
    told = [str(error) or "interrupted", f"what is trained so far is saved in {files.root}"]
    if files.best_so_far.is_dir():
        told.append(f"its best weights in {files.best_so_far}")
    return f"{', '.join(told)}; go on with: {_command(files, info)}"


def _command(files: RunFiles, info: Mapping[str, Any]) -> str:
    if info["data"]["path"] is None:
        return f"mlxbert.resume({str(files.root)!r}, frame)"
    return f"mlxbert train --resume {shlex.quote(str(files.root))}"
