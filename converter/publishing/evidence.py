"""May this directory be published? Only files that are as they were verified, of a model whose comparison passed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from converter.card import reference_of
from converter.parity.files import CARD, PARITY
from converter.parity.report import (
    OWN_HEAD,
    PIPELINE,
    TRAINED_HEAD,
    NotComparedError,
    ParityReport,
    ReportError,
)
from converter.publishing.errors import PublishError
from converter.publishing.leaks import refuse_leaks
from mlxbert.checkpoint import CheckpointError, is_full_layout, read_config
from mlxbert.errors import first_ten, reason
from mlxbert.files.manifest import NAME, manifest_problems, read_manifest
from mlxbert.files.output_file import FileRecord
from mlxbert.home import expand_home

_NEVER_COMPARED = "the model was never compared with PyTorch"


@dataclass(frozen=True)
class Evidence:
    """A directory that may be published.

    Attributes:
        directory: where it lies.
        config: its `config.json`.
        records: size and SHA-256 of every file but the card and the manifest, which are written anew.
        report: the comparison with PyTorch; None where there is none that can be read.
        unverified: why the model counts as not verified; None: both gates passed on these very weights.
        unlisted: files that the manifest does not list, which stay here.
    """

    directory: Path
    config: dict[str, Any]
    records: Mapping[str, FileRecord]
    report: ParityReport | None
    unverified: str | None
    unlisted: tuple[str, ...]


def existing(directory: str | Path) -> Path:
    """The directory as a path.

    Raises:
        PublishError: it is not there, or is a run with models in it.
    """
    path = expand_home(directory)
    if path.exists() and not path.is_dir():
        raise PublishError(f"{directory}: a file; fix: give the directory that mlxbert-convert wrote")
    if not path.is_dir():
        raise PublishError(f"{directory}: no such directory; fix: mlxbert-convert SRC -o {directory}")
    if (path / "run.json").exists() and not (path / "config.json").exists():
        raise PublishError(_choose_member(path))
    return path


def _choose_member(run: Path) -> str:
    """What to say of a run: which of its models can be pushed."""
    members = sorted(file.parent for file in run.glob("members/*/config.json"))
    if not members:
        return f"{run}: is a run without a finished model; fix: mlxbert train --resume {shlex.quote(str(run))}"
    fix = f"{run}: is a run; fix: push a model of it: mlxbert-push {shlex.quote(str(members[0]))} --to OWNER/NAME"
    if len(members) == 1:
        return fix
    return f"{fix}\nIts {len(members)} models:\n{first_ten(map(str, members))}"


def gather_evidence(directory: str | Path, *, allow_unverified: bool = False, token: str | None = None) -> Evidence:
    """Check every file against the manifest and the manifest against the parity report.

    Raises:
        PublishError: a file has changed, a secret or a path is in one, or (unless `allow_unverified`) the comparison
            did not pass, is missing, or was of other weights.
        CheckpointError: not a converted directory.
    """
    path = existing(directory)
    config = read_config(path)
    records = read_manifest(path)
    if records is None:
        raise PublishError(f"{directory}: {NAME} is missing or not mlxbert's own; fix: convert the model again")
    _require_block(path, config)
    if outside := [name for name in records if PurePosixPath(name).is_absolute() or ".." in name.split("/")]:
        raise PublishError(
            f"{directory}: {NAME} lists a file outside of it, {outside[0]!r}; fix: convert the model again"
        )
    problems = manifest_problems(path)
    unlisted = tuple(line.partition(": not in")[0] for line in problems if line.endswith(": not in the manifest"))
    changed = [line for line in problems if not line.endswith(": not in the manifest")]
    changed = [line for line in changed if not line.startswith(f"{CARD}: ")]  # written anew, from the facts
    if changed:
        raise PublishError(
            f"{directory}: changed since it was verified; fix: restore the files, or convert again\n"
            + first_ten(changed)
        )
    records = {name: record for name, record in records.items() if name != CARD}
    refuse_leaks(path, records, token=token)
    report, unverified = _parity(path, records, config["mlxbert"])
    if unverified and not allow_unverified:
        block = config["mlxbert"]
        against = f" --reference {reference_of(block['source'], block['revision'])}"
        # Fine-tuned, it is compared with its own export.
        verify = f"mlxbert-verify {directory}{'' if 'head' in block else against}, or "
        raise PublishError(
            f"{directory}: {unverified}; fix: {verify}publish it all the same with --allow-unverified, "
            "which the card will say"
        )
    return Evidence(path, config, records, report, unverified, unlisted)


def _require_block(path: Path, config: dict[str, Any]) -> None:
    block = config["mlxbert"]
    if not isinstance(block.get("source"), str) or not isinstance(block.get("revision"), str | None):
        raise CheckpointError(f'{path}: the "mlxbert" block of config.json names no source; fix: convert again')


def _parity(
    path: Path, records: Mapping[str, FileRecord], block: Mapping[str, Any]
) -> tuple[ParityReport | None, str | None]:
    """The report, and why it is no proof that these files are the model that `block` names."""
    if PARITY not in records:
        return None, _NEVER_COMPARED
    try:
        report = ParityReport.read(path)
    except NotComparedError:
        return None, _NEVER_COMPARED
    except ReportError as error:
        return None, f"its comparison with PyTorch cannot be read ({reason(error, path)})"
    if report is None:
        return None, _NEVER_COMPARED
    if not report.passed:
        first = report.failures[0] if report.failures else "a gate compared nothing"
        return report, f"its comparison with PyTorch FAILED ({first})"
    if (left_out := _incomplete(report, records, block)) is not None:
        return report, left_out
    if report.provenance.own_export:
        return report, None
    # Converted once more from what had been converted, it was compared with that. The names of local sources tell
    # nothing: a directory may be called anything, and the card names the one that it was compared with.
    (source, revision), named = report.provenance.compared_with, (block["source"], block["revision"])
    if block["revision"] is not None and (source, revision) != named:
        at = "" if revision is None else f" at {revision}"
        return report, f"its comparison with PyTorch was with '{source}'{at}, not with the source that it names"
    return report, None


def _incomplete(report: ParityReport, records: Mapping[str, FileRecord], block: Mapping[str, Any]) -> str | None:
    """What of these files the report is not about: other weights, or a part that it left out; None: nothing."""
    weights = {name: record.sha256 for name, record in records.items() if _is_encoder(name)}
    compared = report.provenance.weights
    stale = sorted(name for name in weights if compared.get(name) != weights[name])
    # A head that PyTorch could not build whole is not compared, and the report says so; one that was must be this one.
    stale += sorted(name for name in compared if name in records and records[name].sha256 != compared[name])
    stale += sorted(name for name in compared if name not in records)
    if stale:
        return f"its comparison with PyTorch was of another {stale[0]}"
    if report.uncompared:
        return f"not compared with PyTorch: {report.left_out}"
    trained = "head" in block
    if trained != report.provenance.own_export:
        return "its comparison with PyTorch was not of a model with a trained head" if trained else _NEVER_COMPARED
    shipped = {"heads.safetensors": TRAINED_HEAD if trained else OWN_HEAD, "modules.json": PIPELINE}
    parts = [part for name, part in shipped.items() if name in records]
    parts += [OWN_HEAD] if is_full_layout({"mlxbert": block}) else []
    missing = [part for part in parts if part not in report.compared]
    return f"not compared with PyTorch: {', '.join(missing)}" if missing else None


def _is_encoder(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name
