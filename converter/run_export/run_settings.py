"""What `inference.json` says: how a row becomes a text, what the submission looks like, which members are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.export import ExportError
from heads.base import Head
from mlxbert.files.reading import read_json

RUN_FILE = "run.json"
FORMAT, VERSION = "mlxbert-inference", 1


@dataclass(frozen=True)
class RunInfo:
    """A finished run, as `run.json` describes it.

    Attributes:
        path: its directory.
        info: `run.json`.
        members: the directories of its models, by name.
    """

    path: Path
    info: dict[str, Any]
    members: dict[str, Path]


def read_run(directory: Path) -> RunInfo:
    """The run in `directory`.

    Raises:
        ExportError: `run.json` is not one, the run is unfinished, or a member is gone.
    """
    info = read_json(directory / RUN_FILE, ExportError) or {}
    if info.get("format") != "mlxbert-run":
        raise ExportError(f"{directory / RUN_FILE}: is not a run of mlxbert train; fix: give the run's directory")
    if info.get("version") != 1:
        raise ExportError(f"{directory / RUN_FILE}: version {info.get('version')!r} is unknown; fix: update mlxbert")
    if not (directory / "scores.json").is_file():
        raise ExportError(f"{directory}: the run is not finished; fix: mlxbert train --resume {directory}")
    names = _predicting([str(name) for name in info.get("members") or []], info.get("folds") or {})
    members = {name: directory / "members" / name for name in names if Path(name).name == name}
    missing = [name for name in names if not (directory / "members" / name / "config.json").is_file()]
    if missing or len(members) < max(1, len(names)):
        what = f"member {missing[0]!r} is missing" if missing else "run.json names no members"
        raise ExportError(f"{directory}: {what}; fix: train again")
    return RunInfo(directory, info, members)


def _predicting(names: list[str], folds: dict[str, Any]) -> list[str]:
    """The members that predict: all; of forward-chaining folds those of the last, which have seen the most."""
    if folds.get("kind") != "forward":
        return names
    last = f"-fold{folds['count'] - 1}"
    return [name for name in names if name.endswith(last)]


def run_of(member: Path) -> RunInfo | None:
    """The run that a member's directory lies in; None where it stands alone."""
    run = member.resolve().parent.parent
    if member.resolve().parent.name != "members" or not (run / RUN_FILE).is_file():
        return None
    found = read_json(run / RUN_FILE, ExportError) or {}
    return RunInfo(run, found, {member.name: member}) if found.get("format") == "mlxbert-run" else None


def inference_settings(run: RunInfo | None, members: list[str], head: Head, limit: int | None) -> dict[str, Any]:
    """`inference.json`.

    Args:
        run: None for a model that stands alone: its column is then to be named when it predicts.
        members: their directories, relative to the export.
        head: of one of them.
        limit: tokens that the encoder and its tokenizer take.

    Raises:
        ExportError: the submission's format does not fit the head.
    """
    info: dict[str, Any] = {} if run is None else run.info
    data, task = info.get("data") or {}, info.get("task") or {}
    longest = data.get("max_length")
    classes = getattr(head, "classes", None)
    submission = info.get("submission") or _usual_submission(head)
    _check_submission(submission, head)
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": head.head_name,
        "target": list(task.get("target") or ["target"]),
        "classes": None if classes is None else list(classes),
        "text": data.get("text"),
        "kinds": dict(data.get("kinds") or {}),
        "quoting": data.get("quoting"),
        "id": data.get("id") if run is not None else None,
        "time": data.get("time"),
        "max_length": min((n for n in (longest, limit) if n is not None), default=512),
        "submission": submission,
        "known_columns": bool(info.get("submission")),
        "members": members,
    }


def _usual_submission(head: Head) -> dict[str, Any]:
    """For a model without its run: the columns that its head has, the ids row numbers."""
    name = head.head_name
    values = {"binary": "probabilities", "multilabel": "probabilities", "multiclass": "labels", "ordinal": "labels"}
    columns = ["target"]
    if name == "multilabel":
        columns = [str(label) for label in head.classes]
    elif name == "regression" and head.num_targets > 1:
        columns = [f"target_{i}" for i in range(head.num_targets)]
    return {"id_column": "id", "columns": columns, "values": values.get(name, "values")}


def _check_submission(submission: dict[str, Any], head: Any) -> None:
    """The run's format has a column for everything that inference.py will write, and nothing else."""
    name, values, columns = head.head_name, submission.get("values"), submission.get("columns") or []
    widths = {
        ("binary", "labels"): 1,
        ("binary", "probabilities"): 1,
        ("multiclass", "labels"): 1,
        ("multiclass", "probabilities"): head.num_outputs,
        ("ordinal", "labels"): 1,
        ("ordinal", "probabilities"): head.num_outputs + 1,
        ("multilabel", "labels"): head.num_outputs,
        ("multilabel", "probabilities"): head.num_outputs,
        ("regression", "values"): getattr(head, "num_targets", 1),
        ("time_series", "values"): 1,
    }
    width = widths.get((name, str(values)))
    if (name, values) == ("ordinal", "probabilities") and len(columns) == 1:
        width = 1  # the expected rank
    if width is None:
        raise ExportError(f"run.json: a submission of {values!r} does not fit the head {name!r}; fix: train again")
    if len(columns) != width:
        raise ExportError(
            f"run.json: the submission has {len(columns)} columns, and {name} gives {width} of {values}; "
            "fix: train again"
        )
