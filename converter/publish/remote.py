"""Under which name a model is published: mlx-community's habit for the default, the Hub's rules for any.

What a repository on the Hub holds, as far as a push has to know.

Pull requests that are open already: the same files twice would be two of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from converter.canonical import DTYPE_SUFFIXES
from converter.card.facts import trained_head
from converter.card.source_card import is_repo_id
from converter.publish.errors import FAILURES, PublishError, explain_push, retried
from mlxbert.files.output_file import NAME, FileRecord
from mlxbert.files.reading import read_bytes, read_json
from mlxbert.hub.download import refuse_unsafe_names
from mlxbert.hub.errors import NotAHubError, clean, is_commit

DEFAULT_NAMESPACE = "mlx-community"


def precision_suffix(config: dict[str, Any], bits_per_weight: float | None = None) -> str:
    """What a name ends in: `fp32`, `fp16`, `bf16`, `4bit`, `mxfp4`, `nvfp4`; `mixed-4.6bit` where widths differ.

    Args:
        config: the converted `config.json`, with mlx's "quantization" where it is quantized.
        bits_per_weight: over the whole model, for the name of a mixed one.
    """
    quantization = config.get("quantization")
    if not isinstance(quantization, dict):
        return DTYPE_SUFFIXES.get(str(config.get("dtype")), str(config.get("dtype")))
    layers = [layer for layer in quantization.values() if isinstance(layer, dict)]
    own = {(str(layer.get("bits")), str(layer.get("mode", "affine"))) for layer in layers}
    bits, mode = str(quantization.get("bits")), str(quantization.get("mode", "affine"))
    if own - {(bits, mode)}:
        return f"mixed-{bits_per_weight:.1f}bit" if bits_per_weight else "mixed"
    return f"{bits}bit" if mode == "affine" else mode


def default_repo_id(config: dict[str, Any], directory_name: str, bits_per_weight: float | None = None) -> str:
    """`mlx-community/NAME-SUFFIX`: NAME is the Hub source's own, or the directory's where the source was local.

    Raises:
        PublishError: the model has a head that was trained here, or NAME breaks the Hub's rules.
    """
    block = config["mlxbert"]
    name = block["source"].rpartition("/")[2] if block["revision"] else directory_name
    if (head := trained_head(block)) is not None:  # named after its source, it would take that one's place
        raise PublishError(
            f"{directory_name}: a model with a head that was trained here has no default name; "
            f"fix: --to YOUR_NAME/{name}-{head}, or another"
        )
    suffix = precision_suffix(config, bits_per_weight)
    return check_repo_id(f"{DEFAULT_NAMESPACE}/{name.removesuffix(f'-{suffix}')}-{suffix}")


def check_repo_id(repo_id: str) -> str:
    """The id as it is, if the Hub takes it for a new repository.

    Raises:
        PublishError: it does not, and why.
    """
    if repo_id.count("/") != 1:
        raise PublishError(f"{repo_id!r} does not say whose it is: give OWNER/NAME, such as mlx-community/NAME")
    if not is_repo_id(repo_id):
        raise PublishError(
            f"{repo_id!r} breaks the Hub's rules for names: letters, digits, '-', '_' and '.', at most 96 of them, "
            "neither '--' nor '..', no '-' or '.' at either end, not ending in .git; choose another with --to"
        )
    return repo_id


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
