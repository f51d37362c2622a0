"""From data to a cross-validated model: `train`, and `resume` for a run that was interrupted."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heads.labels import Label
from mlxbert.checkpoint import read_config
from mlxbert.factory.competition import Competition, get_competition
from mlxbert.factory.create import default_checkpoint
from mlxbert.factory.text_columns import RowText
from mlxbert.folds import folds_sha256
from mlxbert.home import expand_home
from mlxbert.runs.environment import check_environment, environment
from mlxbert.runs.files import FORMAT, VERSION, RunError, RunFiles, read_info, write_json
from mlxbert.runs.finish import finish
from mlxbert.runs.frames import read_frame
from mlxbert.runs.members import members_of, train_members
from mlxbert.runs.metrics_log import MetricsLog
from mlxbert.runs.prepare import Prepared, prepare
from mlxbert.runs.progress import ProgressBar
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings, as_columns
from mlxbert.runs.submission import submission_form
from mlxbert.runs.trackers import tracker
from mlxbert.training.callbacks import Callback, Callbacks
from mlxbert.training.config import TrainingConfig
from mlxbert.writer.output_file import write_errors
from mlxbert.writer.recovery import target_lock


def train(
    data: Any,
    *,
    out: str | Path,
    model: str | Path | None = None,
    target: str | Sequence[str] | None = None,
    text: str | Sequence[str] | RowText | None = None,
    pair: str | Sequence[str] | None = None,
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
    valid: str | Path | None = None,
    hold_out: float | None = None,
    test: str | Path | None = None,
    sample_submission: str | Path | None = None,
    values: str | None = None,
    drop_missing: bool = False,
    overwrite: bool = False,
    config: TrainingConfig | None = None,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Cross-validate a model on a competition's data; everything it leaves is in `out`.

    Args:
        data: a file (CSV, TSV, JSONL, Parquet), a pandas or polars frame, or a dict of columns.
        out: the run's directory, made here.
        model: a converted directory, or the id of a converted repository on the Hub.
        target: the column to predict, or several.
        text: a column, several, a template such as "{Sex}, age {Age}"; None: every column as "column: value".
        pair: the second sentence, likewise.
        competition: a ready configuration of `mlxbert.factory`; what else is given takes the place of its own.
        task: a competition type or a head's name; None: inferred from the target.
        classes: the labels, where the data do not tell.
        id: the column that names a row: kept in predictions, never read as text.
        group: rows of one value never lie on both sides of a fold.
        time: the column of times: a time series, or forward-chaining folds.
        ignore: columns that `text=None` leaves out.
        head: options of the head, such as {"objective": "focal"}.
        revision: of a model on the Hub.
        encoding: of the data's text; None: found out.
        valid: a file of rows to be judged on, in place of folds.
        hold_out: rows held out of everything, predicted and scored at the end: a share, or their number.
        test: a file to predict at the end.
        sample_submission: that these predictions must fit.
        values: what a submission holds: "labels", "probabilities" or "values".
        drop_missing: leave out rows without a target.
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
    row_text = None if text is None else RowText.make(text, pair)
    if pair is not None and text is None:
        raise RunError("pair is given without text; fix: give both sentences")
    own: dict[str, Any] = {
        "model": None if model is None else str(model),
        "revision": revision,
        "target": as_columns(target),
        "text": row_text,
        "task": task,
        "classes": None if classes is None else tuple(classes),
        "id": id,
        "group": group,
        "time": time,
        "ignore": tuple(ignore),
        "encoding": encoding,
        "valid": None if valid is None else str(valid),
        "hold_out": hold_out,
        "test": None if test is None else str(test),
        "sample_submission": None if sample_submission is None else str(sample_submission),
        "values": values,
        "drop_missing": drop_missing,
        "head": dict(head or {}),
    }
    numbers = {**(config.to_dict() if config is not None else {}), **settings}
    if valid is not None:
        numbers.setdefault("folds", 1)
    if competition is not None:
        ready = get_competition(competition) if isinstance(competition, str) else competition
        chosen = RunSettings.for_competition(ready, **own)
        if model is None:
            default_checkpoint(ready)
        numbers = {**_numbers_of(ready), **numbers}
    else:
        if model is None:
            raise RunError("no model is named; fix: --model DIRECTORY, made by mlxbert-convert")
        chosen = RunSettings(**own)
    if numbers.get("folds", 5) != 1 and valid is not None:
        raise RunError("valid goes with folds=1; fix: leave one out")
    files = RunFiles(_new_directory(out, overwrite))
    trained = TrainingConfig.make(numbers)
    with write_errors(files.root, 0):
        files.root.parent.mkdir(parents=True, exist_ok=True)
    with target_lock(files.root):
        return _run(files, data, chosen, trained, None, overwrite, trackers, callbacks, progress)


def resume(
    out: str | Path,
    data: Any = None,
    *,
    allow_changes: bool = False,
    trackers: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> Run:
    """Go on with a run that was interrupted, to the same bytes that it would have had.

    Args:
        out: the run's directory.
        data: where the data lie now; None: where they lay (a run on a frame needs the frame again).
        allow_changes: go on though device, versions or threads have changed: to other bytes, then.
        trackers: as for `train`; likewise `callbacks` and `progress`.

    Raises:
        RunError: no run, other data, another checkpoint, or another environment.
        MLXBertError: as `train` raises.
    """
    files = RunFiles(expand_home(out))
    info = read_info(files.root)
    if files.scores.is_file():
        return Run.open(files.root)
    if not allow_changes:
        check_environment(info["environment"])
    if data is None and info["data"]["path"] is None:
        raise RunError(f"{files.root} was trained on a frame; fix: resume(path, frame)")
    settings, config = RunSettings.from_dict(info["settings"]), TrainingConfig.make(info["config"])
    with target_lock(files.root):
        source = info["data"]["path"] if data is None else data
        return _run(files, source, settings, config, info, False, trackers, callbacks, progress)


def _run(
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
    """Train what is not trained yet, and finish; `before` is the run.json of a run that goes on."""
    started = time.monotonic()
    about: dict[str, Any] = {"text": settings.text, "id_column": settings.id, "encoding": settings.encoding}
    kinds = None if before is None else before["data"]["kinds"]
    frame, kinds, record = read_frame(data, **about, kinds=kinds)
    valid = None if settings.valid is None else read_frame(settings.valid, **about, kinds=kinds)[0]
    prepared = prepare(frame, settings, config, valid)
    info = _info(settings, config, prepared, kinds, record)
    if before is None:
        files.root.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _empty(files.root)
        write_json(files.info, info)
    else:
        _check_same(info, before)
        info = dict(before)
        shutil.rmtree(files.best_so_far, ignore_errors=True)
    bar = ProgressBar(len(info["members"])) if progress else None
    told: list[Callback] = [
        MetricsLog(files.log),
        *([bar] if bar else []),
        *(tracker(t, files.root) for t in trackers),
    ]
    everyone = Callbacks([*told, *callbacks])
    if bar:
        bar.skip(sum(files.is_done(name) for name in info["members"]))
    everyone.on_run_start(info)
    scores = None
    try:
        train_members(files, prepared, settings, config, everyone.several)
        scores = finish(files, prepared, settings, config, time.monotonic() - started)
    finally:
        everyone.on_run_end(scores)
    return Run.open(files.root)


def _info(
    settings: RunSettings,
    config: TrainingConfig,
    prepared: Prepared,
    kinds: Mapping[str, str],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """run.json."""
    about = read_config(prepared.directory)["mlxbert"]
    manifest = prepared.directory / "manifest.json"
    problem = prepared.problem
    members = members_of(config, len(prepared.folds))
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "competition": settings.competition,
        "task": asdict(problem.task),
        "metric": prepared.metric.name,
        "metrics": list(dict.fromkeys((prepared.metric.name, *problem.head_class.metrics))),
        "data": {
            **record,
            "kinds": dict(kinds),
            "text": problem.text.to_dict(),
            "id": settings.id,
            "group": settings.group,
            "time": settings.time,
            "max_length": prepared.limit,
            "examples_sha256": prepared.examples.sha256(),
        },
        "model": {
            "checkpoint": settings.model,
            "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None,
            "source": about.get("source"),
            "revision": about.get("revision"),
        },
        "settings": settings.to_dict(),
        "config": config.to_dict(),
        "folds": {
            "kind": prepared.fold_kind,
            "count": len(prepared.folds),
            "sha256": folds_sha256(prepared.folds),
        },
        "members": [member.name for member in members],
        "submission": asdict(submission_form(settings, problem.task, prepared.metric.needs, None)),
        "environment": environment(),
    }


def _check_same(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse to go on with other data, folds or another encoder."""
    for what, section, key, fix in (
        ("the data", "data", "examples_sha256", "give the file that the run began with"),
        ("the folds", "folds", "sha256", "use the package versions of run.json"),
        ("the encoder", "model", "manifest_sha256", "put the checkpoint back that the run began with"),
    ):
        if now[section][key] != before[section][key]:
            raise RunError(f"{what} have changed since the run began; fix: {fix}, or train anew")


def _numbers_of(competition: Competition) -> dict[str, Any]:
    return {
        "metric": competition.metric,
        "folds": competition.folds,
        "fold_kind": competition.fold_kind,
        "pooling": competition.pooling,
        **competition.training,
    }


def _new_directory(out: str | Path, overwrite: bool) -> Path:
    """The directory, if a run may be begun there."""
    root = expand_home(out)
    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is a file; fix: give another directory with -o")
    if not root.is_dir() or not any(root.iterdir()):
        return root
    if not (root / "run.json").is_file():
        raise RunError(f"{root} is not empty, and no run; fix: give another directory with -o")
    read_info(root)
    if not overwrite:
        raise RunError(f"{root} has a run in it; fix: --resume {root}, --overwrite, or another directory with -o")
    return root


def _empty(root: Path) -> None:
    """Delete a run, run.json last: what a kill leaves of it still is a run to overwrite."""
    for path in root.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "run.json":
            path.unlink()
