"""The model card: `CardFacts` in, the text of `README.md` out; no file but the template is read.

Two blocks that a card shows are read here too: what quantization cost, and how a fine-tuned model scored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.card.loaders import SEEN, WORKS, Reading
from converter.card.source_card import SourceCard
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
from mlxbert.files.reading import from_json, read_json
from mlxbert.models.architecture import HeadKind, architecture

if TYPE_CHECKING:
    import jinja2

# Calls that a card shows if they run on the files.
LOAD, LOAD_WITH_HEAD = "mlxbert.load", "mlxbert.load_with_head"
SENTENCES, TRAINED = "SentenceEncoder", "BertWithHead.load"
# The Hub's task for each kind of head; it has none for the next sentence.
_TASKS = {
    HeadKind.PRETRAINING: "fill-mask",
    HeadKind.MASKED_LM: "fill-mask",
    HeadKind.REPLACED_TOKEN: "feature-extraction",
    HeadKind.SEQUENCE: "text-classification",
    HeadKind.TOKEN: "token-classification",
    HeadKind.SPAN: "question-answering",
    HeadKind.CHOICE: "multiple-choice",
}
_AUTO_CLASSES = {
    HeadKind.PRETRAINING: "AutoModelForPreTraining",
    HeadKind.MASKED_LM: "AutoModelForMaskedLM",
    HeadKind.REPLACED_TOKEN: "AutoModelForPreTraining",
    HeadKind.NEXT_SENTENCE: "AutoModelForNextSentencePrediction",
    HeadKind.SEQUENCE: "AutoModelForSequenceClassification",
    HeadKind.TOKEN: "AutoModelForTokenClassification",
    HeadKind.SPAN: "AutoModelForQuestionAnswering",
    HeadKind.CHOICE: "AutoModelForMultipleChoice",
}
# Heads that this project trains and that are text classifiers on the Hub, a regression with one class.
_TRAINED_TASKS = ("binary", "multiclass", "multilabel", "ordinal", "regression")
# Words that YAML does not read as text; `no` is also Norwegian.
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def read_quantization(directory: Path) -> QuantizationReport | None:
    """Return the quantization block of a directory's `parity.json`; None if it has none.

    Raises:
        ParityReportError: it is damaged, or of another version.
    """
    content = read_json(directory / PARITY, ParityReportError, limit=MAX_BYTES)
    block = (content or {}).get("quantization")
    if not isinstance(block, dict):
        return None
    require_version(content)
    return read_cost(block, ParityReportError)


@dataclass(frozen=True)
class Scores:
    """How a run scored on rows that its models had not seen: the "trained" block of `config.json`.

    Attributes:
        task: what was learned.
        metric: the metric that chose the weights.
        pooled: scores of all `data_rows`, each predicted by the models that had not seen it.
        folds: of the run.
        data_rows: of the run.
        models: of the run; the files hold one of them.
        own: scores of this model alone, on the rows that its fold held out.
        own_rows: the number of these rows.
    """

    task: str
    metric: str
    pooled: Mapping[str, float]
    folds: int
    data_rows: int
    models: int
    own: Mapping[str, float]
    own_rows: int


def read_scores(block: Mapping[str, Any]) -> Scores | None:
    """Return the scores in the "mlxbert" block of `config.json`; None if this project did not fine-tune the model.

    Raises:
        ParityReportError: the block is damaged.
    """
    if block.get("trained") is None:
        return None
    scores = from_json(
        Scores,
        block["trained"],
        place='the "trained" block of config.json is damaged',
        fix="fix: save the model again",
        error=ParityReportError,
        null_is_nan=True,
    )
    return replace(scores, pooled=_defined(scores.pooled), own=_defined(scores.own))


def _defined(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that have a value."""
    return {name: value for name, value in values.items() if not math.isnan(value)}


@dataclass(frozen=True)
class Usage:
    """Which calls ran on the written files; a call that the files are not made for is in neither list.

    Attributes:
        ran: names of the calls that ran.
        failed: the name of a call that failed -> the reason.
    """

    ran: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """Return whether `mlxbert encode` runs: with the sentence pipeline, or without one with the encoder."""
        return SENTENCES in self.ran or (LOAD in self.ran and SENTENCES not in self.failed)

    @property
    def notes(self) -> list[str]:
        """Return a line for each call that does not run."""
        return [
            f"{call} does not run on these files ({why}); the card does not show it"
            for call, why in self.failed.items()
        ]


@dataclass(frozen=True)
class ParityRow:
    """One line of the card's parity table: the largest error of its kind, and the limit for it."""

    gate: str
    what: str
    error: float
    limit: float


@dataclass(frozen=True)
class CardFacts:
    """The content of a card.

    Attributes:
        name: of the model, the title.
        model_type: of the architecture.
        source: what was converted: a Hub id, or the name of a local directory.
        revision: the source's commit on the Hub; None: a local source.
        original_class: the source's class in transformers.
        dtype: of the weights.
        parameters: of the encoder.
        has_pooler: whether the encoder has one.
        converter_version: the version of mlxbert that converted it.
        heads: names of the head's tensors.
        dropped: tensors of the source that were left out, each with its reason.
        missing_tokenizer: whether there are no tokenizer files.
        parity: the comparison with PyTorch; None: nothing was compared.
        source_card: the content of the source's card that is copied.
        quantization: what quantization cost; None: not quantized, or not measured.
        quantized: whether the weights are quantized.
        skipped: layers that quantization left unchanged, each with its reason.
        trained_head: the name of a head that this project trained.
        classes: of the trained head.
        scores: of the trained head.
        weights: the names of the weight files and their SHA-256.
        max_length: how many tokens of a text are read.
        sentence_modules: whether there are files of sentence-transformers.
        usage: the calls that ran on these files; the card shows no other.
        place: the argument of `mlxbert.load`: a Hub id, or a placeholder for the directory.
        branch: the revision of `place`; None: the default branch.
        unverified: why a model is published whose comparison did not pass.
        license_files: that came with the source.
        full_layout: whether the head is in `model.safetensors`.
        readings: whether each package loads the directory.
    """

    name: str
    model_type: str
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
    def limits(self) -> tuple[str, ...]:
        """Return what the architecture declares of half precision; a float32 model has nothing of it."""
        return () if self.dtype == "float32" and not self.quantized else architecture(self.model_type).limits

    @property
    def trained(self) -> str | None:
        """Return the task that this project fine-tuned the model for; None: it was not fine-tuned here."""
        return self.trained_head or (self.scores.task if self.scores else None)

    @property
    def works_in(self) -> tuple[str, ...]:
        """Return the packages that give the right numbers; only for these may the card show code."""
        return tuple(reading.loader.name for reading in self.readings if reading.effect == WORKS)

    @property
    def auto_class(self) -> str | None:
        """Return the class of transformers that loads encoder and head."""
        return _AUTO_CLASSES.get(self._head_kind) if self._head_kind else None

    @property
    def _head_kind(self) -> HeadKind | None:
        head = architecture(self.model_type).heads.get(self.original_class)
        return head.kind if head else None

    @property
    def base_model(self) -> str | None:
        """Return the Hub id of the source; only a source on the Hub has a revision."""
        return self.source if self.revision else None

    @property
    def reference(self) -> str:
        """Return the argument of `mlxbert-verify --reference`."""
        return reference_of(self.source, self.revision)

    @property
    def at(self) -> str:
        """Return the argument that follows the place in a call of `load`; empty for the default branch."""
        return f", revision={json.dumps(self.branch)}" if self.branch else ""

    @property
    def answer(self) -> str:
        """Return the answer to the question: is it the same model?"""
        parity = self.parity
        if parity is None or not parity.passed:
            return "**NO: the comparison failed**"
        if not self.compared_with_source:
            return "**Not proven for the source**, only for another conversion of it"
        if parity.uncompared:
            return f"**Not proven for the whole model**, only for {', '.join(parity.compared)}"
        return "Yes, before it was quantized" if self.quantized else "Yes"

    @property
    def runs(self) -> dict[str, bool]:
        """Return which calls ran on these files, by the names that the template has for them."""
        names = {"load": LOAD, "with_head": LOAD_WITH_HEAD, "sentences": SENTENCES, "trained": TRAINED}
        return {name: call in self.usage.ran for name, call in names.items()}

    @property
    def compared_with_source(self) -> bool:
        """Return whether the comparison was with the named source, and not with another conversion of it."""
        if self.parity is None or self.revision is None:
            return True
        provenance = self.parity.provenance
        return provenance.own_export or provenance.compared_with == (self.source, self.revision)

    @property
    def sentences_compared(self) -> bool:
        """Return whether the comparison read text, which needs a tokenizer."""
        return self.parity is not None and any("sentences" in probe for probe in self.parity.probes)

    @property
    def pipeline_tag(self) -> str | None:
        """Return the Hub's task of the head, or of the vectors of an encoder alone; None: the Hub has none."""
        if self.trained is not None:
            return "text-classification" if self.trained in _TRAINED_TASKS else None
        if self.heads:
            return _TASKS.get(self._head_kind) if self._head_kind else None
        return "sentence-similarity" if self.sentence_modules else "feature-extraction"

    @property
    def front_matter(self) -> str:
        """Return the card's metadata as YAML: only `converter.card.source_card.FIELDS`, in that order."""
        tags = ("mlx", "mlxbert", self.model_type, *(("sentence-transformers",) if self.sentence_modules else ()))
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
        """Return the worst point of each check; a point without a number counts as an infinite error."""
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
    """Return the argument of `mlxbert-verify --reference`; of a local source only the name is known."""
    return source if revision else f"PATH/TO/{source}"


def render_card(facts: CardFacts) -> str:
    """Return the card as Markdown with its front matter."""
    return _template().render({name: getattr(facts, name) for name in dir(facts) if not name.startswith("_")})


@cache
def _template() -> jinja2.Template:
    """Compile the template, once: that takes 80 ms, as long as the rest of a small push."""
    import jinja2  # takes 40 ms, which `--help` does not need

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.filters |= {"code": _code, "oneline": _one_line}
    environment.globals |= {
        "install_command": command_line.install_command,
        "requirement": command_line.requirement,
        "released": command_line.RELEASED,
        "loaders_seen": SEEN,
    }
    return environment.from_string(files("converter.card").joinpath("card_template.md").read_text(encoding="utf-8"))


def _compared(gate: str, check: str, names: Iterable[str]) -> str:
    """Return in words which points have these names, and what they were compared with."""
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
    """Return a foreign name as inline code: on one line, and without a character that ends it."""
    return "`" + printable(str(text)).replace("`", "'") + "`"


def _one_line(text: object) -> str:
    """Return a foreign text on one line, without markup."""
    return printable(str(text), 300).translate({ord(mark): None for mark in "`*<>[]|"})


def _yaml(name: str, value: str | Iterable[str]) -> str:
    if isinstance(value, str):
        return f"{name}: {_scalar(value)}\n"
    return f"{name}:\n" + "".join(f"- {_scalar(item)}\n" for item in value)


def _one_or_several(values: tuple[str, ...]) -> str | tuple[str, ...]:
    """Return a single value as a text, as most cards write it, several as they are."""
    return values[0] if len(values) == 1 else values


def _scalar(text: str) -> str:
    """Return the text plain if YAML reads the same text back, else in JSON's quotes, which YAML knows too."""
    plain = re.fullmatch(r"[A-Za-z][\w./+-]*", text, re.ASCII) and text.lower() not in _YAML_WORDS
    return text if plain else json.dumps(text)
