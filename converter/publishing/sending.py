"""The sending itself: compare with what is there, send what differs, and believe no answer unseen."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from converter.publishing.errors import FAILURES, PublishError, explain_push, is_transient, moved, status_of
from converter.publishing.plan import PushPlan, PushResult
from converter.publishing.pull_requests import find_pull_request
from converter.publishing.remote import CheckedFile, Remote, look_at, refuse_another_model
from converter.publishing.retry import ATTEMPTS, pause, retried
from converter.publishing.rights import Writer
from mlxbert.errors import first_ten
from mlxbert.files.manifest import is_file_of
from mlxbert.hub import progress_bars
from mlxbert.hub.errors import clean, endpoint
from mlxbert.hub.listing import MALFORMED, NotAHubError, is_commit

Files = Mapping[str, bytes | CheckedFile]
"""What is sent under each name: bytes, or a file of the directory."""


@dataclass(frozen=True)
class Sending:
    """One push, from the look at what is there to the comparison of what arrived."""

    api: HfApi
    writer: Writer
    config: dict[str, Any]
    files: Files
    plan: PushPlan
    progress: bool

    def run(self, confirm: Callable[[PushPlan], bool]) -> PushResult:
        """Look, ask, send what differs, compare.

        Raises:
            PublishError: as `converter.publish.push`.
        """
        repo_id = self.plan.repo_id
        remote = look_at(self.api, repo_id, self.plan.revision)
        if remote.commit is None and self.plan.pull_request:
            raise PublishError(f"'{repo_id}' is not there to propose anything to: push without --pr to make it")
        self._refuse_public(remote)
        listed = refuse_another_model(self.api, repo_id, remote, self.config) if remote.commit else frozenset()
        held = {name for name, data in self.files.items() if name in remote.files and remote.files[name].holds(data)}
        plan = replace(
            self.plan,
            new=remote.commit is None,
            send={name: size for name, size in self.plan.send.items() if name not in held},
            unchanged=tuple(sorted(held)),
            remove=tuple(sorted(name for name in listed - set(self.files) if name in remote.files)),
        )
        if plan.is_empty and remote.exists:
            return self._result(plan, "unchanged", remote.commit)
        if plan.pull_request and (found := find_pull_request(self.api, repo_id, self.writer.name, self.files)):
            return PushResult(plan, "unchanged", found.commit, found.url)
        if not confirm(plan):
            return PushResult(plan, "declined")
        _refuse_changed(self.files)
        with _quiet_client(), progress_bars(self.progress):
            return self._upload(plan, self._prepare(plan, remote))

    def _prepare(self, plan: PushPlan, remote: Remote) -> Remote:
        """Make the repository and the branch, where they are not there."""
        if remote.exists:
            return remote
        try:
            if remote.commit is None:
                # exist_ok: an answer that got lost is asked for again.
                retried(lambda: self.api.create_repo(plan.repo_id, private=plan.private or None, exist_ok=True))
            if plan.revision is not None:
                retried(lambda: self.api.create_branch(plan.repo_id, branch=plan.revision or "", exist_ok=True))
        except FAILURES as error:
            raise explain_push(error, plan.repo_id) from None
        made = look_at(self.api, plan.repo_id, plan.revision)
        # It was asked for so that an answer that got lost does no harm: so what is there may be somebody else's.
        begun = made.commit == remote.commit if remote.commit else set(made.files) <= {".gitattributes"}
        if not begun:
            raise PublishError(moved(plan.repo_id))
        self._refuse_public(made)
        return made

    def _refuse_public(self, remote: Remote) -> None:
        """--private is about a repository that is made; one that is public would publish what was to be kept."""
        if self.plan.private and remote.private is False:
            raise PublishError(
                f"'{self.plan.repo_id}' is public, so nothing in it is private: make it private in its settings, or "
                "leave --private out"
            )

    def _upload(self, plan: PushPlan, remote: Remote) -> PushResult:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # One commit of all files, whatever their number, read from where they lie.
                made = self.api.create_commit(
                    repo_id=plan.repo_id,
                    operations=_operations(plan, self.files),
                    revision=plan.revision,
                    commit_message=plan.message,
                    create_pr=plan.pull_request or None,
                    parent_commit=remote.commit,
                )
                if not is_commit(made.oid) or not isinstance(made.pr_url, str | None):
                    raise NotAHubError("no commit in the answer to one")
            except FAILURES as error:
                if not is_transient(error):
                    raise explain_push(error, plan.repo_id) from None
                if (done := self._done_all_the_same(plan)) is not None:
                    return done
                if status_of(error) == 412:
                    raise PublishError(moved(plan.repo_id)) from None
                # A pull request may have been opened though nothing is in it yet: not a second one.
                if attempt == ATTEMPTS or plan.pull_request or isinstance(error, MALFORMED):
                    raise explain_push(error, plan.repo_id) from None
                pause(attempt)
                continue
            return self._checked(plan, made.oid, made.pr_url)
        raise AssertionError("the loop returns or raises")

    def _done_all_the_same(self, plan: PushPlan) -> PushResult | None:
        """The push whose answer got lost, if its files are there; where that cannot be seen, it is not."""
        try:
            if plan.pull_request:
                found = find_pull_request(self.api, plan.repo_id, self.writer.name, self.files)
                return None if found is None else PushResult(plan, "recognised", found.commit, found.url)
            remote = look_at(self.api, plan.repo_id, plan.revision)
        except PublishError:
            return None
        return None if self._differences(plan, remote) else self._result(plan, "recognised", remote.commit)

    def _checked(self, plan: PushPlan, commit: str, pr_url: str | None) -> PushResult:
        """Compare what the Hub lists at the new commit with what was sent."""
        try:
            differing = self._differences(plan, look_at(self.api, plan.repo_id, commit))
        except PublishError as error:
            raise PublishError(
                f"'{plan.repo_id}' has commit {commit} with your files, but what arrived could not be compared: push "
                f"again, which compares it ({error})"
            ) from None
        if differing:
            raise PublishError(
                f"'{plan.repo_id}': what arrived at commit {commit} is not what was sent; do not use it, push again\n"
                + first_ten(differing)
            )
        done = self._result(plan, "pushed", commit)
        return replace(done, url=clean(pr_url)) if pr_url else done

    def _differences(self, plan: PushPlan, remote: Remote) -> list[str]:
        missing = [name for name in self.files if name not in remote.files]
        changed = [n for n, data in self.files.items() if n in remote.files and not remote.files[n].holds(data)]
        return sorted([*missing, *changed, *(name for name in plan.remove if name in remote.files)])

    def _result(self, plan: PushPlan, status: str, commit: str | None) -> PushResult:
        url = f"{endpoint()}/{plan.repo_id}" + (f"/tree/{plan.revision}" if plan.revision else "")
        return PushResult(plan, status, commit, url)


def size_of(data: bytes | CheckedFile) -> int:
    """In bytes."""
    return len(data) if isinstance(data, bytes) else data.record.size


def _refuse_changed(files: Files) -> None:
    """Refuse files that are not as they were when they were checked.

    Raises:
        PublishError: one has changed.
    """
    for data in files.values():
        if isinstance(data, CheckedFile) and not is_file_of(data.path, data.record):
            raise PublishError(f"{data.path}: changed while it was being published; nothing was sent: push again")


def _operations(plan: PushPlan, files: Files) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What the commit does; the client wants new ones for every attempt."""
    added = [
        CommitOperationAdd(name, data if isinstance(data, bytes) else str(data.path.resolve()))
        for name, data in files.items()
    ]
    return [*added, *(CommitOperationDelete(name, is_folder=False) for name in plan.remove)]


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the client's log of retries, which quotes signed addresses, and its warnings out of the terminal.

    What the Hub warns of in a card, that a license is missing, the card says itself.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warnings while validating metadata", UserWarning)
            yield
    finally:
        logger.setLevel(level)
