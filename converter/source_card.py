"""What our card takes over from the source's: license, languages and datasets, each only where the Hub takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.hub_rules import is_language, is_license, is_repo_id
from converter.readers.weight_files import CARD
from mlxbert.errors import printable

_MAX_BYTES = 4 * 2**20
_UNREAD = f"the source's {CARD} cannot be read ({{}}): its license and languages are left out of our card"


@dataclass(frozen=True)
class SourceCard:
    """The source's own words on what it may be used for and what it was made from; empty where it has none."""

    license: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> SourceCard:
        """What `as_block` kept in `config.json`; anything that is not as it was written is left out."""
        kept = block.get("source_card")
        return parse_source_card(kept if isinstance(kept, dict) else {})[0]

    def as_block(self) -> dict[str, Any]:
        """For `config.json`, where a later verification finds it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if v}


def read_source_card(directory: Path) -> tuple[SourceCard, list[str]]:
    """What the card in `directory` says, and a note for the user on each thing that the Hub would refuse.

    A card that cannot be read is no reason not to convert: that is a note too.
    """
    from huggingface_hub.repocard import metadata_load

    path = directory / CARD
    try:
        if not path.is_file():
            return SourceCard(), []
        if path.stat().st_size > _MAX_BYTES:
            return SourceCard(), [_UNREAD.format("too large")]
        data = metadata_load(path)
    except Exception as error:  # PyYAML raises whatever the text leads it to
        return SourceCard(), [_UNREAD.format(type(error).__name__)]
    return parse_source_card(data) if isinstance(data, dict) else (SourceCard(), [])


def parse_source_card(data: Mapping[str, Any]) -> tuple[SourceCard, list[str]]:
    """The fields that are taken over, of a card's front matter; the others are the source's own affair."""
    licenses, notes = _valid("license", data.get("license"), is_license)
    language, more = _valid("language", data.get("language"), is_language)
    datasets, most = _valid("datasets", data.get("datasets"), is_repo_id)
    return SourceCard(licenses[0] if licenses else None, language, datasets), [*notes, *more, *most]


def _valid(name: str, value: object, is_valid: Callable[[object], bool]) -> tuple[tuple[str, ...], list[str]]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    kept = tuple(dict.fromkeys(str(item) for item in values if is_valid(item)))
    notes = [
        f"the source's card has {name} {printable(str(item))[:80]!r}, which the Hub refuses: left out of our card"
        for item in values
        if not is_valid(item)
    ]
    return kept, notes[:3]
