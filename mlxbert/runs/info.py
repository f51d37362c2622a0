"""The record of a run that begins or goes on, and its comparison with the one that it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlxbert.checkpoint import read_config
from mlxbert.factory.competition import Submission
from mlxbert.files.reading import sha256_hex
from mlxbert.folds import folds_sha256
from mlxbert.runs.environment import environment
from mlxbert.runs.files import RunError
from mlxbert.runs.members import members_of
from mlxbert.runs.prepare import Prepared
from mlxbert.runs.record import FORMAT, VERSION, RunRecord
from mlxbert.runs.settings import RunSettings
from mlxbert.training.config import TrainingConfig


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
