"""Publish a converted directory on the Hugging Face Hub, with its evidence: the function behind `mlxbert-push`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from converter.card import render_card
from converter.card_evidence import read_quantization
from converter.facts import card_facts
from converter.parity.files import CARD
from converter.publishing.errors import PublishError
from converter.publishing.evidence import Evidence, existing, gather_evidence
from converter.publishing.lint import lint_card
from converter.publishing.names import check_repo_id, default_repo_id
from converter.publishing.plan import PushPlan, PushResult
from converter.publishing.remote import CheckedFile
from converter.publishing.rights import who_writes
from converter.publishing.sending import Sending, size_of
from mlxbert.errors import first_ten
from mlxbert.files.manifest import NAME, manifest_bytes
from mlxbert.files.output_file import FileRecord

__all__ = ["PublishError", "PushPlan", "PushResult", "push", "require_pushable"]


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
    """Publish `directory`, or with `dry_run` say what would be published and ask no network.

    Cache, endpoint and token are huggingface_hub's own settings (`hf auth login`, HF_TOKEN, HF_ENDPOINT).

    Args:
        directory: what `mlxbert-convert` wrote.
        to: the repository, `OWNER/NAME`; None: named after mlx-community's habit, in it.
        private: make the repository private, where it is made; one that is there and public is refused.
        pr: propose the files in a pull request; writing rights are not needed for that.
        revision: a branch; None: the default one. It is made where it is not there.
        message: of the commit; None: which model it is.
        allow_unverified: publish a model whose comparison with PyTorch did not pass; its card says so.
        confirm: asked with the plan before anything is written.
        progress: show the client's progress bars, on a terminal.

    Raises:
        MLXBertError: it may not be published, cannot be, or did not arrive as it was sent; where the message does not
            say otherwise, nothing was written.
    """
    if pr and revision is not None:
        raise PublishError("--pr and --revision: a pull request is always made to the default branch; leave one out")
    if to is not None:
        check_repo_id(to)
    existing(directory)  # said before a login is asked for
    from huggingface_hub import HfApi, get_token

    from mlxbert.hub.errors import check_token
    from mlxbert.hub.listing import bounded_answers

    token = None if dry_run else _token(check_token, get_token)
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
        writer = who_writes(api, repo_id, pull_request=pr)
        return Sending(api, writer, evidence.config, files, plan, progress).run(confirm)


def require_pushable(to: str, *, verify: bool | None) -> None:
    """Refuse, before a long conversion, what would be refused after it: the name, no token, no comparison.

    Raises:
        PublishError: one of them.
    """
    from huggingface_hub import get_token

    from mlxbert.hub.errors import check_token

    check_repo_id(to)
    if verify is False:
        raise PublishError(
            "--push-to publishes verified models: leave out --no-verify, or push later with mlxbert-push"
        )
    _token(check_token, get_token)


def _token(check: Callable[[], None], get: Callable[[], str | None]) -> str:
    from mlxbert.hub.errors import endpoint

    check()
    token = get()
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
    """What is sent, the card and the manifest as they are for this repository; and the card."""
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
