"""run.json: everything needed to repeat a run, and the comparison with it before a run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heads.metrics import Metric
from heads.thresholds import threshold_metric
from mlxbert.checkpoint import read_config
from mlxbert.factory.competition import Submission
from mlxbert.factory.infer_task import InferredTask
from mlxbert.folds import folds_sha256
from mlxbert.runs.environment import environment
from mlxbert.runs.files import FORMAT, VERSION, RunError
from mlxbert.runs.members import members_of
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig
from mlxbert.training.predictions import NUMBERS


def run_info(
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
) -> dict[str, Any]:
    """The content of run.json.

    Args:
        settings: of the run; likewise `config` and `prepared`.
        kinds: what the columns of the data hold.
        record: of the data; `valid` of the validation table, `test` of that to predict.
        form: of the submissions.
        id_found: whether the id column was found by its name.
    """
    about = read_config(prepared.directory, other_tools=True).get("mlxbert") or {}  # another tool's has none
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
        "decision": decision(problem.task, prepared.metric, config),
        "environment": environment(),
    }


def check_same(now: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Refuse to go on with other data, folds or another encoder: what is trained already did not see them.

    Raises:
        RunError: names what has changed.
    """
    data, encoder = now["data"]["path"] or "the frame", now["model"]["checkpoint"]
    test, was = now["data"]["test"], before["data"].get("test")
    if test and was and test["sha256"] != was["sha256"]:
        raise RunError(f"{test['path']} has changed since the run began; fix: put back what it was, or train anew")
    for what, section, key, fix in (
        (f"{data}: the data have", "data", "examples_sha256", "give what the run began with"),
        ("the folds have", "folds", "sha256", "use the package versions of run.json"),
        (f"{encoder}: the encoder has", "model", "manifest_sha256", "put the checkpoint back that the run began with"),
        (f"{encoder}: config.json has", "model", "config_sha256", "put the checkpoint back that the run began with"),
    ):
        if now[section][key] != before[section].get(key):
            raise RunError(f"{what} changed since the run began; fix: {fix}, or train anew")


def going_on(before: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """run.json of a run that goes on; another environment than the last one's is added to its "resumed"."""
    resumed = list(before.get("resumed", ()))
    last = (resumed or [before])[-1]["environment"]
    if environment == last:
        return dict(before)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {**before, "resumed": [*resumed, {"at": now, "environment": dict(environment)}]}


def decision(task: InferredTask, metric: Metric, config: TrainingConfig) -> str | None:
    """Return how probabilities become labels, in words; None: they do not."""
    if task.task in NUMBERS:
        return None
    if task.task in ("multiclass", "ordinal"):
        return "the most probable class" if task.task == "multiclass" else "the median rating"
    if not config.calibrate:
        return "labels are 1 from a probability of one half on"
    fitted = threshold_metric(metric.name) if task.task == "binary" else "f1"
    what = "a threshold" if task.task == "binary" else "a threshold for each label"
    return f"labels are decided at {what} fitted for {fitted} on held-out rows"


def _sha256(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
