"""Pull requests that are open already: the same files twice would be two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import HfApi

from converter.publishing.errors import FAILURES, explain_push
from converter.publishing.remote import CheckedFile, look_at
from mlxbert.hub.errors import clean
from mlxbert.hub.listing import NotAHubError

_LOOKED_AT = 20  # newest first; each costs a listing


@dataclass(frozen=True)
class OpenPullRequest:
    """One with exactly our files in it."""

    url: str
    commit: str | None


def find_pull_request(
    api: HfApi, repo_id: str, author: str, files: Mapping[str, bytes | CheckedFile]
) -> OpenPullRequest | None:
    """The open (or draft) pull request of `author` that holds `files`; None where there is none.

    Raises:
        PublishError: the Hub cannot be asked.
    """
    try:
        mine = [
            found
            for found in api.get_repo_discussions(repo_id, author=author, discussion_type="pull_request")
            if found.status in ("open", "draft") and found.is_pull_request is True and found.author == author
        ]
        if not all(isinstance(found.num, int) and isinstance(found.url, str) for found in mine):
            raise NotAHubError("a pull request without a number")
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    for found in sorted(mine, key=lambda found: -found.num)[:_LOOKED_AT]:
        remote = look_at(api, repo_id, f"refs/pr/{found.num}")
        if remote.exists and all(n in remote.files and remote.files[n].holds(data) for n, data in files.items()):
            return OpenPullRequest(clean(found.url), remote.commit)
    return None
