"""Fields that our card copies from the source's card, and the Hub's rules for them, checked offline.

The rules are copied, because a conversion and a dry run are offline; when a card is sent, huggingface_hub asks the
Hub itself, as `ModelCard.validate` does. The licenses are those in the Hub's error message (huggingface_hub issue
4218, May 2026); languages as in huggingface.co/docs/hub/model-cards: ISO 639-1, 639-2 or 639-3, "code" or
"multilingual"; `license_name` (an id such as my-license-1.0) and `license_link` (a URL, or a file such as LICENSE in
the repository) as in huggingface/hub-docs, `modelcard.md`.

The source's card is a foreign file: its fields are limited in size, and an unreadable field gives a note, never
an error. PyYAML reads YAML 1.1, where `no` is false, `1:30` is 90 and `2024-01-01` is a date; here every plain
word is read as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from converter.readers.weight_files import CARD
from mlxbert.checkpoint import is_license_file
from mlxbert.errors import MLXBertError, printable
from mlxbert.files.reading import open_regular
from mlxbert.hub import is_valid_repo_id

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
grok2-community gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
# ISO 639-1. There are 7,900 codes of three letters: only their form is checked, as the Hub does.
_LANGUAGES = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el
en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu
ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na
nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn
so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
code multilingual
"""
LANGUAGES = frozenset(_LANGUAGES.split())
_PIPELINE_TAGS = """
feature-extraction sentence-similarity fill-mask text-classification token-classification question-answering
multiple-choice
"""
PIPELINE_TAGS = frozenset(_PIPELINE_TAGS.split())
"""The tasks of the Hub that an encoder can have."""
RELATIONS = frozenset({"adapter", "finetune", "merge", "quantized"})


def is_license(value: object) -> bool:
    """Return whether the Hub knows this license identifier."""
    return isinstance(value, str) and value in LICENSES


def is_license_name(value: object) -> bool:
    """Return whether this can be the id of a license that the Hub does not know."""
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9._+-]{0,95}", value) is not None


def is_license_link(value: object) -> bool:
    """Return whether this is a URL or a file's relative path, without a character special in Markdown or YAML."""
    if not isinstance(value, str) or len(value) > 500:
        return False
    url = re.fullmatch(r"https?://[\w.-]+(?::\d+)?(?:/[\w./~%:@!$&*+,;=?#-]*)?", value, re.ASCII)
    return url is not None or (
        re.fullmatch(r"[\w.-]+(?:/[\w.-]+)*", value, re.ASCII) is not None and ".." not in value
    )


def is_language(value: object) -> bool:
    """Return whether the Hub accepts this as a language: in lower case, two letters of ISO 639-1 or any three."""
    return isinstance(value, str) and (value in LANGUAGES or re.fullmatch("[a-z]{3}", value) is not None)


def front_matter_problems(data: dict[str, Any]) -> list[str]:
    """Return fields and values that the Hub would refuse or this project never writes, one line each."""
    problems = [f'"{name}" is not a field that our cards have' for name in sorted(set(data) - set(_FIELDS))]
    for name, (is_valid, several, wanted) in _FIELDS.items():
        if name in data:
            value = data[name]
            values = value if several and isinstance(value, list) else [value]
            problems += [f'"{name}" is {item!r}: not {wanted}' for item in values if not is_valid(item)]
    return problems


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


# name -> (check of one value, whether several are allowed, what is allowed). No other field is written.
_FIELDS = {
    "library_name": (lambda value: value == "mlx", False, "mlx"),
    "license": (is_license, True, "a license identifier that the Hub knows"),
    "license_name": (is_license_name, False, "the id of a license"),
    "license_link": (is_license_link, False, "a URL or a file of the repository"),
    "language": (is_language, True, "an ISO 639 code in lower case"),
    "datasets": (is_valid_repo_id, True, "the id of a dataset"),
    "base_model": (is_valid_repo_id, False, "the id of a model"),
    "base_model_relation": (RELATIONS.__contains__, False, "one of " + ", ".join(sorted(RELATIONS))),
    "pipeline_tag": (PIPELINE_TAGS.__contains__, False, "a task of the Hub's that an encoder has"),
    "tags": (_is_text, True, "text"),
}
FIELDS = tuple(_FIELDS)


# Bytes of the file that are read: front matter is at its beginning, and MTEB's results in one take 1 MB.
_MAX_BYTES = 4 << 20
# Characters of one field that are parsed: PyYAML parses some 200 kB a second.
_MAX_FIELD = 64 << 10
# Notes on one field: a long list of nonsense must not fill the terminal.
_MAX_NOTES = 3
_FRONT_MATTER = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*---[ \t]*(?:\r\n|\r|\n)(.*?)(?:^|\r|\n)---[ \t]*(?:\r|\n|\Z)", re.DOTALL
)
_BEGINNING = re.compile(rb"(?:\xef\xbb\xbf)?\s*---[ \t]*[\r\n]")
_FIELD = re.compile(r"""^(?:"([\w-]+)"|'([\w-]+)'|([A-Za-z_][\w-]*))[ \t]*:(?=\s|$)""", re.MULTILINE)
_READ_FIELDS = ("license", "language", "datasets", "license_name", "license_link", "license_details")
_LEFT_OUT = "the source's card has {} {!r}, which the Hub refuses: left out of our card"
_UNREAD = f"the source's {CARD} cannot be read ({{}}): its license and languages are left out of our card"


@dataclass(frozen=True)
class SourceCard:
    """Rights, languages and training data from the source's card; empty if it does not name them.

    Attributes:
        license: identifiers that the Hub knows.
        language: codes, as the Hub writes them.
        datasets: ids of the Hub.
        license_name: the name of a license that is `other`.
        license_link: the link to it: a URL, or a file beside the weights.
    """

    license: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    license_name: str | None = None
    license_link: str | None = None

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> SourceCard:
        """Return the card that `as_block` wrote into `config.json`; leave out every value that breaks a rule."""
        fields = block.get("source_card")
        return parse_source_card(fields if isinstance(fields, dict) else {})[0]

    def as_block(self) -> dict[str, Any]:
        """Return the fields for `config.json`, where a later verification reads them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v}


def read_source_card(directory: Path, *, url: str | None = None) -> tuple[SourceCard, list[str]]:
    """Return the content of the card in `directory`, and a note for the user on each value that is not copied.

    Args:
        directory: of the source.
        url: the address of the source's files on the Hub, without a file's name; None: a local source.
    """
    try:
        fields, notes = _fields(directory / CARD)
    except MLXBertError as error:
        return SourceCard(), [_UNREAD.format(error)]
    card, field_notes = parse_source_card(fields)
    card, link_notes = with_reachable_link(card, directory, url)
    return card, [*notes, *field_notes, *link_notes]


def parse_source_card(data: Mapping[str, Any]) -> tuple[SourceCard, list[str]]:
    """Return the card for the fields of a front matter, and a note on each value that is changed or left out."""
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
        if is_valid_repo_id(item):
            datasets.append(str(item))
        else:
            refused.append(item)
    notes += [_left_out("datasets", item) for item in refused[:_MAX_NOTES]]
    return SourceCard(licenses, language, tuple(dict.fromkeys(datasets)), name, link), notes


def _licenses(value: object, notes: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the Hub's identifiers, and the names of licenses that the Hub does not know."""
    known, unknown = [], []
    for item in _values(value):
        slug = _slug(item) if isinstance(item, str) else ""
        if is_license(slug):
            known.append(slug)
        elif is_license_name(slug):
            known.append("other")
            unknown.append(slug)
        else:
            notes.append(_left_out("license", item))
    return tuple(dict.fromkeys(known)), unknown


def _license_name(value: object, unknown: list[str], notes: list[str]) -> str | None:
    """Return the source's name of its license; without one, the identifier that the Hub does not know."""
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
    known, refused = [], []
    for item in _values(value):
        code = item.strip().lower() if isinstance(item, str) else ""
        base = re.split("[-_]", code)[0]
        if is_language(code):
            known.append(code)
        elif is_language(base):
            known.append(base)
            notes.append(
                f"the source's card has language {printable(item, 40)!r}: our card has {base}, as the Hub wants"
            )
        else:
            refused.append(item)
    notes += [_left_out("language", item) for item in refused[:_MAX_NOTES]]
    return tuple(dict.fromkeys(known))


def with_reachable_link(card: SourceCard, directory: Path, url: str | None) -> tuple[SourceCard, list[str]]:
    """Return the card with a license_link that works in our repository, and a note if the link was removed.

    A license file at the top of the source is copied, so its link stays; another file of a source on the Hub gets its
    address there.
    """
    link = card.license_link
    copied = link is not None and is_license_file(link) and (directory / link).is_file()
    if link is None or "://" in link or copied:
        return card, []
    if url is not None:
        return SourceCard(**{**vars(card), "license_link": f"{url}/{link}"}), []
    note = f"the source's license_link {link!r} is not a license file beside its weights: left out of our card"
    return SourceCard(**{**vars(card), "license_link": None}), [note]


def _fields(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the used fields of the front matter, each parsed alone, so that a bad one does not affect others."""
    file = open_regular(path, MLXBertError)
    if file is None:
        return {}, []
    with file:
        try:
            data = file.read(_MAX_BYTES)
        except OSError as error:
            raise MLXBertError(type(error).__name__) from error
    match = _FRONT_MATTER.match(data)
    if match is None:
        if _BEGINNING.match(data):
            raise MLXBertError("its front matter has no end")
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise MLXBertError("it is not UTF-8")
        return {}, []
    try:
        text = match[1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise MLXBertError("its front matter is not UTF-8") from error
    fields: dict[str, Any] = {}
    notes = []
    for written, block in _blocks(text):
        name = written.lower()
        if name.startswith("extra_gated_"):  # only its presence counts
            fields[name] = True
        if name not in _READ_FIELDS:
            continue
        if name in fields:  # YAML forbids it, but parsers take the last value
            notes.append(f"the source's card has {name} twice: the last one is used; check it there")
        try:
            fields |= _parsed(block)
        except MLXBertError as error:
            notes.append(f"the source's card has a {name} that cannot be read ({error}): left out of our card")
    return fields, notes


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return name and text of each top-level field of a block mapping; a flow mapping is one block."""
    if text.lstrip().startswith("{"):
        return [("license", text)]
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = list(_FIELD.finditer(text))
    ends = [*(match.start() for match in starts[1:]), len(text)]
    named = zip(starts, ends, strict=True)
    return [(first[1] or first[2] or first[3], text[first.start() : end]) for first, end in named]


def _parsed(block: str) -> dict[str, Any]:
    if len(block) > _MAX_FIELD:
        raise MLXBertError("too long")
    from yaml import YAMLError, load

    try:
        parsed = load(block, _loader())
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise MLXBertError(type(error).__name__) from error
    if not isinstance(parsed, dict):
        return {}
    named = {name.lower(): value for name, value in parsed.items() if isinstance(name, str)}
    return {name: named[name] for name in _READ_FIELDS if name in named}


@cache
def _loader() -> Any:
    """Return PyYAML's safe loader, but with plain words read as text; not libyaml's, whose stack overflows."""
    from yaml import SafeLoader

    null = "tag:yaml.org,2002:null"

    class StringLoader(SafeLoader):
        yaml_implicit_resolvers: ClassVar = {
            first: [(tag, pattern) for tag, pattern in rules if tag == null]
            for first, rules in SafeLoader.yaml_implicit_resolvers.items()
        }

        def flatten_mapping(self, node: Any) -> None:
            """Do not resolve merge keys (`<<`): nested ones would double the size each time."""

    return StringLoader


def _values(value: object) -> list[object]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if item not in (None, "")]


def _slug(text: str) -> str:
    return re.sub(r"\s+", "-", text.strip().lower())


def _left_out(name: str, value: object) -> str:
    """Return the note on a value; for a list or a mapping only its type, because aliases may make it endless."""
    shown = printable(value, 80) if isinstance(value, str | int | float) else type(value).__name__
    return _LEFT_OUT.format(name, shown)
