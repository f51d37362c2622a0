"""Publish a converted directory on the Hugging Face Hub with its evidence: the function behind `mlxbert-push`.

Only verified, unchanged files are published, of a model whose comparison with PyTorch passed.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, get_token

from converter.card.card import read_quantization, reference_of, render_card
from converter.card.facts import card_facts
from converter.parity.files import CARD, PARITY
from converter.parity.report import OWN_HEAD, PIPELINE, TRAINED_HEAD, NotComparedError, ParityReport, ParityReportError
from converter.publish.leaks import PublishError, lint_card, refuse_leaks
from converter.publish.remote import CheckedFile, check_repo_id, default_repo_id
from converter.publish.sending import PushPlan, PushResult, Sending, size_of, who_writes
from mlxbert.adapters.files import is_adapter_directory, unmerged
from mlxbert.checkpoint import CheckpointError, is_full_layout, read_config
from mlxbert.errors import first_ten, reason
from mlxbert.files.output_file import NAME, FileRecord, manifest_bytes, manifest_problems, read_manifest
from mlxbert.files.reading import expand_home
from mlxbert.hub_client import bounded_answers, check_token, endpoint

_NEVER_COMPARED = "the model was never compared with PyTorch"


def push(
    directory: str | Path,
    to: str | None = None,
    *,
    private: bool = False,
    pr: bool = False,
    revision: str | None = None,
    message: str | None = None,
    dry_run: bool = False,
    allow_unverified: bool = False,
    confirm: Callable[[PushPlan], bool] = lambda plan: True,
    progress: bool = True,
) -> PushResult:
    """Publish `directory`; with `dry_run`, return what would be published and use no network.

    Cache, endpoint and token are huggingface_hub's own settings (`hf auth login`, HF_TOKEN, HF_ENDPOINT).

    Args:
        directory: what `mlxbert-convert` wrote.
        to: the repository, `OWNER/NAME`; None: in mlx-community, with a name by its rules.
        private: make a new repository private; an existing public one is refused.
        pr: propose the files in a pull request, which needs no right to write.
        revision: a branch, which is created if it does not exist; None: the default one.
        message: of the commit; None: which model it is.
        dry_run: only return the plan.
        allow_unverified: publish a model whose comparison with PyTorch did not pass; its card says so.
        confirm: called with the plan before anything is written; False: write nothing.
        progress: show the client's progress bars, on a terminal.

    Raises:
        MLXBertError: it must not or cannot be published, or did not arrive as it was sent; unless the message says
            otherwise, nothing was written.
    """
    if pr and revision is not None:
        raise PublishError("--pr and --revision: a pull request is always made to the default branch; leave one out")
    if to is not None:
        check_repo_id(to)
    existing_directory(directory)  # before the login
    token = None if dry_run else _token()
    evidence = gather_evidence(directory, allow_unverified=allow_unverified, token=token)
    repo_id = to if to is not None else _default_name(evidence)
    files, card = _files(evidence, repo_id, revision, token)
    plan = PushPlan(
        repo_id=repo_id,
        revision=revision,
        pull_request=pr,
        private=private,
        new=None,
        send={name: size_of(data) for name, data in files.items()},
        unchanged=(),
        remove=(),
        kept_here=evidence.unlisted,
        message=message or f"Add {repo_id.partition('/')[2]}, converted by mlxbert",
        card=card,
        unverified=evidence.unverified,
        verdict="VERIFIED" if evidence.report is None else evidence.report.verdict,
    )
    if dry_run:
        return PushResult(plan, "dry run")
    api = HfApi(library_name="mlxbert")
    with bounded_answers(downloads=True):
        author = who_writes(api, repo_id, pull_request=pr)
        sending = Sending(api=api, author=author, config=evidence.config, files=files, plan=plan, progress=progress)
        return sending.run(confirm)


def require_pushable(to: str, *, verify: bool | None) -> None:
    """Refuse early, before a long conversion, a push that must fail.

    Raises:
        PublishError: the name breaks a rule, there is no token, or nothing will be compared.
    """
    check_repo_id(to)
    if verify is False:
        raise PublishError(
            "--push-to publishes verified models: leave out --no-verify, or push later with mlxbert-push"
        )
    _token()


def _token() -> str:
    """Return the user's token.

    Raises:
        PublishError: there is none.
        HubError: it cannot be sent.
    """
    check_token()
    token = get_token()
    if token is None:
        raise PublishError(
            f"not logged in to the Hub: run `hf auth login`, or set HF_TOKEN, with a token that may write, from "
            f"{endpoint()}/settings/tokens"
        )
    return token


def _default_name(evidence: Evidence) -> str:
    quantization = read_quantization(evidence.directory)
    bits = quantization.bits_per_weight if quantization else None
    return default_repo_id(evidence.config, evidence.directory.resolve().name, bits)


def _files(
    evidence: Evidence, repo_id: str, branch: str | None, token: str | None
) -> tuple[dict[str, bytes | CheckedFile], str]:
    """Return what is sent, with the card and the manifest for this repository, and the card itself."""
    facts = card_facts(
        evidence.directory,
        evidence.config,
        evidence.report,
        name=repo_id.partition("/")[2],
        records=evidence.records,
        quantization=read_quantization(evidence.directory),
    )
    card = render_card(replace(facts, place=repo_id, branch=branch, unverified=evidence.unverified))
    if problems := lint_card(card, token=token):
        raise PublishError(f"{evidence.directory}: its model card must not be published\n{first_ten(problems)}")
    readme = card.encode()
    manifest = manifest_bytes({**evidence.records, CARD: FileRecord.of(readme)})
    local = {name: CheckedFile(evidence.directory / name, record) for name, record in evidence.records.items()}
    return {**local, CARD: readme, NAME: manifest}, card


@dataclass(frozen=True)
class Evidence:
    """A directory that may be published, and the proof for it.

    Attributes:
        directory: its path.
        config: its `config.json`.
        records: size and SHA-256 of every file but the card and the manifest, which are written anew.
        report: the comparison with PyTorch; None if there is none, or it cannot be read.
        unverified: why the model counts as not verified; None: both gates passed on exactly these weights.
        unlisted: files that the manifest does not list; they are not sent.
    """

    directory: Path
    config: dict[str, Any]
    records: Mapping[str, FileRecord]
    report: ParityReport | None
    unverified: str | None
    unlisted: tuple[str, ...]


def existing_directory(directory: str | Path) -> Path:
    """Return the directory as a path.

    Raises:
        PublishError: it does not exist, or is a run with models in it.
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
    """Return the message for a run, which names the models of it that can be pushed."""
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
    path = existing_directory(directory)
    config = read_config(path)
    if is_adapter_directory(path):
        raise PublishError(unmerged(path, config))
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
    changed = [line for line in changed if not line.startswith(f"{CARD}: ")]  # the card is written anew
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
        # A fine-tuned model is compared with its own export.
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
    """Return the parity report, and why it does not prove that these files are the model in `block`."""
    if PARITY not in records:
        return None, _NEVER_COMPARED
    try:
        report = ParityReport.read(path)
    except NotComparedError:
        return None, _NEVER_COMPARED
    except ParityReportError as error:
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
    # A model that was converted from a conversion was compared with that conversion. The name of a local source says
    # nothing: a directory may have any name, and the card gives the one that the model was compared with.
    (source, revision), named = report.provenance.compared_with, (block["source"], block["revision"])
    if block["revision"] is not None and (source, revision) != named:
        at = "" if revision is None else f" at {revision}"
        return report, f"its comparison with PyTorch was with '{source}'{at}, not with the source that it names"
    return report, None


def _incomplete(report: ParityReport, records: Mapping[str, FileRecord], block: Mapping[str, Any]) -> str | None:
    """Return what the report does not cover: other weights, or a missing part; None: it covers everything."""
    weights = {name: record.sha256 for name, record in records.items() if _is_encoder(name)}
    compared = report.provenance.weights
    stale = sorted(name for name in weights if compared.get(name) != weights[name])
    # A head that PyTorch could not build is not in the report; a head that is in it must be this one.
    stale += sorted(name for name in compared if name in records and records[name].sha256 != compared[name])
    stale += sorted(name for name in compared if name not in records)
    if stale:
        return f"its comparison with PyTorch was of another {stale[0]}"
    if report.uncompared:
        return f"not compared with PyTorch: {report.left_out}"
    has_head = "head" in block
    if has_head != report.provenance.own_export:
        return "its comparison with PyTorch was not of a model with a trained head" if has_head else _NEVER_COMPARED
    shipped = {"heads.safetensors": TRAINED_HEAD if has_head else OWN_HEAD, "modules.json": PIPELINE}
    parts = [part for name, part in shipped.items() if name in records]
    parts += [OWN_HEAD] if is_full_layout({"mlxbert": block}) else []
    missing = [part for part in parts if part not in report.compared]
    return f"not compared with PyTorch: {', '.join(missing)}" if missing else None


def _is_encoder(name: str) -> bool:
    return name.startswith("model") and name.endswith(".safetensors") and "/" not in name
