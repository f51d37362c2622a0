"""Who may do what on the test Hub: accounts behind tokens, and what each is told of a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlencode

from tests.support.hub.exchange import Reply, Request
from tests.support.hub.repository import Repository

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer


@dataclass(frozen=True)
class Account:
    """Whose a token is, and what that token may do: `role` is the token's own, `orgs` those its user may write to."""

    name: str
    role: Literal["read", "write", "fineGrained"] = "write"
    orgs: tuple[str, ...] = ()

    def may_write(self, namespace: str) -> bool:
        return self.role != "read" and namespace in (self.name, *self.orgs)


def authenticated(hub: HubServer, request: Request) -> Account | Reply:
    """The account behind the request's token, or the Hub's 401."""
    if request.token is None:
        return Reply.error(401, "Invalid username or password.")
    account = hub.accounts.get(request.token)
    if account is None:
        return Reply.error(401, "Invalid credentials in Authorization header")
    return account


def visible(hub: HubServer, request: Request, match: re.Match[str]) -> Repository | Reply:
    """The repository if the request may know that it exists.

    Without a token the Hub answers 401 for one that does not exist, so as not to tell it from a private one.
    """
    if request.token is not None and request.token not in hub.tokens:
        return Reply.error(401, "Invalid credentials in Authorization header")
    asked = unquote(match["repo"])
    if (canonical := hub.renamed.get(asked)) is not None:
        query = f"?{urlencode(request.query)}" if request.query else ""
        return Reply(307, {"Location": request.path.replace(match["repo"], canonical, 1) + query})
    repo = hub.repositories.get(asked)
    if repo is None or (repo.private and not _reads(hub, request.token, repo)):
        if request.token is None:
            return Reply.error(401, "Invalid username or password.")
        return Reply.error(404, "Repository not found", "RepoNotFound")
    if repo.disabled:
        return Reply.error(403, "Access to this resource is disabled.")
    return repo


def commit_of(hub: HubServer, request: Request, match: re.Match[str], rev: str) -> tuple[Repository, str] | Reply:
    """The repository and the commit that `rev` names in it."""
    repo = visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    sha = repo.resolve(unquote(rev))
    if sha is None:
        return Reply.error(404, f"Invalid rev id: {unquote(rev)}", "RevisionNotFound")
    return repo, sha


def writable(
    hub: HubServer, request: Request, match: re.Match[str], *, pull_request: bool = False
) -> Repository | Reply:
    """The repository if the request may change it; to open a pull request, seeing it and a token that writes do."""
    repo = visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    account = authenticated(hub, request)
    if isinstance(account, Reply):
        return account
    if account.role == "read" or not (pull_request or account.may_write(repo.namespace)):
        return Reply.error(403, "Forbidden: You do not have the rights to push to this repository.")
    return repo


def _reads(hub: HubServer, token: str | None, repo: Repository) -> bool:
    account = hub.accounts.get(token or "")
    return token in repo.readers or (account is not None and repo.namespace in (account.name, *account.orgs))
