"""The model card: facts in, `README.md` out. Pure: reads nothing but its template."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, ParityReport

_CHECKS = {
    (MAPPING, CUMULATIVE): "every hidden state, the pooler and the logits of its own head, against PyTorch",
    (MAPPING, LOCAL): "each layer and head alone, against PyTorch",
    (MAPPING, PADDING): "a text alone, against itself in a padded batch",
    (PRECISION, CUMULATIVE): "these files, against the same model in float32",
}


@dataclass(frozen=True)
class ParityRow:
    """One line of the card's parity table: the largest error of its kind, and the limit it passed or failed."""

    what: str
    error: float
    limit: float


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
    parity: ParityReport | None = None

    @property
    def base_model(self) -> str | None:
        """The Hub id of the source: a revision is known of a source on the Hub alone."""
        return self.source if self.revision else None

    @property
    def parity_rows(self) -> tuple[ParityRow, ...]:
        """The worst point of each check; a point without a number counts as infinitely wrong."""
        if self.parity is None:
            return ()
        checks = dict.fromkeys((point.gate, point.check) for point in self.parity.points)
        rows = []
        for gate, check in checks:
            errors = {p: math.inf if p.max_rel is None else p.max_rel for p in self.parity.select(gate, check)}
            worst = max(errors, key=errors.__getitem__)
            rows.append(ParityRow(_CHECKS[gate, check], errors[worst], worst.limit))
        return tuple(rows)


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with its front matter."""
    import jinja2  # 40 ms that `--help` should not pay

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    template = environment.from_string(files("converter").joinpath("card_template.md").read_text(encoding="utf-8"))
    fields = {name: getattr(facts, name) for name in (*CardFacts.__dataclass_fields__, "base_model", "parity_rows")}
    return template.render(**fields)
