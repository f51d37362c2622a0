"""What a push would do, as data: printed before it is done, and all that a dry run shows.

Whose token it is, and whether it may write where it is asked to; told before anything is uploaded.

The sending itself: compare with what is there, send what differs, and believe no answer unseen.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from converter.card.source_card import is_repo_id
from converter.publish.errors import (
    ATTEMPTS,
    FAILURES,
    PublishError,
    explain_push,
    is_transient,
    moved,
    pause,
    retried,
    status_of,
)
from converter.publish.remote import CheckedFile, Remote, find_pull_request, look_at, refuse_another_model
from mlxbert.errors import first_ten
from mlxbert.files.output_file import format_bytes, is_file_of
from mlxbert.hub.download import progress_bars
from mlxbert.hub.errors import MALFORMED, NotAHubError, clean, endpoint, is_commit, token_source


@dataclass(frozen=True)
class PushPlan:
    """What goes where.

    Attributes:
        repo_id: the repository; `revision`: its branch, None: the default one.
        pull_request: propose it there and do not write to the branch.
        new: whether the repository is made, `private` or not; None: not known, because nobody was asked (a dry run).
        send: names of the files to send, and their sizes in bytes.
        unchanged: names of those that are there already, byte for byte.
        remove: names that an earlier push had left there and this model has not.
        kept_here: names in the directory that its manifest does not list, which are not sent.
        message: of the commit.
        card: the README.md that goes with it.
        unverified: why the model counts as not verified; None where it is.
        verdict: what was proven, one line.
    """

    repo_id: str
    revision: str | None
    pull_request: bool
    private: bool
    new: bool | None
    send: Mapping[str, int]
    unchanged: tuple[str, ...]
    remove: tuple[str, ...]
    kept_here: tuple[str, ...]
    message: str
    card: str = field(repr=False)
    unverified: str | None = None
    verdict: str = "VERIFIED"

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.send and not self.remove

    def lines(self, directory: Path) -> list[str]:
        """The plan for people."""
        state = {None: "", True: f", to be made {'private' if self.private else 'public'}", False: ", which is there"}
        where = f"a pull request to {self.repo_id}" if self.pull_request else self.repo_id
        branch = f", branch {self.revision}" if self.revision else ""
        rows = [("From", str(directory)), ("To", f"{where}{branch}{state[self.new]}"), ("Message", self.message)]
        rows += [("Send", f"{name}  {format_bytes(size)}") for name, size in self.send.items()]
        if self.unchanged:
            rows.append(("There", f"{len(self.unchanged)} files, the same bytes: {', '.join(self.unchanged)}"))
        rows += [("Remove", name) for name in self.remove]
        rows += [("Not sent", f"{name} (not in the manifest)") for name in self.kept_here]
        rows.append(("Parity", f"NOT VERIFIED: {self.unverified}" if self.unverified else self.verdict))
        return [f"{label:<10}{text}" for label, text in rows]


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        plan: what was to be done.
        status: "dry run"; "declined"; "unchanged": the same bytes are there already, nothing was written; "pushed";
            "recognised": written, though the Hub's answer to it got lost.
        commit: the commit that holds the files; None where nothing was written or looked at.
        url: where to look at it.
    """

    plan: PushPlan
    status: str
    commit: str | None = None
    url: str | None = None


_WRITING_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True)
class Writer:
    """The user behind the token."""

    name: str


def who_writes(api: HfApi, repo_id: str, *, pull_request: bool) -> Writer:
    """Ask the Hub, and refuse a token that cannot do what is asked.

    What a fine-grained token may do only the Hub knows: it says so when written to.

    Raises:
        PublishError: the token is not accepted, is read-only, or its user may not write to the namespace.
    """
    try:
        found = retried(api.whoami)
        name, organizations = _user(found)
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    namespace = repo_id.partition("/")[0]
    settings = f"{endpoint()}/settings/tokens"
    if _role(found) == "read":
        raise PublishError(
            f"{token_source()} is read-only: make one with write access at {settings}, then `hf auth login` with it"
        )
    writes = namespace == name or organizations.get(namespace, "none") in (*_WRITING_ROLES, None)
    if not writes and not pull_request:
        raise PublishError(
            f"{token_source()} is {name}'s, who may not write to '{namespace}': join it at {endpoint()}/{namespace}, "
            f"propose the model with --pr, or push to your own with --to {name}/{repo_id.partition('/')[2]}"
        )
    return Writer(name)


def _user(found: Any) -> tuple[str, dict[str, Any]]:
    """The name of who asks, and the role in each organization."""
    name = found.get("name") if isinstance(found, dict) else None
    organizations = (found.get("orgs") or []) if isinstance(found, dict) else None
    if not isinstance(name, str) or not is_repo_id(name) or not isinstance(organizations, list):
        raise NotAHubError("no name in the answer to who asks")
    known = (org for org in organizations if isinstance(org, dict) and isinstance(org.get("name"), str))
    return name, {org["name"]: org.get("roleInOrg") for org in known}


def _role(found: dict[str, Any]) -> str | None:
    auth = found.get("auth")
    access = auth.get("accessToken") if isinstance(auth, dict) else None
    role = access.get("role") if isinstance(access, dict) else None
    return role if isinstance(role, str) else None


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
            PublishError: as `converter.publish.push.push`.
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
