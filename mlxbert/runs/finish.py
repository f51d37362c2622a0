"""The beginning and the end of a run on disk: the record that it begins with, then its tables and scores."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mlxbert.checkpoint import read_config
from mlxbert.data.competitions import Submission
from mlxbert.data.folds import folds_sha256
from mlxbert.files.output_file import NAME, FileRecord, manifest_bytes, read_manifest, replace_file
from mlxbert.files.reading import sha256_hex
from mlxbert.runs.files import RunError, RunFiles, id_name, without_nan, write_csv, write_json
from mlxbert.runs.inputs import Inputs
from mlxbert.runs.members import fitted_head, members_of, prediction_columns, write_out_of_fold
from mlxbert.runs.predict import write_submission
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.record import FORMAT, VERSION, RunRecord, environment
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings
from mlxbert.runs.submission import SubmissionWarning, columns_of
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import Predictions
from mlxbert.training.held_out import scores as score


def new_record(
    settings: RunSettings,
    config: TrainingConfig,
    prepared: Prepared,
    *,
    kinds: Mapping[str, str],
    data: Mapping[str, Any],
    form: Submission,
    valid: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    id_found: bool = False,
) -> RunRecord:
    """Return the run.json of a run that begins now.

    Args:
        settings: of the run.
        config: of the training.
        prepared: the data, encoded and dealt into folds.
        kinds: what each column of the data holds.
        data: path, sha256, size and rows of the training data; `valid` and `test`: of the other tables.
        form: the format of the submissions.
        id_found: whether the id column was found by its name.
    """
    tables = (("data", data), ("validation data", valid), ("test data", test))
    for what, path in (("model", settings.model), *((name, (table or {}).get("path")) for name, table in tables)):
        if path is not None and any("\ud800" <= character <= "\udfff" for character in path):
            raise RunError(
                f"{path}: the {what}'s path is no text in UTF-8, so run.json cannot name it; fix: rename it"
            )
    encoder = read_config(prepared.directory, other_tools=True).get("mlxbert") or {}  # another tool writes none
    problem = prepared.problem
    members = members_of(config, len(prepared.folds))
    values = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "competition": settings.competition,
        "task": asdict(problem.task),
        "metric": prepared.metric.name,
        "metrics": list(dict.fromkeys((prepared.metric.name, *problem.head_class.metrics))),
        "data": {
            **data,
            "valid": None if valid is None else dict(valid),
            "test": None if test is None else dict(test),
            "kinds": dict(kinds),
            "text": problem.text.to_dict(),
            "id": settings.id,
            "id_found": id_found,
            "group": settings.group,
            "time": settings.time,
            "max_length": prepared.limit,
            "examples_sha256": prepared.examples.sha256(),
        },
        "model": {
            "checkpoint": settings.model,
            "manifest_sha256": _sha256(prepared.directory / "manifest.json"),
            "config_sha256": _sha256(prepared.directory / "config.json"),
            "source": encoder.get("source"),
            "revision": encoder.get("revision"),
        },
        "settings": settings.to_dict(),
        "config": config.to_dict(),
        "folds": {
            "kind": prepared.fold_kind,
            "count": len(prepared.folds),
            "sha256": folds_sha256(prepared.folds),
        },
        "members": [member.name for member in members],
        "submission": asdict(form),
        "environment": environment(),
    }
    return RunRecord.of(json.loads(json.dumps(values)))


def check_same(now: RunRecord, before: RunRecord) -> None:
    """Refuse to resume with other data, folds or another encoder than the run began with.

    Raises:
        RunError: names what has changed.
    """
    data, encoder = now.data.path or "the frame", now.model.checkpoint
    test, earlier = now.data.test, before.data.test
    if test and earlier and test.sha256 != earlier.sha256:
        raise RunError(
            f"{test.path or 'the test frame'} has changed since the run began; fix: put back what it was, or train "
            "anew"
        )
    put_back = "put the checkpoint back that the run began with"
    for what, is_now, was_then, fix in (
        (
            f"{data}: the data have",
            now.data.examples_sha256,
            before.data.examples_sha256,
            "give what the run began with",
        ),
        ("the folds have", now.folds.sha256, before.folds.sha256, "use the package versions of run.json"),
        (f"{encoder}: the encoder has", now.model.manifest_sha256, before.model.manifest_sha256, put_back),
        (f"{encoder}: config.json has", now.model.config_sha256, before.model.config_sha256, put_back),
        ("run.json: the members have", now.members, before.members, "restore run.json from a copy of the run"),
    ):
        if is_now != was_then:
            raise RunError(f"{what} changed since the run began; fix: {fix}, or train anew")


def going_on(before: RunRecord, environment: Mapping[str, Any]) -> RunRecord:
    """Return the record of a resumed run; an environment that differs from the last one is added to `resumed`."""
    last = before.resumed[-1].environment if before.resumed else before.environment
    if environment == last:
        return before
    now = datetime.now(UTC).isoformat(timespec="seconds")
    resumed = [*before.values.get("resumed", ()), {"at": now, "environment": dict(environment)}]
    return RunRecord.of({**before.values, "resumed": resumed})


def _sha256(file: Path) -> str | None:
    return sha256_hex(file, RunError)


def finish(
    files: RunFiles,
    prepared: Prepared,
    settings: RunSettings,
    config: TrainingConfig,
    inputs: Inputs,
    seconds: float,
) -> dict[str, Any]:
    """Write the tables and scores of a run; scores.json is the last file. Return its content."""
    escape_formulas = settings.escape_formulas
    scores = write_out_of_fold(files, prepared, config, escape_formulas=escape_formulas)
    run = Run.open(files.root)
    scores["hold_out"] = None
    if prepared.held_out is not None:
        scores["hold_out"] = _hold_out(run, prepared, list(scores["pooled"]), escape_formulas)
    elif inputs.test is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SubmissionWarning)  # it was given before the training
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
    _record_scores(files, prepared, scores)
    scores["seconds"] = seconds
    shutil.rmtree(files.resume, ignore_errors=True)
    write_json(files.scores, scores)
    return scores


def _record_scores(files: RunFiles, prepared: Prepared, scores: Mapping[str, Any]) -> None:
    """Put the scores of the run into the config.json of each model, for the card of a published one.

    They hold no times, so that a resumed run ends in the same bytes.
    """
    members = scores["members"]
    of_one_seed = [member for member in members if member["seed"] == members[0]["seed"]]
    for member in members:
        directory = files.member(member["member"])
        config = read_config(directory)
        trained = {
            "task": prepared.problem.task.task,
            "metric": scores["metric"],
            "pooled": scores["pooled"],
            "folds": len(prepared.folds),
            "data_rows": sum(each["rows"] for each in of_one_seed),
            "models": len(members),
            "own": member["metrics"],
            "own_rows": member["rows"],
        }
        config["mlxbert"]["trained"] = without_nan(trained)
        _replace_config(directory, config)


def _replace_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Replace config.json and its line in the manifest; if killed in between, the resumed run does both again."""
    data = (json.dumps(config, indent=2) + "\n").encode()
    files = read_manifest(directory) or {}
    files["config.json"] = FileRecord.of(data)
    for name, content in (("config.json", data), (NAME, manifest_bytes(files))):
        replace_file(directory / name, content, fix="free some space and resume the run", follow_links=False)


def _hold_out(run: Run, prepared: Prepared, metrics: list[str], escape_formulas: bool) -> dict[str, Any]:
    """Predict the rows held out of everything; write a submission, and a table with the truth. Return their scores."""
    import pandas

    frame, form = prepared.held_out, run.submission()
    task = prepared.problem.task
    # A row of a series is named by its time.
    key = run.id or (run.record.data.time if task.task == "time_series" else None)
    ids = list(range(len(frame))) if key is None else list(frame[key])
    if task.task == "time_series":
        (steps,) = run.forecast(prepared.history)
        values = steps.values[0][: len(frame)]
        truth = prepared.problem.targets(frame)
        columns = {form.columns[0]: values}
        compared = {"target": truth, "prediction": values}
        metric_values = score(np.asarray(truth, np.float64), Predictions("time_series", values), metrics)
    else:
        predictions = run.predict_frame(frame)
        truth = fitted_head(run.files, run.record.members[0]).metric_targets(prepared.problem.targets(frame))
        columns = columns_of(form, task, predictions)
        compared = prediction_columns(task, truth, predictions)
        metric_values = score(truth, predictions, metrics)
    submission = pandas.DataFrame({form.id_column: ids, **columns})
    table = pandas.DataFrame({id_name(form.id_column): ids, **compared})
    write_csv(run.files.submission, submission, escape_formulas=escape_formulas)
    write_csv(run.files.hold_out, table, escape_formulas=escape_formulas)
    return {"rows": len(frame), "metrics": metric_values}
