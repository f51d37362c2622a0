"""What a repository on the Hub holds, as far as a push has to know."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from converter.facts import trained_head
from converter.publishing.errors import FAILURES, PublishError, explain_push
from converter.publishing.names import precision_suffix
from converter.publishing.retry import retried
from mlxbert.files.manifest import NAME
from mlxbert.files.output_file import FileRecord
from mlxbert.files.reading import read_bytes, read_json
from mlxbert.hub import refuse_unsafe_names
from mlxbert.hub.errors import clean
from mlxbert.hub.listing import NotAHubError, is_commit

_SMALL = 4 * 2**20


@dataclass(frozen=True)
class CheckedFile:
    """A file of the directory, and what it was when it was checked: that, and nothing else, is to arrive."""

    path: Path
    record: FileRecord


@dataclass(frozen=True)
class RemoteFile:
    """One file as the Hub lists it: SHA-256 of a large one, git's object id of any other."""

    size: int
    sha256: str | None
    blob_id: str

    def holds(self, data: bytes | CheckedFile) -> bool:
        """Whether it is these bytes, or those that this local file was checked with."""
        record = FileRecord.of(data) if isinstance(data, bytes) else data.record
        if record.size != self.size:
            return False
        if self.sha256 is not None:
            return record.sha256 == self.sha256
        content = data if isinstance(data, bytes) else read_bytes(data.path, PublishError, limit=record.size)
        # Git's id says nothing of a SHA-256: the bytes have to be there still to tell.
        if content is None or FileRecord.of(content) != record:
            return False
        return hashlib.sha1(b"blob %d\0" % record.size + content).hexdigest() == self.blob_id


@dataclass(frozen=True)
class Remote:
    """A branch of a repository; `commit` is None where the repository does not exist yet.

    `exists` tells a branch that is yet to be made, which begins as `main` is, from one that is there. `private` is
    None where the Hub does not say.
    """

    commit: str | None = None
    exists: bool = False
    private: bool | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)


def look_at(api: HfApi, repo_id: str, revision: str | None) -> Remote:
    """The files of a branch and its newest commit, listed at that very commit.

    Raises:
        PublishError: the Hub cannot be asked, or says no.
    """
    try:
        try:
            info, exists = retried(lambda: api.model_info(repo_id, revision=revision)), True
        except RevisionNotFoundError:
            info, exists = retried(lambda: api.model_info(repo_id)), False
        if not is_commit(info.sha) or not isinstance(info.private, bool | None):
            raise NotAHubError("no commit in the answer to what a repository is")
        tree = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=info.sha)))
        listed = [(item.path, _remote_file(item)) for item in tree if isinstance(item, RepoFile)]
    except RepositoryNotFoundError:
        return Remote()
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    refuse_unsafe_names((name for name, _ in listed), f"'{repo_id}'", PublishError)
    return Remote(info.sha, exists, info.private, dict(listed))


def _remote_file(item: RepoFile) -> RemoteFile:
    """One file of a listing.

    Raises:
        NotAHubError: a value is of another type.
    """
    sha256 = item.lfs.sha256 if item.lfs else None
    whole = isinstance(item.size, int) and isinstance(item.path, str) and isinstance(item.blob_id, str)
    if not whole or not isinstance(sha256, str | None):
        raise NotAHubError("a file without name, size or hash")
    return RemoteFile(item.size, sha256, item.blob_id)


def refuse_another_model(api: HfApi, repo_id: str, remote: Remote, config: dict[str, Any]) -> frozenset[str]:
    """Make sure that what is there is this model, and return the names that its manifest lists.

    The same model: converted by mlxbert from the same source and class, of the same sizes, in the same precision, and
    with the same head where one was trained. Another revision of the source, and another report, is the same model.

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
    if not isinstance(held.get("mlxbert"), dict):
        raise PublishError(f"'{repo_id}' holds a model that mlxbert did not convert; {fix}")
    if (difference := _difference(held, config)) is not None:
        raise PublishError(f"'{repo_id}' holds {clean(difference)}; {fix}")
    manifest = _read_json(api, repo_id, remote, NAME) or {}
    listed = manifest.get("files")
    return frozenset(listed) if isinstance(listed, dict) else frozenset()


def _difference(held: dict[str, Any], config: dict[str, Any]) -> str | None:
    """What makes the one that is held another model than ours; None: it is the same."""
    theirs, ours = held["mlxbert"], config["mlxbert"]
    if theirs.get("source") != ours["source"]:
        return f"another model, converted from '{theirs.get('source')}'"
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "dtype"):
        if held.get(name) != config.get(name):
            return f"another model: its {name} is {held.get(name)!r}"
    if theirs.get("original_architectures") != ours.get("original_architectures"):
        return f"another model: its original class is {theirs.get('original_architectures')!r}"
    if ("quantization" in held) != ("quantization" in config):
        form = "a quantized" if "quantization" in held else "an unquantized"
        return f"{form} model, and this one is not: another model"
    if precision_suffix(held) != precision_suffix(config):
        return f"another model, in {precision_suffix(held)}"
    if _trained_for(theirs) != _trained_for(ours):
        return f"another model: its trained head is {trained_head(theirs) or 'none'!r}, of another task"
    return None


def _trained_for(block: dict[str, Any]) -> tuple[Any, ...]:
    """What a trained head tells apart; how it was trained does not make another of it."""
    head = block.get("head")
    arguments = head.get("arguments") if isinstance(head, dict) else None
    arguments = arguments if isinstance(arguments, dict) else {}
    return trained_head(block), arguments.get("num_outputs"), arguments.get("classes")


def _read_json(api: HfApi, repo_id: str, remote: Remote, name: str) -> dict[str, Any] | None:
    """A small file of the repository; None where it has none, an empty object where it is not one."""
    file = remote.files.get(name)
    if file is None:
        return None
    if file.size > _SMALL:
        return {}
    try:
        path = Path(api.hf_hub_download(repo_id, name, revision=remote.commit))
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    try:
        return read_json(path, PublishError, limit=_SMALL)
    except PublishError:  # nothing that mlxbert wrote
        return {}
