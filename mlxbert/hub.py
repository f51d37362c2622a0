"""Download models from the Hugging Face Hub into its own cache: only the needed files, all of one commit.

The files are compared with the repository's own manifest at every load, from the cache too: otherwise a download that
was interrupted before the comparison would never be compared. This reads the files once, at the speed of SHA-256.

This module imports no HTTP client: `--help` and a local directory must not wait for one.
"""

from __future__ import annotations

import glob
import hashlib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from mlxbert.errors import HubError, MLXBertError, MLXBertWarning, escaped, first_ten, shortened
from mlxbert.files.output_file import NAME, read_manifest
from mlxbert.files.reading import read_bytes, sha256_hex

# huggingface_hub's rules (REPO_ID_REGEX and `validate_repo_id` in utils/_validators.py), without importing it.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".msgpack")
_CHANGED = "changed since it was verified; do not use it, tell its owner, or give an earlier revision"


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository in the Hub's cache.

    Attributes:
        path: their folder, which may hold other files of the same commit.
        revision: the commit's 40 hex digits.
        repo_id: the repository.
    """

    path: Path
    revision: str
    repo_id: str


def is_valid_repo_id(value: object) -> bool:
    """Return whether this can be the id of a repository on the Hub: `name` or `owner/name`."""
    if not isinstance(value, str) or _REPO_ID.fullmatch(value) is None:
        return False
    return "--" not in value and ".." not in value and not value.endswith(".git")


def is_repo_id(text: str) -> bool:
    """Return whether `text` is a Hub id (`bert-base-uncased`, `org/name`) and not a path; the network is not used.

    A path that exists is a path, and so is a text that looks like one: absolute, `./x`, `~/x`, `x/`, `a/b/c`, or the
    name of a weight file.
    """
    return is_valid_repo_id(text) and not text.endswith(_WEIGHT_FILES) and not Path(text).exists()


def snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    select: Callable[[Sequence[str]], Sequence[str]],
    progress: bool = True,
) -> Snapshot:
    """Download the needed files of a repository into the Hub's cache, all of one commit.

    The revision is resolved to a commit once, and every request after that asks for this commit. So a push in the
    meantime cannot mix two versions. With HF_HUB_OFFLINE, or when the Hub cannot be reached, only the cache is used,
    and one logged line says so.

    Cache, endpoint and token are huggingface_hub's own settings (HF_HOME, HF_ENDPOINT, `hf auth login` …). Its
    progress bars are shown on a terminal (HF_HUB_DISABLE_PROGRESS_BARS=0: everywhere).

    Args:
        repo_id: the repository.
        revision: a branch, tag or commit; None: the default branch.
        select: gets the names of all files of the commit (POSIX paths; without the network those that the cache
            knows) and returns those that are needed. Only files that are not in the cache yet are downloaded.
        progress: False: never show progress bars.

    Raises:
        HubError: the files cannot be downloaded; one line with the fix.
    """
    from huggingface_hub import snapshot_download

    from mlxbert.hub_client import (
        FAILURES,
        Subject,
        bounded_answers,
        cached_folder,
        check_token,
        explain,
        is_commit,
        list_files,
    )

    _check_request(repo_id, revision)
    subject = Subject(repo_id, revision, "model")
    check_token()
    try:
        with bounded_answers():
            listing = list_files(repo_id, revision)
    except FAILURES as error:
        raise explain(error, subject) from None  # its text may quote the URL; `__context__` keeps it
    commit = listing.commit
    if not is_commit(commit):
        raise HubError(f"{subject} is at {commit!r} in the cache, which is no commit id: delete it with `hf cache rm`")
    refuse_unsafe_names(listing.names, str(subject), HubError)
    wanted = list(dict.fromkeys(select(listing.names)))
    absent = sorted(set(wanted) - set(listing.names))
    if absent:
        raise HubError(f"{subject} has no such files at revision {commit}:\n{first_ten(absent)}")
    if not wanted:
        raise HubError(f"{subject} holds nothing that is needed; its files are:\n{first_ten(listing.names)}")

    folder = cached_folder(repo_id, commit)
    missing = _not_in(folder, wanted)
    if missing and listing.unreachable is not None:
        raise explain(listing.unreachable, subject, missing=missing)
    if missing:
        try:
            with bounded_answers(), progress_bars(progress), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Not enough free disk space")  # the HubError says it
                # The client takes patterns, and these are names.
                patterns = [glob.escape(name) for name in missing]
                folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=patterns))
        except FAILURES as error:
            missing = _not_in(cached_folder(repo_id, commit), wanted)  # some may be downloaded
            raise explain(error, subject, missing=missing) from None
        missing = _not_in(folder, wanted)
    if missing or folder is None:
        raise HubError(f"{subject} was not downloaded whole; run it again. Missing:\n{first_ten(missing)}")
    return Snapshot(folder, commit, repo_id)


def _check_request(repo_id: str, revision: str | None) -> None:
    if not is_valid_repo_id(repo_id):
        raise HubError(f"{repo_id!r} is not the id of a model on the Hub: it should read like 'bert-base-uncased'")
    # The client names a file of its cache after the revision; git allows none of these.
    if revision is not None and (not revision.strip("/") or revision.startswith("/") or ".." in revision):
        raise HubError(f"{revision!r} is not a revision: give a branch, a tag or a commit of model '{repo_id}'")


def refuse_unsafe_names(names: Iterable[str], subject: str, error: type[MLXBertError]) -> None:
    """Refuse a listing with a name that leads out of its folder, occurs twice, or controls a terminal.

    Git creates no such name; an attacker may.

    Raises:
        error: a name is absolute, has `..`, a backslash or a control character in it, or occurs twice.
    """
    known = set()
    for name in names:
        anchored = PurePosixPath(name).root or PureWindowsPath(name).drive
        shown = f"{shortened(name)!r}: do not trust it, nothing was read"
        if anchored or not name or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise error(f"{subject} lists a file outside of itself, {shown}")
        if escaped(name) != name or "\n" in name or len(name) > 4096:
            raise error(f"{subject} lists a name that no file has, {shown}")
        if name in known:
            raise error(f"{subject} lists a name twice, {shown}")
        known.add(name)


def _not_in(folder: Path | None, names: Sequence[str]) -> list[str]:
    return [name for name in names if folder is None or not (folder / name).is_file()]


@contextmanager
def progress_bars(wanted: bool) -> Iterator[None]:
    """Switch the client's progress bars off where they are not wanted or would fill a log file."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    forced = constants.HF_HUB_DISABLE_PROGRESS_BARS is False  # the client would warn if they were switched off then
    if forced or (wanted and sys.stderr.isatty()):
        yield
    else:
        with disable_progress_bars():
            yield


def check_snapshot(cached: Snapshot, needed: Callable[[Sequence[str]], Sequence[str]]) -> None:
    """Compare the files of a snapshot that `needed` selects with its manifest.json; warn if it has none.

    A file that differs from what the Hub announced was damaged in the download or in the cache: it is deleted from the
    cache, so that the next attempt downloads it again. A manifest is not signed: whoever may write to the repository
    can change it together with the files.

    Raises:
        HubError: a file differs, is missing, or was added.
    """
    records = read_manifest(cached.path)
    if records is None:
        if (cached.path / NAME).exists():
            raise HubError(f"model '{cached.repo_id}' has a {NAME} that is not readable: {_CHANGED}")
        message = f"model '{cached.repo_id}' has no {NAME}: its files are loaded unchecked"
        warnings.warn(message, MLXBertWarning, stacklevel=4)
        return
    present = [path.relative_to(cached.path).as_posix() for path in cached.path.rglob("*") if path.is_file()]
    damaged, changed = [], []
    for name in needed(list(dict.fromkeys([*present, *records]))):
        file, record = cached.path / name, records.get(name)
        if name == NAME:
            continue
        if record is None:
            changed.append(f"{name}: not in the manifest")
        elif not file.is_file():
            changed.append(f"{name}: missing")
        elif sha256_hex(file, HubError) != record.sha256:
            if _is_as_announced(file):
                changed.append(f"{name}: SHA-256 differs from the manifest's")
            else:
                _delete_from_cache(file)
                damaged.append(name)
    if damaged:
        raise HubError(
            f"model '{cached.repo_id}' was damaged on its way or in the cache; run it again, it is fetched anew\n"
            + first_ten(damaged)
        )
    if changed:
        raise HubError(
            f"model '{cached.repo_id}' at {cached.revision} is not what its {NAME} says: {_CHANGED}\n"
            + first_ten(changed)
        )


def _is_as_announced(file: Path) -> bool:
    """Return whether a cached file is what the Hub announced: the cache names it by SHA-256 or git's object id."""
    if not file.is_symlink():  # without links, the hash is unknown
        return True
    announced = file.resolve().name
    if len(announced) == 64:
        return sha256_hex(file, HubError) == announced
    if len(announced) == 40:
        return git_blob_id(read_bytes(file, HubError) or b"") == announced
    return True


def git_blob_id(content: bytes) -> str:
    """Return the object id that git, and so the Hub, gives to a small file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _delete_from_cache(file: Path) -> None:
    blob = file.resolve()
    try:
        file.unlink()
        blob.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(
            f"{blob} is damaged and cannot be removed ({error.strerror}): delete it, then run it again"
        ) from None
