"""The end of a run: out-of-fold table, predictions for what was held out or for the test file, and the scores."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.checkpoint import read_config
from mlxbert.files.manifest import NAME, manifest_bytes, read_manifest
from mlxbert.files.output_file import FileRecord, replace_file
from mlxbert.runs.files import RunFiles, without_nan, write_json
from mlxbert.runs.frames import Inputs
from mlxbert.runs.out_of_fold import fitted_head, prediction_columns, write_out_of_fold
from mlxbert.runs.predict import forecast, predict_frame, write_submission
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import SubmissionWarning, columns_of
from mlxbert.runs.tables import id_name, write_csv
from mlxbert.training.config import TrainingConfig
from mlxbert.training.judging import scores as score


def finish(
    files: RunFiles,
    prepared: Prepared,
    settings: RunSettings,
    config: TrainingConfig,
    inputs: Inputs,
    seconds: float,
) -> dict[str, Any]:
    """Write what a run ends in, scores.json last; returns its content."""
    escape_formulas = settings.escape_formulas
    scores = write_out_of_fold(files, prepared, config, escape_formulas=escape_formulas)
    run = Run.open(files.root)
    scores["hold_out"] = None
    if prepared.held_out is not None:
        scores["hold_out"] = _hold_out(run, prepared, list(scores["pooled"]), escape_formulas)
    elif inputs.test is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SubmissionWarning)  # said before the training
            write_submission(
                run,
                inputs.test,
                out=files.submission,
                sample_submission=inputs.sample_submission,
                values=settings.values,
                encoding=settings.encoding,
                quoting=settings.quoting,
                escape_formulas=escape_formulas,
            )
    _tell_members(files, prepared, scores)
    scores["seconds"] = seconds
    shutil.rmtree(files.resume, ignore_errors=True)
    write_json(files.scores, scores)
    return scores


def _tell_members(files: RunFiles, prepared: Prepared, scores: Mapping[str, Any]) -> None:
    """Put how the run scored into the config.json of each of its models, for the card of one that is published.

    No times are in it: a run that was resumed ends in the same bytes.
    """
    members = scores["members"]
    of_one_seed = [one for one in members if one["seed"] == members[0]["seed"]]
    for one in members:
        directory = files.member(one["member"])
        config = read_config(directory)
        trained = {
            "task": prepared.problem.task.task,
            "metric": scores["metric"],
            "pooled": scores["pooled"],
            "folds": len(prepared.folds),
            "data_rows": sum(each["rows"] for each in of_one_seed),
            "models": len(members),
            "own": one["metrics"],
            "own_rows": one["rows"],
        }
        config["mlxbert"]["trained"] = without_nan(trained)
        _replace_config(directory, config)


def _replace_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Another config.json, and its line in the manifest; killed in between, the resumed run does both again."""
    data = (json.dumps(config, indent=2) + "\n").encode()
    listed = read_manifest(directory) or {}
    listed["config.json"] = FileRecord.of(data)
    for name, content in (("config.json", data), (NAME, manifest_bytes(listed))):
        replace_file(directory / name, content, fix="free some space and resume the run", follow_links=False)


def _hold_out(run: Run, prepared: Prepared, metrics: list[str], escape_formulas: bool) -> dict[str, Any]:
    """Predict the rows held out of everything, write them as submission and beside their truth; their scores."""
    import pandas

    frame, form = prepared.held_out, run.submission()
    task = prepared.problem.task
    # A row of a series is named by its time.
    key = run.id or (run.time if task.task == "time_series" else None)
    ids = list(range(len(frame))) if key is None else list(frame[key])
    if task.task == "time_series":
        _, forecasts = forecast(run, prepared.history)
        values = forecasts.values[0][: len(frame)]
        truth = prepared.problem.targets(frame)
        columns = {form.columns[0]: values}
        told = {"target": truth, "prediction": values}
        measured = _series_scores(np.asarray(truth, np.float64), values, metrics)
    else:
        predictions = predict_frame(run, frame)
        truth = fitted_head(run.files, run.record.members[0]).metric_targets(prepared.problem.targets(frame))
        columns = columns_of(form, task, predictions)
        told = prediction_columns(task, truth, predictions)
        measured = score(truth, predictions, metrics)
    sent, held = (
        pandas.DataFrame({form.id_column: ids, **columns}),
        pandas.DataFrame({id_name(form.id_column): ids, **told}),
    )
    write_csv(run.files.submission, sent, escape_formulas=escape_formulas)
    write_csv(run.files.hold_out, held, escape_formulas=escape_formulas)
    return {"rows": len(frame), "metrics": measured}


def _series_scores(truth: np.ndarray, values: np.ndarray, metrics: list[str]) -> dict[str, float]:
    from mlxbert.training.predictions import Predictions

    return score(truth, Predictions("time_series", values), metrics)
