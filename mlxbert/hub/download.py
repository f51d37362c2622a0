"""Models on the Hugging Face Hub: only the files that are needed, all of one commit, in the Hub's own cache.

Are the files that came from the Hub those that were verified? Compared with the repository's own manifest.

It is checked at every load, from the cache too: a download that was interrupted before the comparison would never be
compared otherwise. It costs one reading of the files, at the speed of SHA-256.
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

from mlxbert.errors import MLXBertError, MLXBertWarning, escaped, first_ten, shortened
from mlxbert.files.output_file import NAME, read_manifest
from mlxbert.files.reading import read_bytes, sha256_hex

# huggingface_hub's REPO_ID_REGEX and the rules beside it (utils/_validators.py), without importing it for a
# local path.
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".msgpack")


class HubError(MLXBertError):
    """The Hub, or the way to it, did not give what was asked for; the message says what to do, and no token."""


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, where they lie in the Hub's cache.

    `path` may hold other files of the same commit too (what somebody else downloaded).
    """

    path: Path
    revision: str  # the commit's 40 hex digits
    repo_id: str


def is_repo_id(text: str) -> bool:
    """Whether `text` is a Hub id (`bert-base-uncased`, `org/name`) and not a path.

    A path that exists is a path, and so is what looks like one: absolute, `./x`, `~/x`, `x/`, `a/b/c`, or the
    name of a weight file. Nothing is asked of the Hub.
    """
    valid = _REPO_ID.fullmatch(text) is not None and "--" not in text and ".." not in text
    if not valid or text.endswith((".git", *_WEIGHT_FILES)):
        return False
    return not Path(text).exists()


def snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    select: Callable[[Sequence[str]], Sequence[str]],
    progress: bool = True,
    what: str = "model",
) -> Snapshot:
    """Have the needed files of a repository in the Hub's cache, all of one commit, and say where.

    The revision (branch, tag, commit; None: the default branch) is resolved once, and everything after asks
    for that commit, so a push in the meantime cannot mix two versions. `select` gets the names of all files
    in it (POSIX paths) and returns those that are needed; only those not in the cache yet are downloaded.
    With HF_HUB_OFFLINE, or when the Hub cannot be reached, the cache alone is used, and one logged line says
    so; `select` then gets the cached list of names or, where none was kept, the names of the cached files.

    Cache, endpoint and token are huggingface_hub's own settings (HF_HOME, HF_ENDPOINT, `hf auth login` …).
    Its progress bars are shown on a terminal (HF_HUB_DISABLE_PROGRESS_BARS=0: everywhere); `progress=False`
    shows none. `what` is what error messages call the repository.

    Raises HubError; what `select` raises passes through.
    """
    # Here and not above: a command's --help, or a local directory, should not wait for an HTTP client to be
    # imported.
    from huggingface_hub import snapshot_download

    from mlxbert.hub.errors import (
        FAILURES,
        Subject,
        bounded_answers,
        cached_folder,
        check_token,
        explain,
        is_commit,
        list_files,
    )

    _check_request(repo_id, revision, what)
    subject = Subject(repo_id, revision, what)
    check_token()
    try:
        with bounded_answers():
            listing = list_files(repo_id, revision)
    except FAILURES as error:
        raise explain(error, subject) from None  # its text may quote the URL; __context__ keeps it for debuggers
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
                warnings.filterwarnings("ignore", "Not enough free disk space")  # our error says so, once
                # The names are literal; the client takes patterns.
                patterns = [glob.escape(name) for name in missing]
                folder = Path(snapshot_download(repo_id, revision=commit, allow_patterns=patterns))
        except FAILURES as error:
            missing = _not_in(cached_folder(repo_id, commit), wanted)  # some may have come
            raise explain(error, subject, missing=missing) from None
        missing = _not_in(folder, wanted)
    if missing or folder is None:
        raise HubError(f"{subject} was not downloaded whole; run it again. Missing:\n{first_ten(missing)}")
    return Snapshot(folder, commit, repo_id)


def _check_request(repo_id: str, revision: str | None, what: str) -> None:
    if _REPO_ID.fullmatch(repo_id) is None or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise HubError(f"{repo_id!r} is not the id of a {what} on the Hub: it should read like 'bert-base-uncased'")
    # The client makes a file of the revision's name in its cache; git allows none of these in one.
    if revision is not None and (not revision.strip("/") or revision.startswith("/") or ".." in revision):
        raise HubError(f"{revision!r} is not a revision: give a branch, a tag or a commit of {what} '{repo_id}'")


def refuse_unsafe_names(names: Iterable[str], subject: str, error: type[MLXBertError]) -> None:
    """Refuse a listing with a name that leads out of its folder, says two things, or steers a terminal.

    Git makes no such name, an attacker may.

    Raises:
        error: a name that is absolute, has `..`, a backslash or a control character in it, or comes twice.
    """
    seen = set()
    for name in names:
        anchored = PurePosixPath(name).root or PureWindowsPath(name).drive
        shown = f"{shortened(name)!r}: do not trust it, nothing was read"
        if anchored or not name or "\\" in name or "\0" in name or ".." in name.split("/"):
            raise error(f"{subject} lists a file outside of itself, {shown}")
        if escaped(name) != name or "\n" in name or len(name) > 4096:
            raise error(f"{subject} lists a name that no file has, {shown}")
        if name in seen:
            raise error(f"{subject} lists a name twice, {shown}")
        seen.add(name)


def _not_in(folder: Path | None, names: Sequence[str]) -> list[str]:
    return [name for name in names if folder is None or not (folder / name).is_file()]


@contextmanager
def progress_bars(wanted: bool) -> Iterator[None]:
    """Silence the client's bars where they are not wanted or would fill a log file."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    forced = constants.HF_HUB_DISABLE_PROGRESS_BARS is False  # then the client warns at an attempt to silence it
    if forced or (wanted and sys.stderr.isatty()):
        yield
    else:
        with disable_progress_bars():
            yield


def check_snapshot(found: Snapshot, needed: Callable[[Sequence[str]], Sequence[str]]) -> None:
    """Compare the files of `found` that `needed` picks with its manifest.json; warn where it has none.

    A file that is not what the Hub itself said it sends was damaged on the way, or in the cache: it is taken out of
    the cache, so that the next attempt fetches it anew. Nobody signs a manifest: whoever may write to the repository
    can change it together with the files.

    Raises:
        HubError: a file differs, is missing, or was added.
    """
    records = read_manifest(found.path)
    if records is None:
        if (found.path / NAME).exists():
            raise HubError(f"model '{found.repo_id}' has a {NAME} that is not readable: {_CHANGED}")
        message = f"model '{found.repo_id}' has no {NAME}: its files are loaded unchecked"
        warnings.warn(message, MLXBertWarning, stacklevel=4)
        return
    present = [path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()]
    damaged, changed = [], []
    for name in needed(list(dict.fromkeys([*present, *records]))):
        file, record = found.path / name, records.get(name)
        if name == NAME:
            continue
        if record is None:
            changed.append(f"{name}: not in the manifest")
        elif not file.is_file():
            changed.append(f"{name}: missing")
        elif sha256_hex(file, HubError) != record.sha256:
            if _arrived_whole(file):
                changed.append(f"{name}: SHA-256 differs from the manifest's")
            else:
                _forget(file)
                damaged.append(name)
    if damaged:
        raise HubError(
            f"model '{found.repo_id}' was damaged on its way or in the cache; run it again, it is fetched anew\n"
            + first_ten(damaged)
        )
    if changed:
        raise HubError(
            f"model '{found.repo_id}' at {found.revision} is not what its {NAME} says: {_CHANGED}\n"
            + first_ten(changed)
        )


_CHANGED = "changed since it was verified; do not use it, tell its owner, or give an earlier revision"


def _arrived_whole(file: Path) -> bool:
    """Whether it is what the Hub said it sends: the cache names a file after that, by SHA-256 or git's object id."""
    if not file.is_symlink():  # a file system without links: nothing tells
        return True
    said = file.resolve().name
    if len(said) == 64:
        return sha256_hex(file, HubError) == said
    if len(said) == 40:
        content = read_bytes(file, HubError) or b""
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == said
    return True


def _forget(file: Path) -> None:
    blob = file.resolve()
    try:
        file.unlink()
        blob.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(
            f"{blob} is damaged and cannot be removed ({error.strerror}): delete it, then run it again"
        ) from None
