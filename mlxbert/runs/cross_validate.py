"""From data to a cross-validated model: `train`, and `resume` for a run that was interrupted."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from heads.labels import Label
from mlxbert.data.data_file import Quoting
from mlxbert.factory.competition import Competition, get_competition
from mlxbert.factory.create import default_checkpoint
from mlxbert.factory.text_columns import RowText
from mlxbert.home import expand_home
from mlxbert.runs.environment import check_environment
from mlxbert.runs.files import RunError, RunFiles
from mlxbert.runs.frames import FRAME, Inputs
from mlxbert.runs.place import check_paths, new_directory, run_lock
from mlxbert.runs.record import check_known_settings, read_record
from mlxbert.runs.run import Run
from mlxbert.runs.session import run_session
from mlxbert.runs.settings import RunSettings, as_columns, competition_numbers
from mlxbert.training.callbacks import Callback
from mlxbert.training.config import ConfigurationError, TrainingConfig
from mlxbert.training.usual_names import unknown_setting


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
