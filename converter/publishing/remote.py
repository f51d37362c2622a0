"""What a repository on the Hub holds, as far as a push has to know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from converter.publishing.errors import FAILURES, PublishError, explain_push
from converter.publishing.retry import retried
from mlxbert.writer.manifest import NAME

_SMALL = 4 * 2**20


@dataclass(frozen=True)
class RemoteFile:
    """One file as the Hub lists it: SHA-256 of a large one, git's object id of any other."""

    size: int
    sha256: str | None
    blob_id: str

    def holds(self, data: bytes | Path) -> bool:
        """Whether it is these bytes, or those of this local file."""
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if size != self.size:
            return False
        if self.sha256 is not None:
            if isinstance(data, bytes):
                return hashlib.sha256(data).hexdigest() == self.sha256
            with data.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        content = data if isinstance(data, bytes) else data.read_bytes()
        return hashlib.sha1(b"blob %d\0" % size + content).hexdigest() == self.blob_id


@dataclass(frozen=True)
class Remote:
    """A branch of a repository; `commit` is None where the repository does not exist yet.

    `exists` tells a branch that is yet to be made, which begins as `main` is, from one that is there.
    """

    commit: str | None = None
    exists: bool = False
    files: Mapping[str, RemoteFile] = field(default_factory=dict)


def look_at(api: HfApi, repo_id: str, revision: str | None) -> Remote:
    """The files of a branch and its newest commit, listed at that very commit.

    Raises:
        PublishError: the Hub cannot be asked, or says no.
    """
    try:
        try:
            commit, exists = retried(lambda: api.model_info(repo_id, revision=revision).sha), True
        except RevisionNotFoundError:
            commit, exists = retried(lambda: api.model_info(repo_id).sha), False
        listed = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=commit)))
    except RepositoryNotFoundError:
        return Remote()
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    files = {
        item.path: RemoteFile(item.size, item.lfs.sha256 if item.lfs else None, item.blob_id)
        for item in listed
        if isinstance(item, RepoFile)
    }
    return Remote(commit, exists, files)


def refuse_another_model(api: HfApi, repo_id: str, remote: Remote, config: dict[str, Any]) -> frozenset[str]:
    """Make sure that what is there is this model, and return the names that its manifest lists.

    The same model: converted by mlxbert from the same source, of the same sizes, and quantized where this one is.

    Raises:
        PublishError: there is another model, or one that mlxbert did not convert.
    """
    held = _read_json(api, repo_id, remote, "config.json")
    weights = [name for name in remote.files if name.endswith((".safetensors", ".bin", ".npz", ".h5", ".gguf"))]
    fix = "choose another name with --to"
    if held is None:
        if weights:
            raise PublishError(f"'{repo_id}' holds {weights[0]} of another model; {fix}")
        return frozenset()
    block = held.get("mlxbert")
    if not isinstance(block, dict):
        raise PublishError(f"'{repo_id}' holds a model that mlxbert did not convert; {fix}")
    ours = config["mlxbert"]
    if block.get("source") != ours["source"]:
        raise PublishError(f"'{repo_id}' holds another model, converted from '{block.get('source')}'; {fix}")
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "dtype"):
        if held.get(name) != config.get(name):
            raise PublishError(f"'{repo_id}' holds another model: its {name} is {held.get(name)!r}; {fix}")
    if ("quantization" in held) != ("quantization" in config):
        form = "a quantized" if "quantization" in held else "an unquantized"
        raise PublishError(f"'{repo_id}' holds {form} model, and this one is not: another model; {fix}")
    manifest = _read_json(api, repo_id, remote, NAME) or {}
    listed = manifest.get("files")
    return frozenset(listed) if isinstance(listed, dict) else frozenset()


def _read_json(api: HfApi, repo_id: str, remote: Remote, name: str) -> dict[str, Any] | None:
    """A small file of the repository; None where it has none, an empty object where it is not one."""
    file = remote.files.get(name)
    if file is None:
        return None
    if file.size > _SMALL:
        return {}
    try:
        path = api.hf_hub_download(repo_id, name, revision=remote.commit)
        parsed = json.loads(Path(path).read_bytes())
    except FAILURES as error:
        if isinstance(error, ValueError):
            return {}
        raise explain_push(error, repo_id) from None
    return parsed if isinstance(parsed, dict) else {}
