"""Whose token it is, and whether it may write where it is asked to; told before anything is uploaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi

from converter.hub_rules import is_repo_id
from converter.publishing.errors import FAILURES, PublishError, explain_push
from converter.publishing.retry import retried
from mlxbert.hub.errors import endpoint, token_source
from mlxbert.hub.listing import NotAHubError

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
