"""The repository on the Hub: its name, its content, and the meaning of failed requests.

No message has a token in it: texts of the client and of a server are shown only through `clean`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from converter.canonical import DTYPE_SUFFIXES
from converter.card.facts import trained_head
from converter.publish.leaks import PublishError
from mlxbert.files.output_file import NAME, FileRecord
from mlxbert.files.reading import read_bytes, read_json
from mlxbert.hub import git_blob_id, is_valid_repo_id, refuse_unsafe_names
from mlxbert.hub_client import (
    FAILURES,
    MALFORMED,
    NotAHubError,
    Subject,
    clean,
    endpoint,
    explain,
    host_name,
    is_commit,
    is_malformed,
    token_source,
)

DEFAULT_NAMESPACE = "mlx-community"
ATTEMPTS = 3
# Bytes of the largest JSON file that is read from a repository.
_MAX_JSON_BYTES = 4 << 20
# Open pull requests that are compared, newest first; each costs a listing.
_MAX_PULL_REQUESTS = 20
# How `mlxbert.hub_client` ends its message about a dropped connection, and how that message ends for a push.
_READ = "was read: run it again, whole files are kept"
_WRITTEN = "was written: push again, what has arrived is not sent twice"
# hf_xet has one class for all error responses; its text has the status.
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})[^)]*\), domain: https?://([^/\s]+)")

Answer = TypeVar("Answer")


# Names


def precision_suffix(config: dict[str, Any], bits_per_weight: float | None = None) -> str:
    """Return the end of a name: `fp32`, `fp16`, `bf16`, `4bit`, `mxfp4`, `nvfp4`; `mixed-4.6bit` if widths differ.

    Args:
        config: the converted `config.json`, with MLX's "quantization" if the model is quantized.
        bits_per_weight: of the whole model, for the name of a mixed one.
    """
    quantization = config.get("quantization")
    if not isinstance(quantization, dict):
        return DTYPE_SUFFIXES.get(str(config.get("dtype")), str(config.get("dtype")))
    layers = [layer for layer in quantization.values() if isinstance(layer, dict)]
    layer_forms = {(str(layer.get("bits")), str(layer.get("mode", "affine"))) for layer in layers}
    bits, mode = str(quantization.get("bits")), str(quantization.get("mode", "affine"))
    if layer_forms - {(bits, mode)}:
        return f"mixed-{bits_per_weight:.1f}bit" if bits_per_weight else "mixed"
    return f"{bits}bit" if mode == "affine" else mode


def default_repo_id(config: dict[str, Any], directory_name: str, bits_per_weight: float | None = None) -> str:
    """Return `mlx-community/NAME-SUFFIX`; NAME is that of the source on the Hub, or of the directory.

    Raises:
        PublishError: the model has a head that was trained here, or NAME breaks the Hub's rules.
    """
    block = config["mlxbert"]
    name = block["source"].rpartition("/")[2] if block["revision"] else directory_name
    if (head := trained_head(block)) is not None:  # with its source's name, it would replace the source's conversion
        raise PublishError(
            f"{directory_name}: a model with a head that was trained here has no default name; "
            f"fix: --to YOUR_NAME/{name}-{head}, or another"
        )
    suffix = precision_suffix(config, bits_per_weight)
    return check_repo_id(f"{DEFAULT_NAMESPACE}/{name.removesuffix(f'-{suffix}')}-{suffix}")


def check_repo_id(repo_id: str) -> str:
    """Return the id unchanged if the Hub accepts it for a new repository.

    Raises:
        PublishError: the Hub does not; the message says why.
    """
    if repo_id.count("/") != 1:
        raise PublishError(f"{repo_id!r} does not say whose it is: give OWNER/NAME, such as mlx-community/NAME")
    if not is_valid_repo_id(repo_id):
        raise PublishError(
            f"{repo_id!r} breaks the Hub's rules for names: letters, digits, '-', '_' and '.', at most 96 of them, "
            "neither '--' nor '..', no '-' or '.' at either end, not ending in .git; choose another with --to"
        )
    return repo_id


# Content of the repository


@dataclass(frozen=True)
class CheckedFile:
    """A local file with the record that it was checked against; exactly this content must arrive."""

    path: Path
    record: FileRecord


Files = Mapping[str, bytes | CheckedFile]
"""Files to send: the name in the repository -> the content, or a file of the directory."""


@dataclass(frozen=True)
class RemoteFile:
    """One file as the Hub lists it: with the SHA-256 of a large one, or git's object id of any other."""

    size: int
    sha256: str | None
    blob_id: str

    def holds(self, data: bytes | CheckedFile) -> bool:
        """Return whether the content is `data`, or that of the checked local file."""
        record = FileRecord.of(data) if isinstance(data, bytes) else data.record
        if record.size != self.size:
            return False
        if self.sha256 is not None:
            return record.sha256 == self.sha256
        # Git's object id cannot be computed from a SHA-256, so the file is read again.
        content = data if isinstance(data, bytes) else read_bytes(data.path, PublishError, limit=record.size)
        return content is not None and FileRecord.of(content) == record and git_blob_id(content) == self.blob_id


@dataclass(frozen=True)
class Remote:
    """A branch of a repository.

    Attributes:
        commit: its newest commit, or that of `main` if the branch does not exist; None: there is no repository.
        exists: whether the branch exists.
        private: whether the repository is; None: the Hub does not say.
        files: by name.
    """

    commit: str | None = None
    exists: bool = False
    private: bool | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)

    def holds(self, files: Files) -> bool:
        """Return whether every one of these files is there with the same content."""
        return all(name in self.files and self.files[name].holds(data) for name, data in files.items())


def look_at(api: HfApi, repo_id: str, revision: str | None) -> Remote:
    """Return the newest commit of a branch and the files of that commit.

    Raises:
        PublishError: the Hub cannot be asked, or refuses.
    """
    try:
        try:
            info, exists = retried(lambda: api.model_info(repo_id, revision=revision)), True
        except RevisionNotFoundError:
            info, exists = retried(lambda: api.model_info(repo_id)), False
        if not is_commit(info.sha) or not isinstance(info.private, bool | None):
            raise NotAHubError("no commit in the answer to what a repository is")
        tree = retried(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=info.sha)))
        listing = [(item.path, _remote_file(item)) for item in tree if isinstance(item, RepoFile)]
    except RepositoryNotFoundError:
        return Remote()
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    refuse_unsafe_names((name for name, _ in listing), f"'{repo_id}'", PublishError)
    return Remote(info.sha, exists, info.private, dict(listing))


def _remote_file(item: RepoFile) -> RemoteFile:
    """Return one file of a listing.

    Raises:
        NotAHubError: a value is of another type.
    """
    sha256 = item.lfs.sha256 if item.lfs else None
    is_file = isinstance(item.size, int) and isinstance(item.path, str) and isinstance(item.blob_id, str)
    if not is_file or not isinstance(sha256, str | None):
        raise NotAHubError("a file without name, size or hash")
    return RemoteFile(item.size, sha256, item.blob_id)


def refuse_another_model(api: HfApi, repo_id: str, remote: Remote, config: dict[str, Any]) -> frozenset[str]:
    """Check that the repository holds this model or none, and return the names that its manifest lists.

    The same model: converted by mlxbert from the same source and class, of the same sizes, in the same precision, and
    with the same trained head. Another revision of the source or another report still means the same model.

    Raises:
        PublishError: the repository holds another model, or one that mlxbert did not convert.
    """
    remote_config = _read_remote_json(api, repo_id, remote, "config.json")
    weights = [name for name in remote.files if name.endswith((".safetensors", ".bin", ".npz", ".h5", ".gguf"))]
    fix = "choose another name with --to"
    if remote_config is None:
        if weights:
            raise PublishError(f"'{repo_id}' holds {weights[0]} of another model; {fix}")
        return frozenset()
    if not isinstance(remote_config.get("mlxbert"), dict):
        raise PublishError(f"'{repo_id}' holds a model that mlxbert did not convert; {fix}")
    if (difference := _difference(remote_config, config)) is not None:
        raise PublishError(f"'{repo_id}' holds {clean(difference)}; {fix}")
    manifest = _read_remote_json(api, repo_id, remote, NAME) or {}
    listed = manifest.get("files")
    return frozenset(listed) if isinstance(listed, dict) else frozenset()


def _difference(remote_config: dict[str, Any], config: dict[str, Any]) -> str | None:
    """Return why the repository's model is another one than ours; None: it is the same."""
    theirs, ours = remote_config["mlxbert"], config["mlxbert"]
    if theirs.get("source") != ours["source"]:
        return f"another model, converted from '{theirs.get('source')}'"
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "dtype"):
        if remote_config.get(name) != config.get(name):
            return f"another model: its {name} is {remote_config.get(name)!r}"
    if theirs.get("original_architectures") != ours.get("original_architectures"):
        return f"another model: its original class is {theirs.get('original_architectures')!r}"
    if ("quantization" in remote_config) != ("quantization" in config):
        form = "a quantized" if "quantization" in remote_config else "an unquantized"
        return f"{form} model, and this one is not: another model"
    if precision_suffix(remote_config) != precision_suffix(config):
        return f"another model, in {precision_suffix(remote_config)}"
    if _trained_task(theirs) != _trained_task(ours):
        return f"another model: its trained head is {trained_head(theirs) or 'none'!r}, of another task"
    return None


def _trained_task(block: dict[str, Any]) -> tuple[Any, ...]:
    """Return the meaning of a trained head's outputs; its other settings may differ for the same model."""
    head = block.get("head")
    arguments = head.get("arguments") if isinstance(head, dict) else None
    arguments = arguments if isinstance(arguments, dict) else {}
    return trained_head(block), arguments.get("num_outputs"), arguments.get("classes")


def _read_remote_json(api: HfApi, repo_id: str, remote: Remote, name: str) -> dict[str, Any] | None:
    """Return the JSON object in a file of the repository; None if it does not exist, {} if it is something else."""
    file = remote.files.get(name)
    if file is None:
        return None
    if file.size > _MAX_JSON_BYTES:
        return {}
    try:
        path = Path(api.hf_hub_download(repo_id, name, revision=remote.commit))
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    try:
        return read_json(path, PublishError, limit=_MAX_JSON_BYTES)
    except PublishError:  # mlxbert did not write it
        return {}


@dataclass(frozen=True)
class OpenPullRequest:
    """A pull request that holds exactly our files."""

    url: str
    commit: str | None


def find_pull_request(api: HfApi, repo_id: str, author: str, files: Files) -> OpenPullRequest | None:
    """Return the open (or draft) pull request of `author` that holds `files`; None if there is none.

    Raises:
        PublishError: the Hub cannot be asked.
    """
    try:
        requests = [
            request
            for request in api.get_repo_discussions(repo_id, author=author, discussion_type="pull_request")
            if request.status in ("open", "draft") and request.is_pull_request is True and request.author == author
        ]
        if not all(isinstance(request.num, int) and isinstance(request.url, str) for request in requests):
            raise NotAHubError("a pull request without a number")
    except FAILURES as error:
        raise explain_push(error, repo_id) from None
    for request in sorted(requests, key=lambda request: -request.num)[:_MAX_PULL_REQUESTS]:
        remote = look_at(api, repo_id, f"refs/pr/{request.num}")
        if remote.exists and remote.holds(files):
            return OpenPullRequest(clean(request.url), remote.commit)
    return None


# Failed requests


def retried(ask: Callable[[], Answer]) -> Answer:
    """Return the result of `ask`; call it up to three times if the Hub (5xx) or the connection fails.

    Own code, because the client never retries whoami, model_info and create_repo. Only for requests that may be sent
    twice. The last failure is raised.
    """
    for attempt in range(1, ATTEMPTS):
        try:
            return ask()
        except FAILURES as error:
            status = status_of(error)
            if isinstance(error, (*MALFORMED, NotAHubError)) or (status is not None and status < 500):
                raise
        pause(attempt)
    return ask()


def pause(attempt: int) -> None:
    """Wait before the next attempt: one second, then two."""
    time.sleep(attempt)


@dataclass(frozen=True)
class _Answer:
    """An error response of the Hub or of its storage."""

    status: int
    host: str
    text: str

    @property
    def is_from_storage(self) -> bool:
        return self.host != host_name()


def explain_push(error: BaseException, repo_id: str) -> PublishError:
    """Return the PublishError for an error of the client while it read or wrote `repo_id`."""
    error = _innermost(error)
    if isinstance(error, OfflineModeIsEnabled):
        return PublishError(f"HF_HUB_OFFLINE is set: unset it to push to '{repo_id}'")
    if (answer := _answer(error)) is not None:
        return PublishError(_refusal(answer, repo_id))
    if isinstance(error, ValueError) and "Invalid metadata in README.md" in str(error):
        reasons = "; ".join(line.removeprefix("- ") for line in str(error).splitlines()[1:])
        return PublishError(f"{host_name()} refuses the card's metadata: {clean(reasons)}; nothing was sent")
    if isinstance(error, (httpx2.HTTPError, NotAHubError)) or is_malformed(error):
        return PublishError(str(explain(error, Subject(repo_id, None, "repository"))).replace(_READ, _WRITTEN))
    return PublishError(
        f"'{repo_id}': the push failed ({type(error).__name__}): {clean(str(error))[:120]}; fix: push again, "
        "what has arrived is not sent twice"
    )


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that the Hub or its storage answered with; None if neither did."""
    answer = _answer(_innermost(error))
    return None if answer is None else answer.status


def is_transient(error: BaseException) -> bool:
    """Return whether another try may succeed, or the request may have succeeded in spite of the error.

    412 is one of these: the client repeats a commit whose first answer was lost, and the branch has already moved. So
    is a storage's 400: the data were damaged on the way.
    """
    answer = _answer(_innermost(error))
    if answer is None or answer.status >= 500 or answer.status in (409, 412, 429):
        return True
    return answer.status == 400 and answer.is_from_storage


def _answer(error: BaseException) -> _Answer | None:
    if isinstance(error, HfHubHTTPError):
        host = str(error.response.request.url.netloc, "ascii")
        return _Answer(error.response.status_code, host, error.server_message or str(error))
    match = _XET_STATUS.search(str(error)) if isinstance(error, (ConnectionError, RuntimeError)) else None
    return _Answer(int(match[1]), match[2], str(error)) if match else None


def _innermost(error: BaseException) -> BaseException:
    """Return the cause inside the client's "Error while uploading" and "not in the cache" errors."""
    while error.__cause__ is not None and (
        isinstance(error, LocalEntryNotFoundError)
        or (isinstance(error, RuntimeError) and str(error).startswith("Error while uploading"))
    ):
        error = error.__cause__
    return error


def _refusal(answer: _Answer, repo_id: str) -> str:
    """Return the message for an error response."""
    status, host = answer.status, answer.host
    namespace = repo_id.partition("/")[0]
    settings = f"{endpoint()}/settings/tokens"
    if answer.is_from_storage and status == 400:
        return f"{host} found that what arrived for '{repo_id}' is not what was sent (400): push again"
    if answer.is_from_storage and status in (401, 403, 404):
        return f"{host} refused what was uploaded to '{repo_id}' ({status}): push again; then `hf auth login` anew"
    if status == 401:
        return f"{host} does not accept {token_source()} (401): `hf auth login` with a token from {settings}"
    if status == 403:
        return (
            f"{token_source()} may not write to '{repo_id}' (403): give it write access to '{namespace}' at "
            f"{settings}, or push to a name of your own with --to"
        )
    if status == 404:
        return f"'{repo_id}' does not exist on {host}, or your token may not see it: check --to and --revision"
    if status == 409:
        return f"{host} is busy with another change to '{repo_id}' (409): push again"
    if status == 412:
        return moved(repo_id)
    if status == 413:
        return f"{host} finds the upload too large (413): see the limits of your account at {endpoint()}/{repo_id}"
    if status == 429:
        return f"{host} allows no more requests for now (429): wait some minutes, then push again"
    if status >= 500:
        return (
            f"{host} failed ({status}), and again when tried again: push again later, what arrived is not sent twice"
        )
    return f"{host} refused the push to '{repo_id}' ({status}): {clean(answer.text)[:120]}"


def moved(repo_id: str) -> str:
    """Return the message for a push by somebody else in the meantime."""
    return (
        f"'{repo_id}' was pushed to by somebody else meanwhile; nothing of yours was written: look at it, push again"
    )
