"""What `inference.json` says: how a row becomes a text, what the submission looks like, which members are averaged."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.export import ExportError
from heads.base import Head
from heads.metrics import get_metric
from mlxbert.runs.record import SCORES, RunRecord, is_run, read_record

FORMAT, VERSION = "mlxbert-inference", 1


@dataclass(frozen=True)
class ExportedRun:
    """A run whose models are exported.

    Attributes:
        record: `run.json`.
        members: the directories of its models, by name.
    """

    record: RunRecord
    members: dict[str, Path]


def read_run(directory: Path) -> ExportedRun:
    """Return the finished run in `directory`.

    Raises:
        RunError: `run.json` is damaged, or none of ours.
        ExportError: the run is unfinished, or a member is gone.
    """
    record = read_record(directory)
    if not (directory / SCORES).is_file():
        raise ExportError(
            f"{directory}: the run is not finished; fix: mlxbert train --resume {shlex.quote(str(directory))}"
        )
    members = {name: directory / "members" / name for name in record.prediction_members}
    missing = [name for name, member in members.items() if not (member / "config.json").is_file()]
    if missing:
        raise ExportError(f"{directory}: member {missing[0]!r} is missing; fix: train again")
    return ExportedRun(record, members)


def run_of(member: Path) -> ExportedRun | None:
    """Return the run that a member's directory lies in; None where it stands alone.

    Raises:
        RunError: the run's `run.json` is damaged.
    """
    run = member.resolve().parent.parent
    if member.resolve().parent.name != "members" or not is_run(run):
        return None
    record = read_record(run)
    return ExportedRun(record, {member.name: member}) if member.resolve().name in record.members else None


def inference_settings(run: ExportedRun | None, members: list[str], head: Head, limit: int | None) -> dict[str, Any]:
    """`inference.json`.

    Args:
        run: None for a model that stands alone: its column is then to be named when it predicts.
        members: their directories, relative to the export.
        head: of one of them.
        limit: tokens that the encoder and its tokenizer take.

    Raises:
        ExportError: the submission's format does not fit the head.
    """
    record = None if run is None else run.record
    classes = getattr(head, "classes", None)
    submission = _usual_submission(head) if record is None else asdict(record.submission)
    _check_submission(submission, head)
    longest = None if record is None else record.data.max_length
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": head.head_name,
        "target": ["target"] if record is None else list(record.task.target),
        "classes": None if classes is None else list(classes),
        "text": None if record is None else record.data.text.to_dict(),
        "kinds": {} if record is None else dict(record.data.kinds),
        "quoting": None if record is None else record.data.quoting,
        "id": None if record is None else record.data.id,
        "time": None if record is None else record.data.time,
        "max_length": min((n for n in (longest, limit) if n is not None), default=512),
        "submission": submission,
        "known_columns": record is not None,
        **({} if record is None else _rules(record)),
        "members": members,
    }


def _rules(record: RunRecord) -> dict[str, Any]:
    """What decides how a submission is written where a sample leaves that open, and how a table is read."""
    asked = record.config.metric
    wanted = None if asked is None else "labels" if get_metric(asked).needs == "labels" else "probabilities"
    own = record.settings.submission
    ready = own is not None and record.settings.values in (None, own.values)
    return {"id_found": record.data.id_found, "wanted": wanted, "ready": ready, "values": record.settings.values}


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
    name, values, columns = head.head_name, submission["values"], submission["columns"]
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
