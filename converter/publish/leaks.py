"""Find secrets that must not be published or copied into a model: keys, tokens, local paths, links, special files.

Every file is searched, vocabularies too. Each format is exact (a prefix, and the length and letters that its issuer
uses), so that no word of a vocabulary looks like a secret. A card is also checked against the Hub's rules, offline.
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


class PublishError(MLXBertError):
    """The model was not published, or must not be: one line with the fix."""


# Its name, its beginning (searching only for it is many times faster), and its whole format.
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
# A path that contains the user's name.
_PATH = re.compile(
    r"(?:file://|(?<![\w./:]))"
    r"/(?:home|Users|root|mnt|tmp|var|private|Volumes|workspace|data|content|kaggle)/[^\s\"'`)]+"
    r"|\b[A-Za-z]:[\\/]+Users[\\/]+[^\s\"'`)]+"
)
# In these files, a text that looks like a path is a token of a vocabulary.
_NO_PATHS = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "model.safetensors.index.json")
_ESCAPE = re.compile(r'\\(?:u[0-9a-fA-F]{4}|["\\/bfnrt])')
_HEADER_BYTES = 100 << 20


def secrets_in(text: str, *, token: str | None = None) -> list[str]:
    """Return the kinds of keys and tokens in `text`, each once, without quoting a secret.

    Args:
        text: of a file.
        token: the token of the Hub that is in use.
    """
    # In UTF-16, a zero follows each letter.
    text = text.replace("\0", "")
    kinds = [
        what
        for what, beginning, pattern in _PATTERNS
        if any(pattern.match(text, place) for place in _places(text, beginning))
    ]
    if token and token in text and not kinds:
        kinds.append("the token that is in use")
    return list(dict.fromkeys(kinds))


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def leaks(text: str, *, token: str | None = None, home: Path | None = None) -> list[str]:
    """Return the secrets and the paths of this machine in `text`, one line each, without quoting a secret.

    Args:
        text: of a file that will be published.
        token: the token of the Hub that is in use.
        home: the user's home directory; None: that of the system.
    """
    paths = [match[0] for match in _PATH.finditer(text)]
    home_path = str(home or Path.home())
    if home_path not in ("/", "") and home_path in text and not paths:
        paths.append(home_path)
    return secrets_in(text, token=token) + [f"a path of this machine, {path!r}" for path in dict.fromkeys(paths)]


def refuse_leaks(directory: Path, names: Iterable[str], *, token: str | None = None) -> None:
    """Check that files may be published.

    Raises:
        PublishError: a file is a link or lies behind one, is not a regular file, or has a secret or a path of this
            machine in it.
    """
    names = list(names)
    if links := [line for name in names if (line := _link(directory, name)) is not None]:
        raise PublishError(
            f"{directory}: links are not published, for they may lead to private files; fix: replace each by the file "
            f"itself, if that is meant\n{first_ten(links)}"
        )
    problems = []
    for name in names:
        text = _text(directory / name)
        has_paths = name.endswith((".json", ".txt", ".md")) and name not in _NO_PATHS
        kinds = leaks(text, token=token) if has_paths else secrets_in(text, token=token)
        problems += [f"{name}: {kind}" for kind in kinds]
    if problems:
        raise PublishError(
            f"{directory}: must not be published; fix: convert again from a source without\n{first_ten(problems)}"
        )


def refuse_secrets(files: Mapping[str, Path], config: Mapping[str, Any], source: object) -> None:
    """Check that no file of a source that is copied into a model has a key or a token in it.

    Args:
        files: name -> the source's file.
        config: the model's configuration.
        source: its name in messages.

    Raises:
        PublishError: a file has one.
    """
    texts = {**{name: _text(path) for name, path in files.items()}, "config.json": json.dumps(config)}
    if secrets := [f"{name}: {what}" for name, text in texts.items() for what in secrets_in(text)]:
        raise PublishError(
            f"{source}: secrets would be copied into the model; fix: take them out of the source\n{first_ten(secrets)}"
        )


def _link(directory: Path, name: str) -> str | None:
    """Return the first link on the way to a file, and where it leads; None if there is none."""
    path = directory
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            return f"{path.relative_to(directory)} -> {path.readlink()}"
    return None


def _text(path: Path) -> str:
    """Return the text of a file, or of the header of a .safetensors; bytes that are not text are replaced."""
    if path.suffix == ".safetensors":
        file = open_regular(path, PublishError)
        if file is None:
            return ""
        with file:
            size = int.from_bytes(file.read(8), "little")
            data = file.read(min(size, _HEADER_BYTES))
    else:
        data = read_bytes(path, PublishError) or b""
    text = data.decode("utf-8", "replace")
    # JSON may write any letter as an escape, so the text that a reader of the JSON gets is searched too.
    return f"{text}\n{_ESCAPE.sub(_unescaped, text)}" if "\\" in text else text


def _unescaped(escape: re.Match[str]) -> str:
    return str(json.loads(f'"{escape[0]}"'))


def lint_card(card: str, *, token: str | None = None) -> list[str]:
    """Return the problems of a README.md: values that the Hub would refuse, and secrets; one line each.

    This runs offline, for a dry run too; when the card is sent, huggingface_hub asks the Hub itself (validate-yaml).
    """
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
    # The Hub's client must read the same values.
    if not problems and ModelCardData(**fields).to_dict() != data.to_dict():
        problems.append("the front matter does not survive huggingface_hub's ModelCardData")
    return problems + leaks(card, token=token)
