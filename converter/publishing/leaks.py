"""What must never be published: a token, a key, a path of this machine."""

from __future__ import annotations

import re
from pathlib import Path

_SECRETS = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a token": re.compile(r"\bBearer [\w.~+/-]{12,}|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abp]-|sk-)[\w-]{20,}"),
    "a cloud key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
# The user's name is in it, whoever it is.
_PATH = re.compile(
    r"(?:file://|(?<![\w./:]))"
    r"/(?:home|Users|root|mnt|tmp|var|private|Volumes|workspace|data|content|kaggle)/[^\s\"'`)]+"
    r"|\b[A-Za-z]:[\\/]+Users[\\/]+[^\s\"'`)]+"
)


def leaks(text: str, *, token: str | None = None, home: Path | None = None) -> list[str]:
    """What is in `text` that must not be, one line each, without quoting a secret.

    Args:
        text: of a file that is to be published.
        token: the one that is in use.
        home: the user's own directory; None: asked of the system.
    """
    found = [what for what, pattern in _SECRETS.items() if pattern.search(text)]
    if token and token in text and not found:
        found.append("the token that is in use")
    paths = [match[0] for match in _PATH.finditer(text)]
    own = str(home or Path.home())
    if own not in ("/", "") and own in text and not paths:
        paths.append(own)
    return found + [f"a path of this machine, {path!r}" for path in dict.fromkeys(paths)]
