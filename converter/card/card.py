"""What a model card can show beside parity: what quantization cost, and how a fine-tuned model scored. Plain data.

The model card: facts in, `README.md` out. Pure: reads nothing but its template.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.card.loaders import SEEN, WORKS, Reading
from converter.card.source_card import SourceCard
from converter.card.usage import LOAD, LOAD_WITH_HEAD, SENTENCES, TRAINED, Usage
from converter.parity.report import (
    LOCAL,
    MAX_BYTES,
    PADDING,
    PRECISION,
    SENTENCE,
    ParityReport,
    ParityReportError,
    require_version,
)
from converter.parity.report import NAME as PARITY
from converter.quantize.cost import QuantizationReport, read_cost
from heads import command_line
from mlxbert.errors import printable
from mlxbert.files.reading import read_json


@dataclass(frozen=True)
class Scores:
    """How a run scored on rows that its models had not seen: the "trained" block of `config.json`.

    Attributes:
        task, metric: what was learned, and what chose the weights.
        pooled: of all `data_rows`, each predicted by the models that had not seen it.
        folds, models: of the run; this is one of its models.
        own, own_rows: of this model alone, on the rows that its fold held out.
    """

    task: str
    metric: str
    pooled: Mapping[str, float]
    folds: int
    data_rows: int
    models: int
    own: Mapping[str, float]
    own_rows: int


def read_quantization(directory: Path) -> QuantizationReport | None:
    """The block of a directory's `parity.json`; None where it has none.

    Raises:
        ParityReportError: it is damaged, or of another version.
    """
    parsed = read_json(directory / PARITY, ParityReportError, limit=MAX_BYTES)
    block = (parsed or {}).get("quantization")
    if not isinstance(block, dict):
        return None
    require_version(parsed)
    return read_cost(block, ParityReportError)


def read_scores(block: Mapping[str, Any]) -> Scores | None:
    """The scores in the "mlxbert" block of `config.json`; None where the model was not fine-tuned by this project.

    Raises:
        ParityReportError: the block is damaged.
    """
    trained = block.get("trained")
    if trained is None:
        return None
    try:
        scores: Scores = _known(Scores, trained)
        return replace(scores, pooled=_numbers(scores.pooled), own=_numbers(scores.own))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ParityReportError(
            f'the "trained" block of config.json is damaged ({error!r}); fix: save the model again'
        ) from error


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that there are: a metric may have none, which is null."""
    return {str(name): float(value) for name, value in values.items() if value is not None}


def _known(kind: Any, data: Mapping[str, Any]) -> Any:
    return kind(**{field.name: data[field.name] for field in fields(kind) if field.name in data})


if TYPE_CHECKING:
    import jinja2

_TASKS = {
    "BertForPreTraining": "fill-mask",
    "BertForMaskedLM": "fill-mask",
    "BertLMHeadModel": "fill-mask",
    "BertForSequenceClassification": "text-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
}
_AUTO_CLASSES = {
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertLMHeadModel": "AutoModelForCausalLM",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
}
# The Hub has no task for one number per text; regression models there are text classifiers with one class.
_TRAINED_TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
# Words that YAML takes for something else than text; `no` is also Norwegian.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


_COMPUTED = (
    "answer",
    "at",
    "auto_class",
    "base_model",
    "compared_with_source",
    "front_matter",
    "parity_rows",
    "reference",
    "runs",
    "sentences_compared",
    "trained",
    "works_in",
)
"""What the template reads of `CardFacts` beside its fields."""


@dataclass(frozen=True)
class ParityRow:
    """One line of the card's parity table: the largest error of its kind, and the limit it passed or failed."""

    gate: str
    what: str
    error: float
    limit: float


@dataclass(frozen=True)
class CardFacts:
    """All that a card says; `parity` is None where nothing was compared.

    `place` is what `mlxbert.load` is given: a Hub id, or a stand-in for the directory; `branch` is its revision, None:
    the default one. `weights` are the names of the weight files and their SHA-256. `trained_head` is the name of a
    head that this project trained, with the encoder, and `classes` are what it tells apart. `max_length` is how many
    tokens of a text are read. `skipped` are the layers that a quantization left as they were, each with its reason,
    which `quantization` repeats where the cost was measured. `usage` has the calls that ran on these files: no other
    is shown. `unverified` says why a model is published whose comparison did not pass. `license_files` came with the
    source. `readings` are what becomes of the directory in every package, and `full_layout` says that its head lies in
    `model.safetensors`.
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
    quantization: QuantizationReport | None = None
    quantized: bool = False
    skipped: Mapping[str, str] = field(default_factory=dict)
    trained_head: str | None = None
    classes: tuple[str, ...] = ()
    scores: Scores | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    max_length: int | None = None
    sentence_modules: bool = False
    usage: Usage = field(default_factory=Usage)
    place: str = "PATH_OF_THIS_DIRECTORY"
    branch: str | None = None
    unverified: str | None = None
    license_files: tuple[str, ...] = ()
    full_layout: bool = False
    readings: tuple[Reading, ...] = ()

    @property
    def trained(self) -> str | None:
        """The task that the model was fine-tuned for by this project; None: it is as its source is."""
        return self.trained_head or (self.scores.task if self.scores else None)

    @property
    def works_in(self) -> tuple[str, ...]:
        """The packages that give the right numbers, for which a snippet may be shown."""
        return tuple(reading.loader.name for reading in self.readings if reading.effect == WORKS)

    @property
    def auto_class(self) -> str | None:
        """The transformers class that loads encoder and head."""
        return _AUTO_CLASSES.get(self.original_class)

    @property
    def base_model(self) -> str | None:
        """The Hub id of the source: a revision is known of a source on the Hub alone."""
        return self.source if self.revision else None

    @property
    def reference(self) -> str:
        """What `mlxbert-verify --reference` is given."""
        return reference_of(self.source, self.revision)

    @property
    def at(self) -> str:
        """The argument that a call of `load` has after the place: of the default branch none."""
        return f", revision={json.dumps(self.branch)}" if self.branch else ""

    @property
    def answer(self) -> str:
        """The first words of the comparison: is it the same model?"""
        parity = self.parity
        if parity is None or not parity.passed:
            return "**NO: the comparison failed**"
        if not self.compared_with_source:
            return "**Not known of the source**, only of what was made from it in between"
        if parity.uncompared:
            return f"**Not known of the whole**, only of {', '.join(parity.compared)}"
        return "Yes, before it was quantized" if self.quantized else "Yes"

    @property
    def runs(self) -> dict[str, bool]:
        """Which calls ran on these files, by the template's names."""
        names = {"load": LOAD, "with_head": LOAD_WITH_HEAD, "sentences": SENTENCES, "trained": TRAINED}
        return {name: call in self.usage.ran for name, call in names.items()}

    @property
    def compared_with_source(self) -> bool:
        """Whether the comparison was with the source that is named, and not with what was made from it in between."""
        if self.parity is None or self.revision is None:
            return True
        seen = self.parity.provenance
        return seen.own_export or seen.compared_with == (self.source, self.revision)

    @property
    def sentences_compared(self) -> bool:
        """Whether the comparison read text: where there is no tokenizer it cannot."""
        return self.parity is not None and any("sentences" in probe for probe in self.parity.probes)

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
        """The card's metadata as YAML: `converter.card.source_card.FIELDS` and no other, in that order."""
        tags = ("mlx", "mlxbert", "bert", *(("sentence-transformers",) if self.sentence_modules else ()))
        values = {
            "library_name": "mlx",
            "license": _one_or_several(self.source_card.license),
            "license_name": self.source_card.license_name,
            "license_link": self.source_card.license_link,
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
            names = {point.name for point in errors}
            rows.append(ParityRow(gate, _compared(gate, check, names), errors[worst], worst.limit))
        return tuple(rows)


def reference_of(source: str, revision: str | None) -> str:
    """What `mlxbert-verify --reference` is to be given; of a local source the name alone is known."""
    return source if revision else f"PATH/TO/{source}"


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with its front matter."""
    return _template().render({name: getattr(facts, name) for name in (*CardFacts.__dataclass_fields__, *_COMPUTED)})


@cache
def _template() -> jinja2.Template:
    """Compiled once: that takes 80 ms, as long as the rest of a small push."""
    import jinja2  # 40 ms that `--help` should not pay

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters["code"] = _code
    environment.globals |= {
        "install_command": command_line.install_command,
        "requirement": command_line.requirement,
        "released": command_line.RELEASED,
        "loaders_seen": SEEN,
    }
    environment.filters["oneline"] = _one_line
    return environment.from_string(files("converter.card").joinpath("card_template.md").read_text(encoding="utf-8"))


def _compared(gate: str, check: str, names: Iterable[str]) -> str:
    """What the points of these names are of, and what they were compared with."""
    if gate == PRECISION:
        return "these files, against the same model in float32"
    if check == PADDING:
        return "a text alone, against itself in a padded batch"
    parts = ["each layer" if check == LOCAL else "every hidden state"]
    parts += ["the pooler"] if "pooler" in names else []
    parts += ["texts' embeddings through the whole sentence pipeline"] if SENTENCE in names else []
    if any(name.startswith("logits") for name in names):
        parts.append("its own head" if check == LOCAL else "the logits of its own head")
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"{listed}{' alone' if check == LOCAL else ''}, against PyTorch"


def _code(text: object) -> str:
    """Somebody else's name as inline code: on one line, and unable to end it."""
    return "`" + printable(str(text)).replace("`", "'") + "`"


def _one_line(text: object) -> str:
    """Somebody else's words on one line, without markup."""
    return printable(str(text), 300).translate({ord(mark): None for mark in "`*<>[]|"})


def _yaml(name: str, value: str | Iterable[str]) -> str:
    if isinstance(value, str):
        return f"{name}: {_scalar(value)}\n"
    return f"{name}:\n" + "".join(f"- {_scalar(item)}\n" for item in value)


def _one_or_several(values: tuple[str, ...]) -> str | tuple[str, ...]:
    """A field that most cards have one value of, in the form that most have."""
    return values[0] if len(values) == 1 else values


def _scalar(text: str) -> str:
    """Plain where YAML reads the same text back, else quoted; JSON's quotes are YAML's too."""
    plain = re.fullmatch(r"[A-Za-z][\w./+-]*", text, re.ASCII) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text)
