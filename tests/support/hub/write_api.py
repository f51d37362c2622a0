"""The Hub's HTTP API, write side: who asks, new repositories, cards checked, commits, branches, pull requests."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tests.support.hub.accounts import authenticated, commit_of, visible, writable
from tests.support.hub.exchange import Reply, Request
from tests.support.hub.repository import GITATTRIBUTES, LFS_SUFFIXES, Blob, PullRequest, Repository
from tests.support.hub.routes import API, Route
from tests.support.hub.yaml_rules import check_yaml

if TYPE_CHECKING:
    from tests.support.hub.server import HubServer

_NAME = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?(?<!\.git)")


def whoami(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/whoami-v2."""
    account = authenticated(hub, request)
    if isinstance(account, Reply):
        return account
    return Reply.json(
        {
            "type": "user",
            "name": account.name,
            "fullname": account.name.title(),
            "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.orgs],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": account.role}},
        }
    )


def create(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/repos/create: a new repository with its first commit, or 409 where there is one."""
    account = authenticated(hub, request)
    if isinstance(account, Reply):
        return account
    asked = json.loads(request.body)
    namespace, name = asked.get("organization") or account.name, asked["name"]
    if not account.may_write(namespace):
        message = f'You don\'t have the rights to create a model under the namespace "{namespace}"'
        return Reply.error(403, message)
    if not _NAME.fullmatch(name):
        return Reply.error(400, f"Repo name {name} is not valid")
    repo_id = f"{namespace}/{name}"
    url = f"{hub.endpoint}/{repo_id}"
    if repo_id in hub.repositories:
        return Reply.json({"error": f"You already created this model repo: {repo_id}", "url": url}, 409)
    repo = hub.repositories[repo_id] = Repository(repo_id, private=asked.get("visibility") == "private")
    repo.commit({".gitattributes": GITATTRIBUTES}, message="initial commit")
    return Reply.json({"url": url, "name": repo_id, "id": "0" * 24})


def validate_yaml(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/validate-yaml."""
    errors, warnings = check_yaml(json.loads(request.body)["content"])
    body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return Reply.json(body, 400 if errors else 200)


def preupload(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/models/{repo}/preupload/{rev}: for each file, how to send it and what the Hub has in its place."""
    repo = writable(hub, request, match, pull_request="create_pr" in request.query)
    if isinstance(repo, Reply):
        return repo
    found = commit_of(hub, request, match, match["rev"])
    if isinstance(found, Reply):
        return found
    held = repo.commits[found[1]]
    files = []
    for file in json.loads(request.body)["files"]:
        path = file["path"]
        large = path.endswith(LFS_SUFFIXES) or file["size"] > 10_000_000
        oid = held[path].etag if path in held else None
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return Reply.json({"files": files, "commitOid": found[1]})


def commit(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/models/{repo}/commit/{rev}: newline-delimited JSON, one operation a line after the header.

    412 where the branch is not at `parentCommit` any more.
    """
    create_pr = "create_pr" in request.query
    into_pr = unquote(match["rev"]).startswith("refs/pr/")  # whoever opened one may write to it
    repo = writable(hub, request, match, pull_request=create_pr or into_pr)
    if isinstance(repo, Reply):
        return repo
    found = commit_of(hub, request, match, match["rev"])
    if isinstance(found, Reply):
        return found
    branch = next((name for name in repo.branches if name == unquote(match["rev"])), None)
    if branch is None:
        return Reply.error(404, f"Invalid rev id: {match['rev']}", "RevisionNotFound")
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    parent = header["value"].get("parentCommit")
    if parent is not None and not repo.branches[branch].startswith(parent):
        return Reply.error(412, "A commit has happened since. Please refresh and try again.")
    changes: dict[str, bytes | Blob | None] = {}
    for operation in operations:
        problem = _apply(hub, repo, repo.branches[branch], operation, changes)
        if problem is not None:
            return problem
    title = header["value"]["summary"]
    pull_request = repo.open_pull_request(title, hub.accounts[request.token or ""].name) if create_pr else None
    sha = repo.commit(changes, branch=pull_request.ref if pull_request else branch, message=title)
    answer: dict[str, Any] = {"success": True, "commitOid": sha, "commitUrl": f"{hub.endpoint}/{repo.id}/commit/{sha}"}
    if pull_request:
        answer["pullRequestUrl"] = f"{hub.endpoint}/{repo.id}/discussions/{pull_request.num}"
    return Reply.json(answer)


def branch(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """POST /api/models/{repo}/branch/{rev}: a new branch from main."""
    repo = writable(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    name = unquote(match["rev"])
    if name in repo.branches:
        return Reply.error(409, "Reference already exists")
    repo.branches[name] = repo.branches["main"]
    return Reply(200)


def discussions(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET the list, or POST a new (draft) pull request: /api/models/{repo}/discussions."""
    if request.method == "POST":
        repo = writable(hub, request, match, pull_request=True)
        if isinstance(repo, Reply):
            return repo
        asked = json.loads(request.body)
        made = repo.open_pull_request(asked["title"], hub.accounts[request.token or ""].name, "draft")
        return Reply.json({"num": made.num})
    repo = visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    listed = [_discussion(hub, repo, made) for made in repo.pull_requests]
    return Reply.json({"discussions": listed, "count": len(listed), "start": 0})


def discussion(hub: HubServer, request: Request, match: re.Match[str]) -> Reply:
    """GET /api/models/{repo}/discussions/{num}."""
    repo = visible(hub, request, match)
    if isinstance(repo, Reply):
        return repo
    made = repo.pull_requests[int(match["num"]) - 1]
    changes = {"base": "refs/heads/main", "mergeCommitId": None}
    return Reply.json({**_discussion(hub, repo, made), "events": [], "changes": changes, "filesWithConflicts": False})


def _discussion(hub: HubServer, repo: Repository, made: PullRequest) -> dict[str, Any]:
    return {
        "num": made.num,
        "title": made.title,
        "status": made.status,
        "author": {"name": made.author},
        "isPullRequest": True,
        "createdAt": "2024-01-01T00:00:00.000Z",
        "repo": {"name": repo.id, "type": "model"},
    }


def _apply(
    hub: HubServer, repo: Repository, parent: str, operation: dict[str, Any], changes: dict[str, bytes | Blob | None]
) -> Reply | None:
    value = operation["value"]
    path = value["path"]
    if operation["key"] == "file":
        changes[path] = Blob(base64.b64decode(value["content"]), lfs=False)
    elif operation["key"] == "lfsFile":
        blob = hub.stored(value["oid"])
        if blob is None:
            return Reply.error(400, f"LFS pointer {path} points to an object that was never uploaded")
        changes[path] = blob
    elif path not in repo.commits[parent]:
        return Reply.error(404, "A file with this name doesn't exist", "EntryNotFound")
    else:
        changes[path] = None
    return None


ROUTES: list[Route] = [
    ("GET", re.compile(r"^/api/whoami-v2$"), whoami),
    ("POST", re.compile(r"^/api/repos/create$"), create),
    ("POST", re.compile(r"^/api/validate-yaml$"), validate_yaml),
    ("POST", re.compile(API + r"/preupload/(?P<rev>[^/]+)$"), preupload),
    ("POST", re.compile(API + r"/commit/(?P<rev>[^/]+)$"), commit),
    ("POST", re.compile(API + r"/branch/(?P<rev>[^/]+)$"), branch),
    ("GET POST", re.compile(API + r"/discussions$"), discussions),
    ("GET", re.compile(API + r"/discussions/(?P<num>\d+)$"), discussion),
]
