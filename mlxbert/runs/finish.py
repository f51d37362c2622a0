"""What a run is about to learn, in a few lines, and its scores as a table.

The record of a run that begins or goes on, and its comparison with the one that it began with.

The end of a run: out-of-fold table, predictions for what was held out or for the test file, and the scores.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from heads.calibration import threshold_metric
from mlxbert.checkpoint import read_config
from mlxbert.data.folds import folds_sha256
from mlxbert.data.submission import Submission, SubmissionWarning
from mlxbert.errors import printable
from mlxbert.files.output_file import NAME, FileRecord, manifest_bytes, read_manifest, replace_file
from mlxbert.files.reading import sha256_hex
from mlxbert.runs.files import RunError, RunFiles, id_name, without_nan, write_csv, write_json
from mlxbert.runs.inputs import Inputs
from mlxbert.runs.members import fitted_head, members_of, prediction_columns, write_out_of_fold
from mlxbert.runs.predict import forecast, predict_frame, write_submission
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.record import FORMAT, SCORES, VERSION, RunRecord, read_scores
from mlxbert.runs.run import Run
from mlxbert.runs.settings import RunSettings, environment
from mlxbert.runs.submission import columns_of
from mlxbert.training.config import TrainingConfig
from mlxbert.training.held_out import NUMBERS
from mlxbert.training.held_out import scores as score

if TYPE_CHECKING:
    from mlxbert.runs.prepare import Prepared
    from mlxbert.runs.run import Run
    from mlxbert.runs.settings import RunSettings

_QUOTES = {"none": ", quotes read as characters", "escaped": ", quotes escaped by a backslash"}


def show_inference(
    prepared: Prepared, settings: RunSettings, record: Mapping[str, Any], columns: Iterable[str]
) -> None:
    """Say on standard error, before hours of training, what was inferred from the data and why."""
    console = Console(stderr=True, highlight=False, markup=False)
    for name, what in inference_lines(prepared, settings, record, columns):
        console.print(f"{name:<10}{what}", soft_wrap=True)


def inference_lines(
    prepared: Prepared, settings: RunSettings, record: Mapping[str, Any], columns: Iterable[str]
) -> list[tuple[str, str]]:
    """What is learned from which columns, how it is judged, and why: (name, what) each.

    Args:
        prepared: the data.
        settings: what was asked for.
        record: of the data, for run.json.
        columns: of the data.
    """
    task, text, metric = prepared.problem.task, prepared.problem.text, prepared.metric
    source = "a frame" if record["path"] is None else printable(record["path"])
    lines = [
        ("Data", f"{source}, {record['rows']} rows{_QUOTES.get(record.get('quoting') or '', '')}"),
        ("Target", f"{_listed(task.target)}: {printable(str(task), 1000)}"),
    ]
    if task.classes is not None:
        lines.append(("Classes", f"{len(task.classes)}: {_listed(task.classes)}"))
    lines.append(("Metric", f"{metric.name} ({'higher' if metric.greater_is_better else 'lower'} is better)"))
    parts = [text.first, *([] if text.second is None else [text.second])]
    lines.append(("Text", " / ".join(_listed(one) if isinstance(one, tuple) else printable(one) for one in parts)))
    roles = {"id": prepared.id_column, "group": settings.group, "time": settings.time}
    named = [f"{printable(name)} ({role})" for role, name in roles.items() if name is not None]
    used = {*task.target, *text.columns, *roles.values()}
    left = [str(name) for name in columns if str(name) not in used]
    if named or left:
        lines.append(("Not text", ", ".join([*named, *([_listed(left)] if left else [])])))
    lines.append(("Folds", f"{len(prepared.folds)}, {prepared.fold_kind}"))
    return lines


def _listed(names: Iterable[Any]) -> str:
    shown = [printable(name, 60) for name in names]
    return ", ".join(shown[:10]) + (f", … and {len(shown) - 10} more" if len(shown) > 10 else "")


def decision(record: RunRecord) -> str | None:
    """Return how a run's probabilities become labels, in words; None: they do not."""
    task = record.task.task
    if task in NUMBERS:
        return None
    if task in ("multiclass", "ordinal"):
        return "the most probable class" if task == "multiclass" else "the median rating"
    if not record.config.calibrate:
        return "positive from a probability of one half on"
    metric = threshold_metric(record.metric) if task == "binary" else "f1"
    each = "" if task == "binary" else ", one a label"
    return f"decided at thresholds fitted for {metric} on held-out rows{each}"


def scores_frame(run: Run) -> Any:
    """A pandas frame: a row a model, then "pooled" and "hold-out"; columns are the metrics."""
    import pandas

    scores = read_scores(run.path)
    rows = {} if scores is None else {one.member: one.metrics for one in scores.members}
    if scores is not None:
        rows["pooled"] = scores.pooled
        if scores.hold_out is not None:
            rows["hold-out"] = scores.hold_out.metrics
    return pandas.DataFrame.from_dict(rows, orient="index")


def scores_table(run: Run) -> Table:
    """A finished run's scores for the terminal: the first few metrics, the optimized one first.

    Raises:
        RunError: the run is not finished, or scores.json is damaged.
    """
    scores = read_scores(run.path)
    if scores is None:
        raise RunError(f"{run.path}: there is no {SCORES}; fix: {run.go_on}")
    names = list(scores.pooled)[:4]
    direction = "higher" if scores.greater_is_better else "lower"
    title = f"{run.task.task}, {printable(run.record.metric)} ({direction} is better)"
    table = Table(title=title)
    table.add_column("", no_wrap=True, min_width=12)
    table.add_column("rows", justify="right", no_wrap=True)
    for name in names:
        table.add_column(printable(name, 40), justify="right", no_wrap=True)
    for one in scores.members:
        table.add_row(printable(one.member, 40), str(one.rows), *(_shown(one.metrics.get(name)) for name in names))
    if len(scores.members) > 1:
        spreads = [scores.spread.get(name) for name in names]
        table.add_row("mean", "", *(_shown(None if one is None else one.mean) for one in spreads))
        table.add_row("deviation", "", *(_shown(None if one is None else one.std) for one in spreads))
    rows = sum(one.rows for one in scores.members if one.seed == scores.members[0].seed)
    table.add_row("all out of fold", str(rows), *(_shown(scores.pooled[name]) for name in names))
    held = scores.hold_out
    if held is not None:
        table.add_row("held out of all", str(held.rows), *(_shown(held.metrics.get(name)) for name in names))
    return table


def _shown(value: float | None) -> str:
    return "—" if value is None or value != value else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def new_record(
    settings: RunSettings,
    config: TrainingConfig,
    prepared: Prepared,
    kinds: Mapping[str, str],
    record: Mapping[str, Any],
    form: Submission,
    *,
    valid: Mapping[str, Any] | None = None,
    test: Mapping[str, Any] | None = None,
    id_found: bool = False,
) -> RunRecord:
    """Return what run.json says of this run, were it to begin now.

    Args:
        settings: what is learned from which columns.
        config: the numbers of the training.
        prepared: the data, encoded and dealt into folds.
        kinds: what each column of the data holds.
        record: of the training data: path, sha256, size, rows.
        form: the format of the submissions.
        valid: of the validation table, like `record`; `test` of the one to predict.
        id_found: whether the id column was found by its name.
    """
    tables = (("data", record), ("validation data", valid), ("test data", test))
    for what, path in (("model", settings.model), *((name, (one or {}).get("path")) for name, one in tables)):
        if path is not None and any("\ud800" <= character <= "\udfff" for character in path):
            raise RunError(
                f"{path}: the {what}'s path is no text in UTF-8, so run.json cannot name it; fix: rename it"
            )
    about = read_config(prepared.directory, other_tools=True).get("mlxbert") or {}  # another tool's has none
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
            **record,
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
        "submission": asdict(form),
        "environment": environment(),
    }
    return RunRecord.of(json.loads(json.dumps(values)))


def check_same(now: RunRecord, before: RunRecord) -> None:
    """Refuse to go on with other data, folds or another encoder: what is trained already did not see them.

    Raises:
        RunError: names what has changed.
    """
    data, encoder = now.data.path or "the frame", now.model.checkpoint
    test, was = now.data.test, before.data.test
    if test and was and test.sha256 != was.sha256:
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
    """Return the record of a run that goes on; another environment than the last one's is added to `resumed`."""
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
    from mlxbert.training.held_out import Predictions

    return score(truth, Predictions("time_series", values), metrics)
