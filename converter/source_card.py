"""What our card takes over from the source's: rights, languages and datasets, each only in a form that the Hub takes.

PyYAML reads YAML 1.1, where `no` is false, `1:30` is 90 and `2024-01-01` is a date. So every plain word is read as the
text that it is. The text is somebody else's: what is read of it is bounded, and what cannot be read is a note, never a
reason not to convert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from converter.hub_rules import is_language, is_license, is_license_link, is_license_name, is_repo_id
from converter.readers.weight_files import CARD
from mlxbert.checkpoint import is_license_file
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.reading import open_regular

_MAX_BYTES = 4 << 20  # of the file: front matter begins it, and MTEB's results in one take 1 MB
_MAX_FIELD = 64 << 10  # of one field that is read; PyYAML parses some 200 kB a second
_FRONT_MATTER = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:^|\r|\n)---[ \t]*(?:\r|\n|\Z)", re.DOTALL
)
_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?\s*---[ \t]*[\r\n]")
_FIELD = re.compile(r"""^(?:"([\w-]+)"|'([\w-]+)'|([A-Za-z_][\w-]*))[ \t]*:(?=\s|$)""", re.MULTILINE)
_TEXTS = ("license_name", "license_link")
_LISTS = ("license", "language", "datasets")
_LEFT_OUT = "the source's card has {} {!r}, which the Hub refuses: left out of our card"
_UNREAD = f"the source's {CARD} cannot be read ({{}}): its license and languages are left out of our card"
_NOTES = 3
"""Notes on one field; a long list of nonsense does not fill the terminal."""


class _CardError(MLXBertError):
    """A card, or a field of it, that cannot be read; the message is the reason."""


@dataclass(frozen=True)
class SourceCard:
    """The source's own words on what it may be used for and what it was made from; empty where it has none.

    Attributes:
        license: identifiers that the Hub knows; several where the source has several.
        license_name, license_link: of a license that is `other`; the link is a URL or a file beside the weights.
        language, datasets: as the Hub writes them.
    """

    license: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    license_name: str | None = None
    license_link: str | None = None

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> SourceCard:
        """Return what `as_block` kept in `config.json`; leave out anything that is not as it was written."""
        kept = block.get("source_card")
        return parse_source_card(kept if isinstance(kept, dict) else {})[0]

    def as_block(self) -> dict[str, Any]:
        """Return the fields for `config.json`, where a later verification finds them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v}


def read_source_card(directory: Path, *, url: str | None = None) -> tuple[SourceCard, list[str]]:
    """Return what the card in `directory` says, and a note for the user on each thing that is not taken over.

    Args:
        directory: of the source.
        url: of the source's files on the Hub, without the name of one; None for a local source.
    """
    try:
        fields, notes = _fields(directory / CARD)
    except _CardError as error:
        return SourceCard(), [_UNREAD.format(error)]
    card, more = parse_source_card(fields)
    card, most = with_reachable_link(card, directory, url)
    return card, [*notes, *more, *most]


def parse_source_card(data: Mapping[str, Any]) -> tuple[SourceCard, list[str]]:
    """Return the fields of a front matter that are taken over, and a note on each value that is not as it was."""
    notes: list[str] = []
    licenses, unknown = _licenses(data.get("license"), notes)
    name = _license_name(data.get("license_name"), unknown, notes)
    link = data.get("license_link")
    if link is not None and not is_license_link(link):
        notes.append(_left_out("license_link", link))
        link = None
    if "other" in licenses and not (name or link):
        notes.append("the source's license is 'other', and its card has no license_name: read there what it allows")
    if any(str(field).startswith("extra_gated_") for field in data):
        notes.append("the source asks its users to agree to terms (extra_gated_… in its card), and our card does not")
    if data.get("license_details"):
        notes.append("the source's card has license_details, which the Hub shows no more: left out of our card")
    language = _languages(data.get("language"), notes)
    datasets: list[str] = []
    refused: list[object] = []
    for item in _values(data.get("datasets")):
        if is_repo_id(item):
            datasets.append(str(item))
        else:
            refused.append(item)
    notes += [_left_out("datasets", item) for item in refused[:_NOTES]]
    return SourceCard(licenses, language, tuple(dict.fromkeys(datasets)), name, link), notes


def _licenses(value: object, notes: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The Hub's identifiers, and the names of licenses that it does not know."""
    found, unknown = [], []
    for item in _values(value):
        slug = _slug(item) if isinstance(item, str) else ""
        if is_license(slug):
            found.append(slug)
        elif is_license_name(slug):
            found.append("other")
            unknown.append(slug)
        else:
            notes.append(_left_out("license", item))
    return tuple(dict.fromkeys(found)), unknown


def _license_name(value: object, unknown: list[str], notes: list[str]) -> str | None:
    """What the source calls its license; where it has no name, the identifier that the Hub does not know."""
    slug = _slug(value) if isinstance(value, str) else ""
    if value is not None and not is_license_name(slug):
        notes.append(_left_out("license_name", value))
    name = slug if is_license_name(slug) else None
    for other in unknown:
        if name is None:
            name = other
            notes.append(f"the Hub does not know the source's license {other!r}: our card has license_name {other}")
        elif name != other:
            notes.append(_left_out("license", other))
    return name


def _languages(value: object, notes: list[str]) -> tuple[str, ...]:
    found, refused = [], []
    for item in _values(value):
        code = item.strip().lower() if isinstance(item, str) else ""
        base = re.split("[-_]", code)[0]
        if is_language(code):
            found.append(code)
        elif is_language(base):
            found.append(base)
            notes.append(
                f"the source's card has language {printable(item, 40)!r}: our card has {base}, as the Hub wants"
            )
        else:
            refused.append(item)
    notes += [_left_out("language", item) for item in refused[:_NOTES]]
    return tuple(dict.fromkeys(found))


def with_reachable_link(card: SourceCard, directory: Path, url: str | None) -> tuple[SourceCard, list[str]]:
    """Return the card with a license_link that leads somewhere from our repository, and a note where it has none now.

    A license file at the top of the source is copied; one elsewhere on the Hub gets its address there.
    """
    link = card.license_link
    copied = link is not None and is_license_file(link) and (directory / link).is_file()
    if link is None or "://" in link or copied:
        return card, []
    if url is not None:
        return SourceCard(**{**vars(card), "license_link": f"{url}/{link}"}), []
    note = f"the source's license_link {link!r} is no license file beside its weights: left out of our card"
    return SourceCard(**{**vars(card), "license_link": None}), [note]


def _fields(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The front matter's fields that concern us, each parsed by itself, so that a bad one costs no other."""
    file = open_regular(path, _CardError)
    if file is None:
        return {}, []
    with file:
        try:
            data = file.read(_MAX_BYTES)
        except OSError as error:
            raise _CardError(type(error).__name__) from error
    found = _FRONT_MATTER.match(data)
    if found is None:
        if _BEGINS.match(data):
            raise _CardError("its front matter has no end")
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise _CardError("it is not UTF-8")
        return {}, []
    try:
        text = found[1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _CardError("its front matter is not UTF-8") from error
    fields: dict[str, Any] = {}
    notes = []
    for written, block in _blocks(text):
        name = written.lower()
        if name not in (*_LISTS, *_TEXTS, "license_details") and not name.startswith("extra_gated_"):
            continue
        if name.startswith("extra_gated_"):  # that it is there is all that is said of it
            fields[name] = True
            continue
        if name in fields:  # YAML does not allow it, and its readers take the last
            notes.append(f"the source's card has {name} twice: the last one is taken; look there for what holds")
        try:
            fields |= _parsed(block)
        except _CardError as error:
            notes.append(f"the source's card has a {name} that cannot be read ({error}): left out of our card")
    return fields, notes


def _blocks(text: str) -> list[tuple[str, str]]:
    """Name and text of every field at the top of a block mapping; a flow mapping is one block, whatever it holds."""
    if text.lstrip().startswith("{"):
        return [("license", text)]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = list(_FIELD.finditer(text))
    ends = [*(match.start() for match in starts[1:]), len(text)]
    named = zip(starts, ends, strict=True)
    return [(first[1] or first[2] or first[3], text[first.start() : end]) for first, end in named]


def _parsed(block: str) -> dict[str, Any]:
    if len(block) > _MAX_FIELD:
        raise _CardError("too long")
    from yaml import YAMLError, load

    try:
        parsed = load(block, _loader())
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise _CardError(type(error).__name__) from error
    wanted = (*_LISTS, *_TEXTS, "license_details")
    if not isinstance(parsed, dict):
        return {}
    named = {name.lower(): value for name, value in parsed.items() if isinstance(name, str)}
    return {name: named[name] for name in wanted if name in named}


@cache
def _loader() -> Any:
    """PyYAML's safe loader, for which every plain word but null is text; in Python: libyaml's overflows the stack."""
    from yaml import SafeLoader

    null = "tag:yaml.org,2002:null"

    class StringLoader(SafeLoader):
        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in rules if tag == null]
            for first, rules in SafeLoader.yaml_implicit_resolvers.items()
        }

        def flatten_mapping(self, node: Any) -> None:
            """Leave merge keys (`<<`) alone: merged again and again they double each time."""

    return StringLoader


def _values(value: object) -> list[object]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if item not in (None, "")]


def _slug(text: str) -> str:
    return re.sub(r"\s+", "-", text.strip().lower())


def _left_out(name: str, value: object) -> str:
    """The note on a value; of a list or a mapping its kind alone, for aliases may make it endless."""
    shown = printable(value, 80) if isinstance(value, str | int | float) else type(value).__name__
    return _LEFT_OUT.format(name, shown)
