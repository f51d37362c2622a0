"""What must never be published, or copied into a model: keys, tokens, paths of this machine, and what is no file.

Every file is searched, vocabularies too: each format is exact (a prefix and the length and letters that its issuer
uses), so that no word of a vocabulary is taken for one.

A card checked before anything is sent, offline: the Hub's own client reads it, and the Hub's rules are applied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from converter.card.source_card import front_matter_problems
from mlxbert.errors import MLXBertError, first_ten
from mlxbert.files.reading import open_regular, read_bytes


class LeakError(MLXBertError):
    """A directory that must not be published, or a source that must not be copied, as it is."""


# What it is, how each of its kind begins (a search for that alone is many times as fast), and its whole format.
_SECRETS = (
    ("a private key", "-----BEGIN ", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"),
    ("a private key", "PuTTY-User-Key-File", r"PuTTY-User-Key-File-\d"),
    ("a private key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{50,}"),
    ("a Hugging Face token", "hf_", r"\bhf_[A-Za-z0-9]{20,}"),
    ("a Hugging Face token", "api_org_", r"\bapi_org_[A-Za-z0-9]{20,}"),
    *(("a GitHub token", f"gh{kind}_", rf"\bgh{kind}_[A-Za-z0-9]{{20,}}") for kind in "pousr"),
    ("a GitHub token", "github_pat_", r"\bgithub_pat_\w{20,}"),
    ("a GitLab token", "glpat-", r"\bglpat-[\w-]{20,}"),
    ("a Slack token", "xox", r"\bxox[abeoprs]-[\w-]{20,}"),
    ("a Slack token", "xapp-", r"\bxapp-\d-[\w-]{20,}"),
    ("an API key", "sk-", r"\bsk-(?:(?:proj|ant|svcacct|or-v1)-[\w-]{20,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{20,})"),
    *(("an API key", f"{kind}k_live_", rf"\b{kind}k_live_[A-Za-z0-9]{{20,}}") for kind in "rs"),
    ("a cloud key", "AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
    ("a cloud key", "ASIA", r"\bASIA[0-9A-Z]{16}\b"),
    ("a cloud key", "AIza", r"\bAIza[\w-]{35}"),
    ("a cloud key", "AccountKey=", r"\bAccountKey=[A-Za-z0-9+/]{40,}"),
    ("a cloud key", "aws_secret_access_key", r"aws_secret_access_key[\s\"':=]+[A-Za-z0-9+/]{40}"),
    ("an npm token", "npm_", r"\bnpm_[A-Za-z0-9]{36}"),
    ("a PyPI token", "pypi-", r"\bpypi-[\w-]{50,}"),
    ("a SendGrid key", "SG.", r"\bSG\.[\w-]{22}\.[\w-]{43}"),
    ("a signed token (JWT)", "eyJ", r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    ("a token", "Bearer ", r"\bBearer [\w.~+/-]{12,}"),
    ("a Kaggle key", '"key', r'"key\\?"\s*:\s*\\?"[0-9a-f]{32}\\?"'),
    ("a password", "machine", r"machine\s+[\w-]+\.\S+\s+login\s+\S+\s+password\s+\S+"),
    ("a password", "://", r"://[^\s/:@\"']+:[^\s/@\"']+@[\w.-]+"),
)
_PATTERNS = tuple((what, beginning, re.compile(pattern)) for what, beginning, pattern in _SECRETS)
# The user's name is in it, whoever it is.
_PATH = re.compile(
    r"(?:file://|(?<![\w./:]))"
    r"/(?:home|Users|root|mnt|tmp|var|private|Volumes|workspace|data|content|kaggle)/[^\s\"'`)]+"
    r"|\b[A-Za-z]:[\\/]+Users[\\/]+[^\s\"'`)]+"
)
# Words in somebody else's order, no place for a path: what looks like one is a word.
_NO_PATHS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "model.safetensors.index.json")
_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])')
_HEADER_BYTES = 100 << 20


def secrets_in(text: str, *, token: str | None = None) -> list[str]:
    """Return what kinds of keys and tokens are in `text`, none twice, without quoting one.

    Args:
        text: of a file.
        token: the one that is in use.
    """
    # Written as UTF-16, each letter has a zero beside it.
    text = text.replace("\0", "")
    found = [
        what
        for what, beginning, pattern in _PATTERNS
        if any(pattern.match(text, place) for place in _places(text, beginning))
    ]
    if token and token in text and not found:
        found.append("the token that is in use")
    return list(dict.fromkeys(found))


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def leaks(text: str, *, token: str | None = None, home: Path | None = None) -> list[str]:
    """Return what is in `text` that must not be, one line each, without quoting a secret.

    Args:
        text: of a file that is to be published.
        token: the one that is in use.
        home: the user's own directory; None: asked of the system.
    """
    paths = [match[0] for match in _PATH.finditer(text)]
    own = str(home or Path.home())
    if own not in ("/", "") and own in text and not paths:
        paths.append(own)
    return secrets_in(text, token=token) + [f"a path of this machine, {path!r}" for path in dict.fromkeys(paths)]


def refuse_leaks(directory: Path, names: Iterable[str], *, token: str | None = None) -> None:
    """Make sure that files may be published.

    Raises:
        LeakError: one is a link or lies behind one, is no regular file, or holds a secret or a path of this machine.
    """
    names = list(names)
    if linked := [line for name in names if (line := _link(directory, name)) is not None]:
        raise LeakError(
            f"{directory}: links are not published, for they may lead to private files; fix: replace each by the file "
            f"itself, if that is meant\n{first_ten(linked)}"
        )
    found = []
    for name in names:
        text = _text(directory / name)
        has_paths = name.endswith((".json", ".txt", ".md")) and name not in _NO_PATHS
        what = leaks(text, token=token) if has_paths else secrets_in(text, token=token)
        found += [f"{name}: {one}" for one in what]
    if found:
        raise LeakError(
            f"{directory}: must not be published; fix: convert again from a source without\n{first_ten(found)}"
        )


def refuse_secrets(files: Mapping[str, Path], config: Mapping[str, Any], source: object) -> None:
    """Make sure that nothing of a source that goes into a model as it is holds a key or a token.

    Args:
        files: name -> the source's file.
        config: the model's configuration.
        source: what messages call the source.

    Raises:
        LeakError: one does.
    """
    texts = {**{name: _text(path) for name, path in files.items()}, "config.json": json.dumps(config)}
    if found := [f"{name}: {what}" for name, text in texts.items() for what in secrets_in(text)]:
        raise LeakError(
            f"{source}: secrets would be copied into the model; fix: take them out of the source\n{first_ten(found)}"
        )


def _link(directory: Path, name: str) -> str | None:
    """The first link on the way to a file, and where it leads."""
    path = directory
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            return f"{path.relative_to(directory)} -> {path.readlink()}"
    return None


def _text(path: Path) -> str:
    """The text of a file: all of it, of a .safetensors its header; bytes that are no text do no harm to the search."""
    if path.suffix == ".safetensors":
        file = open_regular(path, LeakError)
        if file is None:
            return ""
        with file:
            size = int.from_bytes(file.read(8), "little")
            data = file.read(min(size, _HEADER_BYTES))
    else:
        data = read_bytes(path, LeakError) or b""
    text = data.decode("utf-8", "replace")
    # JSON may write any letter as an escape, and a line's end always is: what a reader of the file sees counts too.
    return f"{text}\n{_ESCAPE.sub(_unescaped, text)}" if "\\" in text else text


def _unescaped(escape: re.Match[str]) -> str:
    return str(json.loads(f'"{escape[0]}"'))


def lint_card(card: str, *, token: str | None = None) -> list[str]:
    """What the Hub would refuse of a README.md, and what must not be in one; one line each, none when all is well."""
    from huggingface_hub import ModelCard, ModelCardData
    from yaml import YAMLError

    try:
        data = ModelCard(card).data
    except (ValueError, TypeError, YAMLError) as error:
        return [f"the front matter is not valid YAML ({type(error).__name__}: {str(error).splitlines()[0]})"]
    fields = {name: value for name, value in data.to_dict().items() if value is not None}
    problems = front_matter_problems(fields)
    if not fields:
        problems.append("there is no front matter")
    # What the Hub's client makes of it must be what was meant.
    if not problems and ModelCardData(**fields).to_dict() != data.to_dict():
        problems.append("the front matter does not survive huggingface_hub's ModelCardData")
    return problems + leaks(card, token=token)
