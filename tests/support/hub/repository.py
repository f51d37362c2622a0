"""Repositories of the test Hub: commits, branches, tags and pull requests, held in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

LFS_SUFFIXES = (".safetensors", ".bin", ".h5", ".npz", ".msgpack", ".onnx", ".pt")
"""Stored as LFS whatever their size, as the Hub's default .gitattributes says."""
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass(frozen=True)
class Blob:
    """One version of one file; `xet` is its file hash where Xet storage has it."""

    data: bytes
    lfs: bool
    xet: str | None = None

    @cached_property
    def oid(self) -> str:
        """Git's own object id: what the Hub gives as the ETag of a file that is not LFS."""
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @cached_property
    def sha256(self) -> str:
        """The LFS object id: of the bytes that are there, whatever an upload said they were."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class PullRequest:
    """One pull request; its commits are on the ref `refs/pr/{num}`."""

    num: int
    title: str
    author: str
    status: Literal["draft", "open", "closed", "merged"] = "open"

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"


@dataclass
class Repository:
    """A model repository; `commit` adds to it, as a push would.

    `readers` are the tokens that see a private one; `granted` those whose owners accepted the conditions of a
    gated one. `branches` holds the refs of pull requests too.
    """

    id: str
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    disabled: bool = False
    readers: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: list[PullRequest] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)  # commit -> its message

    @property
    def namespace(self) -> str:
        return self.id.partition("/")[0]

    @property
    def files(self) -> dict[str, bytes]:
        """What is on the branch main."""
        return {path: blob.data for path, blob in self.commits[self.branches["main"]].items()}

    def commit(self, files: Mapping[str, bytes | Blob | None], *, branch: str = "main", message: str = "Push") -> str:
        """Put `files` on top of the branch (None deletes one) and return the new commit's 40 hex digits."""
        parent = self.branches.get(branch) or self.branches.get("main", "")
        tree = dict(self.commits.get(parent, {}))
        for path, data in files.items():
            if data is None:
                del tree[path]
            else:
                tree[path] = data if isinstance(data, Blob) else Blob(data, lfs=path.endswith(LFS_SUFFIXES))
        digest = hashlib.sha1(f"{self.id}\n{parent}\n{message}\n{len(self.commits)}".encode())
        for path in sorted(tree):
            digest.update(f"{path}\0{tree[path].oid}\n".encode())
        sha = digest.hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        self.titles[sha] = message
        return sha

    def open_pull_request(self, title: str, author: str, status: Literal["draft", "open"] = "open") -> PullRequest:
        """A pull request on top of main, with nothing in it yet."""
        made = PullRequest(len(self.pull_requests) + 1, title, author, status)
        self.pull_requests.append(made)
        self.branches[made.ref] = self.branches["main"]
        return made

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, tag, full ref or (possibly shortened) commit id names; None when nothing does."""
        for prefix, refs in (("refs/heads/", self.branches), ("refs/tags/", self.tags)):
            if (sha := refs.get(revision.removeprefix(prefix))) is not None:
                return sha
        matches = [sha for sha in self.commits if len(revision) >= 7 and sha.startswith(revision)]
        return matches[0] if len(matches) == 1 else None
