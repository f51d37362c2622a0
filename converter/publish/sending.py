"""Send a model to the Hub: check the user, compare the repository, send the differing files, compare the result.

The plan of a push is data (`PushPlan`), printed before anything is written; a dry run prints only the plan.
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

from converter.publish.leaks import PublishError
from converter.publish.remote import (
    ATTEMPTS,
    CheckedFile,
    Files,
    Remote,
    explain_push,
    find_pull_request,
    is_transient,
    look_at,
    moved,
    pause,
    refuse_another_model,
    retried,
    status_of,
)
from mlxbert.errors import first_ten
from mlxbert.files.output_file import format_bytes, is_file_of
from mlxbert.hub import is_valid_repo_id, progress_bars
from mlxbert.hub_client import FAILURES, MALFORMED, NotAHubError, clean, endpoint, is_commit, token_source

_WRITING_ROLES = ("admin", "write", "contributor")


@dataclass(frozen=True)
class PushPlan:
    """The plan of a push.

    Attributes:
        repo_id: the repository.
        revision: its branch; None: the default one.
        pull_request: open a pull request and do not write to the branch.
        private: whether a new repository is private.
        new: whether the repository is created; None: not known, because the Hub was not asked (a dry run).
        send: names of the files to send, and their sizes in bytes.
        unchanged: names of the files that are there already, byte for byte.
        remove: names of files of an earlier push that this model does not have.
        kept_here: names in the directory that its manifest does not list; they are not sent.
        message: of the commit.
        card: the README.md that is sent.
        unverified: why the model counts as not verified; None: it is verified.
        verdict: the result of the comparison, in one line.
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
        """Return whether there is nothing to do."""
        return not self.send and not self.remove

    def lines(self, directory: Path) -> list[str]:
        """Return the plan for people."""
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
    """The result of a push.

    Attributes:
        plan: the plan of the push.
        status: "dry run"; "declined"; "unchanged": the same bytes are there already, nothing was written; "pushed";
            "recognised": written, although the Hub's answer was lost.
        commit: the commit that holds the files; None if nothing was written or compared.
        url: the address of the result.
    """

    plan: PushPlan
    status: str
    commit: str | None = None
    url: str | None = None


def who_writes(api: HfApi, repo_id: str, *, pull_request: bool) -> str:
    """Return the name of the token's user; refuse a token that cannot do this push.

    Only the Hub knows the rights of a fine-grained token: it refuses the write if they do not suffice.

    Raises:
        PublishError: the token is not accepted, is read-only, or its user may not write to the namespace.
    """
    try:
        answer = retried(api.whoami)
        name, organizations = _user(answer)
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    namespace = repo_id.partition("/")[0]
    settings = f"{endpoint()}/settings/tokens"
    if _role(answer) == "read":
        raise PublishError(
            f"{token_source()} is read-only: make one with write access at {settings}, then `hf auth login` with it"
        )
    writes = namespace == name or organizations.get(namespace, "none") in (*_WRITING_ROLES, None)
    if not writes and not pull_request:
        raise PublishError(
            f"{token_source()} is {name}'s, who may not write to '{namespace}': join it at {endpoint()}/{namespace}, "
            f"propose the model with --pr, or push to your own with --to {name}/{repo_id.partition('/')[2]}"
        )
    return name


def _user(answer: Any) -> tuple[str, dict[str, Any]]:
    """Return the user's name, and the role in each organization."""
    name = answer.get("name") if isinstance(answer, dict) else None
    organizations = (answer.get("orgs") or []) if isinstance(answer, dict) else None
    if not is_valid_repo_id(name) or not isinstance(organizations, list):
        raise NotAHubError("no name in the answer to who asks")
    named = (org for org in organizations if isinstance(org, dict) and isinstance(org.get("name"), str))
    return str(name), {org["name"]: org.get("roleInOrg") for org in named}


def _role(answer: dict[str, Any]) -> str | None:
    auth = answer.get("auth")
    access = auth.get("accessToken") if isinstance(auth, dict) else None
    role = access.get("role") if isinstance(access, dict) else None
    return role if isinstance(role, str) else None


@dataclass(frozen=True)
class Sending:
    """One push: from the first look at the repository to the comparison of the result.

    Attributes:
        api: of the Hub's client.
        author: the user's name.
        config: of the model.
        files: what is sent.
        plan: the plan before the Hub was asked.
        progress: whether to show progress bars.
    """

    api: HfApi
    author: str
    config: dict[str, Any]
    files: Files
    plan: PushPlan
    progress: bool

    def run(self, confirm: Callable[[PushPlan], bool]) -> PushResult:
        """Compare the repository, ask `confirm`, send the differing files, and check the result.

        Raises:
            PublishError: as `converter.publish.push.push`.
        """
        repo_id = self.plan.repo_id
        remote = look_at(self.api, repo_id, self.plan.revision)
        if remote.commit is None and self.plan.pull_request:
            raise PublishError(f"'{repo_id}' is not there to propose anything to: push without --pr to make it")
        self._refuse_public(remote)
        listed = refuse_another_model(self.api, repo_id, remote, self.config) if remote.commit else frozenset()
        unchanged = {name for name, data in self.files.items() if remote.holds({name: data})}
        plan = replace(
            self.plan,
            new=remote.commit is None,
            send={name: size for name, size in self.plan.send.items() if name not in unchanged},
            unchanged=tuple(sorted(unchanged)),
            remove=tuple(sorted(name for name in listed - set(self.files) if name in remote.files)),
        )
        if plan.is_empty and remote.exists:
            return self._result(plan, "unchanged", remote.commit)
        if plan.pull_request and (request := find_pull_request(self.api, repo_id, self.author, self.files)):
            return PushResult(plan, "unchanged", request.commit, request.url)
        if not confirm(plan):
            return PushResult(plan, "declined")
        _refuse_changed(self.files)
        with _quiet_client(), progress_bars(self.progress):
            return self._upload(plan, self._prepare(plan, remote))

    def _prepare(self, plan: PushPlan, remote: Remote) -> Remote:
        """Create the repository and the branch if they do not exist."""
        if remote.exists:
            return remote
        try:
            if remote.commit is None:
                # exist_ok: the request is repeated when its answer was lost.
                retried(lambda: self.api.create_repo(plan.repo_id, private=plan.private or None, exist_ok=True))
            if plan.revision is not None:
                retried(lambda: self.api.create_branch(plan.repo_id, branch=plan.revision or "", exist_ok=True))
        except FAILURES as error:
            raise explain_push(error, plan.repo_id) from None
        created = look_at(self.api, plan.repo_id, plan.revision)
        # Because of exist_ok, somebody else may have created it, and written to it.
        is_new = created.commit == remote.commit if remote.commit else set(created.files) <= {".gitattributes"}
        if not is_new:
            raise PublishError(moved(plan.repo_id))
        self._refuse_public(created)
        return created

    def _refuse_public(self, remote: Remote) -> None:
        """Refuse --private for a repository that is public already: the model would be published."""
        if self.plan.private and remote.private is False:
            raise PublishError(
                f"'{self.plan.repo_id}' is public, so nothing in it is private: make it private in its settings, or "
                "leave --private out"
            )

    def _upload(self, plan: PushPlan, remote: Remote) -> PushResult:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # One commit of all files.
                commit = self.api.create_commit(
                    repo_id=plan.repo_id,
                    operations=_operations(plan, self.files),
                    revision=plan.revision,
                    commit_message=plan.message,
                    create_pr=plan.pull_request or None,
                    parent_commit=remote.commit,
                )
                if not is_commit(commit.oid) or not isinstance(commit.pr_url, str | None):
                    raise NotAHubError("no commit in the answer to one")
            except FAILURES as error:
                if not is_transient(error):
                    raise explain_push(error, plan.repo_id) from None
                if (result := self._landed(plan)) is not None:
                    return result
                if status_of(error) == 412:
                    raise PublishError(moved(plan.repo_id)) from None
                # A pull request may have been opened although it is still empty: do not open a second one.
                if attempt == ATTEMPTS or plan.pull_request or isinstance(error, MALFORMED):
                    raise explain_push(error, plan.repo_id) from None
                pause(attempt)
                continue
            return self._checked(plan, commit.oid, commit.pr_url)
        raise AssertionError("the loop returns or raises")

    def _landed(self, plan: PushPlan) -> PushResult | None:
        """Return the push if it landed although its response was lost; None if it did not, or that is unknown."""
        try:
            if plan.pull_request:
                request = find_pull_request(self.api, plan.repo_id, self.author, self.files)
                return None if request is None else PushResult(plan, "recognised", request.commit, request.url)
            remote = look_at(self.api, plan.repo_id, plan.revision)
        except PublishError:
            return None
        return None if self._differences(plan, remote) else self._result(plan, "recognised", remote.commit)

    def _checked(self, plan: PushPlan, commit: str, pr_url: str | None) -> PushResult:
        """Compare the files that the Hub lists at the new commit with the sent ones; return the result."""
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
        result = self._result(plan, "pushed", commit)
        return replace(result, url=clean(pr_url)) if pr_url else result

    def _differences(self, plan: PushPlan, remote: Remote) -> list[str]:
        different = [name for name, data in self.files.items() if not remote.holds({name: data})]
        return sorted([*different, *(name for name in plan.remove if name in remote.files)])

    def _result(self, plan: PushPlan, status: str, commit: str | None) -> PushResult:
        url = f"{endpoint()}/{plan.repo_id}" + (f"/tree/{plan.revision}" if plan.revision else "")
        return PushResult(plan, status, commit, url)


def size_of(data: bytes | CheckedFile) -> int:
    """Return the size of a file in bytes."""
    return len(data) if isinstance(data, bytes) else data.record.size


def _refuse_changed(files: Files) -> None:
    """Check that the files are unchanged since their check.

    Raises:
        PublishError: a file has changed.
    """
    for data in files.values():
        if isinstance(data, CheckedFile) and not is_file_of(data.path, data.record):
            raise PublishError(f"{data.path}: changed while it was being published; nothing was sent: push again")


def _operations(plan: PushPlan, files: Files) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return the operations of the commit; the client needs new ones for every attempt."""
    added = [
        CommitOperationAdd(name, data if isinstance(data, bytes) else str(data.path.resolve()))
        for name, data in files.items()
    ]
    return [*added, *(CommitOperationDelete(name, is_folder=False) for name in plan.remove)]


@contextmanager
def _quiet_client() -> Iterator[None]:
    """Keep the client's log of retries, which quotes signed addresses, and its warnings out of the terminal.

    The Hub warns of a card without a license; the card says that itself.
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
