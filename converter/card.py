"""The model card: facts in, `README.md` out. Pure: reads nothing but its template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from mlxbert.errors import MLXBertError


class CardError(MLXBertError):
    """A card that cannot be rendered."""


@dataclass(frozen=True)
class ParityRow:
    """One line of the card's parity table."""

    what: str
    error: float
    limit: float


@dataclass(frozen=True)
class ParitySummary:
    """What the card says of the parity report."""

    verdict: str
    probes: int
    rows: tuple[ParityRow, ...]
    versions: str


@dataclass(frozen=True)
class CardFacts:
    """All that a card says; `parity` is None where nothing was compared."""

    name: str
    source: str
    revision: str | None
    original_class: str
    dtype: str
    parameters: int
    has_pooler: bool
    converter_version: str
    heads: tuple[str, ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    missing_tokenizer: bool = False
    parity: ParitySummary | None = None

    @property
    def base_model(self) -> str | None:
        """The Hub id of the source: a revision is known of a source on the Hub alone."""
        return self.source if self.revision else None


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with its front matter."""
    import jinja2  # 40 ms that `--help` should not pay

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(files("converter").joinpath("card_template.md").read_text(encoding="utf-8"))
    fields = {name: getattr(facts, name) for name in (*CardFacts.__dataclass_fields__, "base_model")}
    return template.render(**fields)
