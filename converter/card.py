"""The model card: facts in, `README.md` out. Pure: reads nothing but its template."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files

from converter.card_evidence import Quantization, Scores
from converter.parity.report import CUMULATIVE, LOCAL, MAPPING, PADDING, PRECISION, ParityReport
from converter.readers.source_error import shown
from converter.source_card import SourceCard

_CHECKS = {
    (MAPPING, CUMULATIVE): "every hidden state, the pooler and the logits of its own head, against PyTorch",
    (MAPPING, LOCAL): "each layer and head alone, against PyTorch",
    (MAPPING, PADDING): "a text alone, against itself in a padded batch",
    (PRECISION, CUMULATIVE): "these files, against the same model in float32",
}
_TASKS = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertLMHeadModel": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
}
# The Hub has no task for one number per text; regression models there are text classifiers with one class.
_TRAINED_TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
# Words that YAML takes for something else than text; `no` is also Norwegian.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


@dataclass(frozen=True)
class ParityRow:
    """One line of the card's parity table: the largest error of its kind, and the limit it passed or failed."""

    what: str
    error: float
    limit: float


@dataclass(frozen=True)
class CardFacts:
    """All that a card says; `parity` is None where nothing was compared.

    `place` is what `mlxbert.load` is given: a Hub id, or a stand-in for the directory. `weights` are the names of the
    weight files and their SHA-256. `trained_head` is the name of a head that this project trained, with the encoder.
    `unverified` says why a model is published whose comparison did not pass.
    """

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
    source_card: SourceCard = field(default_factory=SourceCard)
    quantization: Quantization | None = None
    quantized: bool = False
    trained_head: str | None = None
    scores: Scores | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    sentence_modules: bool = False
    place: str = "PATH_OF_THIS_DIRECTORY"
    unverified: str | None = None

    @property
    def trained(self) -> str | None:
        """The task that the model was fine-tuned for by this project; None: it is as its source is."""
        return self.trained_head or (self.scores.task if self.scores else None)

    @property
    def base_model(self) -> str | None:
        """The Hub id of the source: a revision is known of a source on the Hub alone."""
        return self.source if self.revision else None

    @property
    def pipeline_tag(self) -> str | None:
        """The Hub's task, from the head; of an encoder alone, what its vectors are for. None: the Hub has none."""
        if self.trained is not None:
            return "text-classification" if self.trained in _TRAINED_TASKS else None
        if self.heads:
            return _TASKS.get(self.original_class)
        return "sentence-similarity" if self.sentence_modules else "feature-extraction"

    @property
    def front_matter(self) -> str:
        """The card's metadata as YAML: `converter.hub_rules.FIELDS` and no other, in that order."""
        tags = ("mlx", "mlxbert", "bert", *(("sentence-transformers",) if self.sentence_modules else ()))
        values = {
            "library_name": "mlx",
            "license": self.source_card.license,
            "language": self.source_card.language,
            "datasets": self.source_card.datasets,
            "base_model": self.base_model,
            "base_model_relation": "quantized" if self.quantized and self.base_model else None,
            "pipeline_tag": self.pipeline_tag,
            "tags": tags,
        }
        return "".join(_yaml(name, value) for name, value in values.items() if value)

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
    environment.filters["code"] = _code
    template = environment.from_string(files("converter").joinpath("card_template.md").read_text(encoding="utf-8"))
    computed = ("base_model", "parity_rows", "front_matter", "trained")
    return template.render({name: getattr(facts, name) for name in (*CardFacts.__dataclass_fields__, *computed)})


def _code(text: object) -> str:
    """Somebody else's name as inline code: on one line, and unable to end it."""
    return "`" + shown(str(text)).replace("`", "'") + "`"


def _yaml(name: str, value: str | Iterable[str]) -> str:
    if isinstance(value, str):
        return f"{name}: {_scalar(value)}\n"
    return f"{name}:\n" + "".join(f"- {_scalar(item)}\n" for item in value)


def _scalar(text: str) -> str:
    """Plain where YAML reads the same text back, else quoted; JSON's quotes are YAML's too."""
    plain = re.fullmatch(r"[A-Za-z][\w./+-]*", text, re.ASCII) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text)
