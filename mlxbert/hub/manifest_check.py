"""Are the files that came from the Hub those that were verified? Compared with the repository's own manifest.

It is checked at every load, from the cache too: a download that was interrupted before the comparison would never be
compared otherwise. It costs one reading of the files, at the speed of SHA-256.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mlxbert.errors import MLXBertWarning, first_ten
from mlxbert.files.manifest import NAME, read_manifest
from mlxbert.files.reading import read_bytes, sha256_hex
from mlxbert.hub import HubError, Snapshot


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
